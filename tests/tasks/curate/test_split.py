"""Train or test is decided by a row's own id: rows that come later move nobody."""

import math
from collections.abc import Callable
from hashlib import blake2b
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.artifact import SHARD_ROWS, Artifact
from tasks.curate.split import SplitParameters, draw, split

Loaded = Callable[..., Artifact]
SIDES = ("train", "test")


def rows(start: int, stop: int) -> list[dict[str, str]]:
    return [{"prompt": str(n), "completion": "c"} for n in range(start, stop)]


def sides(parts: Artifact) -> dict[str, list[str]]:
    return {side: parts[side].read(["prompt"])["prompt"].to_pylist() for side in SIDES}


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**63))
def test_a_draw_is_a_number_from_the_id_and_the_seed(row: bytes, seed: int) -> None:
    assert 0 <= draw(row, seed) < 1
    assert draw(row, seed) == draw(bytes(row), seed)


@pytest.mark.parametrize("seed", [0, 1])
def test_draws_are_evenly_spread_and_differ_by_seed(seed: int) -> None:
    ids = [blake2b(str(n).encode(), digest_size=16).digest() for n in range(20_000)]
    drawn = sorted(draw(each, seed) for each in ids)
    # Kolmogorov-Smirnov: beyond 1.95 / sqrt(n) with a chance of one in a thousand
    assert max(abs(value - (at + 0.5) / len(ids)) for at, value in enumerate(drawn)) < 1.95 / math.sqrt(len(ids))
    first = [draw(each, seed) < 0.5 for each in ids]
    other = [draw(each, seed + 1) < 0.5 for each in ids]
    assert abs(sum(map(bool.__eq__, first, other)) / len(ids) - 0.5) < 0.02


def test_both_sides_together_are_all_rows_in_their_order(loaded: Loaded) -> None:
    count = SHARD_ROWS + 1000
    before = loaded(rows(0, count))
    parts = split(SplitParameters(test_share=0.2), before)
    found = sides(parts)
    assert sorted(int(each) for side in SIDES for each in found[side]) == list(range(count))
    assert all(int(a) < int(b) for side in SIDES for a, b in pairwise(found[side]))
    assert abs(len(found["test"]) / count - 0.2) < 5 * math.sqrt(0.2 * 0.8 / count)
    assert (parts["train"].rows, parts["test"].rows) == (len(found["train"]), len(found["test"]))
    assert parts["train"].schema == before.schema


def test_rows_that_come_later_move_nobody(loaded: Loaded) -> None:
    few, many = (sides(split(SplitParameters(), loaded(rows(0, count)))) for count in (300, 500))
    backwards = sides(split(SplitParameters(), loaded(rows(0, 500)[::-1])))
    for side in SIDES:
        assert [each for each in many[side] if int(each) < 300] == few[side]
        assert backwards[side] == many[side][::-1]


def test_a_larger_share_only_adds_and_another_seed_chooses_anew(loaded: Loaded) -> None:
    before = loaded(rows(0, 400))
    small, large = (set(sides(split(SplitParameters(test_share=share), before))["test"]) for share in (0.1, 0.3))
    other = set(sides(split(SplitParameters(seed=1), before))["test"])
    assert small < large
    assert small != other


def test_a_side_may_be_empty(loaded: Loaded) -> None:
    parts = split(SplitParameters(test_share=1e-9), loaded(rows(0, 3)))
    assert (parts["train"].rows, parts["test"].rows) == (3, 0)
    assert parts["test"].read().num_rows == 0
