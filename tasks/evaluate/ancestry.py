"""Follow one row through the artifacts of a flow: where it came from, and what each stage did to it."""

import uuid
from typing import Any

from data.artifact import ROWS, Artifact
from data.contracts import contract_of
from data.graph import input_of

LONGEST = 2_000  # characters of one text in the report


def ancestry(row: uuid.UUID, made: list[Artifact], models: dict[str, str]) -> dict[str, Any]:
    """Tell what each stage did to one row: loaded, edited, kept, trained on."""
    steps: list[dict[str, Any]] = []
    before: str | None = None
    for artifact in made:
        if artifact.record["trains"]:
            source = next(input_of(artifact, each) for each in artifact.record["inputs"] if each["kind"] == "rows")
            if source.find(row) and not ("dropped" in artifact.record["outputs"] and artifact["dropped"].find(row)):
                steps.append(_step(artifact, f"trained {models.get(artifact.digest, 'a model')} on it"))
            continue
        for output in (name for name, each in artifact.record["outputs"].items() if "contract" in each):
            text = text_of(artifact[output], row)
            if text is None:
                continue
            where = "" if output == ROWS else f" in {output}"
            if before is None:
                steps.append(_step(artifact, _loaded(artifact, row), None, text))
            elif text != before:
                steps.append(_step(artifact, f"edited{where}", before, text))
            else:
                steps.append(_step(artifact, f"kept{where}"))
            before = text
    return {"text": before or "", "steps": steps}


def _step(artifact: Artifact, what: str, before: str | None = None, after: str | None = None) -> dict[str, Any]:
    return {
        "stage": artifact.stage,
        "fingerprint": artifact.fingerprint,
        "what": what,
        "before": before,
        "after": after,
    }


def _loaded(artifact: Artifact, row: uuid.UUID) -> str:
    if not artifact.record["source"]:
        return "created"
    origin = artifact["origin"].find(row) or {}
    return f"loaded from {origin['file']}, line {origin['line']:,}"


def text_of(artifact: Artifact, row: uuid.UUID) -> str | None:
    """Show a row as a table has it; None if it has not."""
    line = artifact.find(row)
    return show(line, artifact) if line else None


def show(row: dict[str, Any], artifact: Artifact) -> str:
    """Write a row's content as text, whatever its contract."""
    parts = []
    for column in contract_of(artifact.schema).columns:
        value = row[column]
        if isinstance(value, list):
            parts += [f"{turn['role']}: {turn['content'] or turn['tool_calls']}" for turn in value]
        elif value is not None:
            parts.append(f"{column}: {value}")
    text = "\n".join(parts)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text):,} characters)"
