"""Names for artifacts: made, listed and used on the command line, and a flow that begins with one."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.artifact import Artifact
from data.errors import BadInput
from flows.__main__ import main
from flows.recipe import find_recipe, known_flows
from infra.flow import Flow, plan, stored
from infra.settings import use_settings
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.load import LoadParameters, load
from tasks.curate.split import SplitParameters, split
from tasks.train.scratch import ScratchParameters, scratch

ROOT = Path(__file__).parents[2]
Ask = Callable[..., Any]
ROWS = [{"prompt": f"upper: w{n}", "completion": f"W{n}"} for n in range(40)]


def curated(rows: list[dict[str, str]]) -> Artifact:
    """Load, clean and split rows in the store that the environment names."""
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": "rows.jsonl", "licence": "CC0-1.0", "layout": "prompt-completion"}
    loaded = load(LoadParameters.model_validate({"sources": [source]}))
    return split(SplitParameters(test_share=0.3), clean(CleanParameters(), loaded))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLHOUSE_STORE", "store")
    monkeypatch.setenv("STILLHOUSE_WORKERS", "1")


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run a command with --json and return the one value that it prints."""

    def ask(*arguments: str) -> Any:
        code = main([*arguments, "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out)

    return ask


# ---- the command ----


def test_a_tag_is_made_listed_and_used(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    first = curated(ROWS)
    assert main(["tag", first.fingerprint, "book", "--because", "the first"]) == 0
    assert capsys.readouterr().out == "book@v1\n"
    second = curated(ROWS[:-1])
    made = ask("tag", str(second.path), "book")
    assert (made["tag"], made["version"], made["output"]) == ("book@v2", 2, None)
    assert ask("show", "book@v1")["fingerprint"] == first.fingerprint
    assert ask("show", "book")["fingerprint"] == second.fingerprint
    assert [each["stage"] for each in ask("trace", "book@v1")["ancestors"]] == ["split", "clean", "load"]
    assert ask("tag", "book@v1:test", "held-out")["output"] == "test"
    listed = ask("tag")
    assert [(each["name"], each["version"], each["there"]) for each in listed] == [
        ("book", 1, True), ("book", 2, True), ("held-out", 1, True)
    ]  # fmt: skip
    assert listed[0]["note"] == "the first"
    told = ask("sql", "SELECT name, version, fingerprint, output FROM tag ORDER BY ALL")
    assert told == [{name: each[name] for name in told[0]} for each in listed]


def test_the_list_says_what_is_gone(capsys: pytest.CaptureFixture[str], ask: Ask) -> None:
    made = curated(ROWS)
    ask("tag", made.fingerprint, "book")
    shutil.rmtree(made.path)
    assert [each["there"] for each in ask("tag")] == [False]
    assert main(["tag"]) == 0
    assert "GONE" in capsys.readouterr().out
    assert main(["show", "book"]) == 2
    assert "is gone" in capsys.readouterr().err


def test_without_a_store_there_are_no_tags(ask: Ask) -> None:
    assert ask("tag") == []
    assert not Path("store").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["book@v1"], "without a name"), (["book@v1", "Book"], "lower-case"), (["other", "name"], "no artifact for")],
)
def test_what_cannot_be_tagged_is_explained(
    arguments: list[str], said: str, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    ask("tag", curated(ROWS).fingerprint, "book")
    assert main(["tag", *arguments]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert out == ""
    assert len(ask("tag")) == 1


# ---- a flow that begins with a dataset of the store ----

RECIPE = """flow: train
about: A model so small that a test can wait for it.
parameters:
  dataset: {dataset}
  pretrained: {{model: "{model}", chat_template: model}}
  sft: {{max_length: 64, max_steps: 2, batch_size: 4, threads: 1}}
  evaluate: {{batch_size: 8, max_length: 64, max_new_tokens: 2}}
  compare: {{draws: 200}}
"""


@pytest.fixture
def recipe() -> Callable[[str], str]:
    """Write a recipe of the flow `train` on a dataset and a tiny model."""
    parameters = ScratchParameters(layers=1, width=16, heads=2, feed_forward=16, context=64)
    with use_settings(store=Path("models").absolute()):
        base = scratch(parameters)

    def recipe(dataset: str) -> str:
        Path("mine.yaml").write_text(RECIPE.format(dataset=dataset, model=base.path))
        return "mine.yaml"

    return recipe


def test_a_recipe_reads_a_tagged_dataset_and_its_run_says_which(
    ask: Ask, recipe: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = curated(ROWS)
    ask("tag", first.fingerprint, "book")
    states = [(step["stage"], step["state"]) for step in ask("plan", recipe("book"))]
    curation = ["load", "clean", "split"]
    assert states == [(name, "cached") for name in curation] + [
        ("pretrained", "to run"), ("sft", "depends"), ("evaluate", "depends"), ("evaluate", "depends"),
        ("compare", "depends"), ("report", "depends"),
    ]  # fmt: skip

    environment = {**os.environ, "PREFECT_HOME": str(Path("prefect").absolute()), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows", "run", recipe("book"), "--json"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    done = json.loads(ran.stdout)
    assert Path(done["dataset"]) == first.path
    assert (Path(done["model"]) / "model.safetensors").exists()
    assert [stage["stage"] for stage in done["stages"][:3]] == curation
    assert all(stage["cached"] == (stage["stage"] in curation) for stage in done["stages"])

    second = curated(ROWS[:-1])
    ask("tag", second.fingerprint, "book")
    again = ask("run", recipe("book@v1"))
    assert all(stage["cached"] for stage in again["stages"])
    assert (again["dataset"], again["model"]) == (done["dataset"], done["model"])
    newest = ask("plan", recipe("book"))
    assert [(step["stage"], step["state"]) for step in newest[3:5]] == [("pretrained", "cached"), ("sft", "to run")]
    assert newest[2]["fingerprint"] == second.fingerprint

    runs = [json.loads(path.read_bytes())["stored"] for path in sorted(Path("store/runs").glob("*.json"))]
    artifact = f"split/{first.fingerprint}"
    assert runs == [
        {"book": {"tag": "book@v1", "artifact": artifact}},
        {"book@v1": {"tag": "book@v1", "artifact": artifact}},
    ]

    report = ask("report", done["run"])
    assert [stage["stage"] for stage in report["stages"]] == [*curation, "pretrained", "sft, trained"]
    row = ask("sql", f"SELECT row_id::VARCHAR AS row FROM trained_on WHERE model = '{Path(done['model']).name}'")[0]
    assert [(event["stage"], event["what"]) for event in ask("why", row["row"])["history"]] == [
        ("load", "loaded"), ("clean", "kept"), ("split", "kept"), ("sft", "trained on")
    ]  # fmt: skip

    # the base model lies elsewhere now: its stage can be made again from there
    Path("models").rename("moved")
    (folder,) = Path("moved/scratch").iterdir()
    settled = next(stage["fingerprint"] for stage in done["stages"] if stage["stage"] == "pretrained")
    assert main(["verify", settled]) == 2
    assert "cannot read its source" in capsys.readouterr().err
    verdict = ask("verify", settled, "--source", f"pretrained.model={folder}")
    assert [each["state"] for each in verdict["stages"]] == ["same"]


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("nobook", "no artifact for 'nobook'"),
        ("book@v2", "no version 'v2'"),
        ("washed", "which is clean/"),
        ("book:train", "one table"),
    ],
)
def test_a_dataset_that_is_none_is_refused_before_anything_runs(
    dataset: str, said: str, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    made = curated(ROWS)
    ask("tag", made.fingerprint, "book")
    ask("tag", made.record["inputs"][0]["fingerprint"], "washed")
    Path("mine.yaml").write_text(RECIPE.format(dataset=f'"{dataset}"', model="nowhere"))
    for command in ("plan", "run"):
        assert main([command, "mine.yaml"]) == 2
        assert said in capsys.readouterr().err
    assert not Path("store/runs").exists()


def test_a_stored_dataset_is_an_artifact_without_a_run_too() -> None:
    made = curated(ROWS)
    assert stored(made.fingerprint[:8], "train", "test") == made
    with pytest.raises(BadInput, match="train and validation"):
        stored(made.fingerprint, "train", "validation")


def test_the_parameters_of_the_flow_are_described() -> None:
    Path("mine.yaml").write_text(RECIPE.format(dataset="book@v1", model="m"))
    flow = find_recipe("mine.yaml").flow
    assert all(field.title or field.description for field in flow.parameters.model_fields.values())
    with pytest.raises(BadInput, match="no artifact"):
        plan(flow, find_recipe("mine.yaml").parameters([]))


def test_the_flows_are_the_files_that_define_one() -> None:
    files = [path.stem for path in (ROOT / "flows").glob("*.py")]
    modules = {name: vars(importlib.import_module(f"flows.{name}")) for name in files}
    assert known_flows() == sorted(name for name in files if isinstance(modules[name].get(name), Flow))
    assert {"finetune", "quickstart", "train"} <= set(known_flows()) < set(files)
