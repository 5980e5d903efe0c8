"""The flow `selectors` compares what each selector's rows do to one model, and answers from the store the next time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.select import SelectorParameters, select, with_seed
from flows.selectors import SelectorsParameters, selectors
from infra.flow import plan
from infra.settings import use_settings
from infra.stage import Run, current_run
from infra.store import current_store
from tasks.curate.select_nearest import SelectNearestParameters
from tasks.curate.select_random import SelectRandomParameters
from tasks.train.scratch import ScratchParameters, scratch


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    with use_settings(store=tmp_path / "store", workers=1, device="cpu", threads=1) as options:
        current_store().prepare()
        yield options.store


@pytest.fixture
def parameters(store: Path, tmp_path: Path) -> SelectorsParameters:
    """Three small tasks as the pool, and one of them as the target."""
    words = ["".join("aeioubdfgk"[int(digit)] for digit in f"{n * 7919 % 99_991:05}") for n in range(300)]
    tasks = {"upper": str.upper, "reverse": lambda word: word[::-1], "double": lambda word: word + word}
    rows = [
        {"prompt": f"{task}: {word}", "completion": solve(word), "task": task}
        for n, word in enumerate(words)
        for task, solve in [list(tasks.items())[n % 3]]
    ]
    files = {"pool": rows[:240], "target": [row for row in rows[240:] if row["task"] == "upper"]}
    sources = {}
    for name, part in files.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
        source = {"path": str(path), "licence": "CC0-1.0", "layout": "prompt-completion", "keep": ["task"]}
        sources[name] = {"sources": [source]}
    base = scratch(ScratchParameters(layers=1, width=16, heads=2, feed_forward=16, context=96))
    budget = {"budget": 600, "unit": "tokens"}
    given: dict[str, Any] = {
        **sources,
        "pretrained": {"model": str(base.path), "chat_template": "plain"},
        "selectors": [
            {"name": "random", "seeds": [0, 1], "select": {"method": "random", **budget}},
            {"name": "ot", "select": {"method": "ot", **budget}},
            {"name": "nearest", "select": {"method": "nearest", **budget}},
            {"name": "mixture", "select": {"method": "mixture", **budget}},
            {"name": "k-centre", "select": {"method": "kcentre", **budget}},
            {"name": "dsir", "select": {"method": "dsir", **budget}},
            {
                "name": "ifd",
                "select": {"method": "ifd", **budget, "max_length": 96, "scored": 50,
                           "model": {"model": str(base.path), "chat_template": "plain"}},
            },
        ],
        "sft": {"max_length": 96, "steps_per_epoch": 2, "threads": 1},
        "evaluate": {"batch_size": 16, "max_length": 96, "max_new_tokens": 0},
        "compare": {"draws": 500},
    }  # fmt: skip
    return SelectorsParameters.model_validate(given)


def test_every_selector_gets_the_same_budget_and_the_same_question(
    store: Path, parameters: SelectorsParameters
) -> None:
    run = Run("test", current_store())
    token = current_run.set(run)
    try:
        selectors(parameters)
    finally:
        current_run.reset(token)
    chosen = [step for step in run.steps if step.stage.startswith(("select_", "mixture_"))]
    assert len(chosen) == 8
    spent = [step.record["measures"]["selected_units"] for step in chosen]
    assert all(500 < each <= 600 for each in spent)
    assert {step.record["measures"]["steps"] for step in run.steps if step.stage == "sft"} == {2.0}
    [arms] = [step.artifact for step in run.steps if step.stage == "compare_arms"]
    lines = {line["arm"]: line for line in arms["arms"].read().to_pylist()}
    assert list(lines) == ["base", "random", "ot", "nearest", "mixture", "k-centre", "dsir", "ifd"]
    assert lines["random"]["seeds"] == 2 and lines["nearest"]["seeds"] == 1
    assert arms.record["measures"]["detectable"] > 0
    assert {step.state for step in plan(selectors, parameters)} == {"cached"}


def test_arms_that_the_comparison_names_must_be_there(parameters: SelectorsParameters) -> None:
    given = parameters.model_dump(mode="json")
    given["compare"]["reference"] = "nobody"
    with pytest.raises(ValidationError, match="no arm 'nobody'"):
        SelectorsParameters.model_validate(given)


def test_a_seed_goes_to_the_selectors_that_draw() -> None:
    assert with_seed(SelectRandomParameters(), 5).seed == 5
    assert with_seed(SelectNearestParameters(), 5) == SelectNearestParameters()


def test_the_method_says_which_selector_it_is() -> None:
    from pydantic import TypeAdapter

    adapter: TypeAdapter[Any] = TypeAdapter(SelectorParameters)
    assert isinstance(adapter.validate_python({"method": "random"}), SelectRandomParameters)
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        adapter.validate_python({"method": "best"})
    assert callable(select)
