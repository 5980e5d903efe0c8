"""What every selector shares: a budget in rows or tokens, a stable order, caps, and a reason for every row left out."""

import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.artifact import Artifact
from tasks.curate.selection import Pool, SelectParameters, caps, choose, rounded

few = settings(deadline=None, max_examples=60)
NOWHERE = Artifact("load", "0" * 32, Path())


def pool(sizes: list[int]) -> Pool:
    ids = [uuid.UUID(int=(n * 7919) % 1009 + 1).bytes for n in range(len(sizes))]
    return Pool(NOWHERE, pa.array(ids, pa.uuid()), np.array(sizes, np.int64))


sized = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), min_size=1, max_size=30)


@given(sized, st.integers(1, 100))
@few
def test_the_budget_is_kept_and_what_is_taken_is_the_top_of_one_order(rows: list[tuple[int, int]], budget: int) -> None:
    sizes, values = zip(*rows, strict=True)
    chosen = choose(pool(list(sizes)), np.array(values, float), budget)
    assert sorted(chosen.ranks.tolist()) == list(range(1, len(rows) + 1))
    taken = np.flatnonzero(chosen.selected)
    assert chosen.ranks[taken].max() == len(taken)
    spent = np.array(sizes)[taken].sum()
    assert spent <= budget or len(taken) == 1
    order = np.argsort(chosen.ranks)
    assert (np.diff(np.array(values)[order]) >= 0).all()
    if len(taken) < len(rows):
        assert spent + np.array(sizes)[order[len(taken)]] > budget


def test_equal_values_are_taken_by_row_id() -> None:
    rows = pool([1] * 20)
    chosen = choose(rows, np.zeros(20), 5)
    ids = rows.ids.storage.to_pylist()
    assert {ids[at] for at in np.flatnonzero(chosen.selected)} == set(sorted(ids)[:5])


def test_values_are_compared_after_rounding() -> None:
    assert rounded(np.array([0.12345649, -1e-9])).tolist() == [0.123456, 0.0]
    assert not np.signbit(rounded(np.array([-1e-9])))[0]


def test_rows_that_may_not_be_taken_never_are() -> None:
    chosen = choose(pool([1] * 6), np.arange(6.0), 10, eligible=np.array([False, True] * 3))
    assert chosen.selected.tolist() == [False, True] * 3
    assert not choose(pool([1]), np.zeros(1), 1, eligible=np.array([False])).selected.any()


@given(sized, st.integers(0, 3), st.floats(1, 12))
@few
def test_no_group_takes_more_than_its_cap_on_a_level(rows: list[tuple[int, int]], seed: int, most: float) -> None:
    sizes, groups = zip(*rows, strict=True)
    values = np.random.default_rng(seed).random(len(rows))
    levels = caps(pool(list(sizes)), values, np.array(groups), most)
    for group in set(groups):
        members = np.flatnonzero(np.array(groups) == group)
        members = members[np.argsort(values[members])]
        assert (np.diff(levels[members]) >= 0).all() and levels[members[0]] == 0
        for level in set(levels[members].tolist()):
            taken = [sizes[at] for at in members if levels[at] == level]
            assert sum(taken[:-1]) <= most  # only the last may reach over it


def test_a_better_level_comes_first_and_a_budget_goes_on_to_the_next() -> None:
    rows, values, groups = pool([1] * 6), np.arange(6.0), np.array([0, 0, 0, 1, 1, 1])
    levels = caps(rows, values, groups, 2)
    assert levels.tolist() == [0, 0, 1, 0, 0, 1]
    assert choose(rows, values, 4, levels).selected.tolist() == [True, True, False, True, True, False]
    assert choose(rows, values, 5, levels).selected.tolist() == [True, True, True, True, True, False]


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        SelectParameters(budget=0)
