"""Look at this machine and the store for what goes wrong silently."""

import importlib.metadata
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from packaging.specifiers import SpecifierSet

from data.errors import BadInput
from infra.settings import settings
from infra.stage import describe_outputs
from infra.store import Store, current_store

# What was seen to fail with versions that prefect 3.8 itself allows.
PINNED = {"fastapi": ">=0.139,<0.150", "sqlalchemy": ">=2.0,<2.1"}
NEEDED = ("prefect", "ray", "datasets", "trl", "transformers", "torch", "duckdb", "pyarrow")
ROOMS = ("flows", "tasks", "infra", "data")


class Finding(NamedTuple):
    """One thing looked at: what, whether it is fine, and what was found."""

    check: str
    fine: bool
    found: str


def examine(*, deep: bool) -> list[Finding]:
    """Examine packages, rooms, settings and the store; `deep` reads every published byte again."""
    store = current_store()
    return [*_packages(), *_rooms(), *_machine(), *_store(store), *(_bytes(store) if deep else [])]


def _packages() -> Iterator[Finding]:
    yield Finding("python", sys.version_info >= (3, 11), sys.version.split()[0])
    for name in (*NEEDED, *PINNED):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, False, "not installed")
            continue
        wanted = PINNED.get(name)
        fine = wanted is None or version in SpecifierSet(wanted)
        yield Finding(
            name, fine, version if fine else f"{version}, where {wanted} is wanted: Prefect fails with others"
        )


def _rooms() -> Iterator[Finding]:
    root = Path(__file__).resolve().parents[1]
    for room in ROOMS:
        spec = importlib.util.find_spec(room)
        origin = Path(spec.origin).parent if spec and spec.origin else None
        yield Finding(f"room {room}", origin == root / room, str(origin))


def _machine() -> Iterator[Finding]:
    try:
        options = settings()
    except BadInput as error:
        yield Finding("settings", False, error.found)
        return
    yield Finding("settings", True, f"workers {options.workers}, threads {options.threads}, device {options.device}")


def _store(store: Store) -> Iterator[Finding]:
    try:
        store.prepare()
    except BadInput as error:
        yield Finding("store", False, error.found)
        return
    free = shutil.disk_usage(store.root).free
    yield Finding(
        "store",
        True,
        f"{store.root}: {sum(1 for _ in store.artifacts()):,} artifacts, {len(store.runs()):,} runs",
    )
    yield Finding("disk", free > 1 << 30, f"{free / (1 << 30):.1f} GiB free")
    work = [path for path in store.root.glob(".work/*") if path.is_dir()]
    yield Finding("unfinished work", True, f"{len(work)} folders wait for their next run" if work else "none")


def _bytes(store: Store) -> Iterator[Finding]:
    for artifact in store.artifacts():
        name = f"bytes of {artifact}"
        try:
            wanted = artifact.record["outputs"]
            found = describe_outputs(artifact.path)
        except (OSError, ValueError, BadInput, json.JSONDecodeError) as error:
            yield Finding(name, False, str(error))
            continue
        wrong = [output for output in wanted if wanted[output]["digest"] != found.get(output, {}).get("digest")]
        yield Finding(name, not wrong, "as recorded" if not wrong else f"differ from the record: {', '.join(wrong)}")
