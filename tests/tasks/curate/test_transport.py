"""Transport: the laws of its potentials, against closed forms, finite differences and POT."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import ot
import pytest
import torch  # noqa: F401 - loaded before its threads are held
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from infra.shards import one_thread
from tasks.curate.select_ot import calibrated
from tasks.curate.transport import (
    Points,
    SemiDual,
    Target,
    label_costs,
    potentials,
    squared_distances,
    streamed,
    temperature,
    transform,
)

few = settings(deadline=None, max_examples=10)
Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True, scope="module")
def single() -> Iterator[None]:
    """One thread, as in a stage: two on a busy machine take many times as long as one."""
    with one_thread():
        yield


def cloud(n: int, d: int = 8, seed: int = 0, shift: float = 0.0) -> Array:
    return (np.random.default_rng(seed).normal(size=(n, d)) + shift).astype(np.float32)


def clusters(n: int, d: int, seed: int, centres: Array) -> Array:
    draw = np.random.default_rng(seed)
    return (centres[draw.integers(len(centres), size=n)] + 0.3 * draw.normal(size=(n, d))).astype(np.float32)


def by_pot(pool: Array, target: Array, epsilon: float) -> tuple[Array, float]:
    """Converged entropic potentials of the pool, and the transport cost with its entropy term."""
    n, m = len(pool), len(target)
    costs = squared_distances(pool, target).astype(np.float64)
    _, log = ot.sinkhorn(
        np.full(n, 1 / n), np.full(m, 1 / m), costs, epsilon, numItermax=20_000, stopThr=1e-12, log=True
    )
    f, g = epsilon * np.log(log["u"] * n), epsilon * np.log(log["v"] * m)
    return f, float(f.mean() + g.mean())


def solved(pool: Array, target: Array, epsilon: float, tolerance: float = 1e-6) -> tuple[Array, Array, float]:
    g, _ = SemiDual(Points(pool), Target(Points(target), epsilon)).maximise(tolerance=tolerance)
    f = transform(Points(pool), Target(Points(target), epsilon), g, []).potentials[:, 0]
    return f, g, float(f.mean() + g.mean())


# ---- against POT -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 5.0])
def test_potentials_are_those_of_converged_entropic_transport(epsilon: float) -> None:
    pool, target = cloud(120, seed=1), cloud(90, seed=2, shift=0.5)
    theirs, cost = by_pot(pool, target, epsilon)
    ours, _, value = solved(pool, target, epsilon)
    assert np.abs((ours - ours.mean()) - (theirs - theirs.mean())).max() < 5e-3  # potentials span 20
    assert value == pytest.approx(cost, abs=1e-3)


def test_a_large_problem_is_solved_from_a_stream_with_nearly_the_same_order() -> None:
    centres = np.random.default_rng(0).normal(size=(12, 16))
    pool, target = clusters(6000, 16, 1, centres), clusters(600, 16, 2, centres[:7])
    problem = Target(Points(target), temperature(pool[:2000], target, 0.03))
    both = [transform(Points(pool), problem, find(Points(pool), problem), []) for find in (potentials, streamed)]
    assert not np.array_equal(both[0].potentials, both[1].potentials)
    assert spearmanr(*(each.potentials[:, 0] for each in both))[0] > 0.98


# ---- laws --------------------------------------------------------------------------------------------------


def test_transport_of_a_set_to_itself_costs_nothing_but_entropy() -> None:
    points = cloud(50)
    exact = ot.emd2([], [], squared_distances(points, points).astype(np.float64))
    assert exact == pytest.approx(0, abs=1e-5)
    shuffled = points[np.random.default_rng(0).permutation(50)]
    values = [solved(points, each, 1.0)[2] for each in (points, shuffled)]
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    assert values[0] > 0.1  # entropic transport to itself is not 0: only its debiased form is


def test_a_shift_of_everything_adds_its_square() -> None:
    points, shift = cloud(60), np.array([1.5] + [0.0] * 7, np.float32)
    still, moved = solved(points, points, 2.0)[2], solved(points + shift, points, 2.0)[2]
    assert moved - still == pytest.approx(1.5**2, abs=2e-3)


def test_scaling_scales_costs_by_the_square() -> None:
    pool, target = cloud(40, seed=3), cloud(40, seed=4)
    assert solved(3 * pool, 3 * target, 9.0)[2] == pytest.approx(9 * solved(pool, target, 1.0)[2], rel=1e-3)


@given(st.integers(0, 1000), st.floats(-5, 5))
@few
def test_a_constant_moved_from_one_side_to_the_other_changes_nothing(seed: int, constant: float) -> None:
    pool, target = Points(cloud(30, seed=seed)), Target(Points(cloud(20, seed=seed + 1)), 1.0)
    g = np.random.default_rng(seed).normal(size=20)
    before, after = (transform(pool, target, each, []) for each in (g, g + constant))
    assert np.allclose(after.potentials, before.potentials - constant, atol=1e-4)
    assert np.array_equal(before.pulled, after.pulled)
    assert np.allclose(before.costs, after.costs, atol=1e-4)
    assert np.allclose(calibrated(before.potentials), calibrated(after.potentials), atol=1e-4)


def test_marginals_are_met_and_potentials_are_a_fixed_point() -> None:
    pool, target = cloud(80, seed=5), cloud(60, seed=6)
    f, g, _ = solved(pool, target, 1.0, tolerance=1e-5)
    plan = np.exp((f[:, None] + g - squared_distances(pool, target)) / 1.0) / 80 / 60
    assert np.abs(plan.sum(1) - 1 / 80).sum() < 1e-5
    assert np.abs(plan.sum(0) - 1 / 60).sum() < 1e-4


def test_the_calibrated_value_is_the_derivative_when_mass_moves_to_one_row() -> None:
    pool, target, step = cloud(25, seed=7), cloud(20, seed=8), 1e-4
    costs = squared_distances(pool, target).astype(np.float64)

    def cost(weights: Array) -> float:
        plan, _ = ot.sinkhorn(weights, np.full(20, 1 / 20), costs, 2.0, stopThr=1e-13, numItermax=20_000, log=True)
        return float((plan * costs).sum() + 2.0 * (plan * np.log(plan / (weights[:, None] / 20))).sum())

    f, _, _ = solved(pool, target, 2.0)
    values = calibrated(f[:, None])[:, 0]
    for row in (0, 11):
        moved = [np.full(25, (1 - (1 / 25 + sign * step)) / 24) for sign in (1, -1)]
        for weights, sign in zip(moved, (1, -1), strict=True):
            weights[row] = 1 / 25 + sign * step
        slope = (cost(moved[0]) - cost(moved[1])) / (2 * step)
        assert values[row] == pytest.approx(slope, abs=5e-3)


def test_a_rows_bits_do_not_depend_on_its_neighbours() -> None:
    pool, target = cloud(1000, d=32), Target(Points(cloud(300, d=32, seed=1)), 0.5)
    g = np.random.default_rng(0).normal(size=300)
    parts = [(slice(0, 100), g[:100]), (slice(100, 300), g[100:])]
    whole = transform(Points(pool), target, g, parts)
    for places in (np.array([17]), np.arange(3, 700, 7)):
        part = transform(Points(pool[places]), target, g, parts)
        assert np.array_equal(part.potentials, whole.potentials[places])
        assert np.array_equal(part.pulled, whole.pulled[places])
        assert np.array_equal(part.nearest, whole.nearest[places])


def test_the_row_that_pulls_is_the_one_of_least_cost_less_potential() -> None:
    pool, target = cloud(40), cloud(30, seed=1)
    g = np.random.default_rng(2).normal(size=30)
    passed = transform(Points(pool), Target(Points(target), 1.0), g, [])
    costs = squared_distances(pool, target)
    assert np.array_equal(passed.pulled, (costs - g).argmin(1))
    assert np.array_equal(passed.nearest, costs.argmin(1))
    assert np.allclose(passed.costs, costs.min(1), atol=1e-4)


def test_equal_rows_have_a_temperature_too() -> None:
    points = np.ones((5, 3), np.float32)
    assert temperature(points, points, 0.03) == 0.03
    f, _, value = solved(points, points, 0.03)
    assert np.isfinite(f).all() and value == pytest.approx(0, abs=1e-5)


# ---- labels ------------------------------------------------------------------------------------------------


def test_the_cost_between_labels_is_that_between_their_clouds() -> None:
    left, right = cloud(30, seed=1), cloud(30, seed=1, shift=2.0)
    points = Points(np.concatenate([left, right]), np.repeat([0, 1], 30))
    costs = label_costs(points, points)
    assert costs[0, 0] == pytest.approx(0, abs=1e-5)
    assert costs[0, 1] == pytest.approx(8 * 2.0**2, rel=1e-3)  # a shift by 2 in each of 8 dimensions


def test_wrong_labels_are_found_by_the_potential_only_if_the_cost_knows_labels() -> None:
    draw = np.random.default_rng(3)
    means = draw.normal(size=(5, 16)) * 1.2
    labels, wanted = draw.integers(5, size=1000), draw.integers(5, size=600)
    pool = (means[labels] + draw.normal(size=(1000, 16))).astype(np.float32)
    target = (means[wanted] + draw.normal(size=(600, 16))).astype(np.float32)
    flipped = draw.random(1000) < 0.1
    seen = np.where(flipped, (labels + draw.integers(1, 5, size=1000)) % 5, labels)

    def found(weight: float) -> float:
        points, other = Points(pool, seen), Points(target, wanted)
        problem = Target(other, 0.5, weight * label_costs(points, other) if weight else None)
        g, _ = SemiDual(points, problem).maximise()
        f = transform(points, problem, g, []).potentials[:, 0]
        ranks = f.argsort().argsort()
        return float((ranks[flipped].mean() - ranks[~flipped].mean()) / 1000 + 0.5)  # area under the ROC curve

    assert abs(found(0.0) - 0.5) < 0.07
    assert found(1.0) > 0.75


# ---- several sources ---------------------------------------------------------------------------------------


def test_cost_is_convex_in_the_shares_and_least_where_the_gap_says() -> None:
    draw = np.random.default_rng(0)
    pool = np.concatenate([cloud(60, seed=k, shift=shift) for k, shift in enumerate((-1.0, 0.0, 1.0))])
    problem = SemiDual(Points(pool), Target(Points(cloud(80, seed=9, shift=0.4)), 1.0), np.repeat([0, 1, 2], 60))

    def cost(shares: Array) -> float:
        g, fixed = problem.maximise(shares=shares, damping=1e6, tolerance=1e-6)
        assert np.allclose(fixed, shares, atol=1e-4)
        return float(fixed @ problem.evaluate(g)[0])

    for _ in range(5):
        p, q = draw.dirichlet(np.ones(3)), draw.dirichlet(np.ones(3))
        assert cost((p + q) / 2) <= (cost(p) + cost(q)) / 2 + 1e-4


def test_a_sources_mean_potential_is_the_derivative_of_the_cost_in_its_share() -> None:
    pool = np.concatenate([cloud(50, seed=1, shift=-0.5), cloud(70, seed=2, shift=0.5)])
    problem = SemiDual(Points(pool), Target(Points(cloud(60, seed=3)), 2.0), np.repeat([0, 1], [50, 70]))

    def at(share: float) -> tuple[float, Array]:
        g, shares = problem.maximise(shares=np.array([share, 1 - share]), damping=1e6, tolerance=1e-7)
        means, _ = problem.evaluate(g)
        return float(shares @ means), means

    step = 1e-2
    slope = (at(0.4 + step)[0] - at(0.4 - step)[0]) / (2 * step)
    means = at(0.4)[1]
    assert slope == pytest.approx(float(means[0] - means[1]), abs=2e-3)
