"""Keep one of each group of rows that say nearly the same, by their embeddings; the others name the one that was kept.

After SemDeDup (Abbas, Tirumala, Simig, Ganguli and Morcos 2023): of two rows whose vectors have a cosine of more than
1 - epsilon, one goes; `threshold` is that cosine. Different here:

- Pairs to compare are found by random hyperplanes (Charikar 2002), not by k-means: a vector's bits say on which side of
  each it lies, and two at an angle of A agree in a bit with a probability of 1 - A / pi. SemDeDup does not compare rows
  of different clusters, however near they are; here a pair at the threshold is missed with a known probability.
- The keeper is the row of the best rank (source, then row id), not the one farthest from a cluster's centre.
- A row is dropped because of a row that is kept (tasks/curate/leaders.py), never because of one that goes itself.

The hyperplanes go through the centre of all vectors, not through zero. Sentence embeddings lie to one side of zero, and
hyperplanes through it tell them apart badly: among 8,415 real texts embedded by all-MiniLM-L6-v2, centring left 28,000
pairs to compare instead of 47,000, at the same recall. Cosines are compared uncentred.
"""

from collections.abc import Iterator
from functools import partial
from math import acos, ceil, floor, log, log2, pi
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from data.artifact import Artifact, read_parquet
from data.fingerprint import seed_for
from data.ids import lots, sortable
from infra.shards import Tables
from infra.stage import Measures, Parameters, Reference, Rows, stage
from infra.work import Slice, Work
from tasks.curate.leaders import (
    Judged,
    Places,
    Similarity,
    Values,
    by_rank,
    choice_borders,
    choose_sharing,
    keep_rows,
    source_ranks,
)
from tasks.curate.vectors import Vectors, as_matrix, blocks, vectors_of

NEAR = "near in meaning"
FOUND = 0.97  # least probability of comparing a pair that is just as similar as the threshold
MOST_BANDS = 100
BLOCK = 4096  # vectors, or pairs of them, at a time


class DeduplicateSemanticParameters(Parameters):
    """Which rows say nearly the same, and which of them is kept."""

    threshold: float = Field(0.95, ge=0.5, le=1, description="Least cosine of two rows' vectors, 0.5 to 1.")
    prefer: tuple[str, ...] = Field((), description="Sources, the most preferred first; those not named come last.")
    seed: int = Field(0, ge=0, description="Draws other hyperplanes.")


class Planes(NamedTuple):
    """Hyperplanes through a centre; each band of `bits` of them cuts space into 2^bits buckets."""

    centre: Values  # (d,)
    bands: int
    bits: int
    seed: int


@stage("float")
def deduplicate_semantic(
    work: Work, parameters: DeduplicateSemanticParameters, rows: Rows, embeddings: Reference
) -> Measures:
    """Find rows of nearly the same meaning over the whole input, and keep the best of each group.

    Raises:
        BadInput: a row has no vector, or one that is not finite.
    """
    table = rows.read(["row_id", "source"])
    ids = table["row_id"].combine_chunks()
    order = by_rank(ids.storage, source_ranks(table["source"], parameters.prefer))
    ranked = ids.take(pa.array(order))
    planes = planes_for(parameters, centre_of(embeddings), len(order))
    shards = work.map(partial(sketch, planes), work.slices(embeddings["embeddings"]), "sketches", draft=True)
    compare = partial(cosines_of, embeddings, ranked)
    choice = choose_sharing(len(order), band_keys(shards, planes, embeddings, ranked), compare, parameters.threshold)
    work.borders([choice_borders(choice, ranked.storage, NEAR, parameters.threshold)])
    keepers, scores = np.empty_like(order), np.empty(len(order))
    near = choice.leader >= 0
    keepers[order], scores[order] = np.where(near, order[choice.leader], order), choice.likeness
    judged = [
        Judged(each, ids.storage.take(pa.array(keepers[part])), scores[part], np.ones(each.stop - each.start, bool))
        for each in work.slices(rows)
        for part in [slice(each.start, each.stop)]
    ]
    work.keep(work.map(partial(keep_rows, NEAR), judged))
    return {"pairs_compared": float(choice.compared), "buckets_full": float(choice.full)}


def centre_of(embeddings: Artifact) -> Values:
    """Average all vectors: (d,). They are summed in whole steps of 2^-20, so that their order leaves no trace."""
    total, count = np.zeros(1, np.int64), 0
    for _, vectors in blocks(embeddings):
        for start in range(0, len(vectors), BLOCK):
            part = vectors[start : start + BLOCK].astype(np.float64)
            total = total + np.rint(part * (1 << 20)).astype(np.int64).sum(0)
        count += len(vectors)
    return total / ((1 << 20) * max(count, 1))


def planes_for(parameters: DeduplicateSemanticParameters, centre: Values, rows: int) -> Planes:
    """Say how many hyperplanes find a pair at the threshold with a probability of 0.97.

    A band has log2(rows) + 2 bits, so that a bucket holds few rows however many there are; fewer if MOST_BANDS bands
    would not do. Seen from the centre, unit vectors are sqrt(1 - |centre|^2) away, on average, and the angle between
    two of them is wider. Where that leaves less than a cosine of 0.5, nearly all rows are about as similar as the
    threshold; there the planes go through zero.
    """
    spread = 1 - float(centre @ centre)
    through_centre = spread >= max(2 * (1 - parameters.threshold), 1e-6)
    cosine = 1 - (1 - parameters.threshold) / spread if through_centre else parameters.threshold
    agree = 1 - acos(cosine) / pi
    for bits in range(min(ceil(log2(max(rows, 2))) + 2, 62), 0, -1):
        bands = ceil(log(1 - FOUND) / log(1 - min(agree**bits, 0.99)))
        if bands <= MOST_BANDS:
            break
    return Planes(centre * through_centre, bands, bits, seed_for("deduplicate_semantic", parameters.seed))


def sketch(planes: Planes, rows: Slice) -> Tables:
    """Hash the bands of each vector."""
    table = rows.read(["row_id", "vector"])
    ids, vectors = table["row_id"].combine_chunks(), as_matrix(table["vector"])
    keys = band_hashes(planes, vectors)
    # a vector of zeros has no direction, and shares no bucket: its keys are its own
    zero = ~vectors.any(1)
    keys[:, zero] = lots(ids, planes.seed)[zero]
    return {"bands": pa.table({"row_id": ids, **{str(band): keys[band] for band in range(planes.bands)}})}


def band_hashes(planes: Planes, vectors: Vectors) -> npt.NDArray[np.uint64]:
    """Say on which sides of the hyperplanes vectors (n, d) lie: (bands, n), one bit for each of a band's planes.

    Vectors and normals are rounded to whole numbers so small that float32 adds their products without an error, below
    2^24. So a row's bits do not depend on the order of the sums: not on rows beside it, threads or the machine.
    """
    count, width = planes.bands * planes.bits, vectors.shape[1]
    normals = np.rint(16 * np.random.default_rng(planes.seed).standard_normal((width, count))).astype(np.float32)
    longest = float(np.sqrt((normals.astype(np.float64) ** 2).sum(0).max(initial=1)))
    scale = 2.0 ** floor(23 - log2(longest))  # |sum| <= |vector| |normal| (Cauchy-Schwarz), and |vector| <= 2
    steps = np.rint((vectors - planes.centre) * scale).astype(np.float32)
    sides = (steps @ normals > 0).reshape(-1, planes.bands, planes.bits)
    packed = np.zeros((planes.bands, len(vectors), 8), np.uint8)
    packed[:, :, : -(-planes.bits // 8)] = np.packbits(sides, axis=2).transpose(1, 0, 2)
    keys: npt.NDArray[np.uint64] = packed.view("<u8")[:, :, 0]
    return keys


def band_keys(
    shards: list[Path], planes: Planes, embeddings: Artifact, ranked: pa.Array
) -> Iterator[npt.NDArray[np.uint64]]:
    """Read the keys of one band after the other for rows (uuid array): (n,) in their order, joined by row id.

    Raises:
        BadInput: a row has no vector.
    """
    names = sortable(ranked)
    order = np.argsort(names)
    found = [_join(names, order, read_parquet(shard / "bands.parquet", ["row_id"])) for shard in shards]
    missing = np.ones(len(names), bool)
    for places, _ in found:
        missing[places] = False
    if missing.any():
        vectors_of(embeddings, ranked.filter(pa.array(missing)))  # which says what is wrong
    for band in map(str, range(planes.bands)):
        keys = np.empty(len(names), np.uint64)
        for shard, (places, lines) in zip(shards, found, strict=True):
            keys[places] = read_parquet(shard / "bands.parquet", [band])[band].to_numpy()[lines]
        yield keys


def _join(names: npt.NDArray[np.bytes_], order: Places, table: pa.Table) -> tuple[Places, Places]:
    """Find the lines of a table whose row id is among sorted names: (places in names, lines of the table)."""
    own = sortable(table["row_id"].combine_chunks())
    at = np.searchsorted(names, own, sorter=order)
    lines = np.flatnonzero(at < len(names))
    lines = lines[names[order[at[lines]]] == own[lines]]
    return order[at[lines]], lines


def cosines_of(embeddings: Artifact, ranked: pa.Array, wanted: Places) -> Similarity:
    """Read the vectors of rows (positions in `ranked`), and return their cosines, rounded to 1e-6, by position."""
    vectors = vectors_of(embeddings, ranked.take(pa.array(wanted)))
    return partial(cosines, vectors)


def cosines(vectors: Vectors, left: Places, right: Places) -> Values:
    """Multiply pairs of unit vectors (n, d), by their positions: (k,), rounded to 1e-6."""
    values = np.empty(len(left))
    for start in range(0, len(left), BLOCK):
        part = slice(start, start + BLOCK)
        values[part] = (vectors[left[part]].astype(np.float64) * vectors[right[part]]).sum(1)
    return np.round(values, 6)
