"""Find a stage by its name: file = function = stage, in one of the folders of tasks/."""

import importlib
from pathlib import Path
from typing import Any

from data.errors import BadInput
from infra.stage import Stage

TASKS = Path(__file__).resolve().parents[1] / "tasks"


def find_stage(name: str) -> Stage[Any]:
    """Import a stage by its name.

    Raises:
        BadInput: this checkout has no such stage.
    """
    for file in sorted(TASKS.rglob("*.py")):
        if file.stem == name:
            module = ".".join(file.relative_to(TASKS.parent).with_suffix("").parts)
            made = vars(importlib.import_module(module)).get(name)
            if isinstance(made, Stage):
                return made
    found = f"the stage {name!r}, which this checkout does not have"
    raise BadInput(found, "a stage of tasks/", "use the code that made it")
