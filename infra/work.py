"""What a stage's body works with: its shards, its output folder and its ledgers."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data.artifact import ROWS, SHARD_ROWS, Artifact
from data.contracts import dropped_schema, edges_schema, failed_schema
from infra.shards import ACCEPTED, ShardFunction, map_shards, read_shard, write_table

LEDGERS = {"edges": edges_schema, "dropped": dropped_schema, "failed": failed_schema}


@dataclass(frozen=True)
class Slice:
    """Describe a run of rows of an artifact; a worker reads it where it runs."""

    artifact: Artifact
    start: int
    stop: int

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """Read these rows."""
        return self.artifact.slice(self.start, self.stop, columns)


@dataclass(frozen=True)
class Work:
    """Hold one fingerprint's work folder while its stage runs.

    `out` becomes the published folder; everything else in `folder` (finished shards, checkpoints) survives a kill
    and is used by the next run.
    """

    folder: Path

    @property
    def out(self) -> Path:
        """The folder that will be published: fill it with files whose names follow data/artifact.py."""
        return self.folder / "out"

    @property
    def accepted(self) -> bool:
        """Whether rows that failed for now were accepted as failures."""
        return any(self.folder.glob(f"*/*{ACCEPTED}"))

    def begin(self) -> None:
        """Empty the output folder: it is made anew from the finished shards."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)

    def slices(self, rows: Artifact, size: int = SHARD_ROWS) -> list[Slice]:
        """Cut a table into shards of `size` rows, by position alone; an empty table into one empty shard."""
        return [Slice(rows, start, min(start + size, rows.rows)) for start in range(0, max(rows.rows, 1), size)]

    def map(
        self,
        function: ShardFunction,
        payloads: Iterable[Any],
        name: str = ROWS,
        gpus: float = 0,
        *,
        draft: bool = False,
    ) -> list[Path]:
        """Run a function over shards (see `map_shards`); finished ones are not run again, drafts are not for `keep`."""
        total = len(payloads) if isinstance(payloads, list) else None
        stage = self.folder.name.partition("-")[0]
        return map_shards(function, payloads, self.folder / name, total=total, what=stage, gpus=gpus, draft=draft)

    def keep(self, shards: list[Path], *tables: str) -> None:
        """Publish the tables of finished shards: tables of rows as numbered files, ledgers in one file each."""
        for table in tables or (ROWS,):
            files = [shard / f"{table}.parquet" for shard in shards if (shard / f"{table}.parquet").exists()]
            for number, file in enumerate(files):
                (self.out / f"{table}-{number:05}.parquet").hardlink_to(file)
        for ledger in LEDGERS:
            having = [shard for shard in shards if (shard / f"{ledger}.parquet").exists()]
            self.ledger(ledger, (read_shard(shard, ledger) for shard in having))

    def write(self, tables: Iterable[pa.Table], name: str = ROWS) -> None:
        """Publish tables of rows as numbered files of `name`."""
        for number, table in enumerate(tables):
            write_table(table, self.out / f"{name}-{number:05}.parquet")

    def write_single(self, table: pa.Table, name: str) -> None:
        """Publish a table that is not rows (scores, places, a history) as one file of `name`."""
        write_table(table, self.out / f"{name}.parquet")

    def ledger(self, name: str, parts: Iterable[pa.Table]) -> None:
        """Publish a ledger (edges, dropped, failed), sorted by id; an empty one leaves no file."""
        schema = LEDGERS[name]()
        table = pa.concat_tables([schema.empty_table(), *(part.cast(schema) for part in parts)]).combine_chunks()
        if len(table):
            order = pc.sort_indices(_sortable(table.column(0)))
            write_table(table.take(order), self.out / f"{name}.parquet")


def _sortable(ids: pa.ChunkedArray) -> pa.Array:
    whole = ids.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = pa.concat_arrays(whole.chunks)
    return whole.storage.cast(pa.binary())
