"""Draw the tables of these pages from the code, so that they cannot go stale.

    ```{stage} tasks.curate.clean:clean           what the stage is and reads, then its parameters
    ```
    ```{fields} infra.settings:Settings           the fields of one pydantic model
    ```

`fields_of` and `facts_of` say the same things as plain text, for tests.
"""

import importlib
import inspect
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from docutils import nodes
from docutils.parsers.rst import Directive
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from data.fingerprint import NOT_IN_KEY
from infra.stage import Stage

LONGEST = 40  # characters of a default that a table shows
CLASSES = {
    "exact": "exact: the same bytes on any machine",
    "float": "float: the same bytes on the same kind of machine",
}
KINDS = {
    "rows": "rows: each of its rows is accounted for",
    "reference": "reference: read, its rows not counted",
    "record": "record: read for what its record says",
}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}


class Line(NamedTuple):
    """One field of a model, as its table shows it."""

    name: str
    kind: str
    default: str
    description: str
    in_key: bool


def fields_of(model: type[BaseModel]) -> list[Line]:
    """Describe the fields of a model, in their order."""
    prefix = str(model.model_config.get("env_prefix", ""))
    return [
        Line(
            (prefix + name).upper() if prefix else name,
            ", ".join([type_name(field.annotation), *_bounds(field)]),
            _default(field),
            field.description or "",
            NOT_IN_KEY not in field.metadata,
        )
        for name, field in model.model_fields.items()
    ]


def facts_of(stage: "Stage[Any]") -> list[tuple[str, str]]:
    """Say of a stage what it is and what it reads: (term, text)."""
    kinds = stage.kinds()
    inputs = [(f"input {name}", KINDS[kind]) for name, kind in kinds.items()]
    facts = [("class", CLASSES[stage.determinism]), *(inputs or [("inputs", "none")])]
    if stage.source:
        facts.append(("rows come from", "outside the store"))
    if stage.trains:
        facts.append(("makes", "a model; its parents are the rows that it was trained on"))
    if stage.reads:
        facts.append(("also in its key", "digests of what its parameters name outside the store"))
    return facts


def models_of(stage: "Stage[Any]") -> list[type[BaseModel]]:
    """List a stage's parameter model, then the models inside it."""
    waiting: list[Any] = [typing.get_type_hints(stage.body)["parameters"]]
    found: list[type[BaseModel]] = []
    while waiting:
        kind = waiting.pop(0)
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in found:
            found.append(kind)
            waiting += [field.annotation for field in kind.model_fields.values()]
        waiting += typing.get_args(kind)
    return found


def type_name(kind: Any) -> str:
    """Write a type as a person would in a recipe: tuple[str, ...] is a list of str."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, parts))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if part is type(None) else type_name(part) for part in parts)
    if origin in (tuple, list):
        return f"list of {type_name(parts[0])}"
    if origin is dict:
        return f"mapping of {type_name(parts[0])} to {type_name(parts[1])}"
    return {"Path": "path", "bool": "true or false"}.get(kind.__name__, str(kind.__name__))


def _bounds(field: FieldInfo) -> list[str]:
    return [f"{sign} {getattr(part, name):,}" for part in field.metadata for name, sign in BOUNDS.items()
            if name in getattr(type(part), "__slots__", ())]  # fmt: skip


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return f"number of {field.default_factory.__name__.strip('_')}"
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return "its defaults"
    if field.default is None:
        return "none"
    shown = {True: "true", False: "false"}.get(field.default) if isinstance(field.default, bool) else None
    shown = shown or ("[]" if field.default == () else str(field.default) if field.default != "" else '""')
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


# ---- directives ------------------------------------------------------------------------------------------


class Fields(SphinxDirective):
    """Draw the fields of a pydantic model."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make the table."""
        return [_fields_table(self.look_up())]

    def look_up(self) -> Any:
        """Import MODULE:NAME, and build this page again when the module changes."""
        module, _, name = self.arguments[0].partition(":")
        made = importlib.import_module(module)
        self.env.note_dependency(inspect.getfile(made))
        self.env.note_dependency(__file__)
        return getattr(made, name)


class StageFacts(Fields):
    """Draw what a stage is and reads, and the tables of its parameters."""

    def run(self) -> list[nodes.Node]:
        """Make the tables."""
        stage = self.look_up()
        drawn: list[nodes.Node] = [_table(None, [[_text(term), _text(text)] for term, text in facts_of(stage)])]
        for model in models_of(stage):
            about = (inspect.getdoc(model) or "").splitlines()[0]
            title = nodes.paragraph("", "", nodes.strong(text=model.__name__), nodes.Text(f": {about}"))
            drawn += [title, _fields_table(model)]
        return drawn


def _fields_table(model: type[BaseModel]) -> nodes.Node:
    setting = issubclass(model, BaseSettings)
    lines = fields_of(model)
    if not lines:
        return nodes.paragraph(text="It has none.")
    heads = ("setting" if setting else "parameter", "type", "default", "what it says")
    return _table(heads, [_field_cells(line) for line in lines])


def _field_cells(line: Line) -> list[nodes.Node]:
    said = _text(line.description)
    if not line.in_key:
        said += [nodes.Text(" "), nodes.emphasis(text="(not in the key)")]
    return [nodes.literal(text=line.name), _text(line.kind), nodes.literal(text=line.default), said]


def _text(text: str) -> nodes.paragraph:
    """Set `code` apart; everything else is taken as it stands."""
    parts = enumerate(text.split("`"))
    return nodes.paragraph("", "", *(nodes.literal(text=part) if at % 2 else nodes.Text(part) for at, part in parts))


def _table(heads: Sequence[str] | None, rows: Iterable[Sequence[nodes.Node]]) -> nodes.Node:
    lines = [_row(row) for row in rows]
    columns = len(lines[0])
    group = nodes.tgroup(cols=columns)
    group += [nodes.colspec(colwidth=1) for _ in range(columns)]
    if heads:
        group += nodes.thead("", _row([_text(head) for head in heads]))
    group += nodes.tbody("", *lines)
    return nodes.table("", group)


def _row(cells: Sequence[nodes.Node]) -> nodes.Node:
    wrapped = [cell if isinstance(cell, nodes.paragraph) else nodes.paragraph("", "", cell) for cell in cells]
    return nodes.row("", *(nodes.entry("", cell) for cell in wrapped))


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of the directives."""
    directives: dict[str, type[Directive]] = {"fields": Fields, "stage": StageFacts}
    for name, directive in directives.items():
        app.add_directive(name, directive)
    return {"parallel_read_safe": True}
