"""The pages say what is there: every stage, command, recipe and parameter, and code that runs as it stands."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from data.ledger import ledger
from flows.__main__ import main
from flows.recipe import find_recipe, shipped_recipes
from infra.settings import Settings, use_settings
from infra.stage import Stage
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.deduplicate import DeduplicateParameters, deduplicate
from tasks.curate.load import LoadParameters, load
from tasks.curate.split import SplitParameters, split

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(DOCS.rglob("*.md"))

sys.path.insert(0, str(DOCS))
tables = importlib.import_module("tables")


def all_stages() -> dict[str, Stage[Any]]:
    """Every stage of tasks/, by name."""
    found = {}
    for path in sorted((ROOT / "tasks").rglob("*.py")):
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        found |= {each.name: each for each in vars(module).values() if isinstance(each, Stage)}
    return found


STAGES = all_stages()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def help_of(*command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def commands(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return re.findall(r"^    ([a-z]+) ", help_of(capsys=capsys), re.M)


# ---- stages and their parameters ----


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_has_its_page(name: str) -> None:
    page = (DOCS / "stages" / f"{name}.md").read_text(encoding="utf-8")
    module = STAGES[name].body.__module__
    assert page.startswith(f"# {name}\n")
    assert f"```{{stage}} {module}:{name}\n" in page
    for heading in ("Why", "What it publishes", "What is dropped, and why", "Example"):
        assert f"\n## {heading}\n" in page


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_has_its_row_in_the_index(name: str) -> None:
    assert f"\n| [{name}](stages/{name}.md) | " in (DOCS / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", STAGES)
def test_the_example_of_a_stage_is_valid(name: str) -> None:
    [example] = blocks((DOCS / "stages" / f"{name}.md").read_text(encoding="utf-8"), "yaml")
    tables.models_of(STAGES[name])[0].model_validate(yaml.safe_load(example)[name])


def test_there_is_no_page_of_a_stage_that_does_not_exist() -> None:
    assert {path.stem for path in (DOCS / "stages").glob("*.md")} == set(STAGES)


def test_the_architecture_names_the_class_of_every_stage() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    for determinism in ("exact", "float"):
        row = re.search(rf"^\| {determinism} \|.*\| ([a-z_, ]+) \|$", text, re.M)
        assert row and sorted(row[1].split(", ")) == sorted(
            name for name, each in STAGES.items() if each.determinism == determinism
        )


def test_every_parameter_and_setting_has_a_description() -> None:
    flows = [recipe.flow.parameters for recipe in shipped_recipes()]
    models: list[type[BaseModel]] = [Settings, *(model for each in STAGES.values() for model in tables.models_of(each))]
    silent = [
        f"{model.__name__}.{line.name}" for model in models for line in tables.fields_of(model) if not line.description
    ]
    assert not silent
    # a flow's own fields are the parameters of its stages, which have a title, or have a description
    assert all(field.title or field.description for flow in flows for field in flow.model_fields.values())


def test_the_tables_are_drawn_from_the_code() -> None:
    lines = {line.name: line for line in tables.fields_of(tables.models_of(load)[1])}
    assert lines["path"].in_key is False
    assert lines["limit"].kind == "int or none, ≥ 1"
    assert lines["keep"].default == "[]"
    assert dict(tables.facts_of(split))["input rows"].startswith("rows")


# ---- commands and recipes ----


def test_every_command_and_option_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    names = commands(capsys)
    assert len(names) >= 9
    assert re.findall(r"^## ([a-z]+)$", page, re.M) == names
    for name in names:
        for option in set(re.findall(r"--[a-z-]+", help_of(name, capsys=capsys))) - {"--help"}:
            assert option in page, f"{name} {option}"


def test_every_recipe_is_documented_and_nothing_else_is_called_one() -> None:
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    section = page.partition("## The recipes that come with Stillhouse")[2].partition("\n## ")[0]
    described = re.findall(r"^### (\S+)\n\nFlow `(\w+)`", section, re.M)
    assert described == [(each.name, each.flow_name) for each in shipped_recipes()]


@pytest.mark.parametrize("text", [(DOCS / "recipes.md").read_text(encoding="utf-8"), README], ids=["recipes", "README"])
def test_the_recipes_on_the_pages_are_valid(text: str, tmp_path: Path) -> None:
    path = tmp_path / "shown.yaml"
    for recipe in blocks(text, "yaml"):
        path.write_text(recipe, encoding="utf-8")
        find_recipe(str(path)).parameters([])


# ---- the README ----


def test_the_readme_uses_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    dev = (ROOT / "dev").read_text(encoding="utf-8")
    known = {*re.findall(r"^(\w+)\)", dev, re.M), *commands(capsys)}
    shown = set(re.findall(r"\./dev (\w+)", README))
    assert {"run", "test"} <= shown <= known


def test_the_readme_links_to_files_that_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_readme_shows_where_things_live() -> None:
    [tree] = blocks(README.partition("## Where things live")[2].partition("\n## ")[0], "text")
    folders: list[str] = []
    shown = set()
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in line.split("  #")[0].strip().split(", "):
            folders[depth:] = [name.rstrip("/")]
            path = ROOT.joinpath(*folders)
            assert path.exists(), path
            shown.add(path)
    rooms = [path for room in ("flows", "tasks", "infra", "data") for path in (ROOT / room).rglob("*.py")]
    missing = [path for path in rooms if path.name != "__init__.py" and path not in shown]
    assert not missing


# ---- code on the pages ----


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Find what a page marks as tested, in its order: ("saved as NAME" | "run" | "prints", the code block below)."""
    pattern = r"^% (saved as \S+|run|prints)\n\n```\w+\n(.*?)^```"
    yield from re.findall(pattern, text, re.M | re.S)


TESTED = [page for page in PAGES if list(steps(page.read_text(encoding="utf-8")))]


@pytest.mark.parametrize("page", TESTED, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_and_prints_what_it_says(page: Path, tmp_path: Path) -> None:
    printed = ""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "STILLHOUSE_STORE": str(tmp_path / "store"),
    }
    for what, code in steps(page.read_text(encoding="utf-8")):
        if what.startswith("saved as "):
            (tmp_path / what.removeprefix("saved as ")).write_text(code, encoding="utf-8")
        elif what == "run":
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            printed = done.stdout
        else:
            assert printed == code


def test_the_flow_of_the_example_runs(tmp_path: Path) -> None:
    for what, code in steps((DOCS / "extend.md").read_text(encoding="utf-8")):
        if what.startswith("saved as "):
            (tmp_path / what.removeprefix("saved as ")).write_text(code, encoding="utf-8")
    program = f"""
import flows, tasks.curate
flows.__path__.append({str(tmp_path)!r}), tasks.curate.__path__.append({str(tmp_path)!r})
from flows.balanced import balanced
from infra.flow import plan
source = {{"path": "few.jsonl", "licence": "CC0-1.0", "layout": "prompt-completion", "keep": ["topic"]}}
parameters = balanced.parameters(load={{"sources": [source]}}, balance={{"column": "topic", "most": 1}})
print([step.state for step in plan(balanced, parameters)])
print(balanced(parameters).dataset.rows)
print([step.state for step in plan(balanced, parameters)])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STILLHOUSE_STORE": str(tmp_path / "store")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == [
        "['to run', 'depends', 'depends']",
        "2",
        "['cached', 'cached', 'cached']",
    ], done.stderr


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the samples, curated."""
    root = tmp_path_factory.mktemp("store")
    path = str(ROOT / "data" / "samples" / "quickstart.jsonl")
    source = {"path": path, "licence": "CC0-1.0", "layout": "prompt-completion"}
    with use_settings(store=root, workers=1):
        rows = load(LoadParameters(sources=[source]))
        unique = deduplicate(DeduplicateParameters(), clean(CleanParameters(max_characters=1000), rows))
        split(SplitParameters(), unique)
    return root


def test_the_queries_on_the_pages_run(store: Path) -> None:
    queries = blocks((DOCS / "lineage.md").read_text(encoding="utf-8"), "sql")
    queries += re.findall(r'stillhouse sql "(.*?)"', (DOCS / "commands.md").read_text(encoding="utf-8"))
    queries += re.findall(r'\./dev sql "(.*?)"', README)
    assert len(queries) >= 7
    with ledger(store) as connection:
        for query in queries:
            connection.execute(query)


def test_the_tables_of_the_ledger_are_listed_with_their_columns(store: Path) -> None:
    section = (DOCS / "lineage.md").read_text(encoding="utf-8").partition("## Tables and views")[2]
    listed = {
        name: re.findall(r"`(\w+)`", columns)
        for name, columns in re.findall(r"^\| `(\w+)` \|[^|]*\| (.*) \|$", section.partition("\n## ")[0], re.M)
    }
    with ledger(store) as connection:
        found = connection.execute(
            "SELECT table_name, list(column_name ORDER BY ordinal_position) FROM information_schema.columns GROUP BY 1"
        ).fetchall()
    assert listed == {name: columns for name, columns in found if not name.startswith("duckdb_")}


# ---- the pages themselves ----


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    command = ["sphinx", "--quiet", "--fail-on-warning", "--builder", "html", str(DOCS), str(tmp_path / "site")]
    done = subprocess.run(
        [sys.executable, "-m", *command, "-d", str(tmp_path / "trees")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        made = (tmp_path / "site" / page.relative_to(DOCS).with_suffix(".html")).read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', made), page


def test_every_page_can_be_reached() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = {each.strip() for tree in blocks(index, r"\{toctree\}") for each in tree.splitlines() if each[:1] != ":"}
    assert listed - {""} == {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES if page.stem != "index"}
