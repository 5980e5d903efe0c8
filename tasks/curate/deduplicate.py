"""Keep one of each group of equal rows; every other names the one that was kept.

The keeper is the row of the most preferred source, and among those the one with the lowest row id: the same row,
whatever the order of the input.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data.contracts import ID, dropped_schema
from infra.shards import Tables
from infra.stage import Measures, Parameters, Rows, stage
from infra.work import Slice, Work


class DeduplicateParameters(Parameters):
    """Which rows are equal, and which of them is kept."""

    prefer: tuple[str, ...] = Field((), description="Sources, the most preferred first; those not named come last.")


class Judged(NamedTuple):
    """A shard, and the keeper of each of its rows (16 bytes each; a row that is kept is its own keeper)."""

    rows: Slice
    keepers: pa.Array


@stage("exact")
def deduplicate(work: Work, parameters: DeduplicateParameters, rows: Rows) -> Measures:
    """Find the groups of equal content over the whole input, then keep one row of each."""
    table = rows.read(["row_id", "content_id", "source"])
    ids, contents = (table[name].combine_chunks().storage for name in ("row_id", "content_id"))
    best = keepers(contents, ids, source_ranks(table["source"], parameters.prefer))
    shards = [Judged(each, ids.take(best[each.start : each.stop])) for each in work.slices(rows)]
    work.keep(work.map(keep_rows, shards))
    return {"groups": float(len(pc.unique(contents)))}


def source_ranks(sources: pa.ChunkedArray, prefer: Sequence[str]) -> npt.NDArray[np.int64]:
    """Rank each row by its source: position in `prefer`, or its length for sources not named."""
    ranks = pc.index_in(sources, value_set=pa.array(prefer, pa.string()))
    filled: npt.NDArray[np.int64] = pc.fill_null(ranks, len(prefer)).to_numpy().astype(np.int64)
    return filled


def keepers(contents: pa.Array, ids: pa.Array, ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Find each row's keeper: (n,) positions; rows of equal content share the one of lowest (rank, row id).

    Args:
        contents: (n,) 16-byte content ids.
        ids: (n,) 16-byte row ids, distinct.
        ranks: (n,) preference of each row, lowest first.
    """
    groups = pc.index_in(contents, value_set=pc.unique(contents)).to_numpy(zero_copy_only=False)
    halves = np.frombuffer(b"".join(ids.to_pylist()), ">u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0], ranks, groups))
    first = np.ones(len(order), bool)
    first[1:] = groups[order][1:] != groups[order][:-1]
    # groups are numbered 0, 1, … so the sorted order lists their keepers by number
    by_group: npt.NDArray[np.int64] = order[first]
    best: npt.NDArray[np.int64] = by_group[groups]
    return best


def keep_rows(judged: Judged) -> Tables:
    """Divide one shard into kept and dropped."""
    table = judged.rows.read()
    keeper = judged.keepers
    own = pc.equal(table["row_id"].combine_chunks().storage, keeper)
    other = pc.invert(own)
    count = pc.sum(other).as_py() or 0
    dropped = {
        "row_id": table["row_id"].filter(other),
        "reason": pa.repeat(pa.scalar("duplicate"), count),
        "score": pa.repeat(pa.scalar(1.0), count),
        "partner": pa.ExtensionArray.from_storage(ID, keeper.filter(other)),
        "detail": pa.nulls(count, pa.string()),
    }
    return {"rows": table.filter(own), "dropped": pa.table(dropped, schema=dropped_schema())}
