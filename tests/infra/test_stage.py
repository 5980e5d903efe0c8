"""A stage publishes once what its key describes, says why it must, and loses no row."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import Field, ValidationError

from data.artifact import Artifact
from data.conservation import ConservationError
from data.contracts import UNLABELLED, dropped_schema, failed_schema
from data.errors import BadInput
from data.fingerprint import NOT_IN_KEY
from data.ids import content_ids, row_ids
from infra.memo import Memo
from infra.settings import settings, use_settings
from infra.shards import Tables, Unfinished
from infra.stage import Measures, Parameters, Pending, Records, Reference, References, Rows, Run, current_run, stage
from infra.store import Store
from infra.work import Slice, Work

REPOSITORY = Path(__file__).parents[2]
CALLS: list[str] = []


class Words(Parameters):
    """What to write."""

    words: tuple[str, ...] = ("one", "two", "three")
    hurry: Annotated[int, NOT_IN_KEY] = Field(0)


class Keep(Parameters):
    """What to keep."""

    longest: int = 4


class Down(Parameters):
    """Which words cannot be asked about now."""

    down: Annotated[tuple[str, ...], NOT_IN_KEY] = ()


def rows_of(words: tuple[str, ...]) -> pa.Table:
    table = pa.table(
        {"text": pa.array(words, pa.string()), "source": ["words"] * len(words), "licence": ["CC0-1.0"] * len(words)}
    )
    contents = content_ids(table, UNLABELLED)
    return table.add_column(0, "content_id", contents).add_column(0, "row_id", row_ids("words", contents, {}))


@stage("exact", source=True)
def write(work: Work, parameters: Words) -> Measures:
    """Write each word as a row."""
    CALLS.append("write")
    work.write([rows_of(parameters.words)])
    return {"letters": float(sum(map(len, parameters.words)))}


@stage("exact")
def shorten(work: Work, parameters: Keep, rows: Rows) -> None:
    """Drop long words."""
    CALLS.append("shorten")
    table = rows.read()
    long = pc.greater(pc.utf8_length(table["text"]), parameters.longest)
    gone = table["row_id"].filter(long).combine_chunks()
    nothing = {"score": pa.nulls(len(gone), pa.float64()), "partner": pa.nulls(len(gone), pa.uuid())}
    reasons = {"reason": ["long"] * len(gone), **nothing, "detail": pa.nulls(len(gone), pa.string())}
    work.write([table.filter(pc.invert(long))])
    work.ledger("dropped", [pa.table({"row_id": gone, **reasons}, dropped_schema())])


@stage("exact")
def forget_one(work: Work, parameters: Keep, rows: Rows) -> Measures:
    """Lose the first row, without a word."""
    work.write([rows.read().slice(1)])
    return {}


@stage("exact")
def halve(work: Work, parameters: Keep, rows: Rows) -> Measures:
    """Divide the rows into two tables."""
    table = rows.read()
    work.write([table.slice(0, 1)], "first")
    work.write([table.slice(1)], "rest")
    return {}


@stage("float")
def measure(work: Work, parameters: Keep, rows: Reference, others: References, made: Records) -> Measures:
    """Compare a table with others, and write a page about how they were made."""
    (work.out / "page.html").write_text(" ".join([str(rows), *map(str, [*others, *made])]))
    return {"rows": float(rows.rows)}


@stage("exact", reads=lambda parameters: {"table": json.loads(Path(parameters.file).read_bytes())})
def copy_file(work: Work, parameters: "File") -> Measures:
    """Copy a file."""
    (work.out / "copy.json").write_bytes(Path(parameters.file).read_bytes())
    return {}


class File(Parameters):
    """Where a file is."""

    file: Annotated[str, NOT_IN_KEY]


@stage("exact")
def ask(work: Work, parameters: Down, rows: Rows) -> Measures:
    """Ask a server about each word, two by two."""
    work.keep(work.map(partial(answers, parameters.down), work.slices(rows, 2)))
    return {}


def answers(down: tuple[str, ...], rows: Slice) -> Tables:
    table = rows.read()
    CALLS.append(" ".join(table["text"].to_pylist()))
    lost = pc.is_in(table["text"], value_set=pa.array(down, pa.string()))
    ids = table["row_id"].filter(lost).combine_chunks()
    columns = {"row_id": ids, "error": ["timeout"] * len(ids), "location": pa.nulls(len(ids), pa.string())}
    return {"rows": table.filter(pc.invert(lost)), "transient": pa.table(columns, failed_schema())}


@pytest.fixture(autouse=True)
def store(tmp_path: Path) -> Iterator[Store]:
    CALLS.clear()
    with use_settings(store=tmp_path / "store", workers=1, accept_failed=False):
        yield Store(tmp_path / "store")


def walked(run: Run, *calls: Any) -> list[tuple[str, str, list[str]]]:
    """What became of each stage that was called in a run."""
    token = current_run.set(run)
    try:
        for call in calls:
            call()
    finally:
        current_run.reset(token)
    return [(step.stage, step.state, step.why) for step in run.steps]


def texts(artifact: Artifact) -> list[str]:
    words: list[str] = artifact.read()["text"].to_pylist()
    return words


# ---- once ----


def test_a_second_call_answers_from_the_store(store: Store) -> None:
    first = shorten(Keep(), write(Words()))
    again = shorten(Keep(), write(Words()))
    assert first == again
    assert CALLS == ["write", "shorten"]
    assert texts(first) == ["one", "two"]


def test_a_body_can_be_called_without_a_store(tmp_path: Path) -> None:
    work = Work(tmp_path, Memo(tmp_path / "memo"))
    work.begin()
    assert write.body(work, Words(words=("a",))) == {"letters": 1.0}
    assert [path.name for path in work.out.iterdir()] == ["rows-00000.parquet"]


def test_the_record_says_what_was_made_of_what(store: Store) -> None:
    written = write(Words())
    record = shorten(Keep(), written).record
    assert record["inputs"] == [
        {"name": "rows", "kind": "rows", "stage": "write", "fingerprint": written.fingerprint, "output": None,
         "digest": written.digest}
    ]  # fmt: skip
    assert record["measures"] == {
        "rows_in": 3, "rows_out": 2, "rows_created": 0, "rows_consumed": 0, "rows_dropped": 1, "rows_failed": 0
    }  # fmt: skip
    assert record["outputs"]["rows"]["contract"] == "unlabelled"
    assert record["outputs"]["dropped"]["rows"] == 1
    assert written.record["measures"]["letters"] == 11.0


def test_the_record_is_the_same_bytes_in_another_store(store: Store, tmp_path: Path) -> None:
    here = shorten(Keep(), write(Words(hurry=1)))
    with use_settings(store=tmp_path / "other"):
        there = shorten(Keep(), write(Words(hurry=2)))
    for name in ("record.json", "rows-00000.parquet", "dropped.parquet"):
        assert (there.path / name).read_bytes() == (here.path / name).read_bytes()
    assert (there.path / "run.json").read_bytes() != (here.path / "run.json").read_bytes()


def test_a_float_stage_records_its_machine(store: Store) -> None:
    written = write(Words())
    assert "environment" in measure(Keep(), written, [written], [written]).record
    assert "environment" not in written.record


# ---- why ----


def test_the_first_time_there_is_nothing_to_compare_with(store: Store) -> None:
    assert walked(Run("r", store), lambda: write(Words())) == [("write", "done", ["never made in this store"])]


def test_a_changed_parameter_is_named_with_both_values(store: Store) -> None:
    write(Words())
    steps = walked(Run("r", store), lambda: write(Words(words=("one", "four"))))
    assert steps == [("write", "done", ['parameter words: ["one", "two", "three"] -> ["one", "four"]'])]


def test_the_nearest_of_earlier_records_is_compared(store: Store) -> None:
    written = write(Words())
    for longest in (1, 2):
        shorten(Keep(longest=longest), written)
    other = write(Words(words=("a",)))
    shorten(Keep(longest=9), other)
    steps = walked(Run("r", store), lambda: shorten(Keep(longest=2), other))
    assert len(steps[0][2]) == 1


def test_a_changed_input_is_named(store: Store) -> None:
    shorten(Keep(), write(Words()))
    steps = walked(Run("r", store), lambda: shorten(Keep(), write(Words(words=("one",)))))
    assert steps[1] == ("shorten", "done", ["input rows changed"])


def test_a_changed_source_is_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text("1")
    copy_file(File(file=str(tmp_path / "file.json")))
    (tmp_path / "moved.json").write_text("1")
    (tmp_path / "other.json").write_text("2")
    steps = walked(
        Run("r", store),
        lambda: copy_file(File(file=str(tmp_path / "moved.json"))),
        lambda: copy_file(File(file=str(tmp_path / "other.json"))),
    )
    assert steps == [("copy_file", "cached", []), ("copy_file", "done", ["source table changed"])]


def test_what_is_not_in_the_key_makes_nothing_anew(store: Store) -> None:
    write(Words(hurry=1))
    assert walked(Run("r", store), lambda: write(Words(hurry=2))) == [("write", "cached", [])]


METHOD = '''
import json
from infra.stage import Measures, Parameters, Run, current_run, stage
from infra.store import current_store
from infra.work import Work

SUFFIX = "!"


class Nothing(Parameters):
    """No parameters."""


@stage("exact")
def shout(work: Work, parameters: Nothing) -> Measures:
    """Shout."""
    # loudly
    (work.out / "page.html").write_text("hello" + SUFFIX)
    return {}


def main():
    run = Run("r", current_store())
    current_run.set(run)
    shout(Nothing())
    print(json.dumps([[step.stage, step.state, step.why] for step in run.steps]))
'''


def shouted(folder: Path, text: str, start: str = "import shouting; shouting.main()") -> list[list[Any]]:
    """Write the method's file and run it in a process of its own: what became of its stage."""
    (folder / "shouting.py").write_text(text)
    asked = subprocess.run(
        [sys.executable, *([str(folder / "shouting.py")] if not start else ["-c", start])],
        env={
            **os.environ,
            "PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "STILLHOUSE_STORE": str(folder / "store"),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    steps: list[list[Any]] = json.loads(asked.stdout)
    return steps


def test_an_edited_comment_makes_nothing_anew(tmp_path: Path) -> None:
    assert shouted(tmp_path, METHOD)[0][1] == "done"
    edited = METHOD.replace("# loudly", "# very loudly").replace('"""Shout."""', '"""Shout it."""')
    assert shouted(tmp_path, edited) == [["shout", "cached", []]]


def test_edited_code_is_named_by_its_definition(tmp_path: Path) -> None:
    assert shouted(tmp_path, METHOD)[0][1] == "done"
    edited = METHOD.replace('"!"', '"?"')
    assert shouted(tmp_path, edited) == [["shout", "done", ["code: shouting, SUFFIX changed"]]]


def test_a_stage_may_stand_in_a_script(tmp_path: Path) -> None:
    script = METHOD + '\n\nif __name__ == "__main__":\n    main()\n'
    assert shouted(tmp_path, script, start="") == [["shout", "done", ["never made in this store"]]]


# ---- inputs and outputs ----


def test_each_output_has_a_digest_of_its_own_that_keys_what_reads_it(store: Store) -> None:
    one, other = (halve(Keep(), write(Words(words=words))) for words in (("a", "b"), ("a", "c")))
    assert one["first"].digest == other["first"].digest
    assert one["rest"].digest != other["rest"].digest
    assert texts(one["rest"]) == ["b"]
    shorten(Keep(), one["first"])
    steps = walked(Run("r", store), lambda: shorten(Keep(), other["first"]), lambda: shorten(Keep(), other["rest"]))
    assert [state for _, state, _ in steps] == ["cached", "done"]
    with pytest.raises(BadInput, match="one of first, rest"):
        one["last"]


def test_a_reference_counts_by_what_it_holds_and_a_record_by_how_it_was_made(store: Store) -> None:
    one, other = (shorten(Keep(longest=longest), write(Words(words=("a",)))) for longest in (1, 2))
    assert one.digest == other.digest
    assert one.fingerprint != other.fingerprint
    measure(Keep(), one, [one], [one])
    steps = walked(
        Run("r", store), lambda: measure(Keep(), other, [other], [one]), lambda: measure(Keep(), one, [one], [other])
    )
    assert [(state, why) for _, state, why in steps] == [("cached", []), ("done", ["input made 0 changed"])]


def test_parameters_are_frozen_and_know_their_keys() -> None:
    with pytest.raises(ValidationError):
        Keep.model_validate({"longets": 4})
    with pytest.raises(ValidationError):
        Keep().longest = 5  # type: ignore[misc]


# ---- conservation ----


def test_a_body_that_loses_a_row_publishes_nothing(store: Store) -> None:
    written = write(Words())
    with pytest.raises(ConservationError, match="1 rows: each came in but is not kept"):
        forget_one(Keep(), written)
    assert list(store.artifacts("forget_one")) == []
    assert walked(Run("r", store, planning=True), lambda: forget_one(Keep(), written))[0][1] == "to run"


# ---- planning ----


def test_a_plan_runs_nothing_and_knows_what_depends_on_what(store: Store) -> None:
    def flow() -> None:
        halves = halve(Keep(), shorten(Keep(), write(Words())))
        measure(Keep(), halves["first"], [halves["rest"]], [])

    assert walked(Run("p", store, planning=True), flow) == [
        ("write", "to run", ["never made in this store"]),
        ("shorten", "depends", ["depends on write"]),
        ("halve", "depends", ["depends on shorten"]),
        ("measure", "depends", ["depends on halve"]),
    ]
    assert CALLS == []
    assert not store.root.exists()
    walked(Run("r", store), flow)
    assert [state for _, state, _ in walked(Run("p", store, planning=True), flow)] == ["cached"] * 4


def test_what_stands_for_an_artifact_in_a_plan_is_pending(store: Store) -> None:
    run = Run("p", store, planning=True)
    walked(run, lambda: write(Words()))
    (step,) = run.steps
    assert isinstance(step.artifact, Pending)
    assert isinstance(step.artifact["rows"], Pending)


# ---- rows that fail for now ----


def test_rows_that_fail_for_now_keep_a_stage_from_being_published(store: Store) -> None:
    written = write(Words())
    with pytest.raises(Unfinished):
        ask(Down(down=("three",)), written)
    assert list(store.artifacts("ask")) == []
    assert texts(ask(Down(), written)) == ["one", "two", "three"]
    assert CALLS == ["write", "one two", "three", "three"]


def test_accepting_what_failed_goes_on_from_the_finished_shards_under_a_key_that_says_so(store: Store) -> None:
    written = write(Words())
    with pytest.raises(Unfinished):
        ask(Down(down=("three",)), written)
    with use_settings(accept_failed=True):
        steps = walked(Run("r", store), lambda: ask(Down(down=("three",)), write(Words())))
        assert [(name, state) for name, state, _ in steps] == [("write", "cached"), ("ask", "done")]
        accepted = ask(Down(down=("three",)), written)
    assert CALLS == ["write", "one two", "three", "three"]
    assert texts(accepted) == ["one", "two"]
    assert accepted.record["key"]["accept_failed"] is True
    assert accepted.record["measures"]["rows_failed"] == 1
    whole = ask(Down(), written)
    assert whole.fingerprint != accepted.fingerprint
    assert "accept_failed" not in whole.record["key"]


def test_accepting_when_nothing_failed_changes_nothing(store: Store) -> None:
    with use_settings(accept_failed=True):
        accepting = ask(Down(), write(Words()))
    assert settings().accept_failed is False
    assert walked(Run("r", store), lambda: ask(Down(), write(Words())))[1] == ("ask", "cached", [])
    assert "accept_failed" not in accepting.record["key"]
