"""Select the rows that lie nearest to any row of the target: the baseline that knows the target, but not the pool.

It finds what is on the target's subject as well as transport does. What it does not see is how much of the target the
selection covers: a crowd of rows around one row of the target is taken whole.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from infra.devices import torch_device
from infra.shards import Tables, read_shard
from infra.stage import Measures, Reference, Rows, stage
from infra.work import Slice, Work
from tasks.curate.selection import SelectParameters, choose, publish, read_pool, rounded
from tasks.curate.transport import BLOCK, squared_distances
from tasks.curate.vectors import Vectors, as_matrix, check_widths, join, vectors_of


class SelectNearestParameters(SelectParameters):
    """How much to select; there is nothing else to say."""

    method: Literal["nearest"] = Field("nearest", description="Selection by the distance to the nearest target row.")


class Measured(NamedTuple):
    """A shard of embeddings, and the target's vectors (m, d)."""

    embeddings: Slice
    target: Vectors


@stage("float")
def select_nearest(
    work: Work, parameters: SelectNearestParameters, rows: Rows, embeddings: Reference, target_embeddings: Reference
) -> Measures:
    """Take the rows with the smallest squared distance to their nearest target row.

    Outputs: `rows`; `scores`, where a row's value is that distance, with the target row.

    Raises:
        BadInput: a side is empty, or vectors are missing, not finite, or not of one length.
    """
    pool = read_pool(rows, parameters)
    torch_device()
    ids = target_embeddings["embeddings"].read(["row_id"])["row_id"].combine_chunks()
    wanted = vectors_of(target_embeddings, ids) if len(ids) else np.empty((0, 1), np.float32)
    table = embeddings["embeddings"]
    check_widths(as_matrix(table.slice(0, 1, ["vector"])["vector"]), wanted)
    shards = work.map(measure_rows, [Measured(each, wanted) for each in work.slices(table)], "measured", draft=True)
    measured = pa.concat_tables([read_shard(shard, "measured") for shard in shards]).combine_chunks()
    measured = join(measured, pool.ids, embeddings)
    values = rounded(measured["distance"].to_numpy())
    columns = {"nearest": ids.take(measured["place"].combine_chunks())}
    return publish(work, pool, values, choose(pool, values, parameters.budget), columns, "others are nearer")


def measure_rows(measured: Measured) -> Tables:
    """Find the nearest target row of each row of a shard."""
    table = measured.embeddings.read(["row_id", "vector"])
    distances, places = nearest(as_matrix(table["vector"]), measured.target)
    columns = {"row_id": table["row_id"], "distance": pa.array(distances), "place": pa.array(places)}
    return {"measured": pa.table(columns)}


def nearest(pool: Vectors, target: Vectors) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Find the least squared distance to a target row, and which it is: (n, d), (m, d) -> (n,), (n,)."""
    distances, places = np.empty(len(pool)), np.empty(len(pool), np.int64)
    for start in range(0, len(pool), BLOCK):
        # blocks are filled up, so that a row has the same bits in whatever shard it stands
        block = pool[np.minimum(np.arange(start, start + BLOCK), len(pool) - 1)]
        rows = slice(start, min(start + BLOCK, len(pool)))
        squares = squared_distances(block, target)[: rows.stop - rows.start]
        places[rows] = squares.argmin(1)
        distances[rows] = squares.min(1)
    return distances, places
