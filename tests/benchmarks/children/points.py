"""Publish clustered unit vectors as rows and embeddings, without a text worth reading: a pool and a target.

points.py POOL TARGET DIMENSIONS [SOURCES]: half of the pool is on the target's clusters, half on others; with several
sources each has a cluster of its own, and the target is a mixture of them.
"""

import json
import sys

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.artifact import SHARD_ROWS
from data.contracts import UNLABELLED
from data.ids import content_ids, row_ids
from infra.shards import write_table
from infra.stage import Measures, Parameters, Reference, stage
from infra.work import Work

CLUSTERS = 20


class PointsParameters(Parameters):
    """How many points, around which centres."""

    name: str
    rows: int
    dimensions: int
    kind: str
    sources: int = 1


def centres(dimensions: int, count: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=(count, dimensions))


def around(parameters: PointsParameters, start: int, count: int) -> npt.NDArray[np.float32]:
    draw = np.random.default_rng([len(parameters.name), start])
    means = centres(parameters.dimensions, 2 * CLUSTERS)
    if parameters.kind == "target":
        which = draw.integers(CLUSTERS, size=count)
    else:
        which = np.where(np.arange(start, start + count) % 2, draw.integers(CLUSTERS, size=count),
                         draw.integers(CLUSTERS // 2, CLUSTERS // 2 + CLUSTERS, size=count))  # fmt: skip
    points = means[which] + draw.normal(size=(count, parameters.dimensions))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@stage("exact", source=True)
def points(work: Work, parameters: PointsParameters) -> Measures:
    """Make the rows."""
    for number, start in enumerate(range(0, parameters.rows, SHARD_ROWS)):
        count = min(SHARD_ROWS, parameters.rows - start)
        table = pa.table({"text": [f"{parameters.name} {n}" for n in range(start, start + count)]})
        contents = content_ids(table, UNLABELLED)
        source = [f"{parameters.name}{n % parameters.sources}" for n in range(start, start + count)]
        table = table.add_column(0, "content_id", contents).append_column("source", pa.array(source))
        table = table.append_column("licence", pa.repeat("CC0-1.0", count))
        table = table.add_column(0, "row_id", row_ids(parameters.name, contents, {}))
        write_table(table, work.out / f"rows-{number:05}.parquet")
    return {}


@stage("exact")
def point_vectors(work: Work, parameters: PointsParameters, rows: Reference) -> Measures:
    """Make their vectors."""
    for number, start in enumerate(range(0, parameters.rows, SHARD_ROWS)):
        ids = rows.slice(start, start + SHARD_ROWS, ["row_id"])["row_id"]
        flat = pa.array(around(parameters, start, len(ids)).ravel())
        lists = pa.FixedSizeListArray.from_arrays(flat, parameters.dimensions)
        write_table(pa.table({"row_id": ids, "vector": lists}), work.out / f"embeddings-{number:05}.parquet")
    return {}


def published(name: str, rows: int, dimensions: int, kind: str, sources: int = 1) -> list[str]:
    parameters = PointsParameters(name=name, rows=rows, dimensions=dimensions, kind=kind, sources=sources)
    made = points(parameters)
    return [f"points/{made.fingerprint}", f"point_vectors/{point_vectors(parameters, made).fingerprint}"]


if __name__ == "__main__":
    pool, target, dimensions, *more = map(int, sys.argv[1:])
    print(json.dumps([
        *published("pool", pool, dimensions, "pool", *more),
        *published("target", target, dimensions, "target"),
    ]))  # fmt: skip
