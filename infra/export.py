"""Export a dataset or a model: a folder for others, with a card and the record of how it was made.

    DEST/README.md            the card, Markdown under a YAML header
    DEST/stillhouse.json      what the card says and more: records of all ancestors, digests of these files
    DEST/…                    rows (infra/export_dataset.py) or weights and tokenizer (infra/export_model.py)

The same artifact gives the same bytes. The folder is written beside its place and renamed there whole.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.artifact import Artifact
from data.errors import BadInput
from infra.export_dataset import fill_with_dataset, tables_with_rows
from infra.export_model import fill_with_model
from infra.failpoint import failpoint
from infra.model_facts import is_model
from infra.store import Store


def export(store: Store, artifact: Artifact, destination: Path) -> list[Path]:
    """Write a model, a dataset, or one table of it, into a new folder; return its files.

    Raises:
        BadInput: it is no model and has no rows of a dataset, or the folder is there and not empty, or cannot be made.
    """
    model = is_model(artifact)
    if not model and not tables_with_rows(artifact):
        held = ", ".join(f"{name} ({each.get('rows', 0)} rows)" for name, each in artifact.record["outputs"].items())
        found = f"{artifact}, which is no model and holds no rows of a dataset, but {held}"
        wanted = "a dataset: tables of rows; or a model"
        raise BadInput(found, wanted, "name the dataset or the model that it was made of")
    run = _making_run(store, artifact)
    destination = destination.absolute()
    with _made_whole(destination) as folder:
        facts, card = (
            fill_with_model(store, artifact, run, folder) if model else fill_with_dataset(artifact, run, folder)
        )
        text = json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False)
        (folder / "stillhouse.json").write_text(text + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
    return sorted(path for path in destination.rglob("*") if path.is_file())


def _making_run(store: Store, artifact: Artifact) -> dict[str, Any] | None:
    """Find the record of the run that made an artifact, if a recipe did."""
    made = artifact.path / "run.json"
    if not made.exists():
        return None
    file = store.root / "runs" / f"{json.loads(made.read_bytes())['run']}.json"
    return json.loads(file.read_bytes()) if file.exists() else None


@contextmanager
def _made_whole(destination: Path) -> Iterator[Path]:
    """Give a folder beside the destination, and rename it there when all is written; a failure leaves nothing."""
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        found = f"{destination}, which is there already"
        raise BadInput(found, "a new or empty folder", "choose another, or remove it")
    start = f".{destination.name}.export-"
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        for rest in destination.parent.glob(f"{start}*"):  # of an export that was killed
            if not _alive(rest.name.removeprefix(start)):
                shutil.rmtree(rest)
        folder = destination.parent / f"{start}{os.getpid()}"
        folder.mkdir()
    except OSError as error:
        found = f"{destination}, which cannot be made ({error.strerror})"
        raise BadInput(found, "a folder that can be written", "choose another") from None
    try:
        yield folder
        failpoint("export")
        folder.rename(destination)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass  # there, and somebody else's
    return True
