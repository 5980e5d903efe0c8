"""One tiny flow, run once by the command line; then every question that can be asked of it."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data.fingerprint import code_digests, file_digest
from flows.__main__ import main

ROOT = Path(__file__).parents[2]
STAGE_KEYS = {
    "stage", "fingerprint", "path", "cached", "rows_in", "rows_out", "rows_created", "rows_consumed", "rows_dropped",
    "rows_failed", "seconds",
}  # fmt: skip
WORDS = [f"w{n:02}" for n in range(60)]
RECIPE = """flow: quickstart
about: A flow so small that a test can wait for it.
parameters:
  load:
    sources: [{path: rows.jsonl, licence: CC0-1.0, layout: prompt-completion, keep: [task]}]
    max_failed_share: 0.1
  clean: {max_characters: 50}
  split: {test_share: 0.2}
  scratch: {layers: 1, width: 16, heads: 2, feed_forward: 16}
  sft: {max_length: 64, max_steps: 5, batch_size: 8, threads: 1}
  seeds: [0]
  evaluate: {batch_size: 16, max_length: 64, max_new_tokens: 4, group_column: task}
  compare: {names: [taught, control], draws: 200}
"""
STAGES = [
    "load", "clean", "deduplicate", "split", "shuffle", "scratch", "sft", "sft", "evaluate", "evaluate", "evaluate",
    "compare", "report",
]  # fmt: skip


def source_lines() -> list[str]:
    """Sixty good rows, then a duplicate (61), one for each kind of dirt (62 to 64) and a broken line (65)."""
    rows = [{"prompt": f"upper: {word}", "completion": word.upper(), "task": "upper"} for word in WORDS]
    rows.append(rows[7])
    rows.append({"prompt": "upper: e\u0301", "completion": "\u00c9", "task": "upper"})
    rows.append({"prompt": "upper: x", "completion": "X" * 60, "task": "upper"})
    rows.append({"prompt": " ", "completion": "Y", "task": "upper"})
    return [*(json.dumps(row) for row in rows), '{"prompt": ']


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of rows, a recipe, and the store of the one run."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "rows.jsonl").write_text("\n".join(source_lines()) + "\n")
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def done(folder: Path) -> tuple[dict[str, Any], str]:
    """What `run --json` answered and said, in a process of its own, as Prefect wants it."""
    environment = {"PREFECT_HOME": str(folder / "prefect"), "PYTHONPATH": str(ROOT), "STILLHOUSE_STORE": "store"}
    ran = subprocess.run(
        [sys.executable, "-m", "flows", "run", "tiny.yaml", "--json"],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer, ran.stderr


@pytest.fixture(autouse=True)
def here(folder: Path, done: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in the folder, with its store; Prefect cannot be started from here."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("STILLHOUSE_STORE", "store")
    monkeypatch.setenv("STILLHOUSE_WORKERS", "1")
    monkeypatch.setenv("PREFECT_HOME", str(folder / "never"))


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command with --json and return the one value that it prints."""

    def ask(*arguments: str) -> Any:
        code = main([*arguments, "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out)

    return ask


@pytest.fixture
def rows_again(folder: Path) -> Iterator[Path]:
    """The file of rows, put back after a change."""
    path, before = folder / "rows.jsonl", (folder / "rows.jsonl").read_bytes()
    yield path
    path.write_bytes(before)


Ask = Callable[..., Any]
Done = tuple[dict[str, Any], str]


def states(plan: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(step["stage"], step["state"]) for step in plan]


# ---- run -----------------------------------------------------------------------------------------------------


def test_run_answers_with_exactly_the_promised_keys(done: Done) -> None:
    answer, _ = done
    assert set(answer) == {"run", "dataset", "model", "report", "tagged", "stages"}
    assert [stage["stage"] for stage in answer["stages"]] == STAGES
    for stage in answer["stages"]:
        assert set(stage) == STAGE_KEYS
        assert Path(stage["path"]).name == stage["fingerprint"]
        assert stage["cached"] is False
    paths = {stage["stage"]: stage["path"] for stage in answer["stages"]}
    assert answer["dataset"] == paths["split"]
    assert Path(answer["report"]) == Path(paths["report"]) / "report.html"
    assert Path(answer["report"]).read_text().lstrip().lower().startswith("<!doctype html>")
    assert (Path(answer["model"]) / "model.safetensors").is_file()


def test_run_says_what_it_does_on_standard_error(done: Done) -> None:
    _, said = done
    for stage in dict.fromkeys(STAGES):
        assert f" {stage} " in said
    assert "never made in this store" in said
    assert "0 -> 64 rows (1 failed)" in said
    assert "trained on" in said


def test_every_row_of_every_stage_is_accounted_for(done: Done) -> None:
    stages = {stage["stage"]: stage for stage in done[0]["stages"]}
    for stage in done[0]["stages"]:
        kept = stage["rows_out"] - stage["rows_created"]
        failed = 0 if stage["stage"] == "load" else stage["rows_failed"]
        assert stage["rows_in"] == kept + stage["rows_consumed"] + stage["rows_dropped"] + failed, stage
    counts = {name: (each["rows_in"], each["rows_out"], each["rows_dropped"]) for name, each in stages.items()}
    assert counts["load"] == (0, 64, 0)
    assert counts["clean"] == (64, 62, 2)
    assert counts["deduplicate"] == (62, 61, 1)
    assert counts["split"] == (61, 61, 0)
    assert stages["load"]["rows_failed"] == 1
    assert stages["sft"]["rows_consumed"] == stages["sft"]["rows_in"] > 30


def test_the_second_run_is_all_cached_and_starts_nothing(done: Done, folder: Path, ask: Ask) -> None:
    before = set(sys.modules)
    again = ask("run", "tiny.yaml")
    assert all(stage["cached"] for stage in again["stages"])
    same = {"stage", "fingerprint", "path", "rows_in", "rows_out", "rows_created", "rows_consumed", "rows_dropped"}
    assert [{name: each[name] for name in same} for each in again["stages"]] == [
        {name: each[name] for name in same} for each in done[0]["stages"]
    ]
    assert {name: again[name] for name in ("dataset", "model", "report")} == {
        name: done[0][name] for name in ("dataset", "model", "report")
    }
    assert again["run"] != done[0]["run"]
    assert not {"prefect", "ray", "torch"} & (set(sys.modules) - before)
    assert not (folder / "never").exists()


def test_without_json_run_ends_with_the_three_paths(capsys: pytest.CaptureFixture[str], done: Done) -> None:
    assert main(["run", "tiny.yaml"]) == 0
    out, said = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["dataset", "model", "report"]
    assert all(Path(line.split()[1]).exists() for line in out.splitlines())
    assert said.count("cached") == len(STAGES)


# ---- plan ----------------------------------------------------------------------------------------------------


def test_a_plan_of_what_is_done_is_all_cached(ask: Ask) -> None:
    plan = ask("plan", "tiny.yaml")
    assert states(plan) == [(name, "cached") for name in STAGES]
    assert all(set(step) == {"stage", "state", "fingerprint", "why"} for step in plan)


def test_an_edited_row_runs_what_comes_after_it(ask: Ask, rows_again: Path) -> None:
    rows_again.write_text(rows_again.read_text().replace('"W07"', '"W7"'))
    plan = ask("plan", "tiny.yaml")
    found = states(plan)
    assert found[0] == ("load", "to run")
    assert plan[0]["why"] == ["source rows rows.jsonl changed"]
    assert ("scratch", "cached") in found
    assert {state for name, state in found[1:] if name != "scratch"} == {"depends"}
    assert plan[1]["why"] == ["depends on load"]


def test_the_same_rows_elsewhere_or_touched_run_nothing(ask: Ask, rows_again: Path, folder: Path) -> None:
    rows_again.write_bytes(rows_again.read_bytes())
    assert states(ask("plan", "tiny.yaml")) == [(name, "cached") for name in STAGES]
    shutil.copytree(folder / "store", folder / "moved" / "store", dirs_exist_ok=True)
    (folder / "moved" / "rows.jsonl").write_bytes(rows_again.read_bytes())
    arguments = ("--set", "load.sources.0.path=moved/rows.jsonl", "--store", "moved/store")
    assert states(ask("plan", "tiny.yaml", *arguments)) == [(name, "cached") for name in STAGES]
    shutil.rmtree(folder / "moved")


def test_a_comment_in_the_recipe_runs_nothing(ask: Ask, folder: Path) -> None:
    (folder / "commented.yaml").write_text("# the same\n" + RECIPE.replace("  split:", "  # shares\n  split:"))
    assert states(ask("plan", "commented.yaml")) == [(name, "cached") for name in STAGES]


@pytest.mark.parametrize(
    ("change", "runs", "why"),
    [
        ("clean.max_characters=49", "clean", "parameter max_characters: 50 -> 49"),
        ("split.test_share=0.25", "split", "parameter test_share: 0.2 -> 0.25"),
        ("scratch.seed=1", "scratch", "parameter seed: 0 -> 1"),
        ("compare.draws=201", "compare", "parameter draws: 200 -> 201"),
        ("report.title=Tiny", "report", 'parameter title: "Stillhouse build" -> "Tiny"'),
        ("load.sources.0.licence=MIT", "load", 'parameter sources.0.licence: "CC0-1.0" -> "MIT"'),
    ],
)
def test_a_changed_parameter_runs_its_stage_and_what_depends_on_it(ask: Ask, change: str, runs: str, why: str) -> None:
    after = {
        "load": {*STAGES} - {"load", "scratch"},
        "clean": {*STAGES} - {"load", "clean", "scratch"},
        "split": {*STAGES} - {"load", "clean", "deduplicate", "split", "scratch"},
        "scratch": {"sft", "evaluate", "compare", "report"},
        "compare": {"report"},
        "report": set(),
    }[runs]
    plan = ask("plan", "tiny.yaml", "--set", change)
    for step in plan:
        wanted = "to run" if step["stage"] == runs else "depends" if step["stage"] in after else "cached"
        assert step["state"] == wanted, step
    assert [step["why"] for step in plan if step["stage"] == runs] == [[why]]


def test_another_seed_trains_only_that_seed(ask: Ask) -> None:
    plan = ask("plan", "tiny.yaml", "--set", "seeds=[1]")
    trainings = [step for step in plan if step["stage"] == "sft"]
    assert [step["state"] for step in trainings] == ["to run", "cached"]
    assert trainings[0]["why"] == ["parameter seed: 0 -> 1"]
    assert [step["state"] for step in plan if step["stage"] == "evaluate"] == ["cached", "depends", "cached"]


def test_a_comment_in_the_code_runs_nothing_and_other_code_runs_its_stages(folder: Path) -> None:
    """In a copy of the rooms, as another checkout of the same store would be."""
    checkout = folder / "checkout"
    for room in ("flows", "tasks", "infra", "data"):
        shutil.copytree(ROOT / room, checkout / room, ignore=shutil.ignore_patterns("__pycache__"))

    def plan() -> list[dict[str, Any]]:
        ran = subprocess.run(
            [sys.executable, "-c", "import sys; from flows.__main__ import main; sys.exit(main(sys.argv[1:]))",
             "plan", "tiny.yaml", "--json"],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(checkout)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        steps: list[dict[str, Any]] = json.loads(ran.stdout)
        return steps

    code = checkout / "tasks" / "curate" / "clean.py"
    text = code.read_text()

    def edit(before: str, after: str) -> None:
        assert text.count(before) == 1
        code.write_text(text.replace(before, after))

    edit("def clean_rows", "# cleaned, not dropped\n\n\ndef clean_rows")
    assert states(plan()) == [(name, "cached") for name in STAGES]
    edit('"row too long"', '"row much too long"')
    changed = plan()
    assert states(changed)[:4] == [
        ("load", "cached"), ("clean", "to run"), ("deduplicate", "depends"), ("split", "depends")
    ]  # fmt: skip
    assert changed[1]["why"] == ["code: tasks.curate.clean, out_of_bounds changed"]
    assert ("scratch", "cached") in states(changed)
    shutil.rmtree(checkout)


# ---- questions -----------------------------------------------------------------------------------------------


def test_show_tells_what_an_artifact_is_and_was_made_of(
    done: Done, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = next(stage for stage in done[0]["stages"] if stage["stage"] == "clean")
    for name in (clean["path"], clean["fingerprint"], clean["fingerprint"][:8]):
        record = ask("show", name)
        assert (record["stage"], record["fingerprint"], record["path"]) == (
            "clean",
            clean["fingerprint"],
            clean["path"],
        )
        assert record["inputs"][0]["stage"] == "load"
    assert main(["show", clean["path"]]) == 0
    told = capsys.readouterr().out
    assert "max_characters" in told
    assert "prompt-completion" in told


def test_why_tells_the_life_of_a_row(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    def life(name: str) -> list[tuple[str, str]]:
        return [(event["stage"], event["what"]) for event in ask("why", name)["history"]]

    assert life("rows.jsonl:65") == [("load", "failed")]
    assert life("rows.jsonl:63") == [("load", "loaded"), ("clean", "dropped")]
    assert life("rows.jsonl:62")[:3] == [("load", "loaded"), ("clean", "edited"), ("deduplicate", "kept")]
    twins = [ask("why", name) for name in ("rows.jsonl:8", "rows.jsonl:61")]
    kept, dropped = sorted(twins, key=lambda each: each["history"][2]["what"] == "dropped")
    assert dropped["history"][2]["partner"] == kept["row"]
    assert "duplicate" in dropped["history"][2]["detail"]
    assert kept["history"][2]["what"] == "kept"
    assert ask("why", kept["row"][:13]) == kept
    assert main(["why", "rows.jsonl:63"]) == 0
    assert "row too long" in capsys.readouterr().out


def test_trace_leads_from_a_model_to_its_sources_and_from_a_row_to_its_file(done: Done, ask: Ask) -> None:
    traced = ask("trace", done[0]["model"])
    assert {"sft", "split", "deduplicate", "clean", "load", "scratch"} == {
        each["stage"] for each in traced["ancestors"]
    }
    trained = next(stage for stage in done[0]["stages"] if stage["stage"] == "sft")["rows_consumed"]
    assert traced["source_rows"] == [{"source": "rows", "licence": "CC0-1.0", "rows": trained}]
    control = [stage for stage in done[0]["stages"] if stage["stage"] == "sft"][1]
    assert ask("trace", control["fingerprint"])["source_rows"][0]["rows"] == trained
    assert ask("trace", "rows.jsonl:1")[0]["origin"] == "loaded from rows.jsonl, line 1"
    made = ask("sql", "SELECT child::VARCHAR AS child FROM row_edge ORDER BY child LIMIT 1")[0]["child"]
    family = ask("trace", made)
    assert [each["depth"] for each in family] == [0, 1, 1]
    assert all("loaded from rows.jsonl" in each["origin"] for each in family[1:])


def test_sql_answers_which_source_rows_a_model_descends_from(done: Done, ask: Ask) -> None:
    model = Path(done[0]["model"]).name
    lines = ask("sql", f"SELECT file, line FROM source_rows('{model[:10]}')")
    assert {each["file"] for each in lines} == {"rows.jsonl"}
    trained = next(stage for stage in done[0]["stages"] if stage["stage"] == "sft")["rows_consumed"]
    assert len(lines) == len({each["line"] for each in lines}) == trained
    assert not {63, 64, 65} & {each["line"] for each in lines}


def test_sql_answers_why_a_row_was_dropped(ask: Ask) -> None:
    query = "SELECT dropped.stage, reason, score, line FROM dropped JOIN origin USING (row_id) ORDER BY line"
    answer = ask("sql", query)
    twin = answer.pop(0)
    assert (twin["stage"], twin["reason"]) == ("deduplicate", "duplicate")
    assert twin["line"] in (8, 61)
    assert answer == [
        {"stage": "clean", "reason": "row too long", "score": 68.0, "line": 63},
        {"stage": "clean", "reason": "prompt too short", "score": 0.0, "line": 64},
    ]
    assert ask("sql", "SELECT location FROM failed") == [{"location": "rows.jsonl:65"}]


def test_sql_knows_every_artifact_and_run(done: Done, ask: Ask) -> None:
    listed = ask("sql", "SELECT stage FROM artifact")
    assert Counter(each["stage"] for each in listed) == Counter(STAGES)
    runs = ask("sql", "SELECT run, state FROM run ORDER BY began")
    assert runs[0] == {"run": done[0]["run"], "state": "done"}


def test_report_names_the_page_and_holds_the_facts(done: Done, ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", done[0]["run"]]) == 0
    assert Path(capsys.readouterr().out.strip()).absolute() == Path(done[0]["report"]).absolute()
    facts = ask("report")
    assert [stage["fingerprint"] for stage in facts["stages"]] == [
        stage["fingerprint"] for stage in done[0]["stages"] if stage["stage"] not in ("evaluate", "compare", "report")
    ]
    rows = ("rows_in", "rows_out", "rows_created", "rows_consumed", "rows_dropped", "rows_failed")
    for told, ran in zip(facts["stages"], done[0]["stages"], strict=False):
        assert {name: told[name] for name in rows} == {name: ran[name] for name in rows}
    assert len(facts["ancestry"]) == 5
    for each in facts["ancestry"]:
        assert each["steps"][0]["what"].startswith("loaded from rows.jsonl, line ")
        assert each["steps"][-1]["what"].startswith("trained ")


def test_the_dataset_is_exported_with_the_recipe_that_made_it(done: Done, folder: Path, ask: Ask) -> None:
    assert set(ask("export", Path(done[0]["dataset"]).name, "exported")["files"]) == {
        "README.md", "stillhouse.json", "data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"
    }  # fmt: skip
    card = (folder / "exported" / "README.md").read_text()
    assert "\n# tiny\n" in card
    assert str(folder) not in card + (folder / "exported" / "stillhouse.json").read_text()
    recipe = card.partition("```yaml\n")[2].partition("```")[0]
    (folder / "again.yaml").write_text(recipe)
    assert states(ask("plan", "again.yaml")) == [(name, "cached") for name in STAGES]


def test_the_whole_run_is_made_again_with_its_models_and_report(
    done: Done, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the report, which reads the records of all others: equal to the byte, trainings included."""
    code = main(["verify", Path(done[0]["report"]).parent.name, "--json"])
    out, said = capsys.readouterr()
    assert code == 0, out
    verdicts = json.loads(out)["stages"]
    assert Counter(each["stage"] for each in verdicts) == Counter(STAGES)
    assert {(each["state"], each["bytes"]) for each in verdicts} == {("same", "same")}
    models = [stage["fingerprint"][:12] for stage in done[0]["stages"] if stage["stage"] == "sft"]
    assert "trained again" in said
    assert all(model in said for model in models)


def test_doctor_finds_nothing_wrong_and_finds_a_changed_byte(
    done: Done, folder: Path, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = ask("doctor", "--deep")
    assert {each["state"] for each in findings} == {"ok"}
    assert sum(each["check"].startswith("bytes of") for each in findings) == len(STAGES)
    file = next(Path(done[0]["dataset"]).glob("train-*.parquet"))
    before = file.read_bytes()
    digest = file_digest(file)
    file.unlink()  # shards are hard links: writing into this one would change its twins
    file.write_bytes(before.replace(b"PAR1", b"PAR2"))
    try:
        assert file_digest(file) != digest
        assert main(["doctor", "--deep", "--json"]) == 1
        wrong = [each["check"] for each in json.loads(capsys.readouterr().out) if each["state"] != "ok"]
        assert wrong == [f"bytes of split/{Path(done[0]['dataset']).name[:12]}"]
    finally:
        file.write_bytes(before)


def test_losing_the_index_loses_nothing(ask: Ask, folder: Path) -> None:
    query = "SELECT stage, row_id, reason FROM dropped ORDER BY ALL"
    before = ask("sql", query)
    (folder / "store" / "lineage.duckdb").unlink()
    assert ask("sql", query) == before != []


def test_the_code_of_this_process_is_that_of_the_store(done: Done, ask: Ask) -> None:
    clean = next(stage for stage in done[0]["stages"] if stage["stage"] == "clean")
    assert ask("show", clean["path"])["key"]["code"] == code_digests("tasks.curate.clean")
