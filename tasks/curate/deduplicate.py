"""Keep one of each group of equal rows, and of rows with nearly the same text; every other names the one that was kept.

Rows are ranked: by their source, as `prefer` has it, then by row id. Of equal rows the best is kept. With `near`, a row
is dropped as well if a kept row of better rank has nearly the same words: the Jaccard similarity of their shingles,
runs of five words, reaches the threshold. Pairs to compare are found by MinHash bands (tasks/curate/minhash.py), each
is verified on the shingles themselves, and rows are chosen by tasks/curate/leaders.py. So the result does not depend on
the order of the input. What other tools do otherwise: they drop whatever shares a band, unverified, or join chains of
like rows into one cluster, in which the first and the last can have little in common.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data.artifact import SHARD_ROWS, Artifact, read_parquet
from data.contracts import contract_of
from data.fingerprint import seed_for
from data.ids import lots
from data.text import Part, row_texts
from infra.shards import Tables, read_shard
from infra.stage import Measures, Parameters, Rows, stage
from infra.work import Pick, Work
from tasks.curate.leaders import (
    Choice,
    Judged,
    Places,
    Similarity,
    by_rank,
    choice_borders,
    choose_sharing,
    keep_rows,
    source_ranks,
)
from tasks.curate.minhash import Sets, band_hashes, bands_for, jaccard, joined, shingle_sets, signatures

NEAR = "near-duplicate"


class NearParameters(Parameters):
    """Which texts are nearly the same."""

    threshold: float = Field(0.8, ge=0.1, le=1, description="Least Jaccard similarity of two rows' shingles, 0.1 to 1.")
    shingle: int = Field(5, ge=1, le=64, description="Words in a shingle.")
    permutations: int = Field(128, ge=34, le=1024, description="Numbers in a signature: more find more surely.")
    part: Part = Field("all", description="Text of a row to compare: all of it, its prompt, or its answer.")


class DeduplicateParameters(Parameters):
    """Which rows are equal, and which of them is kept."""

    prefer: tuple[str, ...] = Field((), description="Sources, the most preferred first; those not named come last.")
    near: NearParameters | None = Field(
        None, title="Near-duplicates", description="Drop rows of nearly the same text too; none: only equal ones."
    )


class Sketches(NamedTuple):
    """Where the bands and shingles of the distinct rows wait, 10,000 rows in each shard, in the order of the input."""

    shards: list[Path]
    places: Places  # (m,) place of each row among them, in the order of rank


@stage("exact")
def deduplicate(work: Work, parameters: DeduplicateParameters, rows: Rows) -> Measures:
    """Find the groups of equal content, then the near ones, over the whole input; keep the best row of each."""
    table = rows.read(["row_id", "content_id", "source"])
    ids, contents = (table[name].combine_chunks().storage for name in ("row_id", "content_id"))
    ranks = source_ranks(table["source"], parameters.prefer)
    best = keepers(contents, ids, ranks)
    scores, near = np.ones(len(best)), np.zeros(len(best), bool)
    measures = {"groups": float(len(pc.unique(contents)))}
    if parameters.near is not None:
        order = by_rank(ids, ranks)
        distinct = order[best[order] == order]
        choice = choose_near(work, parameters.near, rows, distinct)
        work.borders([choice_borders(choice, ids.take(pa.array(distinct)), NEAR, parameters.near.threshold)])
        best, scores, near = follow(best, distinct, choice)
        measures |= {"rows_near": float(near.sum()), "pairs_compared": choice.compared, "buckets_full": choice.full}
    shards = [
        Judged(
            each,
            ids.take(pa.array(best[each.start : each.stop])),
            scores[each.start : each.stop],
            near[each.start : each.stop],
        )
        for each in work.slices(rows)
    ]
    work.keep(work.map(partial(keep_rows, NEAR), shards))
    return measures


def keepers(contents: pa.Array, ids: pa.Array, ranks: Places) -> Places:
    """Find each row's keeper: (n,) positions; rows of equal content share the one of lowest (rank, row id).

    Args:
        contents: (n,) 16-byte content ids.
        ids: (n,) 16-byte row ids, distinct.
        ranks: (n,) preference of each row, lowest first.
    """
    groups = pc.index_in(contents, value_set=pc.unique(contents)).to_numpy(zero_copy_only=False)
    order = by_rank(ids, ranks)
    _, first = np.unique(groups[order], return_index=True)
    # groups are numbered 0, 1, … so this lists their keepers by number
    best: Places = order[first][groups]
    return best


def follow(
    best: Places, distinct: Places, choice: Choice
) -> tuple[Places, npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Let rows whose equal is dropped follow it to its leader: (keepers, scores, whether near), (n,) each.

    Args:
        best: (n,) position of each row's equal.
        distinct: (m,) positions of the rows that were compared, in the order of their rank.
        choice: what became of those.
    """
    leader, likeness = np.arange(len(best)), np.ones(len(best))
    led = choice.leader >= 0
    leader[distinct[led]] = distinct[choice.leader[led]]
    likeness[distinct[led]] = choice.likeness[led]
    near = leader != np.arange(len(best))
    return leader[best], likeness[best], near[best]


# ---- near-duplicates ------------------------------------------------------------------------------------


def choose_near(work: Work, near: NearParameters, rows: Artifact, distinct: Places) -> Choice:
    """Choose which rows to keep of those at these positions, which stand in the order of their rank."""
    inside = np.sort(distinct)
    picks = [Pick(rows, inside[start : start + SHARD_ROWS]) for start in range(0, len(inside), SHARD_ROWS)]
    shards = work.map(partial(sketch, near), picks, "sketches", draft=True)
    sketches = Sketches(shards, np.searchsorted(inside, distinct))
    return choose_sharing(len(distinct), band_keys(sketches, near), partial(sets_of, sketches), near.threshold)


def sketch(near: NearParameters, rows: Pick) -> Tables:
    """Hash the bands of each row, and its shingles."""
    names = contract_of(rows.artifact.schema)
    table = rows.read(["row_id", *names.columns])
    sets = shingle_sets(row_texts(table, names, near.part), near.shingle)
    worded = np.flatnonzero(sets.sizes)
    bands, height = bands_for(near.threshold, near.permutations)
    # a row without words shares no bucket: its keys are its own
    keys = np.tile(lots(table["row_id"].combine_chunks(), seed_for("no words")), (bands, 1))
    keys[:, worded] = band_hashes(signatures(sets.take(worded), bands * height), bands)
    return {
        "bands": pa.table({"size": sets.sizes, **{str(band): keys[band] for band in range(bands)}}),
        "shingles": pa.table({"hash": sets.elements}),
    }


def band_keys(sketches: Sketches, near: NearParameters) -> Iterator[npt.NDArray[np.uint64]]:
    """Read the keys of one band after the other: (m,) in the order of rank."""
    bands, _ = bands_for(near.threshold, near.permutations)
    for band in map(str, range(bands)):
        columns = [read_parquet(shard / "bands.parquet", [band])[band].to_numpy() for shard in sketches.shards]
        yield np.concatenate(columns)[sketches.places] if columns else np.empty(0, np.uint64)


def sets_of(sketches: Sketches, wanted: Places) -> Similarity:
    """Read the shingles of rows (by their rank, ascending), and return their similarity by position in `wanted`."""
    places = sketches.places[wanted]
    order = np.argsort(places)
    parts = []
    for number, shard in enumerate(sketches.shards):
        start = number * SHARD_ROWS
        here = places[order][slice(*np.searchsorted(places[order], [start, start + SHARD_ROWS]))] - start
        if len(here):
            sizes = read_parquet(shard / "bands.parquet", ["size"])["size"].to_numpy()
            elements = read_shard(shard, "shingles")["hash"].to_numpy()
            parts.append(Sets(elements, np.concatenate([[0], np.cumsum(sizes)])).take(here))
    sets = joined(parts)
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return lambda left, right: jaccard(sets, back[left], back[right])
