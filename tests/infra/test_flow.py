"""A flow is planned without running, answers from the store without waking anything, and runs under Prefect."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.artifact import Artifact
from infra.flow import Built, flow, plan, run
from infra.settings import use_settings
from infra.stage import Measures, Parameters, Records, Step, stage
from infra.store import Store, current_store
from infra.work import Work

REPOSITORY = Path(__file__).parents[2]
CALLS: list[str] = []


class TextParameters(Parameters):
    """What to write."""

    text: str = "hello"
    fail: bool = False


@stage("exact")
def page(work: Work, parameters: TextParameters) -> Measures:
    """Write a page."""
    CALLS.append("page")
    (work.out / "page.html").write_text(parameters.text)
    return {}


@stage("exact")
def book(work: Work, parameters: TextParameters, pages: Records) -> Measures:
    """Bind pages."""
    CALLS.append("book")
    if parameters.fail:
        raise RuntimeError("the glue is dry")
    (work.out / "book.html").write_text(" ".join((page.path / "page.html").read_text() for page in pages))
    return {}


@flow
def bindery(parameters: TextParameters) -> Built:
    """Two pages -> a book."""
    pages = [page(TextParameters(text=parameters.text + mark)) for mark in (".", "!")]
    return Built(report=book(parameters, pages))


@pytest.fixture(autouse=True)
def store(tmp_path: Path) -> Iterator[Store]:
    CALLS.clear()
    with use_settings(store=tmp_path / "store", workers=1):
        yield current_store()


def states(steps: list[Step]) -> list[tuple[str, str]]:
    return [(step.stage, step.state) for step in steps]


def test_a_flow_knows_its_name_and_its_parameters() -> None:
    assert bindery.name == "bindery"
    assert bindery.parameters is TextParameters
    assert bindery.__doc__ == "Two pages -> a book."


def test_a_flow_that_is_called_runs_its_stages_here(store: Store) -> None:
    built = bindery(TextParameters())
    assert CALLS == ["page", "page", "book"]
    assert isinstance(built.report, Artifact)
    assert (built.report.path / "book.html").read_text() == "hello. hello!"
    assert (built.dataset, built.model) == (None, None)


def test_a_plan_on_nothing_makes_nothing(store: Store) -> None:
    assert states(plan(bindery, TextParameters())) == [("page", "to run"), ("page", "to run"), ("book", "depends")]
    assert not store.root.exists()


def test_a_plan_afterwards_says_what_a_change_would_run(store: Store) -> None:
    bindery(TextParameters())
    assert states(plan(bindery, TextParameters())) == [("page", "cached"), ("page", "cached"), ("book", "cached")]
    changed = plan(bindery, TextParameters(text="bye"))
    assert states(changed) == [("page", "to run"), ("page", "to run"), ("book", "depends")]
    # both earlier pages differ in one place, so either may be called the nearest
    assert changed[0].why in ([f'parameter text: "hello{mark}" -> "bye."'] for mark in ".!")
    only_last = plan(bindery, TextParameters(fail=True))
    assert states(only_last) == [("page", "cached"), ("page", "cached"), ("book", "to run")]
    assert only_last[2].why == ["parameter fail: false -> true"]


def test_a_run_of_what_is_there_tells_each_step_and_is_recorded(store: Store) -> None:
    bindery(TextParameters())
    CALLS.clear()
    told: list[Step] = []
    done, built = run(bindery, TextParameters(), "a recipe", told.append)
    assert CALLS == []
    assert states(told) == states(done.steps) == [("page", "cached"), ("page", "cached"), ("book", "cached")]
    (recorded,) = store.runs()
    assert built.report is not None
    assert recorded["run"] == done.identity
    assert (recorded["flow"], recorded["recipe"], recorded["state"]) == ("bindery", "a recipe", "done")
    assert recorded["report"] == f"book/{built.report.fingerprint}"
    assert recorded["parameters"] == {"text": "hello", "fail": False}


SCRIPT = """
import json, sys
from infra.flow import run
from infra.store import current_store
from tests.infra.test_flow import TextParameters, bindery

current_store().prepare()
for text, fail in json.loads(sys.argv[1]):
    try:
        run(bindery, TextParameters(text=text, fail=fail), "a recipe", lambda step: None)
    except RuntimeError as error:
        sys.stderr.write(f"failed with: {error}")
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def run_apart(folder: Path, *wanted: tuple[str, bool]) -> set[str]:
    """Run the flow in a process of its own: the packages that it imported."""
    asked = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(wanted)],
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "STILLHOUSE_STORE": str(folder / "store"),
            "PREFECT_HOME": str(folder / "prefect"),
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    assert ("failed with: the glue is dry" in asked.stderr) == any(fail for _, fail in wanted)
    return set(json.loads(asked.stdout.splitlines()[-1]))


def test_a_run_of_what_is_there_wakes_neither_prefect_nor_ray_nor_torch(store: Store, tmp_path: Path) -> None:
    bindery(TextParameters())
    imported = run_apart(tmp_path, ("hello", False))
    assert "pyarrow" in imported
    assert not imported & {"prefect", "ray", "torch", "transformers", "trl", "duckdb", "pandas"}
    assert [each["state"] for each in store.runs()] == ["done"]
    assert not (tmp_path / "prefect").exists()


def test_prefect_sees_each_stage_of_a_run(store: Store, tmp_path: Path) -> None:
    imported = run_apart(tmp_path, ("hello", False), ("hello", True))
    assert "prefect" in imported
    assert not imported & {"ray", "torch"}
    done, failed = store.runs()
    assert [(each["stage"], each["state"]) for each in done["stages"]] == [
        ("page", "done"), ("page", "done"), ("book", "done")
    ]  # fmt: skip
    assert (done["state"], failed["state"], failed["report"]) == ("done", "failed", None)
    assert [(each["stage"], each["state"]) for each in failed["stages"]] == [("page", "cached"), ("page", "cached")]
    with sqlite3.connect(tmp_path / "prefect" / "prefect.db") as prefect:
        assert asked(prefect, "SELECT state_type FROM flow_run") == ["COMPLETED", "FAILED"]
        assert asked(prefect, "SELECT DISTINCT name FROM flow") == ["bindery"]
        tasks = asked(prefect, "SELECT rtrim(substr(name, 1, 4)) || ' ' || state_type FROM task_run")
    assert tasks == ["book COMPLETED", "book FAILED", "page COMPLETED", "page COMPLETED"]


def asked(connection: sqlite3.Connection, query: str) -> list[Any]:
    return sorted(row[0] for row in connection.execute(query).fetchall())
