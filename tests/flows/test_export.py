"""An exported dataset: what `datasets.load_dataset` reads, what its card says, and what it does not say."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data.artifact import Artifact
from data.contracts import LABELLED
from data.errors import BadInput
from data.fingerprint import file_digest
from data.ids import content_ids, created_id, ids_from_bytes
from flows.__main__ import main
from infra.card import hub_licence, size_category, without_content, without_places
from infra.export import export
from infra.export_dataset import spelt, write_files
from infra.settings import use_settings
from infra.stage import Measures, Parameters, Rows, stage
from infra.store import Store, current_store
from infra.work import Work
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.deduplicate import DeduplicateParameters, deduplicate
from tasks.curate.load import LoadParameters, load
from tasks.curate.split import SplitParameters, split

ROOT = Path(__file__).parents[2]
PRIVATE = "jane-doe-private"


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.chdir(tmp_path)
    with use_settings(store=tmp_path / "store", workers=1):
        yield current_store()


def source(
    name: str, rows: list[dict[str, Any] | str], licence: str, layout: str = "prompt-completion"
) -> dict[str, str]:
    path = Path(PRIVATE, f"{name}.jsonl")
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in rows))
    return {"path": str(path.absolute()), "licence": licence, "layout": layout}


def row(prompt: str, completion: str = "c") -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def loaded(*sources: dict[str, str]) -> Artifact:
    return load(LoadParameters.model_validate({"sources": sources, "max_failed_share": 0.5}))


@pytest.fixture
def dataset(store: Store) -> Artifact:
    """Two sources of different licences, with rows that are dropped and rows that fail; split in two."""
    first = [row(f"p{n}") for n in range(30)] + [row("p1"), row(" "), "{", '"Jane Doe, 5 Elm Street"']
    second = [row(f"q | {n} <b>") for n in range(12)] + [row("x" * 90)]
    rows = loaded(source("book", first, "CC-BY-4.0"), source("talk", second, "Proprietary 1"))
    unique = deduplicate(DeduplicateParameters(), clean(CleanParameters(max_characters=50), rows))
    return split(SplitParameters(test_share=0.3), unique)


def read(folder: Path, *arguments: str) -> dict[str, Any]:
    """What `datasets` reads, in a process of its own, without a network and with a cache of its own."""
    program = (
        "import datasets, json, sys; "
        "found = datasets.load_dataset(*sys.argv[1:]); "
        "print(json.dumps({name: {'features': {k: str(v) for k, v in each.features.items()}, 'rows': list(each)} "
        "for name, each in found.items()}))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder.parent / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), *arguments],
        env=environment, cwd=folder.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def header(folder: Path) -> dict[str, Any]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    parsed: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return parsed


def table_under(folder: Path, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading of the card."""
    text = (folder / "README.md").read_text(encoding="utf-8").partition(f"{heading}\n")[2]
    lines = re.search(r"(?:^\|.*\n)+", text, re.M)
    assert lines
    cells = [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in lines[0].splitlines()]
    return [cells[0], *cells[2:]]


# ---- what is read ----


def test_datasets_reads_the_same_rows(store: Store, dataset: Artifact, tmp_path: Path) -> None:
    export(store, dataset, tmp_path / "out")
    found = read(tmp_path / "out")
    assert set(found) == {"train", "test"}
    for name, each in found.items():
        wanted = dataset[name].read().to_pylist()
        assert each["rows"] == [
            {**line, "row_id": str(line["row_id"]), "content_id": str(line["content_id"])} for line in wanted
        ]
        assert len(wanted) > 5
        assert set(each["features"].values()) == {"Value('string')"}


def test_one_table_alone_and_conversations_are_read_and_an_empty_table_is_not(store: Store, tmp_path: Path) -> None:
    talks = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(3)
    ]
    parts = split(SplitParameters(test_share=1e-9), loaded(source("talks", talks, "MIT", "messages")))
    assert (parts["train"].rows, parts["test"].rows) == (3, 0)
    export(store, parts, tmp_path / "both")
    found = read(tmp_path / "both")
    assert {name: len(each["rows"]) for name, each in found.items()} == {"train": 3}
    assert [line[:3:2] for line in table_under(tmp_path / "both", "# split")[1:]] == [["test", "0"], ["train", "3"]]
    with pytest.raises(BadInput, match="holds no rows of a dataset"):
        export(store, parts["test"], tmp_path / "none")
    assert [turn["content"] for turn in found["train"]["rows"][2]["messages"]] == ["q2", "a"]
    export(store, parts["train"], tmp_path / "one")
    assert set(read(tmp_path / "one")) == {"train"}
    assert [file.name for file in (tmp_path / "one" / "data").iterdir()] == ["train-00000-of-00001.parquet"]


def test_a_long_table_goes_into_several_files(store: Store, tmp_path: Path) -> None:
    rows = loaded(source("long", [row(f"p{n}") for n in range(32_000)], "MIT"))
    (tmp_path / "out").mkdir()
    files = list(write_files(rows, "rows", tmp_path / "out", 15_000))
    assert [file.name for file in files] == [f"rows-0000{n}-of-00003.parquet" for n in range(3)]
    assert [pq.ParquetFile(file).metadata.num_rows for file in files] == [15_000, 15_000, 2_000]
    texts = [text for file in files for text in pq.read_table(file)["prompt"].to_pylist()]
    assert texts == [f"p{n}" for n in range(32_000)]


class Nothing(Parameters):
    """No parameters."""


@stage("exact")
def label_some(work: Work, parameters: Nothing, rows: Rows) -> Measures:
    """Publish the rows as they are, and one row of another contract."""
    table = rows.read()
    parents = table["row_id"].combine_chunks().storage.to_pylist()
    plain = pa.table({"text": ["all"], "label": ["x"], "source": ["labels"], "licence": ["CC0-1.0"]})
    made = ids_from_bytes(created_id("label_some", parents))
    work.write([table], "plain")
    work.write(
        [plain.add_column(0, "content_id", content_ids(plain, LABELLED)).add_column(0, "row_id", made)], "labels"
    )
    child = ids_from_bytes(made.storage[0].as_py() * len(parents))
    work.ledger("edges", [pa.table({"child": child, "parent": table["row_id"]})])
    return {}


def test_tables_of_different_columns_are_configurations_of_their_own(store: Store, tmp_path: Path) -> None:
    export(store, label_some(Nothing(), loaded(source("book", [row("a"), row("b")], "MIT"))), tmp_path / "out")
    assert read(tmp_path / "out", "labels")["labels"]["rows"][0]["label"] == "x"
    assert len(read(tmp_path / "out", "plain")["plain"]["rows"]) == 2
    kept = {line[0]: line[2:4] for line in table_under(tmp_path / "out", "## Sources and licences")[1:]}
    assert kept == {"book": ["2", "2"], "labels": ["0", "1"]}


# ---- the card ----


def test_the_header_says_licences_sizes_and_splits(store: Store, dataset: Artifact, tmp_path: Path) -> None:
    export(store, dataset, tmp_path / "out")
    assert header(tmp_path / "out") == {
        "license": ["cc-by-4.0", "other"],
        "license_name": "Proprietary 1",
        "size_categories": ["n<1K"],
        "tags": ["stillhouse"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": name, "path": f"data/{name}-?????-of-?????.parquet"} for name in ("test", "train")
                ],
            }
        ],
    }


def test_the_card_counts_sources_stages_and_reasons(store: Store, dataset: Artifact, tmp_path: Path) -> None:
    export(store, dataset, tmp_path / "out")
    kept = Counter(
        name for table in ("train", "test") for name in dataset[table].read(["source"])["source"].to_pylist()
    )
    digests = [file_digest(Path(PRIVATE, f"{name}.jsonl")) for name in ("book", "talk")]
    assert table_under(tmp_path / "out", "## Sources and licences")[1:] == [
        ["book", "CC-BY-4.0", "32", str(kept["book"]), digests[0]],
        ["talk", "Proprietary 1", "13", str(kept["talk"]), digests[1]],
    ]
    made = table_under(tmp_path / "out", "## How it was made")
    assert [line[0] for line in made[1:]] == ["load", "clean", "deduplicate", "split"]
    assert made[1][2:] == ["0", "45", "45", "0", "0", "2"]
    assert made[2][2:] == ["45", "43", "0", "0", "2", "0"]
    left = {(line[0], line[1]): line[2] for line in table_under(tmp_path / "out", "## What left, and why")[1:]}
    assert {name: left[name] for name in left if name[0] != "load"} == {
        ("clean", "prompt too short"): "1", ("clean", "row too long"): "1", ("deduplicate", "duplicate"): "1"
    }  # fmt: skip
    assert sum(int(rows) for name, rows in left.items() if name[0] == "load") == 2
    facts = json.loads((tmp_path / "out" / "stillhouse.json").read_bytes())
    assert facts["output_digest"] == dataset.record["output_digest"]
    assert facts["output_digest"] in (tmp_path / "out" / "README.md").read_text()
    assert [each["stage"] for each in facts["lineage"]] == ["load", "clean", "deduplicate", "split"]
    assert facts["lineage"][-1] == dataset.record
    for file in facts["files"]:
        assert file_digest(tmp_path / "out" / file["path"]) == file["sha256"]
    assert sum(each["rows"] for each in facts["reasons"]) == 5


def test_the_recipe_of_the_run_that_made_it_is_on_the_card(store: Store, dataset: Artifact, tmp_path: Path) -> None:
    """A run's record as `run` writes it; the run's name stands in the artifact's run.json."""
    sources = [{"path": str(Path(PRIVATE, "book.jsonl").absolute()), "name": "book", "licence": "MIT"}]
    parameters = {"load": {"sources": sources}, "clean": {"max_characters": 50}, "teacher": {"api_key": "sk-123"}}
    store.write_run("20260101T000000-a", {"run": "20260101T000000-a", "recipe": "my-book", "flow": "curate",
                                          "parameters": parameters})  # fmt: skip
    made = json.loads((dataset.path / "run.json").read_bytes())
    assert made["run"] == "none"
    (dataset.path / "run.json").write_text(json.dumps({**made, "run": "20260101T000000-a"}))
    export(store, dataset, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\n# my-book\n" in card
    recipe = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert recipe == {
        "flow": "curate",
        "parameters": {
            "load": {"sources": [{"path": "book.jsonl", "name": "book", "licence": "MIT"}]},
            "clean": {"max_characters": 50},
            "teacher": {},
        },
    }


def test_nothing_of_the_machine_or_of_a_failed_row_is_exported(store: Store, dataset: Artifact, tmp_path: Path) -> None:
    export(store, dataset, tmp_path / "out")
    import socket

    names = {str(tmp_path), str(Path.home()), PRIVATE, socket.gethostname(), "Jane Doe", "Elm Street"}
    for file in (tmp_path / "out").rglob("*"):
        if file.is_file():
            held = file.read_bytes()
            assert not [name for name in names if len(name) > 3 and name.encode() in held], file


def test_a_name_cannot_break_a_table_or_the_header(store: Store, tmp_path: Path) -> None:
    odd = source("book", [row("a")], "a | b: [x]\n# y <script>") | {"name": "s|`1`\n\n## Fake"}
    export(store, loaded(odd), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\n## Fake" not in card
    assert not re.search(r"(?<!\\)<script>", card.split("---\n", 2)[2])
    assert header(tmp_path / "out")["license"] == ["other"]
    assert len(table_under(tmp_path / "out", "## Sources and licences")[1]) == 5


@pytest.mark.parametrize(
    ("licence", "spelt"),
    [("MIT", "mit"), ("CC0-1.0", "cc0-1.0"), ("GPL-3.0-only", "gpl-3.0"), ("GPL-3.0-or-later", "gpl-3.0"),
     ("ODC-By-1.0", "odc-by"), ("My own", "other"), ("", "other"), (None, "other")],
)  # fmt: skip
def test_a_licence_is_spelt_as_the_hub_does(licence: str | None, spelt: str) -> None:
    assert hub_licence(licence) == spelt


@pytest.mark.parametrize(
    ("rows", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (100_000, "100K<n<1M"),
     (10**12 - 1, "100B<n<1T"), (10**12, "n>1T")],
)  # fmt: skip
def test_sizes_have_the_hubs_names(rows: int, category: str) -> None:
    assert size_category(rows) == category


@pytest.mark.parametrize(
    ("given", "left"),
    [("/home/me/x/train.jsonl", "train.jsonl"), ("~/x/train.jsonl", "train.jsonl"), ("../x/m", "m"),
     ("C:\\Users\\me\\m", "m"), ("hub:owner/name", "hub:owner/name"), ("package:llm", "package:llm"),
     ("owner/name", "owner/name"), ("mean of seeds", "mean of seeds"), (r"####\s*(-?[\d,.]+)", r"####\s*(-?[\d,.]+)")],
)  # fmt: skip
def test_places_are_reduced_to_names(given: str, left: str) -> None:
    assert without_places({"stage": {"model": [given]}}) == {"stage": {"model": [left]}}
    assert without_places({"path": "private/folder/rows.jsonl"}) == {"path": "rows.jsonl"}


def test_errors_say_nothing_of_one_row() -> None:
    assert (
        without_content("column 'prompt' is 'Jane', row 12 of /home/me/x.jsonl") == "column 'prompt' is …, row N of …"
    )
    assert without_content(None) == "no error told"


@given(st.lists(st.none() | st.uuids(), max_size=20), st.integers(0, 3))
def test_ids_are_spelt_as_python_does(ids: list[Any], start: int) -> None:
    storage = pa.array([each and each.bytes for each in ids], pa.binary(16))[start:]
    assert spelt(storage).to_pylist() == [each and str(each) for each in ids[start:]]


# ---- writing ----


def test_the_same_artifact_gives_the_same_bytes(store: Store, dataset: Artifact, tmp_path: Path) -> None:
    store.tag(dataset, "book")
    (tmp_path / "two").mkdir()
    export(store, dataset, tmp_path / "one")
    export(store, store.resolve("book"), tmp_path / "two")
    ours, theirs = (
        {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert ours == theirs
    assert set(ours) == {
        "README.md",
        "stillhouse.json",
        *(f"data/{n}-00000-of-00001.parquet" for n in ("test", "train")),
    }


def test_what_is_there_is_not_overwritten(store: Store, dataset: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--store", str(store.root)]
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    Path("file").write_text("mine")
    for place in ("out", "file", "file/below"):
        assert main(["export", dataset.fingerprint, place, *where]) == 2
        assert "found:" in capsys.readouterr().err
    assert Path("out/mine.txt").read_text() == Path("file").read_text() == "mine"
    assert sorted(path.name for path in Path("out").iterdir()) == ["mine.txt"]
    assert not list(Path().glob(".*export*"))


def test_the_command_lists_its_files(store: Store, dataset: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--store", str(store.root)]
    assert main(["export", dataset.fingerprint[:10], "deep/out", *where, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(Path("deep/out").absolute())
    assert sorted(told["files"]) == sorted(
        str(file.relative_to("deep/out")) for file in Path("deep/out").rglob("*") if file.is_file()
    )
    assert main(["export", f"{dataset.fingerprint}:test", "test", *where]) == 0
    assert "test/data/test-00000-of-00001.parquet" in capsys.readouterr().out


def test_an_export_that_is_killed_leaves_nothing_half(store: Store, dataset: Artifact, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STILLHOUSE_FAILPOINT": "export"}
    command = [sys.executable, "-m", "flows", "export", dataset.fingerprint, "out", "--store", str(store.root)]
    killed = subprocess.run(command, env=environment, cwd=tmp_path, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    (rest,) = tmp_path.glob(".out.export-*")
    assert (rest / "README.md").exists()
    export(store, dataset, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").exists()
    assert not list(tmp_path.glob(".out.export-*"))


def test_an_export_that_fails_leaves_nothing(store: Store, dataset: Artifact, tmp_path: Path) -> None:
    file = next(dataset.path.glob("train-*.parquet"))
    held = file.read_bytes()
    file.unlink()  # shards are hard links: writing into this one would change its twins
    file.write_bytes(held[: len(held) // 2])
    with pytest.raises((OSError, pa.ArrowInvalid)):
        export(store, dataset, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [PRIVATE, "store"]
