"""A row id is given once: by source, content and occurrence; a created row's by method, parents and ordinal."""

import os
import subprocess
import sys
import uuid
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from data.contracts import UNLABELLED
from data.ids import content_ids, created_id, ids_from_bytes, lots, row_ids, sortable

REPOSITORY = Path(__file__).parents[2]
quick = settings(deadline=None, max_examples=60)
parents = st.lists(st.binary(min_size=16, max_size=16), max_size=4)


def contents(*texts: str) -> pa.Array:
    return content_ids(pa.table({"text": pa.array(texts, pa.string())}), UNLABELLED)


def named(source: str, *texts: str) -> list[uuid.UUID]:
    ids: list[uuid.UUID] = row_ids(source, contents(*texts), {}).to_pylist()
    return ids


def test_equal_rows_of_two_sources_differ() -> None:
    assert not set(named("left", "a", "b")) & set(named("right", "a", "b"))


def test_equal_rows_of_one_source_differ_by_their_occurrence() -> None:
    assert len(set(named("books", "a", "a", "a"))) == 3


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(0, 12))
@quick
def test_the_count_of_occurrences_is_carried_from_chunk_to_chunk(texts: list[str], cut: int) -> None:
    seen: dict[bytes, int] = {}
    first, second = (row_ids("books", contents(*part), seen).to_pylist() for part in (texts[:cut], texts[cut:]))
    assert [*first, *second] == named("books", *texts)


@given(st.lists(st.text(max_size=3), max_size=8), st.text(min_size=4, max_size=6), st.integers(0, 8))
@quick
def test_a_new_row_renames_no_other(texts: list[str], new: str, at: int) -> None:
    assert set(named("books", *texts)) < set(named("books", *texts[:at], new, *texts[at:]))


def test_the_golden_row_id_stays() -> None:
    assert [str(each) for each in named("quickstart", "a", "a")] == [
        "543241fb-ca14-7ed1-03c9-c031a9f5664e",
        "ead03f87-8314-b976-1d3e-1661c3f5f208",
    ]


def test_row_ids_do_not_depend_on_the_hash_seed() -> None:
    ask = (
        "import pyarrow as pa; from data.contracts import UNLABELLED; from data.ids import content_ids, row_ids;"
        "t = pa.table({'text': ['a', 'b', 'a']}); print(row_ids('s', content_ids(t, UNLABELLED), {}).to_pylist())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", ask],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert told == {f"{named('s', 'a', 'b', 'a')}\n"}


@given(parents, st.randoms())
@quick
def test_the_order_of_parents_does_not_matter(ids: list[bytes], random: Random) -> None:
    shuffled = list(ids)
    random.shuffle(shuffled)
    assert created_id("pair", ids, 3) == created_id("pair", shuffled, 3)


@given(parents, st.integers(0, 9), st.integers(0, 9))
@quick
def test_method_and_ordinal_tell_siblings_apart(ids: list[bytes], one: int, other: int) -> None:
    assert (created_id("pair", ids, one) == created_id("pair", ids, other)) == (one == other)
    assert created_id("pair", ids, one) != created_id("merge", ids, one)


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=5))
@quick
def test_bytes_become_the_uuids_that_they_are(raw: list[bytes]) -> None:
    assert [each.bytes for each in ids_from_bytes(b"".join(raw)).to_pylist()] == raw


def test_a_lot_depends_on_id_and_seed_alone_and_is_drawn_evenly() -> None:
    ids = ids_from_bytes(Random(0).randbytes(16 * 10_000))
    drawn = lots(ids, 7)
    assert np.array_equal(lots(ids.slice(123, 50), 7), drawn[123:173])
    assert len(set(drawn.tolist())) == 10_000
    other = lots(ids, 8)
    for values in (drawn, other, drawn ^ other):
        counts = np.bincount((values >> np.uint64(60)).astype(int), minlength=16)
        assert counts.min() > 500 and counts.max() < 750  # 625 expected, standard deviation 24
    near = [ids_from_bytes((n).to_bytes(16, "big")) for n in range(64)]  # ids that differ in few bits
    assert len({int(lots(each, 0)[0]) >> 40 for each in near}) == 64


@given(st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=20))
@quick
def test_ids_are_sorted_as_their_bytes_are(raw: list[bytes]) -> None:
    values = sortable(ids_from_bytes(b"".join(raw)))
    assert [raw[at] for at in np.argsort(values, kind="stable")] == sorted(raw)
