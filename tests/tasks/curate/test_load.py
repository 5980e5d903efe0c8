"""Rows get their ids once, with source, licence and place; what cannot be read is kept with its error."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from data.artifact import SHARD_ROWS, Artifact
from data.errors import BadInput
from infra.settings import use_settings
from tasks.curate.load import LoadParameters, Source, load, source_digests

ROOT = Path(__file__).parents[3]
ROWS = [
    {"prompt": "two, three", "completion": 'a "quoted" word'},
    {"prompt": "é\nü", "completion": "  spaces\tand tabs "},
    {"prompt": "日本", "completion": "🦉"},
    {"prompt": "two, three", "completion": 'a "quoted" word'},
]
Write = Callable[[str, list[dict[str, Any]]], Path]


def parameters(*paths: Path, max_failed_share: float = 0.05, **source: Any) -> LoadParameters:
    given = {"licence": "MIT", "layout": "prompt-completion"} | source
    sources = [{"path": str(path), **given} for path in paths]
    return LoadParameters.model_validate({"sources": sources, "max_failed_share": max_failed_share})


def places(artifact: Artifact) -> list[tuple[str, int]]:
    origin = artifact["origin"].read()
    return list(zip(origin["file"].to_pylist(), origin["line"].to_pylist(), strict=True))


def failures(artifact: Artifact) -> dict[str, str]:
    table = artifact["failed"].read()
    return dict(zip(table["location"].to_pylist(), table["error"].to_pylist(), strict=True))


@pytest.mark.usefixtures("store")
def test_the_same_rows_have_the_same_ids_and_digest_in_every_format(write: Write) -> None:
    names = [f"talk.{kind}{end}" for kind in ("jsonl", "json", "csv", "parquet") for end in ("", ".gz", ".zst")]
    made = [load(parameters(write(name, ROWS))) for name in names]
    assert len({artifact.fingerprint for artifact in made}) == 12
    assert len({artifact["rows"].digest for artifact in made}) == 1
    for artifact, name in zip(made, names, strict=True):
        assert [file for file, _ in places(artifact)] == [name] * 4
        assert artifact.read(["prompt", "completion"]).to_pylist() == ROWS


@pytest.mark.usefixtures("store")
def test_a_folder_is_one_source_and_its_files_keep_their_names(write: Write, tmp_path: Path) -> None:
    for name in ("set/b.csv", "set/a.jsonl.gz", "set/deep/a.jsonl.gz"):
        write(name, ROWS[:2])
    made = load(parameters(tmp_path / "set"))
    assert places(made) == [
        ("a.jsonl.gz", 1), ("a.jsonl.gz", 2), ("b.csv", 2), ("b.csv", 3), ("deep/a.jsonl.gz", 1), ("deep/a.jsonl.gz", 2)
    ]  # fmt: skip
    assert set(made.read(["source"])["source"].to_pylist()) == {"set"}
    assert len(set(made.read(["row_id"])["row_id"].to_pylist())) == 6


@pytest.mark.usefixtures("store")
def test_a_change_in_any_file_of_a_folder_is_seen(write: Write, tmp_path: Path) -> None:
    """Also when two files of it have the same name."""
    for name in ("set/one/rows.jsonl", "set/two/rows.jsonl"):
        write(name, ROWS[:2])
    before = load(parameters(tmp_path / "set"))
    write("set/one/rows.jsonl", ROWS[2:])
    after = load(parameters(tmp_path / "set"))
    assert before.fingerprint != after.fingerprint
    assert after.read(["prompt", "completion"]).to_pylist() == [*ROWS[2:], *ROWS[:2]]


@pytest.mark.usefixtures("store")
def test_columns_are_mapped_kept_and_named(write: Write) -> None:
    rows = [{"question": "q", "answer": "a", "task": "sum", "level": 3, "more": None}]
    rows.append({"question": "r", "answer": "b", "more": True})
    path = write("a.jsonl", rows)
    mapped = load(
        parameters(path, columns={"prompt": "question", "completion": "answer"}, keep=["task", "level", "more"])
    )
    assert mapped.schema.names == [
        "row_id", "content_id", "prompt", "completion", "source", "licence", "task", "level", "more"
    ]  # fmt: skip
    row, other = mapped.read().to_pylist()
    assert (other["task"], other["level"], other["more"]) == (None, None, "True")
    assert (row["prompt"], row["completion"]) == ("q", "a")
    assert (row["task"], row["level"], row["more"]) == ("sum", "3", None)
    assert (row["source"], row["licence"]) == ("a", "MIT")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("layout", "record", "contract"),
    [
        ("prompt-completion", {"prompt": "p", "completion": "c"}, "prompt-completion"),
        ("alpaca", {"instruction": "p", "input": "", "output": "c"}, "prompt-completion"),
        ("messages", {"messages": [{"role": "user", "content": "p"}]}, "messages"),
        ("sharegpt", {"conversations": [{"from": "human", "value": "p"}]}, "messages"),
        ("preference", {"prompt": "p", "chosen": "c", "rejected": "r"}, "preference"),
        (
            "transcript",
            {"chosen": "\n\nHuman: p\n\nAssistant: c", "rejected": "\n\nHuman: p\n\nAssistant: r"},
            "preference",
        ),
        ("labelled", {"text": "t", "label": "l"}, "labelled"),
        ("unlabelled", {"text": "t"}, "unlabelled"),
    ],
)
def test_every_layout_becomes_rows_with_source_and_licence(
    write: Write, layout: str, record: dict[str, Any], contract: str
) -> None:
    made = load(parameters(write("a.jsonl", [record, record]), layout=layout, name="mine"))
    assert made.record["outputs"]["rows"]["contract"] == contract
    assert made.read(["source", "licence"]).to_pylist() == [{"source": "mine", "licence": "MIT"}] * 2
    assert len(set(made.read(["row_id"])["row_id"].to_pylist())) == 2
    assert len(set(made.read(["content_id"])["content_id"].to_pylist())) == 1


@pytest.mark.usefixtures("store")
def test_equal_rows_of_two_sources_stay_two_rows(write: Write) -> None:
    made = load(parameters(write("one.jsonl", ROWS), write("two.jsonl", ROWS)))
    table = made.read()
    assert len(set(table["row_id"].to_pylist())) == 8
    assert len(set(table["content_id"].to_pylist())) == 3
    assert table["source"].to_pylist() == ["one"] * 4 + ["two"] * 4


@pytest.mark.usefixtures("store")
def test_a_sources_ids_depend_on_its_name_and_rows_and_on_nothing_else(write: Write, tmp_path: Path) -> None:
    write("elsewhere/one.jsonl", ROWS)
    alone = load(parameters(write("one.jsonl", ROWS)))
    moved = load(parameters(tmp_path / "elsewhere" / "one.jsonl"))
    beside = load(parameters(write("two.jsonl", ROWS), tmp_path / "one.jsonl"))
    renamed = load(parameters(tmp_path / "one.jsonl", name="other"))
    ids = alone.read(["row_id"])["row_id"].to_pylist()
    assert moved.fingerprint == alone.fingerprint
    assert beside.read(["row_id"])["row_id"].to_pylist()[4:] == ids
    assert not set(ids) & set(renamed.read(["row_id"])["row_id"].to_pylist())


@pytest.mark.usefixtures("store")
def test_more_rows_than_a_shard_keep_their_order(write: Write) -> None:
    count = 2 * SHARD_ROWS + 3
    rows = [{"prompt": str(n), "completion": str(n % 7)} for n in range(count)]
    made = load(parameters(write("many.jsonl", rows)))
    assert [pq.ParquetFile(file).metadata.num_rows for file in made.files()] == [SHARD_ROWS, SHARD_ROWS, 3]
    assert made.read(["prompt"])["prompt"].to_pylist() == [str(n) for n in range(count)]
    assert places(made) == [("many.jsonl", n + 1) for n in range(count)]
    assert made["origin"].read(["row_id"])["row_id"].equals(made.read(["row_id"])["row_id"])
    assert made["rows"].digest == load(parameters(write("many.parquet", rows)))["rows"].digest


@pytest.mark.usefixtures("store")
def test_a_limit_counts_rows_over_all_files_of_a_source(write: Write, tmp_path: Path) -> None:
    write("set/a.jsonl", ROWS[:2])
    write("set/b.jsonl", ROWS[2:])
    write("set/c.jsonl", ROWS)
    assert places(load(parameters(tmp_path / "set", limit=3))) == [("a.jsonl", 1), ("a.jsonl", 2), ("b.jsonl", 1)]
    assert load(parameters(tmp_path / "set", limit=99)).rows == 8


# ---- rows that cannot be read --------------------------------------------------------------------------------


def broken_file(tmp_path: Path) -> Path:
    """Twenty good rows, and one of each fault, on the lines 3, 5, 7, 9 and 11."""
    faults = [b'{"prompt": "x", ', b"undefined", b"42", b'{"prompt": "\xff", "completion": "c"}', b'{"prompt": "x"}']
    good = [json.dumps({"prompt": f"p{n}", "completion": "c"}).encode() for n in range(20)]
    lines = good[:2]
    for n, fault in enumerate(faults):
        lines += [fault, good[2 + n]]
    path = tmp_path / "faulty.jsonl"
    path.write_bytes(b"\n".join([*lines, *good[7:]]))
    return path


@pytest.mark.usefixtures("store")
def test_broken_lines_fail_with_file_and_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    made = load(parameters(broken_file(tmp_path), max_failed_share=0.2))
    assert made.read(["prompt"])["prompt"].to_pylist() == [f"p{n}" for n in range(20)]
    failed = failures(made)
    assert sorted(failed) == sorted(f"faulty.jsonl:{line}" for line in (3, 5, 7, 9, 11))
    assert failed["faulty.jsonl:7"] == "a number, '42', where an object is wanted"
    assert "UTF-8" in failed["faulty.jsonl:9"] or "utf-8" in failed["faulty.jsonl:9"]
    assert failed["faulty.jsonl:11"] == "no column 'completion'; the row has prompt"
    assert [line for _, line in places(made)][:4] == [1, 2, 4, 6]
    measures = made.record["measures"]
    assert (measures["rows_out"], measures["rows_created"], measures["rows_failed"]) == (20, 20, 5)


@pytest.mark.usefixtures("store")
def test_past_the_share_the_load_fails_and_shows_the_first_faults(tmp_path: Path) -> None:
    path = broken_file(tmp_path)
    with pytest.raises(BadInput) as refused:
        load(parameters(path, max_failed_share=0.19))
    assert refused.value.found.startswith("5 of 25 rows could not be read: faulty.jsonl:3: ")
    assert "0.19" in refused.value.wanted
    assert "max_failed_share" in refused.value.remedy


@pytest.mark.usefixtures("store")
def test_renamed_columns_are_named_as_the_row_has_them(write: Write) -> None:
    with pytest.raises(BadInput, match="no column 'prompt'; the row has question, answer") as refused:
        load(parameters(write("a.jsonl", [{"question": "q", "answer": "a"}])))
    assert "columns" in refused.value.remedy


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_one_row_of_invalid_utf8_fails_alone(write: Write, kind: str) -> None:
    path = write(f"a.{kind}", [{"prompt": f"p{n}", "completion": "c"} for n in range(20)])
    path.write_bytes(path.read_bytes().replace(b"p7", b"p\xff"))
    made = load(parameters(path))
    assert made.rows == 19
    line = 8 if kind == "jsonl" else 9
    assert list(failures(made)) == [f"a.{kind}:{line}"]


@pytest.mark.usefixtures("store")
def test_rows_that_break_their_contract_fail_with_the_column(write: Write) -> None:
    good = {"messages": [{"role": "user", "content": "x"}]}
    wrong = [{"messages": []}, {"messages": [{"role": "robot", "content": "x"}]}]
    made = load(parameters(write("a.jsonl", [good, *wrong, good]), layout="messages", max_failed_share=0.5))
    failed = failures(made)
    assert failed["a.jsonl:2"] == "column 'messages' has no turns"
    assert failed["a.jsonl:3"].startswith("column 'messages' has a turn of role 'robot', not one of system, user")
    assert places(made) == [("a.jsonl", 1), ("a.jsonl", 4)]


@pytest.mark.usefixtures("store")
def test_two_equal_broken_lines_are_two_failures(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p", "completion": "c"}\nnonsense\nnonsense\n')
    made = load(parameters(path, max_failed_share=1))
    assert len(set(made["failed"].read(["row_id"])["row_id"].to_pylist())) == 2


@pytest.mark.usefixtures("store")
def test_values_that_json_cannot_hold_fail_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table(
            {
                "prompt": pa.array([None, "p"], pa.string()),
                "completion": pa.array(["c", "c"]),
                "raw": pa.array([b"\xff", b"\0"]),
                "big": pa.array([2**64 - 1, 0], pa.uint64()),
                "exact": pa.array([10**30, 0], pa.decimal128(38)),
            }
        ),
        path,
    )
    made = load(parameters(path, max_failed_share=0.5))
    assert failures(made) == {"a.parquet:1": "column 'prompt' holds nothing, not text"}


@pytest.mark.usefixtures("store")
def test_only_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n \n\n")
    with pytest.raises(BadInput, match="without a single row"):
        load(parameters(path, max_failed_share=1))


# ---- parameters ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("store")
def test_two_sources_of_one_name_or_of_two_contracts_are_refused(write: Write) -> None:
    path = write("a.jsonl", ROWS)
    with pytest.raises(BadInput, match="sources named a, a"):
        load(parameters(path, path))
    two = [{"path": str(path), "licence": "MIT", "layout": layout, "name": layout} for layout in ("alpaca", "messages")]
    with pytest.raises(BadInput, match="messages and prompt-completion rows"):
        load(LoadParameters.model_validate({"sources": two}))


@pytest.mark.parametrize("column", ["prompt", "row_id", "content_id", "source", "licence"])
def test_a_column_that_every_row_has_anyway_cannot_be_kept(tmp_path: Path, column: str) -> None:
    with pytest.raises(ValidationError, match=f"keep names {column}"):
        parameters(tmp_path / "a.jsonl", keep=[column])


def test_a_source_is_named_after_its_file_or_folder(tmp_path: Path) -> None:
    named = parameters(tmp_path / "a.jsonl.gz", tmp_path / "set", tmp_path / "b.c.csv").sources
    assert [source.name for source in named] == ["a", "set", "b"]


@pytest.mark.usefixtures("store")
def test_a_pinned_dataset_of_the_hub_needs_no_network_for_its_key() -> None:
    source = {"path": "hub:someone/rows", "licence": "MIT", "layout": "unlabelled", "revision": "0" * 40}
    hub = LoadParameters.model_validate({"sources": [source]})
    assert source_digests(hub) == {"rows": {"hub": "hub:someone/rows", "revision": "0" * 40}}


@pytest.mark.parametrize("revision", ["", "0" * 40])
def test_a_dataset_of_the_hub_without_a_network_says_what_to_do(store: Path, revision: str) -> None:
    """In a process of its own: the hub's library reads HF_HUB_OFFLINE once, when it is first imported."""
    source = {"path": "hub:someone/rows", "licence": "MIT", "layout": "unlabelled", "revision": revision}
    code = (
        "from data.errors import BadInput\n"
        "from tasks.curate.load import LoadParameters, load\n"
        "try:\n"
        f"    load(LoadParameters.model_validate({{'sources': [{source!r}]}}))\n"
        "except BadInput as error:\n"
        "    print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "STILLHOUSE_STORE": str(store), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert "hub:someone/rows" in done.stdout
    assert "or name a local file" in done.stdout


def test_a_column_to_keep_that_no_row_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "task": "x"}\n')
    source = Source(path=str(path), licence="CC0-1.0", layout="prompt-completion", keep=("taks",))
    with use_settings(store=tmp_path / "store"), pytest.raises(BadInput, match="without a value in taks"):
        load(LoadParameters(sources=(source,)))


@pytest.mark.usefixtures("store")
def test_a_column_may_lie_inside_lists_and_objects(loaded: Any) -> None:
    records = [
        {"q": "one", "instances": [{"output": "first"}, {"output": "second"}]},
        {"q": "two", "instances": [{"output": "only"}]},
        {"q": "three", "instances": [], "a.b": "flat"},
    ]
    columns = {"prompt": "q", "completion": "instances.0.output"}
    path = {"columns": columns}
    rows = loaded(records[:2], "nested", **path)
    assert rows.read(["completion"])["completion"].to_pylist() == ["first", "only"]
    assert loaded(records[2:], "flat", columns={"prompt": "q", "completion": "a.b"}).rows == 1
    with pytest.raises(BadInput, match="'completion' holds nothing"):
        loaded(records[2:], "none", **path)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(("name", "content"), [("blank.jsonl", "\n\n"), ("none.json", "[]"), ("head.csv", "prompt\n")])
def test_a_source_without_rows_is_refused_though_others_have_some(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "full.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    given = [
        {"path": str(tmp_path / each), "licence": "MIT", "layout": "prompt-completion"} for each in ("full.jsonl", name)
    ]
    with pytest.raises(BadInput) as refused:
        load(LoadParameters.model_validate({"sources": given}))
    assert name in refused.value.found and "full.jsonl" not in refused.value.found
