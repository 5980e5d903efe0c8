"""Write tables and YAML into a card, so that nothing in them is Markdown or HTML."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml


def yaml_block(value: Any) -> str:
    """Write a value as YAML in a fence that nothing in it can end."""
    text = yaml_text(value)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}yaml\n{text}{fence}"


def yaml_text(value: Any) -> str:
    """Write a value as YAML, in the order that it has."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)


def table_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write a table in Markdown."""
    lines = [list(map(_cell, row)) for row in rows]
    return "\n".join(f"| {' | '.join(each)} |" for each in (columns, ["---"] * len(columns), *lines))


def _cell(value: Any) -> str:
    """Write a value into a cell: nothing in it is Markdown or HTML."""
    if isinstance(value, int):
        return f"{value:,}"
    text = " ".join(("" if value is None else str(value)).split())
    return re.sub(r"([\\`*\[\]<|])", r"\\\1", text)
