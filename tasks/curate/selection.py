"""What every selector shares: the budget, the choice along a ranking, and what is published of it.

A selector gives each row of the pool a value and says in which order rows are taken. All read the same inputs, so that
one can stand in for another: the rows, their embeddings, the target's rows and their embeddings.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data.artifact import SHARD_ROWS, Artifact
from data.borders import borders_schema
from data.contracts import dropped_rows
from data.errors import BadInput
from data.ids import sortable
from infra.shards import Tables
from infra.stage import Parameters
from infra.work import Slice, Work

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

TOKENS = "tokens"


class SelectParameters(Parameters):
    """How much to select."""

    budget: int = Field(1000, ge=1, description="How much to select; above what the pool holds, all of it.")
    unit: Literal["rows", "tokens"] = Field(
        "rows", description="What the budget counts; tokens are those of the column `tokens` (stage count_tokens)."
    )


class Pool(NamedTuple):
    """The rows to select from: ids, and how much of the budget each takes."""

    rows: Artifact
    ids: pa.Array  # (n,) uuid
    sizes: npt.NDArray[np.int64]  # (n,)


class Chosen(NamedTuple):
    """A ranking of the pool (n,), and which rows the budget reaches."""

    ranks: Places  # from 1, in the order in which rows are taken
    selected: npt.NDArray[np.bool_]


def read_pool(rows: Artifact, parameters: SelectParameters) -> Pool:
    """Read what a selector needs to know of every row.

    Raises:
        BadInput: the pool is empty, or the budget counts tokens and the rows have none.
    """
    if not rows.rows:
        raise BadInput(f"{rows} without a row", "a pool of one row or more", "see what the stages before have dropped")
    counted = parameters.unit == "tokens"
    if counted and TOKENS not in rows.schema.names:
        found = f"a budget of tokens, and rows with {', '.join(rows.schema.names)}"
        raise BadInput(found, f"rows with a column {TOKENS!r}", "run count_tokens before, or set `unit: rows`")
    table = rows.read(["row_id", TOKENS] if counted else ["row_id"])
    sizes = table[TOKENS].to_numpy().astype(np.int64) if counted else np.ones(len(table), np.int64)
    return Pool(rows, table["row_id"].combine_chunks(), sizes)


def rounded(values: Floats) -> Floats:
    """Round to 1e-6, so that the last bits of a machine decide nothing; -0 becomes 0."""
    near: Floats = np.round(values, 6) + 0.0
    return near


def choose(
    pool: Pool,
    values: Floats,
    budget: int,
    levels: Places | None = None,
    eligible: npt.NDArray[np.bool_] | None = None,
) -> Chosen:
    """Take rows by level, then value, then row id, as long as the budget lasts.

    The first row that no longer fits ends it. The first row is taken, however large it is.

    Args:
        pool: (n,) rows.
        values: (n,) the lowest is taken first; rounded.
        budget: in units of `pool.sizes`.
        levels: (n,) rows of level 0 are taken before those of level 1, and so on; none: all are of level 0.
        eligible: (n,) rows that may be taken; none: all.
    """
    n = len(values)
    may = np.ones(n, bool) if eligible is None else eligible
    order = np.lexsort((sortable(pool.ids), values, np.zeros(n) if levels is None else levels, ~may))
    fits = np.cumsum(pool.sizes[order]) <= budget
    fits[:1] = True
    fits &= may[order]
    ranks, selected = np.empty(len(order), np.int64), np.empty(len(order), bool)
    ranks[order], selected[order] = np.arange(1, len(order) + 1), fits
    return Chosen(ranks, selected)


def caps(pool: Pool, values: Floats, groups: Places, most: float) -> Places:
    """Put rows on levels so that no group takes more than `most` units of the budget on one level: (n,) from 0.

    The best rows of each group are on level 0, the next on level 1: a budget that level 0 cannot fill goes on.

    Args:
        pool: (n,) rows.
        values: (n,) the lowest of a group is taken first.
        groups: (n,) the group of each row.
        most: units of the budget; a single row may be larger.
    """
    order = np.lexsort((sortable(pool.ids), values, groups))
    sizes, sorted_groups = pool.sizes[order], groups[order]
    before = np.cumsum(sizes) - sizes
    first = np.ones(len(order), bool)
    first[1:] = sorted_groups[1:] != sorted_groups[:-1]
    within = before - np.maximum.accumulate(np.where(first, before, 0))
    levels = np.empty(len(order), np.int64)
    levels[order] = within // max(most, 1)
    return levels


def publish(
    work: Work,
    pool: Pool,
    values: Floats,
    chosen: Chosen,
    columns: Mapping[str, pa.Array],
    reason: str,
    reasons: pa.Array | None = None,
    partners: pa.Array | None = None,
) -> dict[str, float]:
    """Publish the selected rows, drop the others, and keep a score for each: the measures of every selector.

    Outputs: `rows`; `scores` (row_id, value, rank, selected, and what the selector adds); `borders`.

    Args:
        work: the selector's work folder.
        pool: (n,) rows.
        values: (n,) as they were ranked.
        chosen: the ranking.
        columns: what else to keep of each row, by name: (n,).
        reason: why a row that is not selected was dropped.
        reasons: (n,) text, a row's own reason; null where it is `reason`.
        partners: (n,) uuid, whose doing it was; null where nobody's.
    """
    facts = {"row_id": pool.ids, "value": pa.array(values), "rank": pa.array(chosen.ranks)}
    scores = pa.table({**facts, "selected": pa.array(chosen.selected), **columns})
    work.write((scores.slice(at, SHARD_ROWS) for at in range(0, len(scores), SHARD_ROWS)), "scores")
    shards = [Marked(each, chosen.selected[each.start : each.stop]) for each in work.slices(pool.rows)]
    work.keep(work.map(keep_selected, shards))
    left = pa.array(~chosen.selected)
    ranks = chosen.ranks[~chosen.selected].tolist()
    details = pa.array([f"rank {rank:,} of {len(values):,}" for rank in ranks], pa.string())
    why = pa.repeat(pa.scalar(reason), len(details))
    if reasons is not None:
        why = pc.coalesce(reasons.filter(left), why)
    partner = None if partners is None else partners.filter(left)
    lost = dropped_rows(pool.ids.filter(left), why, pa.array(values).filter(left), partner, details)
    work.ledger("dropped", [lost])
    work.borders([_borders(pool, values, chosen)])
    return {"selected": float(chosen.selected.sum()), "selected_units": float(pool.sizes[chosen.selected].sum())}


class Marked(NamedTuple):
    """A shard, and which of its rows are selected."""

    rows: Slice
    selected: npt.NDArray[np.bool_]


def keep_selected(marked: Marked) -> Tables:
    """Keep the selected rows of one shard."""
    return {"rows": marked.rows.read().filter(pa.array(marked.selected))}


def _borders(pool: Pool, values: Floats, chosen: Chosen) -> pa.Table:
    """List the rows just within and just outside the budget, by rank."""
    if chosen.selected.all():
        return borders_schema().empty_table()
    last = int(chosen.ranks[chosen.selected].max())
    near = np.abs(chosen.ranks - last - 0.5) < 4
    threshold = float(values[chosen.ranks == last][0])
    places = np.flatnonzero(near)
    count = len(places)
    columns = {
        "rule": pa.repeat("budget", count),
        "kept": pa.array(chosen.selected[places]),
        "row_id": pool.ids.take(pa.array(places)),
        "value": pa.array(values[places]),
        "threshold": pa.repeat(threshold, count),
        "partner": pa.nulls(count, pool.ids.type),
        "detail": pa.array([f"rank {rank:,}" for rank in chosen.ranks[places].tolist()]),
    }
    return pa.table(columns, schema=borders_schema())
