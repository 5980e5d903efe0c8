"""What an artifact was made of, by the records alone."""

import json
from pathlib import Path

from data.artifact import Artifact
from data.graph import ancestors


def put(store: Path, stage: str, *inputs: tuple[str, str]) -> Artifact:
    """Write a record whose inputs are (stage, kind); a stage's letter is its fingerprint."""
    folder = store / stage / (stage[0] * 32)
    folder.mkdir(parents=True)
    lines = [{"stage": name, "fingerprint": name[0] * 32, "kind": kind} for name, kind in inputs]
    (folder / "record.json").write_text(json.dumps({"inputs": lines}))
    return Artifact(stage, stage[0] * 32, folder)


def family(store: Path) -> Artifact:
    put(store, "load")
    put(store, "clean", ("load", "rows"))
    put(store, "embed", ("clean", "reference"))
    put(store, "model")
    return put(store, "select", ("clean", "rows"), ("embed", "reference"), ("model", "reference"))


def test_each_comes_once_and_after_what_it_was_made_of(tmp_path: Path) -> None:
    made = family(tmp_path)
    assert [each.stage for each in ancestors(made).there] == ["load", "clean", "embed", "model", "select"]
    assert [each.stage for each in ancestors(made, ["rows"]).there] == ["load", "clean", "select"]
    assert ancestors(made).there[-1] == made
    assert ancestors(made).gone == []


def test_what_is_gone_is_named_and_nothing_before_it_is_met(tmp_path: Path) -> None:
    made = family(tmp_path)
    (tmp_path / "clean" / ("c" * 32) / "record.json").unlink()
    there, gone = ancestors(made)
    assert [each.stage for each in there] == ["embed", "model", "select"]
    assert gone == [f"clean/{'c' * 32}"]
