"""Select rows by importance weights of their n-grams: DSIR (Xie et al., NeurIPS 2023).

    hashed counts of words and pairs of words, 10,000 buckets      -> bucket_counts
    target and pool as bags of buckets, smoothed                   -> log_ratios
    a row's weight: the log ratio summed over its n-grams          -> weigh_rows
    the Gumbel top-k of the weights, a sample without replacement  -> gumbel

It looks at words alone: no encoder, and no embedding.
"""

from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from data.artifact import Artifact
from data.contracts import contract_of
from data.errors import BadInput
from data.fingerprint import seed_for
from data.ids import lots
from data.text import Part, row_texts
from infra.shards import Tables, read_shard
from infra.stage import Measures, Reference, Rows, stage
from infra.work import Slice, Work
from tasks.curate.ngrams import ngrams, words_of
from tasks.curate.selection import Floats, SelectParameters, choose, publish, read_pool, rounded

Counts = npt.NDArray[np.int64]


class SelectDsirParameters(SelectParameters):
    """How to count, and how to draw."""

    method: Literal["dsir"] = Field("dsir", description="Selection by importance weights of n-grams.")
    buckets: int = Field(10_000, ge=2, description="Buckets into which n-grams are hashed.")
    smoothing: float = Field(1.0, gt=0, description="Count added to each bucket of target and pool.")
    part: Part = Field("all", description="Text of a row to count: all of it, its prompt, or its answer.")
    draw: bool = Field(True, description="Draw rows by their weights, as the paper does; false: take the heaviest.")
    seed: int = Field(0, ge=0, description="Chooses another draw.")


@stage("float")
def select_dsir(work: Work, parameters: SelectDsirParameters, rows: Rows, target: Reference) -> Measures:
    """Weigh each row by how much likelier its n-grams are in the target than in the pool, and draw by the weights.

    Outputs: `rows`; `scores`, where a row's value is its weight, with a minus sign and the noise of the draw, and
    `log_weight` the weight itself.

    Raises:
        BadInput: the pool or the target is empty.
    """
    pool = read_pool(rows, parameters)
    if not target.rows:
        raise BadInput(f"{target} without a row", "a target of one row or more", "see what was dropped before")
    wanted, there = (total(work, parameters, each, name) for each, name in ((target, "target"), (rows, "pool")))
    ratios = log_ratios(wanted, there, parameters.smoothing)
    shards = work.map(partial(weigh_rows, parameters, ratios), work.slices(rows), "weights")
    weights = np.concatenate([read_shard(shard, "weights")["weight"].to_numpy() for shard in shards])
    noise = gumbel(lots(pool.ids, seed_for("select_dsir", parameters.seed))) if parameters.draw else 0.0
    values = rounded(-(weights + noise))
    columns = {"log_weight": pa.array(rounded(weights))}
    return publish(work, pool, values, choose(pool, values, parameters.budget), columns, "others weigh more")


def total(work: Work, parameters: SelectDsirParameters, rows: Artifact, name: str) -> Counts:
    """Count the buckets of all rows: (buckets,)."""
    shards = work.map(partial(count_rows, parameters), work.slices(rows), name)
    counts: Counts = np.sum([read_shard(shard, "counts")["count"].to_numpy() for shard in shards], axis=0)
    return counts


def bucket_counts(parameters: SelectDsirParameters, rows: Slice) -> tuple[Counts, Counts, int]:
    """Hash the words and pairs of words of a shard: (bucket of each, row of each, number of rows)."""
    table = rows.read()
    words = words_of(row_texts(table, contract_of(table.schema), parameters.part))
    single, pairs = ngrams(words, 1), ngrams(words, 2)
    hashes = np.concatenate([single.hashes, pairs.hashes])
    owners = np.concatenate([single.owners, pairs.owners])
    return (hashes % np.uint64(parameters.buckets)).astype(np.int64), owners, len(table)


def count_rows(parameters: SelectDsirParameters, rows: Slice) -> Tables:
    """Count the buckets of one shard."""
    found, _, _ = bucket_counts(parameters, rows)
    return {"counts": pa.table({"count": np.bincount(found, minlength=parameters.buckets)})}


def log_ratios(target: Counts, pool: Counts, smoothing: float) -> Floats:
    """Compare two bags: (buckets,) log of a bucket's share of the target over its share of the pool."""
    shares = [(each + smoothing) / (each.sum() + smoothing * len(each)) for each in (target, pool)]
    ratios: Floats = np.log(shares[0]) - np.log(shares[1])
    return ratios


def weigh_rows(parameters: SelectDsirParameters, ratios: Floats, rows: Slice) -> Tables:
    """Sum the log ratios of each row of a shard."""
    found, owners, count = bucket_counts(parameters, rows)
    return {"weights": pa.table({"weight": np.bincount(owners, weights=ratios[found], minlength=count)})}


def gumbel(drawn: npt.NDArray[np.uint64]) -> Floats:
    """Turn lots into standard Gumbel noise: (n,)."""
    uniform = (drawn.astype(np.float64) + 0.5) / 2**64
    noise: Floats = -np.log(-np.log(np.minimum(uniform, 1 - 2**-53)))
    return noise
