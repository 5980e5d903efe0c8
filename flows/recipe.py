"""Read a recipe: a flow's parameters on file, as data and nothing else.

    flow: finetune
    parameters:
      load:
        sources: [{path: "${STILLHOUSE_REAL_DATA}/gsm8k/train.jsonl", …}]

Safe YAML only; `${SAMPLES}` is the folder of the samples that come with Stillhouse, `${STILLHOUSE_REAL_DATA}` is
read from the environment, and no other variable is. The parameters are validated by the models that also draw
Prefect's form; an error names the line, the place and what was wanted.
"""

import difflib
import importlib
import os
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from data.errors import BadInput
from infra.flow import Flow

RECIPES = Path(__file__).with_name("recipes")
SAMPLES = Path(__file__).resolve().parents[1] / "data" / "samples"
REAL_DATA = "STILLHOUSE_REAL_DATA"
_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Recipe:
    """A recipe as it stands on file: its parameters are not checked yet."""

    name: str
    path: Path
    flow_name: str
    about: str
    tree: yaml.Node

    @property
    def flow(self) -> Flow:
        """The flow that it names, imported now.

        Raises:
            BadInput: there is no such flow.
        """
        known = known_flows()
        if self.flow_name not in known:
            raise BadInput(
                f"{self.path.name}: flow {self.flow_name!r}", f"one of {', '.join(known)}", "correct `flow:`"
            )
        made: Flow = getattr(importlib.import_module(f"flows.{self.flow_name}"), self.flow_name)
        return made

    def parameters(self, changes: list[str]) -> BaseModel:
        """Validate the parameters, with changes of the form a.b=value, as the flow's own model.

        Raises:
            BadInput: an unknown key, a wrong type or value; the message says where.
        """
        values = _plain(self.tree).get("parameters") or {}
        for change in changes:
            _change(values, change)
        values = _expanded(values)
        try:
            return self.flow.parameters.model_validate(values)
        except ValidationError as error:
            raise self._explain(error, values, changes) from None

    def _explain(self, error: ValidationError, values: dict[str, Any], changes: list[str]) -> BadInput:
        found, wanted = [], []
        for each in error.errors()[:5]:
            where = self._where(_as_written(each["loc"], values), changes)
            if each["type"] == "extra_forbidden":
                names = _fields_at(self.flow.parameters, each["loc"][:-1])
                near = difflib.get_close_matches(str(each["loc"][-1]), names, 1)
                found.append(f"{where} is no parameter")
                wanted.append(f"did you mean {near[0]!r}?" if near else f"one of {', '.join(names)}")
            elif each["type"] == "union_tag_invalid":
                choice = each["ctx"]["discriminator"].strip("'")
                where = self._where((*_as_written(each["loc"], values), choice), changes)
                found.append(f"{where} = {each['ctx']['tag']!r}")
                wanted.append(f"one of {each['ctx']['expected_tags']}")
            elif each["type"] == "missing":
                found.append(f"{where} is missing")
                wanted.append("a value for it")
            else:
                found.append(f"{where} = {reprlib.repr(each['input'])}")
                wanted.append(each["msg"].removeprefix("Value error, "))
        name = self.name if self.path.parent == RECIPES else self.path
        what = "--set" if found[0].startswith("--set") else "the recipe"
        remedy = f"correct {what}, or see `stillhouse recipes {name} --schema`"
        return BadInput("; ".join(found), "; ".join(wanted), remedy)

    def _where(self, place: tuple[int | str, ...], changes: list[str]) -> str:
        """Say where a parameter was given: by --set, or on which line."""
        name = ".".join(str(part) for part in place) or "parameters"
        for change in changes:
            given = change.partition("=")[0]
            if name == given or name.startswith(f"{given}."):
                return f"--set {name}"
        line = _line_of(self.tree, ("parameters", *place))
        return f"{self.path.name}, line {line}: {name}" if line else f"{self.path.name}: {name}"


def known_flows() -> list[str]:
    """Name the flows: those files of this room that define a flow of the file's name. Nothing is imported."""
    files = sorted(RECIPES.parent.glob("*.py"))
    return [path.stem for path in files if f"\n@flow\ndef {path.stem}(" in path.read_text(encoding="utf-8")]


def find_recipe(name: str) -> Recipe:
    """Read a shipped recipe by its name, or any by its path.

    Raises:
        BadInput: there is none, or it is no safe YAML of the right form.
    """
    shipped = sorted(each.stem for each in RECIPES.glob("*.yaml"))
    path = RECIPES / f"{name}.yaml" if name in shipped else Path(name)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        near = difflib.get_close_matches(name, shipped, 1)
        hint = f"did you mean {near[0]!r}?" if near else "run `stillhouse recipes` to list them"
        raise BadInput(f"no recipe {name!r}", f"a path ending in .yaml, or one of {', '.join(shipped)}", hint)
    return read_recipe(path)


def shipped_recipes() -> list[Recipe]:
    """All recipes that come with Stillhouse, by name."""
    return [read_recipe(path) for path in sorted(RECIPES.glob("*.yaml"), key=lambda path: path.stem)]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe's YAML without running or building anything that it names."""
    wanted = "YAML of plain values, with `flow:` and `parameters:`"
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_aliases(text)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        values = _plain(tree) if tree is not None else None
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path.name} is not UTF-8 ({error.reason} at byte {error.start})", wanted, "save it as UTF-8"
        ) from None
    except RecursionError:
        raise BadInput(f"{path.name}, nested too deeply", wanted, "write fewer brackets") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise BadInput(
            f"{path.name}{where}: {problem}", wanted, "correct the line; recipes are data and run nothing"
        ) from None
    if (
        not isinstance(values, dict)
        or not isinstance(values.get("flow"), str)
        or set(values) - {"flow", "about", "parameters"}
    ):
        keys = ", ".join(values)[:200] if isinstance(values, dict) else type(values).__name__
        raise BadInput(
            f"{path.name} with {keys}", f"{wanted}, and optionally `about:`", "write these keys and no others"
        )
    assert tree is not None  # noqa: S101 - an empty file has no mapping, and was refused above
    return Recipe(path.stem, path, values["flow"], str(values.get("about", "")).strip(), tree)


def _plain(tree: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    _refuse_twice(tree)
    return loader.construct_document(tree)


def _refuse_aliases(text: str) -> None:
    """Refuse `*name`: what stands once is read once, and no recipe grows beyond its file."""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            problem = f"the alias *{event.anchor}, where the value itself is wanted"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)  # type: ignore[arg-type]


def _refuse_twice(node: yaml.Node) -> None:
    """Refuse a mapping that names a key twice (YAML would silently take the last), or by anything but plain text."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            problem = None
            if key.tag != "tag:yaml.org,2002:str":
                problem = f"the key {reprlib.repr(key.value)} is no plain text"
            elif key.value in seen:
                problem = f"the key {key.value!r} stands twice"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
            _refuse_twice(value)
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            _refuse_twice(each)


def _change(values: dict[str, Any], change: str) -> None:
    place, equals, text = change.partition("=")
    parts = place.split(".")
    if not equals or not all(parts):
        raise BadInput(f"--set {change}", "--set a.b=value", "name the parameter and its value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"--set {change}: {error}", "a value in YAML", "quote it") from None
    at: Any = values
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if isinstance(at, list) and part.isdigit() and int(part) < len(at):
            if last:
                at[int(part)] = value
            at = at[int(part)]
        elif isinstance(at, dict):
            if last:
                at[part] = value
            at = at.setdefault(part, {})
        else:
            raise BadInput(
                f"--set {change}: nothing at {'.'.join(parts[: number + 1])}",
                "the place of a parameter",
                "correct the place",
            )


def _expanded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _expanded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_expanded(each) for each in value]
    return _VARIABLE.sub(_variable, value) if isinstance(value, str) else value


def _variable(match: re.Match[str]) -> str:
    if match[1] == "SAMPLES":
        return str(SAMPLES)
    if match[1] != REAL_DATA:
        raise BadInput(
            f"the variable ${{{match[1]}}} in a recipe",
            f"${{SAMPLES}} or ${{{REAL_DATA}}}",
            "write the value itself",
        )
    folder = os.environ.get(REAL_DATA)
    if not folder:
        raise BadInput(
            f"{REAL_DATA} is not set",
            "the folder that holds the real data of this recipe",
            f"set {REAL_DATA}=FOLDER, or write a recipe with paths of your own",
        )
    return folder


def _line_of(tree: yaml.Node, place: tuple[int | str, ...]) -> int | None:
    """Find the line (from 1) of a place in the recipe, or of the nearest thing around it that is there."""
    node, line = tree, None
    for part in place:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                return line
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _as_written(place: tuple[int | str, ...], values: Any) -> tuple[int | str, ...]:
    """Take out of a place what nobody wrote: pydantic names the kind of a union's part, as in select.ot.budget."""
    written: list[int | str] = []
    at = values
    for number, part in enumerate(place):
        kind = isinstance(at, dict) and part not in at and part in at.values() and number < len(place) - 1
        if not kind:
            written.append(part)
            inside = isinstance(at, dict) or (isinstance(at, list) and isinstance(part, int) and part < len(at))
            at = (at.get(part) if isinstance(at, dict) else at[part]) if inside else None
    return tuple(written)


def _fields_at(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Name the parameters at a place of a parameter model."""
    schema = model.model_json_schema()
    node = schema
    for part in place:
        if "discriminator" in node:
            node = {"$ref": node["discriminator"]["mapping"][part]}
        else:
            node = node["items"] if isinstance(part, int) else node["properties"][part]
        node = next((each for each in node.get("anyOf", []) if each.get("type") != "null"), node)
        while "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return list(node.get("properties", {}))
