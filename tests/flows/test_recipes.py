"""Recipes and flows fit together: every name leads somewhere, and every parameter says what it is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from data.errors import BadInput
from flows.__main__ import main
from flows.recipe import RECIPES, SAMPLES, Recipe, find_recipe, read_recipe, shipped_recipes
from infra.flow import Flow

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
FLOWS = sorted({recipe.flow_name for recipe in shipped_recipes()})


@pytest.fixture(autouse=True)
def real_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the recipes that read real data; it holds none."""
    monkeypatch.setenv("STILLHOUSE_REAL_DATA", str(tmp_path))
    return tmp_path


def flow_of(name: str) -> Flow:
    return next(recipe.flow for recipe in shipped_recipes() if recipe.flow_name == name)


def fields(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every parameter of a model and of the models inside it, from its JSON Schema."""
    schema = model.model_json_schema()

    def walk(node: dict[str, Any], place: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, each in node.get("properties", {}).items():
            yield f"{place}{name}", each
            items = each.get("items", {})
            for part in (each, items, *each.get("anyOf", []), *each.get("oneOf", []), *items.get("oneOf", [])):
                if "$ref" in part:
                    yield from walk(schema["$defs"][part["$ref"].rpartition("/")[2]], f"{place}{name}.")

    return walk(schema, place)


def test_the_two_recipes_are_there() -> None:
    assert {"quickstart", "sft-real"} <= set(NAMES)
    assert [recipe.name for recipe in shipped_recipes()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_is_valid_and_says_what_it_does(name: str) -> None:
    recipe = find_recipe(name)
    parameters = recipe.parameters([])
    assert len(recipe.about) > 40
    assert recipe.flow.name == recipe.flow_name
    assert (RECIPES.parent / f"{recipe.flow_name}.py").is_file()
    again = recipe.flow.parameters.model_validate(parameters.model_dump())
    assert again == parameters


@pytest.mark.parametrize("name", NAMES)
def test_only_real_recipes_want_real_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STILLHOUSE_REAL_DATA")
    if name.endswith("-real"):
        with pytest.raises(BadInput, match="STILLHOUSE_REAL_DATA"):
            find_recipe(name).parameters([])
    else:
        find_recipe(name).parameters([])


@pytest.mark.parametrize("name", FLOWS)
def test_every_parameter_of_a_flow_is_described_or_titled(name: str) -> None:
    """A part of a flow is a method with a title; a parameter has a description, and a title if it may be empty."""
    found = dict(fields(flow_of(name).parameters))
    assert any(place.endswith(".sources.layout") for place in found)
    for place, each in found.items():
        if "$ref" in each:
            assert each.get("title"), place
        else:
            assert len(each.get("description", "")) > 8, place
            assert each.get("title"), place


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_changes_nothing_of_its_parameters_on_the_way_through_json(name: str) -> None:
    recipe = next(each for each in shipped_recipes() if each.flow_name == name)
    parameters = recipe.parameters([])
    assert type(parameters).model_validate_json(parameters.model_dump_json()) == parameters


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_of_a_recipe_is_printed_as_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", name, "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["type"] == "object"
    assert schema["required"]
    assert schema["additionalProperties"] is False


def test_recipes_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["recipe"] for each in listed] == NAMES
    assert all(set(each) == {"recipe", "flow", "about"} for each in listed)
    assert main(["recipes"]) == 0
    assert "quickstart" in capsys.readouterr().out
    assert main(["recipes", "quickstart"]) == 0
    assert capsys.readouterr().out == (RECIPES / "quickstart.yaml").read_text()
    assert main(["recipes", "quickstart", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"recipe", "flow", "about", "path"}


# ---- values --------------------------------------------------------------------------------------------------


def written(folder: Path, path: str) -> Recipe:
    file = folder / "mine.yaml"
    file.write_text(
        "flow: quickstart\nparameters:\n  load:\n    sources:\n"
        f"      - {{path: '{path}', licence: MIT, layout: alpaca, keep: [a]}}\n"
    )
    return read_recipe(file)


def path_of(parameters: Any) -> str:
    path: str = parameters.load.sources[0].path
    return path


def test_variables_stand_for_folders(tmp_path: Path, real_data: Path) -> None:
    assert path_of(written(tmp_path, "${SAMPLES}/x.jsonl").parameters([])) == f"{SAMPLES}/x.jsonl"
    assert path_of(written(tmp_path, "${STILLHOUSE_REAL_DATA}/x").parameters([])) == f"{real_data}/x"
    assert path_of(written(tmp_path, "$SAMPLES/{x}").parameters([])) == "$SAMPLES/{x}"
    changed = written(tmp_path, "x").parameters(["load.sources.0.path=${SAMPLES}/y"])
    assert path_of(changed) == f"{SAMPLES}/y"


def test_no_other_variable_is_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"the variable \$\{HOME\}"):
        written(tmp_path, "${HOME}/x").parameters([])


def test_a_change_is_the_same_as_writing_it(tmp_path: Path) -> None:
    recipe = written(tmp_path, "x")
    changed = recipe.parameters(["clean.max_characters=5", "seeds=[1, 2]", "load.sources.0.keep=[b]"])
    text = recipe.path.read_text().replace("keep: [a]", "keep: [b]")
    recipe.path.write_text(text + "  clean: {max_characters: 5}\n  seeds: [1, 2]\n")
    assert changed == read_recipe(recipe.path).parameters([])
    assert changed != recipe.parameters([])
    assert recipe.parameters([]) == recipe.parameters([])


def test_a_later_change_wins(tmp_path: Path) -> None:
    assert written(tmp_path, "x").parameters(["seeds=[1]", "seeds=[2]"]).model_dump()["seeds"] == (2,)


@pytest.mark.parametrize(
    ("change", "found", "wanted"),
    [
        ("select.budget=0", "--set select.budget = 0", "greater than or equal to 1"),
        ("select.bugdet=5", "--set select.bugdet is no parameter", "did you mean 'budget'?"),
        ("select.method=best", "--set select.method = 'best'", "one of 'ot', 'mixture', 'nearest'"),
        ("baselines.1.epsilon=0.1", "--set baselines.1.epsilon is no parameter", "one of budget, unit, method"),
        ("baselines=[{method: ifd}]", "--set baselines.0.model is missing", "a value for it"),
        ("filter.quality.min_wrods=3", "--set filter.quality.min_wrods is no parameter", "did you mean 'min_words'?"),
        ("deduplicate.near.threshold=2", "--set deduplicate.near.threshold = 2", "less than or equal to 1"),
    ],
)
def test_an_error_inside_a_choice_names_the_place_that_was_written(change: str, found: str, wanted: str) -> None:
    with pytest.raises(BadInput) as refused:
        find_recipe("curate").parameters([change])
    assert refused.value.found.startswith(found)
    assert wanted in refused.value.wanted
