"""The potentials of a target: found from a pool, kept as a table, and used to score rows by one pass.

What is found once serves for every row that comes later: a row's potential is the c-transform of the target's
(transport.py), which needs no other row of the pool.
"""

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.artifact import Artifact
from data.contracts import LABELLED, contract_of
from data.errors import BadInput
from data.ids import lots
from infra.devices import torch_device
from infra.shards import Tables, read_shard
from infra.work import Slice, Work
from tasks.curate.selection import Floats, Places, Pool
from tasks.curate.transport import STREAMED, Points, Target, label_costs, potentials, temperature, transform
from tasks.curate.vectors import as_matrix, check_widths, join, vectors_of

PART_ROWS = 4096  # pool rows that the potentials of one part of the target are found from
PROBE = 2048  # rows of each side whose costs set the temperature


class Solution(NamedTuple):
    """The potentials of a target, and all that is needed to score any row by them."""

    target: Target
    ids: pa.Array  # (m,) of the target's rows
    g: Floats  # (m,)
    parts: list[tuple[slice, Floats]]  # the potentials that each part of the target has alone
    classes: tuple[list[str], list[str]]  # the labels of pool and target, where the cost knows them
    means: Floats | None = None  # (1 + parts,) mean potentials of the pool that they were found from


class Passed(NamedTuple):
    """What one pass over the pool tells of its rows (n,)."""

    potentials: Floats  # (n, 1 + parts): by the whole target, then by each of its parts
    pulled: Places  # (n,) the target row whose pull is strongest
    nearest: Places  # (n,) the target row that is nearest
    costs: Floats  # (n,) the cost to it
    error: float  # L1 error of the target's marginal, 0 to 2


# ---- found from a pool -------------------------------------------------------------------------------------


def solve(
    work: Work,
    pool: Pool,
    embeddings: Artifact,
    target: Artifact,
    target_embeddings: Artifact,
    *,
    epsilon: float,
    parts: int,
    label_weight: float,
    seed: int,
) -> Solution:
    """Find the potentials of a target and of its parts.

    Pool and target are put in a random order by their ids, so that the order in which they came counts for nothing.

    Args:
        work: the work folder, where finished problems wait if the run is killed.
        pool: the rows to be scored.
        embeddings: their vectors.
        target: the target's rows.
        target_embeddings: their vectors.
        epsilon: temperature, as a share of the median cost.
        parts: into how many parts to divide the target; 0 or 1: none.
        label_weight: weight of the cost between labels; 0, or rows without labels: none.
        seed: chooses another order.

    Raises:
        BadInput: a side is empty, or vectors are missing, not finite, or not of one length.
    """
    torch_device()  # torch must be loaded before its threads can be held
    labelled = label_weight > 0 and all(contract_of(each.schema) == LABELLED for each in (pool.rows, target))
    table = target.read(["row_id", "label"] if labelled else ["row_id"])
    table = table.take(pa.array(np.argsort(lots(table["row_id"].combine_chunks(), seed), kind="stable")))
    ids = table["row_id"].combine_chunks()
    sample = pa.array(np.argsort(lots(pool.ids, seed), kind="stable")[:STREAMED])
    points = Points(vectors_of(embeddings, pool.ids.take(sample)))
    wanted = Points(vectors_of(target_embeddings, ids) if len(ids) else np.empty((0, 1), np.float32))
    check_widths(points.vectors, wanted.vectors)
    classes: tuple[list[str], list[str]] = ([], [])
    costs = None
    if labelled:
        labels = pool.rows.read(["label"])["label"]
        classes = (sorted(set(labels.to_pylist())), sorted(set(table["label"].to_pylist())))
        points = Points(points.vectors, coded(labels.take(sample), classes[0]))
        wanted = Points(wanted.vectors, coded(table["label"], classes[1]))
        costs = label_weight * label_costs(points, wanted)
    heat = temperature(points.vectors[:PROBE], wanted.vectors[:PROBE], epsilon)
    whole = Target(wanted, heat, costs)
    stretches = cut(len(ids), parts)
    problems = [(points, whole)] + [
        (points.take(part_sample(len(sample), number)), whole.part(np.arange(each.start, each.stop)))
        for number, each in enumerate(stretches)
    ]
    shards = work.map(find, problems, "potentials")
    found = [read_shard(shard, "potentials")["potential"].to_numpy() for shard in shards]
    return Solution(whole, ids, found[0], list(zip(stretches, found[1:], strict=True)), classes)


def cut(rows: int, parts: int) -> list[slice]:
    """Cut rows into parts of like size, fewer than asked for if there are fewer rows; one part is none."""
    if min(parts, rows) < 2:
        return []
    borders = np.linspace(0, rows, min(parts, rows) + 1).astype(int).tolist()
    return [slice(*pair) for pair in pairwise(borders)]


def part_sample(rows: int, number: int) -> Places:
    """Choose the pool rows of one part's problem: a stretch of the sample, another for each part while it lasts."""
    return np.unique((number * PART_ROWS + np.arange(PART_ROWS)) % rows)


def find(problem: tuple[Points, Target]) -> Tables:
    """Find the potentials of one target, or of one part of it."""
    return {"potentials": pa.table({"potential": potentials(*problem)})}


def coded(labels: pa.ChunkedArray, classes: list[str]) -> npt.NDArray[np.int64]:
    """Number labels by their place among the classes.

    Raises:
        BadInput: a label is none of them.
    """
    codes = pc.index_in(labels, value_set=pa.array(classes, pa.string()))
    if codes.null_count:
        unknown = labels.filter(pc.is_null(codes))[0].as_py()
        raise BadInput(
            f"a row labelled {unknown!r}, which the pool had not when the potentials were found",
            f"labels among {', '.join(classes)}",
            "find the potentials anew",
        )
    numbers: npt.NDArray[np.int64] = codes.to_numpy().astype(np.int64)
    return numbers


# ---- used to score rows ------------------------------------------------------------------------------------


class Scoring(NamedTuple):
    """A shard of embeddings to score, and the classes of its rows where they count."""

    embeddings: Slice
    labels: npt.NDArray[np.int64] | None


def score(work: Work, solution: Solution, pool: Pool, embeddings: Artifact) -> Passed:
    """Pass over all embeddings, and join what comes out to the pool by row id.

    Raises:
        BadInput: a row of the pool has no vector.
    """
    table = embeddings["embeddings"]
    labels = _classes(table, pool, solution) if solution.target.label_costs is not None else None
    shards = work.map(
        partial(score_rows, solution),
        [Scoring(each, None if labels is None else labels[each.start : each.stop]) for each in work.slices(table)],
        "scored",
        draft=True,
    )
    scored = pa.concat_tables([read_shard(shard, "scored") for shard in shards]).combine_chunks()
    scored = join(scored, pool.ids, embeddings)
    found = as_matrix(scored["potentials"], np.float64)
    mass = np.sum([read_shard(shard, "mass")["mass"].to_numpy() for shard in shards], axis=0)
    error = float(np.abs(mass / mass.sum() - 1 / len(mass)).sum())
    pulled, nearest, costs = (scored[name].to_numpy() for name in ("pulled", "nearest", "cost"))
    return Passed(found, pulled, nearest, costs, float(f"{error:.4g}"))


def _classes(table: Artifact, pool: Pool, solution: Solution) -> npt.NDArray[np.int64]:
    """Find the class of each row of the embeddings; those that are not in the pool get the first, unused."""
    rows = pool.rows.read(["row_id", "label"])
    codes = pa.array(coded(rows["label"], solution.classes[0]))
    at = pc.index_in(
        table.read(["row_id"])["row_id"].combine_chunks().storage,
        value_set=rows["row_id"].combine_chunks().storage,
    )
    numbers: npt.NDArray[np.int64] = pc.fill_null(codes.take(at), 0).to_numpy()
    return numbers


def score_rows(solution: Solution, scoring: Scoring) -> Tables:
    """Score one shard of embeddings."""
    table = scoring.embeddings.read(["row_id", "vector"])
    points = Points(as_matrix(table["vector"]), scoring.labels)
    passed = transform(points, solution.target, solution.g, solution.parts)
    scored = {
        "row_id": table["row_id"],
        "potentials": _as_lists(passed.potentials),
        "pulled": pa.array(passed.pulled),
        "nearest": pa.array(passed.nearest),
        "cost": pa.array(passed.costs),
    }
    return {"scored": pa.table(scored), "mass": pa.table({"mass": passed.mass})}


def _as_lists(matrix: npt.NDArray[np.floating]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])


# ---- kept as a table ---------------------------------------------------------------------------------------


def as_table(solution: Solution) -> pa.Table:
    """Write a solution down, one line for each row of the target; what all lines share stands in each."""
    assert solution.means is not None  # noqa: S101 - known once the pool has been scored
    m, points = len(solution.ids), solution.target.points
    part, own = np.full(m, -1), np.zeros(m)
    for number, (places, g) in enumerate(solution.parts):
        part[places], own[places] = number, g
    columns = {
        "row_id": solution.ids,
        "potential": pa.array(solution.g),
        "part": pa.array(part),
        "part_potential": pa.array(own),
        "epsilon": pa.repeat(solution.target.epsilon, m),
        "pool_means": pa.repeat(pa.scalar(solution.means.tolist(), pa.list_(pa.float64())), m),
        "vector": _as_lists(points.vectors),
    }
    if points.labels is not None and solution.target.label_costs is not None:
        columns["label"] = pa.array(solution.classes[1]).take(pa.array(points.labels))
        columns["pool_labels"] = pa.repeat(pa.scalar(solution.classes[0], pa.list_(pa.string())), m)
        columns["label_costs"] = _as_lists(solution.target.label_costs.T[points.labels])
    return pa.table(columns)


def from_table(potentials: Artifact) -> Solution:
    """Read a solution that an earlier selection has written, from its table of that name."""
    table = potentials.read()
    part, own = table["part"].to_numpy(), table["part_potential"].to_numpy()
    parts = []
    for number in range(int(part.max()) + 1):
        places = np.flatnonzero(part == number)
        parts.append((slice(int(places[0]), int(places[-1]) + 1), own[places]))
    points = Points(as_matrix(table["vector"]))
    classes: tuple[list[str], list[str]] = ([], [])
    costs = None
    if "label" in table.column_names:
        names = sorted(set(table["label"].to_pylist()))
        classes = (table["pool_labels"][0].as_py(), names)
        points = Points(points.vectors, coded(table["label"], names))
        first = [int(np.argmax(points.labels == code)) for code in range(len(names))]
        costs = as_matrix(table["label_costs"], np.float64)[first].T
    target = Target(points, table["epsilon"][0].as_py(), costs)
    means = np.array(table["pool_means"][0].as_py())
    return Solution(target, table["row_id"].combine_chunks(), table["potential"].to_numpy(), parts, classes, means)
