"""Sets of shingles, their similarity, and bands that like sets share as often as the formula says."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.curate.minhash import (
    BLOCK,
    FOUND,
    Sets,
    band_hashes,
    bands_for,
    cuts,
    jaccard,
    joined,
    probability,
    shingle_sets,
    signatures,
)

quick = settings(deadline=None, max_examples=100)

ROWS = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), min_size=1, max_size=8)


def sets_from(lists: list[list[int]]) -> Sets:
    """Make sets of hashes, which are drawn by number."""
    hashes = np.random.default_rng(5).integers(0, 1 << 48, 1 + max((max(each, default=0) for each in lists), default=0))
    rows = [np.sort(hashes[each].astype(np.uint64)) for each in lists]
    return joined([Sets(row, np.array([0, len(row)])) for row in rows])


def pairs_of(count: int, common: int, own: int) -> Sets:
    """Make pairs of sets, 2 i and 2 i + 1, which have so many elements in common, and so many each alone."""
    lists = []
    for start in range(0, count * (common + 2 * own), common + 2 * own):
        both = list(range(start, start + common))
        lists += [both + list(range(at, at + own)) for at in (start + common, start + common + own)]
    return sets_from(lists)


def plain_shingles(words: list[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + size]) for at in range(max(1, len(words) - size + 1))}


# ---- bands ----


@pytest.mark.parametrize(
    ("similarity", "bands", "rows", "chance"),
    [(1.0, 1, 9, 1.0), (0.0, 9, 1, 0.0), (0.5, 1, 1, 0.5), (0.5, 2, 1, 0.75), (0.5, 1, 2, 0.25), (0.8, 18, 7, 0.9855)],
)
def test_a_pair_shares_a_band_with_a_known_probability(similarity: float, bands: int, rows: int, chance: float) -> None:
    assert probability(similarity, bands, rows) == pytest.approx(chance, abs=5e-5)


@quick
@given(st.floats(0.1, 1), st.integers(34, 300))
def test_bands_find_the_threshold_with_as_many_rows_as_they_can(threshold: float, permutations: int) -> None:
    bands, rows = bands_for(threshold, permutations)
    assert bands * rows <= permutations < (bands + 1) * rows
    assert probability(threshold, bands, rows) >= FOUND
    for more in range(rows + 1, permutations + 1):
        assert probability(threshold, permutations // more, more) < FOUND


def test_the_defaults_give_18_bands_of_7() -> None:
    assert bands_for(0.8, 128) == (18, 7)
    assert bands_for(1.0, 128) == (1, 128)


@pytest.mark.parametrize(("common", "own"), [(80, 10), (60, 10), (70, 20), (50, 25)])
def test_pairs_share_a_band_as_often_as_the_formula_says(common: int, own: int) -> None:
    count = 2000
    sets = pairs_of(count, common, own)
    keys = band_hashes(signatures(sets, 126), 18)
    found = (keys[:, ::2] == keys[:, 1::2]).any(0).mean()
    chance = probability(common / (common + 2 * own), 18, 7)
    assert abs(found - chance) < 4.5 * np.sqrt(chance * (1 - chance) / count) + 1e-3


@pytest.mark.parametrize(("common", "own"), [(80, 10), (50, 25), (4, 2), (900, 300)])
def test_the_share_of_equal_minima_estimates_the_similarity_as_random_orders_would(common: int, own: int) -> None:
    """Mean J, and a variance of J (1 - J) / k: more would mean that the orders are alike."""
    count = 1000
    least = signatures(pairs_of(count, common, own), 128)
    shares = (least[:, ::2] == least[:, 1::2]).mean(0)
    similarity = common / (common + 2 * own)
    spread = similarity * (1 - similarity) / 128
    assert abs(shares.mean() - similarity) < 4.5 * np.sqrt(spread / count)
    assert 0.8 < shares.var() / spread < 1.25


@quick
@given(ROWS, st.integers(1, 3))
def test_a_signature_does_not_depend_on_the_sets_beside_it(rows: list[list[str]], size: int) -> None:
    sets = shingle_sets(pa.array([" ".join(row) for row in rows]), size)
    whole = signatures(sets, 6)
    for at in range(len(rows)):
        assert whole[:, at].tolist() == signatures(sets.take(np.array([at])), 6)[:, 0].tolist()


def test_a_set_larger_than_a_block_has_its_signature_too() -> None:
    large = np.arange(BLOCK + 5, dtype=np.uint64) * np.uint64(0x3779B1)
    sets = joined([sets_from([[1, 2], [3]]), Sets(large, np.array([0, len(large)])), sets_from([[1, 2], [4, 5]])])
    least = signatures(sets, 8)
    assert least[:, 0].tolist() == least[:, 3].tolist()
    assert least[:, 2].tolist() == signatures(sets.take(np.array([2])), 8)[:, 0].tolist()
    assert jaccard(sets, np.array([2, 0, 0]), np.array([2, 3, 4])).tolist() == [1.0, 1.0, 0.0]


def test_bands_are_equal_where_all_their_rows_are() -> None:
    draw = np.random.default_rng(3)
    least = draw.integers(0, 2, (6, 400), np.uint32)
    keys = band_hashes(least, 3)
    for band in range(3):
        rows = [tuple(column) for column in least[2 * band : 2 * band + 2].T.tolist()]
        assert len(set(zip(rows, keys[band].tolist(), strict=True))) == len(set(rows)) == len(set(keys[band].tolist()))


# ---- sets ----


@quick
@given(ROWS, st.integers(1, 5))
def test_sets_are_the_different_shingles_of_each_text(rows: list[list[str]], size: int) -> None:
    sets = shingle_sets(pa.array([" ".join(row) for row in rows]), size)
    wanted = [plain_shingles(row, size) for row in rows]
    assert sets.sizes.tolist() == [len(each) for each in wanted]
    for start, stop in zip(sets.bounds[:-1], sets.bounds[1:], strict=True):
        assert (np.diff(sets.elements[start:stop].astype(np.int64)) > 0).all()
    left, right = np.indices((len(rows), len(rows))).reshape(2, -1)
    exact = [len(wanted[a] & wanted[b]) / len(wanted[a] | wanted[b]) for a, b in zip(left, right, strict=True)]
    assert jaccard(sets, left, right).tolist() == exact


def test_a_text_without_words_has_no_shingles() -> None:
    assert shingle_sets(pa.array(["", "a b", "...", "c"]), 2).sizes.tolist() == [0, 1, 0, 1]
    assert shingle_sets(pa.array([], pa.string()), 2).sizes.tolist() == []


@quick
@given(st.lists(st.lists(st.integers(0, 9), unique=True, max_size=5), min_size=1, max_size=6), st.randoms())
def test_sets_are_taken_and_joined_in_any_order(lists: list[list[int]], random: Any) -> None:
    sets = sets_from(lists)
    which = [random.randrange(len(lists)) for _ in range(4)]
    taken = joined([sets.take(np.array(which[:2])), sets.take(np.array(which[2:]))])
    assert [each.tolist() for each in np.split(taken.elements, taken.bounds[1:-1])] == [
        sets.elements[sets.bounds[at] : sets.bounds[at + 1]].tolist() for at in which
    ]


@quick
@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 20))
def test_cuts_cover_everything_in_runs_within_bounds(sizes: list[int], most: int) -> None:
    runs = list(cuts(np.array(sizes, np.int64), most))
    assert [at for start, stop in runs for at in range(start, stop)] == list(range(len(sizes)))
    assert all(sum(sizes[start:stop]) <= most or stop == start + 1 for start, stop in runs)
