"""Export a dataset: a folder that `datasets.load_dataset` reads, with a card and the record of how it was made.

    DEST/README.md            the card; its header says which file is which split
    DEST/data/<table>-00000-of-0000N.parquet
    DEST/stillhouse.json      what the card says and more: records of all ancestors, digests of these files

The same artifact gives the same bytes. The folder is written beside its place and renamed there whole. A table without
rows is on the card and nowhere else: `datasets` does not open a folder with an empty split.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.artifact import SHARD_ROWS, Artifact
from data.errors import BadInput
from data.fingerprint import file_digest
from infra.card import dataset_facts, page
from infra.failpoint import failpoint
from infra.store import Store

FILE_ROWS = 100_000


def export(store: Store, dataset: Artifact, destination: Path) -> list[Path]:
    """Write a dataset, or one table of it, into a new folder; return its files.

    Raises:
        BadInput: there are no rows to export, or the folder is there and not empty, or cannot be made.
    """
    facts = dataset_facts(dataset, _making_run(store, dataset))
    tables = [name for name, each in facts["tables"].items() if each["rows"]]
    if not tables:
        held = ", ".join(f"{name} ({each.get('rows', 0)} rows)" for name, each in dataset.record["outputs"].items())
        found = f"{dataset}, which holds no rows of a dataset, but {held}"
        raise BadInput(found, "a dataset: tables of rows", "name the dataset that the model was trained on")
    destination = destination.absolute()
    with _made_whole(destination) as folder:
        (folder / "data").mkdir()
        files = {table: list(write_files(dataset, table, folder / "data")) for table in tables}
        described = [
            {"path": f"data/{file.name}", "table": table, "bytes": file.stat().st_size, "sha256": file_digest(file)}
            for table, each in files.items()
            for file in each
        ]
        text = json.dumps(facts | {"files": described}, indent=1, sort_keys=True, ensure_ascii=False)
        (folder / "stillhouse.json").write_text(text + "\n", encoding="utf-8")
        (folder / "README.md").write_text(page(facts, configs(dataset, tables)), encoding="utf-8")
    return sorted(path for path in destination.rglob("*") if path.is_file())


def _making_run(store: Store, dataset: Artifact) -> dict[str, Any] | None:
    """Find the record of the run that made an artifact, if a recipe did."""
    made = dataset.path / "run.json"
    if not made.exists():
        return None
    file = store.root / "runs" / f"{json.loads(made.read_bytes())['run']}.json"
    return json.loads(file.read_bytes()) if file.exists() else None


def write_files(dataset: Artifact, table: str, folder: Path, size: int = FILE_ROWS) -> Iterator[Path]:
    """Write a table into files of `size` rows, ids as text: `datasets` does not read Parquet's UUIDs."""
    source = Artifact(dataset.stage, dataset.fingerprint, dataset.path, table)
    rows = source.rows
    schema = with_text_ids(source.schema.empty_table()).schema
    count = -(-rows // size)
    for number in range(count):
        file = folder / f"{table}-{number:05}-of-{count:05}.parquet"
        with pq.ParquetWriter(file, schema, compression="zstd", dictionary_pagesize_limit=1 << 16) as writer:
            for start in range(number * size, min(rows, (number + 1) * size), SHARD_ROWS):
                part = source.slice(start, min(start + SHARD_ROWS, rows, (number + 1) * size))
                writer.write_table(with_text_ids(part))
        yield file


def with_text_ids(table: pa.Table) -> pa.Table:
    """Write every column of UUIDs as text, in the form 8-4-4-4-12."""
    for at, field in enumerate(table.schema):
        if field.type == pa.uuid():
            column = table[field.name].combine_chunks()
            ids = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
            table = table.set_column(at, field.name, spelt(ids.storage))
    return table


def spelt(ids: pa.Array) -> pa.Array:
    """Spell 16-byte ids as text: string array, null where an id is."""
    raw = b"".join(each or bytes(16) for each in ids.to_pylist()).hex().encode()
    digits = np.frombuffer(raw, "S1").reshape(-1, 32)
    text = np.full((len(ids), 36), b"-", "S1")
    text[:, [at for at in range(36) if at not in (8, 13, 18, 23)]] = digits
    bounds = pa.array(np.arange(len(ids) + 1, dtype=np.int32) * 36).buffers()[1]
    whole = pa.Array.from_buffers(pa.string(), len(ids), [None, bounds, pa.py_buffer(text.tobytes())])
    return pa.compute.if_else(ids.is_valid(), whole, pa.scalar(None, pa.string()))


def configs(dataset: Artifact, tables: list[str]) -> list[dict[str, Any]]:
    """Say which files are which split: one configuration for tables of the same columns, else one for each table."""
    schemas = [dataset[table].schema for table in tables]
    splits = [{"split": re.sub(r"\W", "_", table), "path": f"data/{table}-?????-of-?????.parquet"} for table in tables]
    if all(schema == schemas[0] for schema in schemas):
        return [{"config_name": "default", "data_files": splits}]
    return [{"config_name": each["split"], "data_files": [each]} for each in splits]


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
