"""The plane: principal components as a library finds them, but the same bits whatever the order or the machine."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluate.plane import plane_of, principal_axes, whole

Array = np.ndarray[Any, Any]


def cloud(n: int = 400, d: int = 24, seed: int = 0) -> Array:
    """Points that vary most in two directions."""
    draw = np.random.default_rng(seed)
    turned = np.linalg.qr(draw.standard_normal((d, d)))[0]
    return (draw.standard_normal((n, d)) * np.r_[1.0, 0.6, np.full(d - 2, 0.1)] @ turned + 0.3).astype(np.float32)


def all_of(vectors: Array) -> Array:
    return np.ones(len(vectors), bool)


@pytest.mark.parametrize("seed", range(4))
def test_the_plane_is_that_of_the_singular_values(seed: int) -> None:
    vectors = cloud(seed=seed)
    plane = plane_of(vectors, all_of(vectors))
    centred = vectors.astype(np.float64) - vectors.astype(np.float64).mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    wanted = u[:, :2] * s[:2]
    wanted /= np.abs(wanted).max()
    for axis in (0, 1):
        sign = np.sign(wanted[:, axis] @ plane.points[:, axis])
        assert np.abs(sign * wanted[:, axis] - plane.points[:, axis]).max() < 0.005
    assert plane.share == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), abs=0.002)
    assert plane.points[:, 0].std() > plane.points[:, 1].std()


def test_points_move_with_their_rows(seed: int = 1) -> None:
    vectors = cloud()
    order = np.random.default_rng(seed).permutation(len(vectors))
    plane, shuffled = plane_of(vectors, all_of(vectors)), plane_of(vectors[order], all_of(vectors))
    assert np.array_equal(plane.points[order], shuffled.points)
    assert plane.share == shuffled.share
    assert np.array_equal(plane.points, plane_of(vectors * np.float32(2**-9), all_of(vectors)).points)


def test_what_is_not_fitted_changes_neither_the_middle_nor_the_axes() -> None:
    vectors = cloud()
    fitted = all_of(vectors)
    fitted[300:] = False
    other = vectors.copy()
    other[300:] = other[300:][::-1] * 0.9
    plane, changed = plane_of(vectors, fitted), plane_of(other, fitted)
    scale = np.abs(changed.points[:300]).max() / np.abs(plane.points[:300]).max()
    assert np.abs(plane.points[:300] * scale - changed.points[:300]).max() < 0.003
    assert plane.share == changed.share


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 5))
def test_points_stay_within_one_of_the_middle(n: int, d: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    plane = plane_of(vectors, all_of(vectors))
    assert plane.points.shape == (n, 2)
    assert np.abs(plane.points).max() <= 1 and np.isfinite(plane.points).all()
    assert 0 <= plane.share <= 1
    assert np.array_equal(plane.points, np.round(plane.points, 3))


@pytest.mark.parametrize("vectors", [np.zeros((5, 4)), np.ones((3, 2)), np.eye(6), np.empty((0, 4)), np.ones((1, 1))])
def test_vectors_without_a_direction_have_a_plane_too(vectors: Array) -> None:
    plane = plane_of(vectors.astype(np.float32), all_of(vectors))
    assert np.isfinite(plane.points).all() and 0 <= plane.share <= 1


def test_axes_are_at_right_angles_and_their_largest_entry_is_positive() -> None:
    vectors = cloud(d=50).astype(np.float64)
    first, second = principal_axes(whole(np.cov(vectors.T), 20)).T
    assert abs(first @ second) < 1e-5 * np.linalg.norm(first) * np.linalg.norm(second)
    for axis in (first, second):
        assert axis[np.abs(axis).argmax()] > 0
        assert np.array_equal(axis, np.rint(axis))


def test_sums_are_exact_so_that_no_machine_adds_them_up_otherwise() -> None:
    """Whole numbers stay below 2^53 with as many and as long vectors as there may be."""
    vectors = np.sign(np.random.default_rng(0).standard_normal((8192, 64)))
    steps = whole(vectors, 14)
    spread = steps.T @ steps
    exact = [[int(a) for a in row] for row in spread[:3, :3]]
    columns = [[int(value) for value in steps[:, at]] for at in range(3)]
    assert exact == [[sum(x * y for x, y in zip(a, b, strict=True)) for b in columns] for a in columns]
    assert spread.max() < 2**53
