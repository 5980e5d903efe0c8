"""A store of one's own, files in every format, and rows that are loaded from them."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data.artifact import Artifact
from data.fingerprint import file_digest
from infra.settings import use_settings
from infra.stage import Measures, Parameters, Reference, stage
from infra.store import current_store
from infra.work import Work
from tasks.curate.load import LoadParameters, load

Record = dict[str, Any]


class GivenParameters(Parameters):
    """Where the vectors are, in the order of the rows."""

    path: str
    shard: int = 10_000


@stage("exact", reads=lambda parameters: {"vectors": file_digest(Path(parameters.path))})
def given_vectors(work: Work, parameters: GivenParameters, rows: Reference) -> Measures:
    """Publish vectors as `embed` does."""
    vectors = np.load(parameters.path)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    table = pa.table({"row_id": rows.read(["row_id"])["row_id"], "vector": lists})
    work.write((table.slice(at, parameters.shard) for at in range(0, len(table), parameters.shard)), "embeddings")
    return {}


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


@pytest.fixture
def embedded(loaded: Callable[..., Artifact], tmp_path: Path) -> Callable[..., tuple[Artifact, Artifact]]:
    """Make rows with given vectors (n, d), and labels if wanted, in another order if wanted: (rows, embeddings).

    Row n has the text `NAME n`, wherever the order puts it.
    """

    def embedded(
        vectors: "np.ndarray[Any, Any]",
        name: str,
        labels: "list[str] | None" = None,
        order: "list[int] | None" = None,
        shard: int = 10_000,
        **source: Any,
    ) -> tuple[Artifact, Artifact]:
        order = list(range(len(vectors))) if order is None else order
        lines = [{"text": f"{name} {n}"} | ({"label": labels[n]} if labels else {}) for n in order]
        rows = loaded(lines, name, layout="labelled" if labels else "unlabelled", **source)
        path = tmp_path / f"{name}.npy"
        np.save(path, np.asarray(vectors, np.float32)[order])
        return rows, given_vectors(GivenParameters(path=str(path), shard=shard), rows)

    return embedded


@pytest.fixture
def mixed(
    write: Callable[[str, list[Record]], Path], store: Path, tmp_path: Path
) -> Callable[..., tuple[Artifact, Artifact]]:
    """Make rows of several sources with given vectors, {source: (n, d)}: (rows, embeddings)."""

    def mixed(vectors: "dict[str, np.ndarray[Any, Any]]") -> tuple[Artifact, Artifact]:
        sources = [
            {
                "path": str(write(f"{name}.jsonl", [{"text": f"{name} {n}"} for n in range(len(each))])),
                "licence": "CC0-1.0",
                "layout": "unlabelled",
            }
            for name, each in vectors.items()
        ]
        rows = load(LoadParameters.model_validate({"sources": sources}))
        path = tmp_path / f"{'-'.join(vectors)}.npy"
        np.save(path, np.concatenate(list(vectors.values())).astype(np.float32))
        return rows, given_vectors(GivenParameters(path=str(path)), rows)

    return mixed
