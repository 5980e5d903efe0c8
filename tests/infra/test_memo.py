"""The memo: what is paid for once is found again by content, and a broken or missing segment only costs time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.ids import sortable
from infra.memo import Memo

REPOSITORY = Path(__file__).parents[2]


def ids(*numbers: int) -> pa.Array:
    return pa.array([number.to_bytes(16, "big") for number in numbers], pa.uuid())


def values(*numbers: int) -> pa.Table:
    return pa.table({"content_id": ids(*numbers), "value": pa.array([number * 10 for number in numbers])})


@given(st.lists(st.lists(st.integers(0, 2**128 - 1), min_size=1, max_size=8, unique=True), max_size=5), st.data())
@settings(deadline=None, max_examples=30)
def test_what_was_added_is_found_in_any_order(parts: list[list[int]], data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        memo = Memo(Path(folder) / "memo")
        known: set[int] = set()
        for part in parts:
            memo.add(pa.table({"content_id": ids(*part), "value": pa.array([str(each) for each in part])}))
            known |= set(part)
        index = memo.index()
        asked = data.draw(st.lists(st.sampled_from(sorted(known)), max_size=12)) if known else []
        assert (index.find(sortable(ids(*known, 0, 5))) >= 0).tolist()[: len(known)] == [True] * len(known)
        if asked:
            assert memo.take(index, sortable(ids(*asked)))["value"].to_pylist() == [str(each) for each in asked]


def test_nothing_is_found_in_an_empty_memo(tmp_path: Path) -> None:
    memo = Memo(tmp_path / "memo")
    assert memo.index().find(sortable(ids(1, 2))).tolist() == [-1, -1]


def test_ids_that_end_in_zeros_are_told_apart(tmp_path: Path) -> None:
    memo = Memo(tmp_path)
    memo.add(pa.table({"content_id": ids(1 << 64, 1 << 72), "value": ["short", "long"]}))
    index = memo.index()
    assert memo.take(index, sortable(ids(1 << 72, 1 << 64)))["value"].to_pylist() == ["long", "short"]
    assert (index.find(sortable(ids(1 << 64, 1 << 72, 1 << 80))) >= 0).tolist() == [True, True, False]


def test_the_same_values_added_twice_are_one_segment(tmp_path: Path) -> None:
    memo = Memo(tmp_path)
    memo.add(values(1, 2))
    memo.add(values(1, 2))
    assert len(list(tmp_path.glob("*.arrow"))) == 1


def test_contents_in_two_segments_are_found_once(tmp_path: Path) -> None:
    memo = Memo(tmp_path)
    memo.add(values(1, 2))
    memo.add(values(2, 3))
    assert memo.take(memo.index(), sortable(ids(2, 3, 1)))["value"].to_pylist() == [20, 30, 10]


@pytest.mark.parametrize("damage", [b"", b"ARROW1\0\0 and then nothing of use"])
def test_a_broken_segment_is_removed(tmp_path: Path, damage: bytes) -> None:
    memo = Memo(tmp_path)
    memo.add(values(1, 2))
    memo.add(values(3))
    broken = sorted(tmp_path.glob("*.arrow"))[0]
    broken.write_bytes(damage)
    found = memo.index().find(sortable(ids(1, 2, 3)))
    assert not broken.exists()
    assert sorted((found >= 0).tolist()) in ([False, False, True], [False, True, True])


def test_lists_of_numbers_keep_their_bits(tmp_path: Path) -> None:
    memo, matrix = Memo(tmp_path), np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), 3)
    memo.add(pa.table({"content_id": ids(*range(5)), "vector": lists}))
    taken = memo.take(memo.index(), sortable(ids(4, 0)))["vector"]
    assert np.array_equal(np.array(taken.to_pylist(), np.float32), matrix[[4, 0]])


EMBED = """
import sys
from infra.store import current_store
from tasks.curate.load import LoadParameters, Source, load
from tasks.curate.embed import EmbedParameters, embed

current_store().prepare()
rows = load(LoadParameters(sources=(Source(path=sys.argv[1], licence="CC0-1.0", layout="unlabelled"),)))
print(embed(EmbedParameters(), rows)["embeddings"].digest)
"""


def test_a_kill_loses_only_what_was_in_flight(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"text": "row {n}"}}\n' for n in range(25_000)))  # three chunks

    def run(store: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        own = {"PYTHONPATH": str(REPOSITORY), "STILLHOUSE_STORE": str(tmp_path / store), "STILLHOUSE_WORKERS": "1"}
        command = [sys.executable, "-c", EMBED, str(file)]
        everything = {**os.environ, **own, **environment}
        return subprocess.run(command, env=everything, capture_output=True, text=True, check=False)

    whole = run("undisturbed")
    assert whole.returncode == 0, whole.stderr
    killed = run("killed", STILLHOUSE_FAILPOINT="memo:2")
    assert killed.returncode == -signal.SIGKILL
    [segment] = (tmp_path / "killed").glob(".memo/embed-*/*.arrow")
    before = segment.stat()
    again = run("killed")
    assert again.stdout == whole.stdout
    assert "10,000 of 25,000 rows are remembered" in again.stderr
    assert (segment.stat().st_ino, segment.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
