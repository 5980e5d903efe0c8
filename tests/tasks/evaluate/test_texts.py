"""Texts of rows: found by id wherever they stand, and not shown where personal data was found."""

import json
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.artifact import Artifact
from tasks.evaluate.texts import HIDDEN, inputs_of, texts_of


def table(folder: Path, numbers: range, word: str, shard: int = 4) -> Artifact:
    """Write rows with these numbers as ids, in files of a few rows."""
    folder.mkdir()
    for at in range(0, len(numbers), shard):
        some = numbers[at : at + shard]
        ids = pa.array([uuid.UUID(int=n).bytes for n in some], pa.uuid())
        rows = pa.table({"row_id": ids, "text": [f"{word} {n}" for n in some], "source": ["s"] * len(some)})
        pq.write_table(rows, folder / f"rows-{at // shard:05}.parquet")
    return Artifact("stage", "0" * 32, folder)


def named(texts: dict[uuid.UUID, str]) -> dict[int, str]:
    return {row.int: text for row, text in texts.items()}


def test_each_text_is_of_the_first_table_that_has_it(tmp_path: Path) -> None:
    first, second = table(tmp_path / "a", range(10), "first"), table(tmp_path / "b", range(5, 15), "second")
    wanted = [uuid.UUID(int=n) for n in (12, 3, 7, 99, 3)]
    assert named(texts_of([first, second], wanted)) == {12: "text: second 12", 3: "text: first 3", 7: "text: first 7"}
    assert named(texts_of([second, first], wanted))[7] == "text: second 7"
    assert texts_of([], wanted) == texts_of([first], []) == {}


def test_ids_that_end_in_zeros_are_told_apart(tmp_path: Path) -> None:
    rows = table(tmp_path / "a", range(0, 1024, 256), "row")
    assert named(texts_of([rows], [uuid.UUID(int=256)])) == {256: "text: row 256"}


def test_what_is_private_is_not_shown(tmp_path: Path) -> None:
    rows, private = table(tmp_path / "a", range(10), "row"), table(tmp_path / "b", range(4, 6), "secret")
    found = named(texts_of([rows], [uuid.UUID(int=n) for n in (3, 4)], [private]))
    assert found == {3: "text: row 3", 4: HIDDEN}


def test_inputs_are_tables_of_rows_that_are_still_there(curation: Any) -> None:
    assert [each.stage for each in inputs_of(curation.clear, "rows")] == ["deduplicate"]
    assert [each.fingerprint for each in inputs_of(curation.clear, "reference")] == [curation.evaluation.fingerprint]
    assert [each.stage for each in inputs_of(curation.chosen, "rows", "reference")] == ["deduplicate_semantic", "clean"]


@pytest.mark.parametrize(("outputs", "there"), [({"rows": {"contract": "unlabelled"}}, 1), ({}, 0), (None, 0)])
def test_what_is_no_table_of_rows_or_no_longer_there_is_left_out(
    tmp_path: Path, outputs: dict[str, Any] | None, there: int
) -> None:
    made, before = tmp_path / "stage" / "1", tmp_path / "before" / "2"
    made.mkdir(parents=True)
    named = {"kind": "rows", "stage": "before", "fingerprint": "2", "output": None}
    (made / "record.json").write_text(json.dumps({"inputs": [named]}))
    if outputs is not None:
        before.mkdir(parents=True)
        (before / "record.json").write_text(json.dumps({"outputs": outputs}))
    assert len(inputs_of(Artifact("stage", "1", made), "rows")) == there
