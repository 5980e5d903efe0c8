"""The handle on published bytes: to hold an `Artifact` is to know that they exist.

A published folder is `$STORE/<stage>/<fingerprint>/`:

    rows-00000.parquet …   a table of rows, in shards; a stage with several names them, e.g. train-*, test-*
    edges.parquet          child, parent: only where ids change
    dropped.parquet        row_id, reason, score, partner, detail
    failed.parquet         row_id, error, location
    borders.parquet        rule, kept, row_id, value, threshold, partner, detail: rows near a threshold
    NAME.parquet           any other table: where rows stand in their files, scores, a loss history
    NAME-00000.parquet …   the same, in shards where it is long: embeddings
    anything else          a model's files, a report
    record.json            what it is and what it was made of: the same bytes whenever and wherever it is made
    run.json               when, where and by which run: never part of an id
"""

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.errors import BadInput

ROWS = "rows"
FILES = "files"
SHARD_ROWS = 10_000


@dataclass(frozen=True)
class Artifact:
    """Point at one published folder, or at one named table of it: `artifact["train"]`."""

    stage: str
    fingerprint: str
    path: Path
    output: str | None = None

    def __getitem__(self, output: str) -> "Artifact":
        """Point at one named output.

        Raises:
            BadInput: the artifact has no such output.
        """
        if output not in self.record["outputs"]:
            raise BadInput(
                f"{self} asked for its {output!r}",
                f"one of {', '.join(self.record['outputs'])}",
                "name an output that this stage publishes",
            )
        return replace(self, output=output)

    def __str__(self) -> str:
        return f"{self.stage}/{self.fingerprint[:12]}" + (f"[{self.output}]" if self.output else "")

    @cached_property
    def record(self) -> dict[str, Any]:
        """What was published, and from what: the content of record.json."""
        record: dict[str, Any] = json.loads((self.path / "record.json").read_bytes())
        return record

    @property
    def table(self) -> str:
        """The table that reading this handle reads: the named output, else `rows`."""
        return self.output or ROWS

    @property
    def digest(self) -> str:
        """The logical digest (64 hex) of what the handle points at: a table, else a model's or report's files."""
        outputs = self.record["outputs"]
        output = self.output or next((each for each in (ROWS, FILES) if each in outputs), None)
        digest: str = outputs[output]["digest"] if output else self.record["output_digest"]
        return digest

    @property
    def rows(self) -> int:
        """The number of rows of the table."""
        rows: int = self.record["outputs"][self.table]["rows"]
        return rows

    def files(self) -> list[Path]:
        """The Parquet files of the table, in row order."""
        single = self.path / f"{self.table}.parquet"
        return [single] if single.exists() else sorted(self.path.glob(f"{self.table}-?????.parquet"))

    @property
    def schema(self) -> pa.Schema:
        """The table's columns."""
        files = self.files()
        if not files:
            raise BadInput(f"{self} holds no table {self.table!r}", "a table of rows", "pass a dataset here")
        schema: pa.Schema = pq.read_schema(files[0])
        return schema.remove_metadata()

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """Read the table whole."""
        tables = [read_parquet(file, columns) for file in self.files()]
        return pa.concat_tables(tables).combine_chunks().replace_schema_metadata()

    def slice(self, start: int, stop: int, columns: list[str] | None = None) -> pa.Table:
        """Read the rows from start to stop (exclusive), opening only the files that hold them."""
        tables, position = [], 0
        for file in self.files():
            rows = pq.ParquetFile(file).metadata.num_rows
            if position < stop and start < position + rows:
                table = read_parquet(file, columns)
                tables.append(table.slice(max(0, start - position), stop - max(start, position)))
            position += rows
        return pa.concat_tables(tables or [self._empty(columns)]).combine_chunks().replace_schema_metadata()

    def take(self, positions: Sequence[int], columns: list[str] | None = None) -> pa.Table:
        """Read the rows at ascending positions, opening only the files that hold them."""
        wanted = np.asarray(positions, np.int64)
        tables, start = [], 0
        for file in self.files():
            stop = start + pq.ParquetFile(file).metadata.num_rows
            here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)]
            if len(here):
                tables.append(read_parquet(file, columns).take(pa.array(here - start)))
            start = stop
        return pa.concat_tables(tables or [self._empty(columns)]).combine_chunks().replace_schema_metadata()

    def find(self, row: uuid.UUID) -> dict[str, Any] | None:
        """Read the one line of a row, if the table has it."""
        for file in self.files():
            ids = read_parquet(file, ["row_id"])["row_id"]
            at = pc.index(pa.chunked_array([chunk.storage for chunk in ids.chunks], pa.binary(16)), row.bytes).as_py()
            if at >= 0:
                line: dict[str, Any] = read_parquet(file).slice(at, 1).to_pylist()[0]
                return line
        return None

    def _empty(self, columns: list[str] | None) -> pa.Table:
        empty = self.schema.empty_table()
        return empty.select(columns) if columns else empty

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Read the table file by file, in row order."""
        for file in self.files():
            yield read_parquet(file, columns).replace_schema_metadata()


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file, or these columns of it; `pq.read_table` does it through Arrow's slower data sets."""
    with pq.ParquetFile(path) as file:
        table = file.read(columns)
    return table.select(columns) if columns else table
