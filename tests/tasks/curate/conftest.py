"""A store of one's own, files in every format, and rows that are loaded from them."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data.artifact import Artifact
from infra.settings import use_settings
from infra.store import current_store
from tasks.curate.load import LoadParameters, load

Record = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """An empty store, in force while the test runs."""
    with use_settings(store=tmp_path / "store", workers=1) as options:
        current_store().prepare()
        yield options.store


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, list[Record]], Path]:
    """Write records into a file, in the format and compression that its name says."""

    def write(name: str, records: list[Record]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = name.removesuffix(".gz").removesuffix(".zst")
        content = _encode(plain.rpartition(".")[2], records)
        if name.endswith(".gz"):
            content = gzip.compress(content)
        elif name.endswith(".zst"):
            content = zstandard.compress(content)
        path.write_bytes(content)
        return path

    return write


def _encode(kind: str, records: list[Record]) -> bytes:
    if kind == "jsonl":
        return "".join(json.dumps(record) + "\n" for record in records).encode()
    if kind == "json":
        return json.dumps(records, indent=1).encode()
    if kind == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
        return text.getvalue().encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def loaded(store: Path, write: Callable[[str, list[Record]], Path]) -> Callable[..., Artifact]:
    """Load records as one source; further arguments are the source's."""

    def loaded(records: list[Record], name: str = "made", **source: Any) -> Artifact:
        path = write(f"{name}.jsonl", records)
        source = {"path": str(path), "licence": "CC0-1.0", "layout": "prompt-completion"} | source
        return load(LoadParameters.model_validate({"sources": [source]}))

    return loaded
