"""A build that anyone can rebuild: what is published is made again, and what was tampered with is named."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from data.artifact import Artifact
from flows.__main__ import main
from infra.settings import use_settings
from infra.shards import write_table
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.deduplicate import DeduplicateParameters, deduplicate
from tasks.curate.embed import EmbedParameters, embed
from tasks.curate.load import LoadParameters, load
from tasks.curate.shuffle import ShuffleParameters, shuffle
from tasks.curate.split import SplitParameters, split

ROOT = Path(__file__).parents[2]
CHAIN = ["load", "clean", "deduplicate", "split"]
Verify = Callable[..., tuple[int, dict[str, Any]]]


def lines() -> list[str]:
    """Rows that are kept, edited, dropped and failed."""
    rows = [{"prompt": f"p {n} ", "completion": f"answer {n}"} for n in range(60)]
    rows += [rows[3], {"prompt": " ", "completion": "x"}, {"prompt": "long" * 30, "completion": "x"}]
    return [*map(json.dumps, rows), "{"]


def build(folder: Path) -> None:
    """Curate the rows of a folder's file into its store: one artifact of each stage."""
    source = {"path": str(folder / "rows.jsonl"), "licence": "CC0-1.0", "layout": "prompt-completion"}
    with use_settings(store=folder / "store", workers=1):
        rows = load(LoadParameters.model_validate({"sources": [source], "max_failed_share": 0.1}))
        cleaned = clean(CleanParameters(max_characters=100), rows)
        unique = deduplicate(DeduplicateParameters(), cleaned)
        parts = split(SplitParameters(test_share=0.3), unique)
        made = [
            rows,
            cleaned,
            unique,
            parts,
            embed(EmbedParameters(), unique),
            shuffle(ShuffleParameters(), parts["train"]),
        ]
    return {each.stage: each for each in made}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    (folder / "rows.jsonl").write_text("\n".join(lines()) + "\n")
    build(folder)
    return folder


@pytest.fixture
def made(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Artifact]:
    """A copy of the store, to be spoilt; its source lies where it lay."""
    shutil.copytree(built / "store", tmp_path / "store")
    monkeypatch.setenv("STILLHOUSE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("STILLHOUSE_WORKERS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    found = [path.parent for path in (tmp_path / "store").glob("*/*/record.json")]
    return {each.parent.name: Artifact(each.parent.name, each.name, each) for each in found}


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Verify:
    """Run the command with --json: its exit code and its answer; nothing may be left behind."""

    def verify(artifact: Artifact, *arguments: str) -> tuple[int, dict[str, Any]]:
        code = main(["verify", artifact.fingerprint, *arguments, "--json"])
        out, err = capsys.readouterr()
        assert not list((tmp_path / "scratch").iterdir())
        assert code in (0, 1), err
        return code, json.loads(out)

    return verify


def states(answer: dict[str, Any]) -> dict[str, str]:
    return {each["stage"]: each["state"] for each in answer["stages"]}


def of(answer: dict[str, Any], stage: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in answer["stages"] if each["stage"] == stage)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["verify", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "found:" in err
    return err


def rewrite(file: Path, table: pa.Table) -> None:
    """Publish another table in place of one; shards are hard links, so the old file is not written into."""
    file.unlink()
    write_table(table, file)


def edit_json(file: Path, **changes: Any) -> None:
    held = json.loads(file.read_bytes())
    file.write_text(json.dumps(held | changes))


# ---- what is as it was ----


def test_a_dataset_is_made_again_to_the_byte(made: dict[str, Artifact], verify: Verify) -> None:
    code, answer = verify(made["split"])
    assert code == 0
    assert answer["artifact"] == f"split/{made['split'].fingerprint}"
    assert states(answer) == dict.fromkeys(CHAIN, "same")
    assert {each["bytes"] for each in answer["stages"]} == {"same"}
    assert not any(each["faults"] or each["changed"] or each["tables"] for each in answer["stages"])


def test_a_table_and_a_tag_of_it_are_verified_whole(
    made: dict[str, Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tag", f"{made['split'].fingerprint}:train", "book"]) == 0
    assert main(["verify", "book@v1"]) == 0
    out, said = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[2:]] == CHAIN
    assert "making 4 artifacts again" in said
    assert "trained" not in said


def test_rows_made_of_a_named_table_and_values_by_a_model_are_made_again(
    made: dict[str, Artifact], verify: Verify
) -> None:
    for name in ("shuffle", "embed"):
        code, answer = verify(made[name])
        assert code == 0
        assert set(states(answer).values()) == {"same"}
        assert answer["stages"][-1]["stage"] == name


def test_verifying_changes_nothing_in_the_store(made: dict[str, Artifact], verify: Verify, tmp_path: Path) -> None:
    def everything() -> dict[str, tuple[int, int]]:
        files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}

    before = everything()
    verify(made["embed"], "--replay")
    assert everything() == before


# ---- sources ----


@pytest.fixture
def moved(made: dict[str, Artifact], built: Path, tmp_path: Path) -> Path:
    """A copy of the source in another place."""
    (tmp_path / "elsewhere").mkdir()
    return Path(shutil.copy(built / "rows.jsonl", tmp_path / "elsewhere" / "rows.jsonl"))


def test_a_source_may_have_moved(made: dict[str, Artifact], verify: Verify, moved: Path) -> None:
    code, answer = verify(made["split"], "--source", f"rows={moved}")
    assert code == 0
    assert set(states(answer).values()) == {"same"}


def test_one_flipped_byte_of_a_source_is_named_with_its_row(
    made: dict[str, Artifact], verify: Verify, moved: Path
) -> None:
    held = bytearray(moved.read_bytes())
    at = held.index(b"answer 17")
    held[at] ^= 0x20
    moved.write_bytes(held)
    code, answer = verify(made["split"], "--source", f"rows={moved}")
    assert code == 1
    assert states(answer) == dict.fromkeys(CHAIN, "DIFFERENT")
    loaded = of(answer, "load")
    assert loaded["changed"] == ["source rows rows.jsonl changed"]
    rows = next(each for each in loaded["tables"] if each["table"] == "rows")
    old = made["load"].read()
    row = old["row_id"][pc.index(old["completion"], "answer 17").as_py()].as_py()
    assert rows["what"] == "1 only in the published table; 1 only in the rebuilt table"
    assert rows["rows"] == 2
    assert rows["row_ids"][0] == str(row)
    assert of(answer, "clean")["changed"] == ["input rows changed"]


def test_a_source_that_is_gone_is_bad_input_and_says_what_to_do(
    made: dict[str, Artifact], built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (built / "rows.jsonl").rename(built / "aside")
    try:
        said = refused(capsys, made["split"].fingerprint)
    finally:
        (built / "aside").rename(built / "rows.jsonl")
    assert "cannot read its source" in said
    assert "--source NAME=PATH" in said


@pytest.mark.parametrize(
    ("given", "said"), [("other=x", "one of rows"), ("rows", "--source NAME=PATH"), ("=x", "--source NAME=PATH")]
)
def test_a_source_that_nothing_reads_is_refused(
    given: str, said: str, made: dict[str, Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, made["split"].fingerprint, "--source", given)


def test_a_source_that_cannot_be_loaded_any_more_stops_what_depends_on_it(
    made: dict[str, Artifact], verify: Verify, moved: Path
) -> None:
    moved.write_text("{\n" * 64)
    code, answer = verify(made["split"], "--source", f"rows={moved}")
    assert code == 1
    assert states(answer) == dict.fromkeys(CHAIN, "not rebuilt")
    assert "could not be read" in of(answer, "load")["faults"][0]
    assert of(answer, "clean")["faults"] == ["depends on load"]


# ---- what was tampered with ----


def test_one_value_changed_in_a_published_table_is_named(made: dict[str, Artifact], verify: Verify) -> None:
    file = made["clean"].path / "rows-00000.parquet"
    table = pq.read_table(file)
    texts = table["completion"].to_pylist()
    texts[5] = "tampered"
    rewrite(file, table.set_column(table.schema.get_field_index("completion"), "completion", pa.array(texts)))
    code, answer = verify(made["split"])
    assert code == 1
    assert states(answer) == {name: "DIFFERENT" if name == "clean" else "same" for name in CHAIN}
    wrong = of(answer, "clean")
    assert wrong["faults"] == ["what it holds is not what its record says: rows"]
    (finding,) = wrong["tables"]
    assert (finding["table"], finding["rows"], finding["columns"]) == ("rows", 1, ["completion"])
    assert finding["row_ids"] == [str(table["row_id"][5].as_py())]


def test_a_row_taken_out_of_a_ledger_is_named(made: dict[str, Artifact], verify: Verify) -> None:
    file = made["clean"].path / "dropped.parquet"
    table = pq.read_table(file)
    assert len(table) == 2
    rewrite(file, table.slice(1))
    code, answer = verify(made["clean"])
    assert code == 1
    (finding,) = of(answer, "clean")["tables"]
    assert (finding["table"], finding["what"]) == ("dropped", "1 only in the rebuilt table")
    assert finding["row_ids"] == [str(table["row_id"][0].as_py())]


def test_the_same_rows_in_other_bytes_are_named(made: dict[str, Artifact], verify: Verify) -> None:
    file = made["clean"].path / "rows-00000.parquet"
    table = pq.read_table(file)
    file.unlink()
    pq.write_table(table, file, compression="none")
    code, answer = verify(made["clean"])
    assert code == 1
    wrong = of(answer, "clean")
    assert (wrong["tables"], wrong["bytes"]) == ([], "other")
    assert wrong["faults"] == ["equal content in other bytes: rows-00000.parquet"]


def test_bytes_by_another_pyarrow_are_not_compared(made: dict[str, Artifact], verify: Verify) -> None:
    file = made["clean"].path / "rows-00000.parquet"
    table = pq.read_table(file)
    file.unlink()
    pq.write_table(table, file, compression="none")
    record = made["clean"].path / "record.json"
    edit_json(record, packages=json.loads(record.read_bytes())["packages"] | {"pyarrow": "1.0"})
    code, answer = verify(made["clean"])
    assert code == 0
    assert of(answer, "clean")["bytes"].startswith("not compared: pyarrow 1.0 then")


def test_a_damaged_file_is_named(made: dict[str, Artifact], verify: Verify) -> None:
    file = made["deduplicate"].path / "rows-00000.parquet"
    held = file.read_bytes()
    file.unlink()
    file.write_bytes(held[: len(held) // 2])
    code, answer = verify(made["split"])
    assert code == 1
    assert states(answer) == {name: "DIFFERENT" if name == "deduplicate" else "same" for name in CHAIN}
    assert "cannot be read" in of(answer, "deduplicate")["faults"][0]


def test_a_parameter_changed_in_a_record_is_named(made: dict[str, Artifact], verify: Verify) -> None:
    file = made["clean"].path / "record.json"
    record = json.loads(file.read_bytes())
    record["key"]["parameters"]["max_characters"] = 99
    file.write_text(json.dumps(record))
    code, answer = verify(made["split"])
    assert code == 1
    assert states(answer) == {name: "DIFFERENT" if name == "clean" else "same" for name in CHAIN}
    wrong = of(answer, "clean")
    assert "the key has another fingerprint" in wrong["faults"][0]
    assert wrong["changed"] == ["parameter max_characters: 99 -> 100"]


def test_a_parameter_changed_in_what_a_run_kept_is_named(made: dict[str, Artifact], verify: Verify) -> None:
    file = made["clean"].path / "run.json"
    edit_json(file, parameters={"min_characters": 1, "max_characters": 200})
    code, answer = verify(made["clean"])
    assert code == 1
    wrong = of(answer, "clean")
    assert "its record and its run.json have different parameters" in wrong["faults"]
    assert {each["table"]: each["what"] for each in wrong["tables"]} == {
        "dropped": "1 only in the published table", "rows": "1 only in the rebuilt table"
    }  # fmt: skip


def test_a_changed_measure_is_named(made: dict[str, Artifact], verify: Verify) -> None:
    file = made["clean"].path / "record.json"
    edit_json(file, measures=json.loads(file.read_bytes())["measures"] | {"rows_edited": 1.0})
    code, answer = verify(made["clean"])
    assert code == 1
    assert of(answer, "clean")["faults"] == ["measure rows_edited: 1 published, 61 rebuilt"]


# ---- floats ----


def shift(made: dict[str, Artifact], by: float) -> str:
    """Shift one number of the embeddings, in table and record; return the row's id."""
    file = made["embed"].path / "embeddings-00000.parquet"
    table = pq.read_table(file)
    vectors = np.array(table["vector"].to_pylist(), np.float32)
    vectors[7, 0] += by
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    rewrite(file, table.set_column(1, "vector", column))
    return str(table["row_id"][7].as_py())


def say_so(made: dict[str, Artifact]) -> None:
    """Write into the record what the folder holds, as another kind of machine would have."""
    from infra.stage import describe_outputs

    edit_json(made["embed"].path / "record.json", outputs=describe_outputs(made["embed"].path))


def test_floats_within_the_tolerance_are_accepted_and_said(made: dict[str, Artifact], verify: Verify) -> None:
    row = shift(made, 5e-5)
    say_so(made)
    code, answer = verify(made["embed"])
    assert code == 0
    assert answer["fine"]
    found = of(answer, "embed")
    assert (found["state"], found["bytes"]) == ("within tolerance", "other")
    assert found["tables"] == [
        {
            "table": "embeddings", "near": True, "what": "1 with other values within the tolerance", "rows": 1,
            "row_ids": [row], "columns": ["vector"],
        }
    ]  # fmt: skip


def test_floats_beyond_the_tolerance_are_different(made: dict[str, Artifact], verify: Verify) -> None:
    row = shift(made, 0.01)
    say_so(made)
    code, answer = verify(made["embed"])
    assert code == 1
    found = of(answer, "embed")
    assert (found["state"], found["faults"]) == ("DIFFERENT", [])
    assert (found["tables"][0]["what"], found["tables"][0]["row_ids"]) == ("1 with other values", [row])


def test_replaying_takes_the_memo_and_not_the_model(made: dict[str, Artifact], verify: Verify, tmp_path: Path) -> None:
    (segment,) = (tmp_path / "store" / ".memo").glob("*/*.arrow")
    with pa.memory_map(str(segment)) as file:
        held = pa.ipc.open_file(file).read_all()
        vectors = np.array(held["vector"].to_pylist(), np.float32)
    vectors[:, 0] += 0.01
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    changed = held.set_column(held.schema.get_field_index("vector"), "vector", column)
    segment.unlink()
    with pa.OSFile(str(segment), "wb") as sink, pa.ipc.new_file(sink, changed.schema) as writer:
        writer.write_table(changed)
    assert verify(made["embed"])[0] == 0
    code, answer = verify(made["embed"], "--replay")
    assert code == 1
    rows = made["deduplicate"].record["outputs"]["rows"]["rows"]
    assert (states(answer)["embed"], of(answer, "embed")["tables"][0]["rows"]) == ("DIFFERENT", rows)


# ---- what cannot be verified ----


def test_what_kept_no_parameters_is_bad_input(made: dict[str, Artifact], capsys: pytest.CaptureFixture[str]) -> None:
    file = made["clean"].path / "run.json"
    held = json.loads(file.read_bytes())
    del held["parameters"]
    file.write_text(json.dumps(held))
    assert "did not keep all parameters" in refused(capsys, made["split"].fingerprint)
    file.unlink()
    assert "did not keep all parameters" in refused(capsys, made["split"].fingerprint)


def test_parameters_that_a_stage_no_longer_takes_are_bad_input(
    made: dict[str, Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(made["clean"].path / "run.json", parameters={"min_characters": 1, "longest": 5})
    assert "made with the parameter longest = 5" in refused(capsys, made["split"].fingerprint)


def test_an_ancestor_that_is_gone_is_bad_input(made: dict[str, Artifact], capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(made["clean"].path)
    said = refused(capsys, made["split"].fingerprint)
    assert f"clean/{made['clean'].fingerprint}" in said


def test_a_stage_that_this_checkout_lacks_is_bad_input(
    made: dict[str, Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((made["clean"].path / "record.json").read_bytes())
    folder = made["clean"].path.parents[1] / "wash" / ("0" * 32)
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record | {"stage": "wash", "fingerprint": "0" * 32}))
    assert "the stage 'wash'" in refused(capsys, "wash/" + "0" * 32)


# ---- code and processes ----


def in_a_copy(folder: Path, made: dict[str, Artifact], edit: Callable[[Path], None]) -> tuple[int, dict[str, Any]]:
    """Verify by the code of an edited copy of the rooms."""
    for room in ("flows", "tasks", "infra", "data"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    edit(folder)
    program = "import sys; from flows.__main__ import main; sys.exit(main(sys.argv[1:]))"
    ran = subprocess.run(
        [sys.executable, "-c", program, "verify", made["split"].fingerprint, "--json"],
        env={**os.environ, "PYTHONPATH": str(folder)}, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.stdout, ran.stderr
    return ran.returncode, json.loads(ran.stdout)


def replace(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert text.count(before) == 1
    file.write_text(text.replace(before, after))


def test_changed_code_with_another_result_names_its_function(made: dict[str, Artifact], tmp_path: Path) -> None:
    def edit(folder: Path) -> None:
        replace(folder / "tasks" / "curate" / "clean.py", '"row too long"', '"row much too long"')

    code, answer = in_a_copy(tmp_path / "copy", made, edit)
    assert code == 1
    assert states(answer) == {name: "DIFFERENT" if name == "clean" else "same" for name in CHAIN}
    wrong = of(answer, "clean")
    assert wrong["changed"] == ["code: tasks.curate.clean, out_of_bounds changed"]
    assert [(each["table"], each["columns"]) for each in wrong["tables"]] == [("dropped", ["reason"])]


def test_changed_code_with_the_same_result_is_the_same_and_said(made: dict[str, Artifact], tmp_path: Path) -> None:
    def edit(folder: Path) -> None:
        replace(folder / "tasks" / "curate" / "clean.py", "def out_of_bounds", "UNUSED = 1\n\n\ndef out_of_bounds")

    code, answer = in_a_copy(tmp_path / "copy", made, edit)
    assert code == 0
    assert set(states(answer).values()) == {"same"}
    assert of(answer, "clean")["changed"] == ["code: tasks.curate.clean, UNUSED is new"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_verification_leaves_nothing(made: dict[str, Artifact], tmp_path: Path, number: int) -> None:
    """Stopped while it loads a source long enough to be caught at it: its temporary store is there then."""
    (tmp_path / "elsewhere").mkdir()
    source = tmp_path / "elsewhere" / "rows.jsonl"
    source.write_bytes(b'{"prompt": "p", "completion": "c"}\n' * 300_000)
    command = [sys.executable, "-m", "flows", "verify", made["split"].fingerprint, "--source", f"rows={source}"]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    scratch = tmp_path / "scratch"
    while not list(scratch.glob("stillhouse-verify-*/.work/load-*/parsed/00001")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert out == b""
    assert not list(scratch.iterdir())
