"""What an artifact was made of, up to the sources: walked by the records alone, in the order of making."""

from collections.abc import Collection
from typing import Any, NamedTuple

from data.artifact import Artifact

KINDS = ("rows", "reference", "record")


class Ancestors(NamedTuple):
    """An artifact and what it was made of."""

    there: list[Artifact]  # each after what it was made of; the artifact itself last
    gone: list[str]  # `stage/fingerprint` of those that the store no longer holds, and with them what was before


def ancestors(artifact: Artifact, kinds: Collection[str] = KINDS) -> Ancestors:
    """Walk the inputs of these kinds, as the records name them, each artifact once."""
    root = artifact.path.parent.parent
    there: dict[str, Artifact] = {}
    gone: dict[str, None] = {}

    def walk(stage: str, fingerprint: str) -> None:
        name = f"{stage}/{fingerprint}"
        if name in there or name in gone:
            return
        each = Artifact(stage, fingerprint, root / stage / fingerprint)
        if not (each.path / "record.json").exists():
            gone[name] = None
            return
        for made_of in each.record["inputs"]:
            if made_of["kind"] in kinds:
                walk(made_of["stage"], made_of["fingerprint"])
        there[name] = each

    walk(artifact.stage, artifact.fingerprint)
    return Ancestors(list(there.values()), list(gone))


def input_of(artifact: Artifact, each: dict[str, Any]) -> Artifact:
    """Find the artifact that one of a record's inputs names, in the same store."""
    root = artifact.path.parent.parent
    return Artifact(each["stage"], each["fingerprint"], root / each["stage"] / each["fingerprint"], each["output"])
