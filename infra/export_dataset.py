"""Write a dataset into a folder that `datasets.load_dataset` reads.

    DEST/README.md            the card; its header says which file is which split
    DEST/data/<table>-00000-of-0000N.parquet

A table without rows is on the card and nowhere else: `datasets` does not open a folder with an empty split.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.artifact import SHARD_ROWS, Artifact
from data.fingerprint import file_digest
from infra.card import dataset_facts, page

FILE_ROWS = 100_000


def tables_with_rows(dataset: Artifact) -> list[str]:
    """Name the tables of rows that are not empty; of a handle on one table, that one."""
    return [
        name
        for name, each in dataset.record["outputs"].items()
        if "contract" in each and each["rows"] and dataset.output in (None, name)
    ]


def fill_with_dataset(dataset: Artifact, run: dict[str, Any] | None, folder: Path) -> tuple[dict[str, Any], str]:
    """Write the tables of rows into a folder; return what stillhouse.json holds, and the card."""
    facts, tables = dataset_facts(dataset, run), tables_with_rows(dataset)
    (folder / "data").mkdir()
    described = [
        {"path": f"data/{file.name}", "table": table, "bytes": file.stat().st_size, "sha256": file_digest(file)}
        for table in tables
        for file in write_files(dataset, table, folder / "data")
    ]
    return facts | {"files": described}, page(facts, configs(dataset, tables))


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
