"""Kept rows are those of the plain greedy choice, found in few comparisons."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.ids import ids_from_bytes
from tasks.curate.leaders import MOST, Choice, by_rank, choice_borders, choose, choose_sharing, shared_buckets

quick = settings(deadline=None, max_examples=100)

Matrix = npt.NDArray[np.float64]


def greedy(keys: Matrix, similar: Matrix, threshold: float, most: int) -> list[dict[str, Any]]:
    """Decide row after row: what it is led by, and what it came nearest to."""
    lists: dict[tuple[int, int], list[int]] = {}
    verdicts = []
    for row in range(len(similar)):
        buckets = [(band, int(key)) for band, key in enumerate(keys[:, row])]
        met = sorted({other for bucket in buckets for other in lists.get(bucket, [])})
        near = [other for other in met if similar[other, row] >= threshold]
        far = [other for other in met if similar[other, row] < threshold]
        best = (max(each, key=lambda other: (similar[other, row], -other), default=-1) for each in (near, far))
        verdicts.append(dict(zip(("leader", "nearest"), best, strict=True)))
        if not near:
            for bucket in buckets:
                if len(lists.setdefault(bucket, [])) < most:
                    lists[bucket].append(row)
    return verdicts


@st.composite
def problems(draw: Callable[..., Any]) -> tuple[Matrix, Matrix]:
    """Rows in buckets (bands, n), and how similar they are (n, n), in few steps, so that there are ties."""
    rows, bands = draw(st.integers(1, 24)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    keys = random.integers(0, draw(st.integers(1, 8)), (bands, rows)).astype(np.uint64)
    steps = draw(st.integers(1, 6))
    half = np.triu(random.integers(0, steps + 1, (rows, rows)) / steps, 1)
    return keys, half + half.T


@settings(deadline=None, max_examples=400)
@given(problems(), st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.sampled_from([1, 2, 3, MOST]))
def test_the_choice_in_rounds_is_the_greedy_choice(problem: tuple[Any, Any], threshold: float, most: int) -> None:
    keys, similar = problem
    made = choose(len(similar), shared_buckets(keys), lambda left, right: similar[left, right], threshold, most)
    wanted = greedy(keys, similar, threshold, most)
    assert made.leader.tolist() == [each["leader"] for each in wanted]
    assert made.nearest.tolist() == [each["nearest"] for each in wanted]
    rows = np.arange(len(similar))
    for partner, value in ((made.leader, made.likeness), (made.nearest, made.closeness)):
        assert value.tolist() == np.where(partner >= 0, similar[partner, rows], -np.inf).tolist()


@quick
@given(problems(), st.sampled_from([0.3, 0.8]))
def test_no_two_kept_rows_of_a_bucket_are_similar_and_no_leader_is_dropped(
    problem: tuple[Any, Any], threshold: float
) -> None:
    keys, similar = problem
    made = choose(len(similar), shared_buckets(keys), lambda left, right: similar[left, right], threshold)
    kept = np.flatnonzero(made.leader < 0)
    for row in range(len(similar)):
        leader = made.leader[row]
        assert leader < row
        assert leader < 0 or (leader in kept and similar[leader, row] >= threshold)
    sharing = (keys[:, kept, None] == keys[:, None, kept]).any(0)
    assert not (sharing & (similar[np.ix_(kept, kept)] >= threshold)).any()


@quick
@given(problems())
def test_rows_that_share_no_bucket_are_kept_unseen(problem: tuple[Any, Any]) -> None:
    keys, similar = problem
    seen: list[int] = []

    def compare(those: npt.NDArray[np.int64]) -> Any:
        seen.extend(those.tolist())
        return lambda left, right: similar[those[left], those[right]]

    made = choose_sharing(len(similar), keys, compare, 0.5)
    whole = choose(len(similar), shared_buckets(keys), lambda left, right: similar[left, right], 0.5)
    assert all(np.array_equal(part, other) for part, other in zip(made, whole, strict=True))
    alone = [(keys == keys[:, [row]]).sum() == len(keys) for row in range(len(similar))]
    assert seen == [row for row, each in enumerate(alone) if not each]


@quick
@given(problems())
def test_buckets_are_the_keys_that_rows_share(problem: tuple[Any, Any]) -> None:
    keys, _ = problem
    shared = shared_buckets(keys)
    found: dict[int, list[int]] = {}
    for bucket, row in zip(*map(np.ndarray.tolist, shared), strict=True):
        found.setdefault(bucket, []).append(row)
    groups = [np.flatnonzero(band == key).tolist() for band in keys for key in np.unique(band)]
    assert list(found) == list(range(len(found)))
    assert list(found.values()) == [group for group in groups if len(group) > 1]


def test_no_rows_and_no_buckets_are_a_choice_too() -> None:
    for keys in ([], [np.empty(0, np.uint64)]):
        made = choose_sharing(0, keys, lambda those: lambda left, right: np.ones(len(left)), 0.5)
        assert (len(made.leader), made.compared) == (0, 0)


# ---- cost ----


@pytest.mark.timeout(60)
def test_a_bucket_of_50_000_like_rows_costs_one_comparison_for_each() -> None:
    rows = 50_000
    keys = np.zeros((18, rows), np.uint64)
    keys[1:, ::3] = np.arange(17 * len(keys[0, ::3]), dtype=np.uint64).reshape(17, -1) + np.uint64(1)
    made = choose(rows, shared_buckets(keys), lambda left, right: np.full(len(left), 0.9), 0.8)
    assert made.compared == rows - 1
    assert (made.leader[1:] == 0).all()


@pytest.mark.timeout(60)
def test_a_bucket_of_20_000_unlike_rows_is_compared_with_its_first_kept_rows_only() -> None:
    rows = 20_000
    made = choose(
        rows, shared_buckets(np.zeros((1, rows), np.uint64)), lambda left, right: np.full(len(left), 0.1), 0.8
    )
    assert made.compared == sum(rows - 1 - row for row in range(MOST))
    assert (made.leader < 0).all()
    assert made.full == 1
    assert made.nearest[1:].max() == 0  # among equals the best by rank


@pytest.mark.timeout(60)
def test_a_long_chain_of_buckets_is_decided_row_by_row() -> None:
    """Each row shares a bucket with the next alone, in the order of rank: as many rounds as rows."""
    rows = 2000
    keys = np.stack([np.arange(rows) // 2, (np.arange(rows) + 1) // 2]).astype(np.uint64)
    made = choose(rows, shared_buckets(keys), lambda left, right: np.ones(len(left)), 0.8)
    assert made.leader.tolist() == [-1 if row % 2 == 0 else row - 1 for row in range(rows)]


# ---- ranks and borders ----


@quick
@given(st.lists(st.tuples(st.integers(0, 2), st.binary(min_size=16, max_size=16)), unique_by=lambda row: row[1]))
def test_rows_are_ranked_by_source_then_by_the_bytes_of_their_ids(rows: list[tuple[int, bytes]]) -> None:
    storage = pa.array([b"-" * 16, *(each for _, each in rows)], pa.binary(16))[1:]
    order = by_rank(storage, np.array([rank for rank, _ in rows], np.int64))
    assert [rows[at] for at in order] == sorted(rows)


def test_borders_show_the_dropped_with_their_leaders_and_the_kept_with_what_they_came_near() -> None:
    choice = Choice(
        leader=np.array([-1, 0, -1, -1]),
        likeness=np.array([-np.inf, 0.85, -np.inf, -np.inf]),
        nearest=np.array([-1, -1, 0, -1]),
        closeness=np.array([-np.inf, -np.inf, 0.7, -np.inf]),
        compared=2,
        full=0,
    )
    ids = ids_from_bytes(b"".join(bytes([n]) * 16 for n in range(4)))
    lines = choice_borders(choice, ids.storage, "rule", 0.8).to_pylist()
    names = ids.to_pylist()
    common = {"rule": "rule", "threshold": 0.8, "detail": None}
    assert lines == [
        {"kept": False, "row_id": names[1], "value": 0.85, "partner": names[0], **common},
        {"kept": True, "row_id": names[2], "value": 0.7, "partner": names[0], **common},
    ]
