"""Select rows that cover the pool: each next one is the row furthest from all that are selected.

The greedy 2-approximation of the k-centre problem (Gonzalez 1985; for selection, Sener & Savarese, ICLR 2018, alg. 1).
It knows no target, and likes outliers. Each step passes over the whole pool: rows times budget.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data.ids import sortable
from infra.shards import one_thread
from infra.stage import Measures, Reference, Rows, stage
from infra.work import Work
from tasks.curate.selection import Chosen, Places, Pool, SelectParameters, publish, read_pool, rounded
from tasks.curate.vectors import Vectors, vectors_of


class SelectKcentreParameters(SelectParameters):
    """How much to select; there is nothing else to say."""

    method: Literal["kcentre"] = Field("kcentre", description="Selection of rows that cover the pool.")


@stage("float")
def select_kcentre(work: Work, parameters: SelectKcentreParameters, rows: Rows, embeddings: Reference) -> Measures:
    """Take the row nearest to the pool's mean, then always the one furthest from all that are taken.

    Outputs: `rows`; `scores`, where a row's value is its squared distance, with a minus sign, to the nearest row that
    was taken before it (of a row that is not selected: to the nearest that was taken).

    Raises:
        BadInput: the pool is empty, or vectors are missing or not finite.
    """
    pool = read_pool(rows, parameters)
    with one_thread():
        order, distances = centres(vectors_of(embeddings, pool.ids), pool, parameters.budget)
    values = rounded(-distances)
    return publish(work, pool, values, ranked(pool, values, order), {}, "others cover it")


def centres(vectors: Vectors, pool: Pool, budget: int) -> tuple[Places, npt.NDArray[np.float64]]:
    """Take centres greedily: their places in order, and each row's distance when it was taken, or at the end.

    Distances are rounded to 1e-6, and of equal ones the lowest row id is taken.

    Args:
        vectors: (n, d).
        pool: (n,) rows.
        budget: in units of `pool.sizes`; the first centre is always taken.
    """
    by_id = np.argsort(sortable(pool.ids))  # argmax takes the first of equals
    vectors = vectors[by_id]
    squares = (vectors.astype(np.float64) ** 2).sum(1)

    def distances_to(vector: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        found = squares + float((vector.astype(np.float64) ** 2).sum()) - 2 * (vectors @ vector).astype(np.float64)
        return rounded(np.maximum(found, 0))

    nearest = np.full(len(vectors), np.inf)
    place = int(distances_to(vectors.mean(0)).argmin())
    final = np.zeros(len(vectors))
    order: list[int] = []
    spent, taken = int(pool.sizes[by_id[place]]), np.zeros(len(vectors), bool)
    while True:
        order.append(place)
        taken[place] = True
        final[place] = nearest[place] if len(order) > 1 else 0.0
        nearest = np.minimum(nearest, distances_to(vectors[place]))
        if len(order) == len(vectors):
            break
        place = int(np.where(taken, -1, nearest).argmax())
        spent += int(pool.sizes[by_id[place]])
        if spent > budget:
            break
    final[~taken] = nearest[~taken]
    back = np.empty(len(final))
    back[by_id] = final
    return by_id[np.array(order)], back


def ranked(pool: Pool, values: npt.NDArray[np.float64], order: Places) -> Chosen:
    """Rank the centres in the order in which they were taken, then the rest by value and row id."""
    selected = np.zeros(len(values), bool)
    selected[order] = True
    rest = np.lexsort((sortable(pool.ids), values))
    whole = np.concatenate([order, rest[~selected[rest]]])
    ranks = np.empty(len(values), np.int64)
    ranks[whole] = np.arange(1, len(values) + 1)
    return Chosen(ranks, selected)
