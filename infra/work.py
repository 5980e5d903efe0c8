"""What a stage's body works with: its shards, its output folder and its ledgers."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.artifact import ROWS, SHARD_ROWS, Artifact
from data.borders import nearest
from data.contracts import dropped_schema, edges_schema, failed_schema
from data.ids import sortable
from infra.memo import KEY as CONTENT
from infra.memo import Memo
from infra.progress import say
from infra.shards import ACCEPTED, ShardFunction, Tables, map_shards, read_shard, write_table

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
class Pick:
    """Describe some rows of an artifact, by ascending positions; a worker reads them where it runs."""

    artifact: Artifact
    positions: npt.NDArray[np.int64]

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """Read these rows."""
        return self.artifact.take(self.positions.tolist(), columns)


@dataclass(frozen=True)
class Work:
    """Hold one fingerprint's work folder while its stage runs.

    `out` becomes the published folder; everything else in `folder` (finished shards, checkpoints) survives a kill
    and is used by the next run.
    """

    folder: Path
    memo: Memo

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
        return map_shards(function, payloads, self.folder / name, total=total, what=self._stage, gpus=gpus, draft=draft)

    def remember(
        self,
        function: Callable[[Pick], pa.Table],
        rows: Artifact,
        size: int = SHARD_ROWS,
        gpus: float = 0,
        places: npt.NDArray[np.int64] | None = None,
        model: Artifact | None = None,
    ) -> Iterator[tuple[pa.Array, pa.Table]]:
        """Get a value for every row, out of the memo or computed now, in shards of the rows: (row ids, values).

        Each content is computed once, whichever rows have it and whichever dataset they came in; what is computed
        enters the memo at once, so that a kill loses only the chunks in flight.

        Args:
            function: a module's top-level function (or a partial of one): rows -> content_id and values, one line
                for each row. A row's values must not depend on the rows beside it.
            rows: any table of rows.
            size: rows in one chunk of work.
            gpus: GPUs that one chunk takes on Ray.
            places: ascending places of the rows to get values for; none: all.
            model: an input that values depend on beside the content; another one has a memo of its own.
        """
        memo = self.memo.of(model.digest) if model else self.memo
        places = np.arange(rows.rows) if places is None else places
        contents = sortable(_whole(rows.read([CONTENT])[CONTENT]))[places]
        _, first = np.unique(contents, return_index=True)
        first.sort()
        missing = places[first[memo.index().find(contents[first]) < 0]]
        if 0 < len(missing) < len(first):
            say(f"  {self._stage}: {len(first) - len(missing):,} of {len(first):,} rows are remembered")
        chunks = [Pick(rows, missing[start : start + size]) for start in range(0, len(missing), size)]
        with TemporaryDirectory(dir=self.folder) as notes:
            fill = partial(_fill, memo, function)
            map_shards(fill, chunks, Path(notes), total=len(chunks), what=self._stage, gpus=gpus, draft=True)
        index = memo.index()
        for start in range(0, len(places), SHARD_ROWS):
            ids = Pick(rows, places[start : start + SHARD_ROWS]).read(["row_id", CONTENT])
            yield _whole(ids["row_id"]), memo.take(index, sortable(_whole(ids[CONTENT])))

    @property
    def _stage(self) -> str:
        return self.folder.name.partition("-")[0]

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

    def borders(self, parts: Iterable[pa.Table]) -> None:
        """Publish the rows nearest to each threshold, on both sides (data/borders.py); none leave no file."""
        table = nearest(parts)
        if len(table):
            self.write_single(table, "borders")

    def ledger(self, name: str, parts: Iterable[pa.Table]) -> None:
        """Publish a ledger (edges, dropped, failed), sorted by id; an empty one leaves no file."""
        schema = LEDGERS[name]()
        table = pa.concat_tables([schema.empty_table(), *(part.cast(schema) for part in parts)]).combine_chunks()
        if len(table):
            order = pc.sort_indices(_sortable(table.column(0)))
            write_table(table.take(order), self.out / f"{name}.parquet")


def _fill(memo: Memo, function: Callable[[Pick], pa.Table], rows: Pick) -> Tables:
    """Compute one chunk and put it into the memo."""
    memo.add(function(rows))
    return {}


def _whole(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole


def _sortable(ids: pa.ChunkedArray) -> pa.Array:
    whole = ids.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = pa.concat_arrays(whole.chunks)
    return whole.storage.cast(pa.binary())
