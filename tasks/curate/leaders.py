"""Choose which rows of a dataset to keep, so that none is similar to a kept row of better rank.

Rows are ranked by their source, as `prefer` has it, then by row id. Each is kept unless it is similar to a kept row of
better rank that shares a bucket with it: the greedy choice, one row after the other. It depends on ranks, buckets and
similarities alone, not on the order of the input. No row is dropped because of a row that is itself dropped, so there
are no chains from like to like.

The choice is made in rounds: in each, every row that comes first among the undecided of all its buckets is kept, and
compared with the rest of them. This gives what the plain loop gives (Blelloch, Fineman and Shun 2012, "Greedy
sequential maximal independent set and matching are parallel on average"), which a test checks. Where ranks say nothing
of who is similar to whom, the rounds are few: O(log n) in a graph (Fischer and Noever 2018). Row ids are digests, and
say nothing. A bucket of 50,000 equal rows costs one comparison for each row, not for each pair.

A bucket of rows that are hardly similar (they share half of their text, say) would still cost a comparison for each
pair. So the rows of a bucket are compared with its first `MOST` kept rows, by rank, and not with later ones.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.borders import borders_schema
from data.contracts import ID, dropped_rows
from infra.shards import Tables
from infra.work import Slice

MOST = 100  # kept rows of a bucket that its other rows are compared with

Places = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
Keys = npt.NDArray[np.uint64]
Similarity = Callable[[Places, Places], Values]


class Buckets(NamedTuple):
    """Rows that share a bucket: entry e says that `rows[e]` stands in `buckets[e]`; sorted by bucket, then row."""

    buckets: Places
    rows: Places


class Choice(NamedTuple):
    """Which of n rows are kept, and the kept rows of better rank that each was compared with.

    The most similar of those that reach the threshold is the row's leader, and the most similar of the others its
    nearest; among equals the one of the best rank. A row with a leader is dropped.
    """

    leader: Places  # (n,), -1 where there is none
    likeness: Values  # (n,) similarity with the leader, -inf where there is none
    nearest: Places  # (n,), -1 where there is none
    closeness: Values  # (n,) similarity with the nearest, -inf where there is none
    compared: int  # pairs
    full: int  # buckets whose later rows were not compared with all of its kept rows


class Judged(NamedTuple):
    """A shard, and for each of its rows the keeper (a kept row is its own) and how similar it is to that."""

    rows: Slice
    keepers: pa.Array  # 16 bytes each
    scores: Values
    near: npt.NDArray[np.bool_]  # whether the two are similar, not equal


# ---- ranks ----------------------------------------------------------------------------------------------


def source_ranks(sources: pa.ChunkedArray, prefer: Sequence[str]) -> Places:
    """Rank each row by its source: position in `prefer`, or its length for sources not named."""
    ranks = pc.index_in(sources, value_set=pa.array(prefer, pa.string()))
    filled: Places = pc.fill_null(ranks, len(prefer)).to_numpy().astype(np.int64)
    return filled


def by_rank(ids: pa.Array, ranks: Places) -> Places:
    """Sort rows by (rank, row id): (n,) positions, best first; ids are 16 bytes each and distinct."""
    halves = np.frombuffer(ids.buffers()[1], ">u8", 2 * len(ids), ids.offset * 16).reshape(-1, 2).astype(np.uint64)
    return np.lexsort((halves[:, 1], halves[:, 0], ranks))


# ---- the choice -----------------------------------------------------------------------------------------


def choose_sharing(
    count: int, keys: Iterable[Keys], compare: Callable[[Places], Similarity], threshold: float
) -> Choice:
    """Choose the rows to keep of `count` rows in the order of their rank; those that share no key are kept unseen.

    Args:
        count: number of rows.
        keys: for each band, the (n,) keys of the rows: a bucket is what has the same key in the same band.
        compare: ascending positions of the rows that share a bucket -> how similar they are, pair by pair.
        threshold: least similarity of similar rows.
    """
    shared = shared_buckets(keys)
    those = np.unique(shared.rows)
    found = choose(len(those), Buckets(shared.buckets, np.searchsorted(those, shared.rows)), compare(those), threshold)
    leader, nearest = np.full((2, count), -1)
    likeness, closeness = np.full((2, count), -np.inf)
    for whole, part in ((leader, found.leader), (nearest, found.nearest)):
        whole[those[part >= 0]] = those[part[part >= 0]]
    likeness[those], closeness[those] = found.likeness, found.closeness
    return Choice(leader, likeness, nearest, closeness, found.compared, found.full)


def shared_buckets(keys: Iterable[Keys]) -> Buckets:
    """Find the rows that share a key with another: one bucket for each key of each band that two or more rows have."""
    buckets, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    count = 0
    for band in keys:
        order = np.argsort(band, kind="stable")
        new = _changes(band[order])
        number = np.cumsum(new) - 1
        several = np.bincount(number, minlength=1)[number] > 1
        left = new[several]
        buckets.append(count + np.cumsum(left) - 1)
        rows.append(order[several])
        count += int(left.sum())
    return Buckets(np.concatenate(buckets), np.concatenate(rows))


def choose(count: int, shared: Buckets, similarity: Similarity, threshold: float, most: int = MOST) -> Choice:
    """Choose the rows to keep of `count` rows in the order of their rank.

    Args:
        count: number of rows.
        shared: the buckets that they share.
        similarity: positions of rows (k,), (k,) -> how similar the pairs are (k,).
        threshold: least similarity of similar rows.
        most: kept rows of a bucket, the first by rank, that its other rows are compared with.
    """
    buckets, rows = shared
    bounds = np.append(np.flatnonzero(_changes(buckets)), len(rows))
    head, end = bounds[:-1].copy(), bounds[1:]  # of each bucket: its first undecided entry, and where it ends
    order = np.argsort(rows, kind="stable")
    held, holds = buckets[order], np.searchsorted(rows[order], np.arange(count + 1))  # the buckets of each row
    waits = np.diff(holds) - np.bincount(rows[head], minlength=count)  # buckets in which a row is not the first
    led, open_ = np.zeros(len(head), np.int64), np.ones(len(head), bool)
    leader, nearest = np.full((2, count), -1)
    likeness, closeness = np.full((2, count), -np.inf)
    decided = np.zeros(count, bool)
    compared = full = 0
    kept = np.flatnonzero(waits == 0)
    while len(kept):
        # each kept row is compared with all that stand behind it in its buckets
        decided[kept] = True
        asking = _of(held, holds, kept)
        asking = asking[open_[asking]]
        behind, which = _ranges(head[asking] + 1, end[asking])
        left, right = _distinct(rows[head[asking]][which], rows[behind], count)
        values = similarity(left, right)
        compared += len(values)
        near = values >= threshold
        _improve(leader, likeness, left[near], right[near], values[near])
        _improve(nearest, closeness, left[~near], right[~near], values[~near])
        gone = np.unique(right[near][~decided[right[near]]])
        decided[gone] = True
        # a bucket that has had its kept rows holds nobody up; the others move on to their next undecided row
        led[asking] += 1
        closing = asking[led[asking] == most]
        open_[closing] = False
        freed, which = _ranges(head[closing] + 1, end[closing])
        free = ~decided[rows[freed]]
        full += len(np.unique(which[free]))
        moving = np.unique(np.concatenate([asking, _of(held, holds, gone)]))
        moving = moving[open_[moving] & decided[rows[head[moving]]]]
        _advance(head, end, rows, decided, moving)
        open_[moving] = head[moving] < end[moving]
        next_ = np.concatenate([rows[head[moving[open_[moving]]]], rows[freed[free]]])
        np.subtract.at(waits, next_, 1)
        kept = np.unique(next_[waits[next_] == 0])
    return Choice(leader, likeness, nearest, closeness, compared, full)


def _advance(head: Places, end: Places, rows: Places, decided: npt.NDArray[np.bool_], which: Places) -> None:
    """Move the heads of these buckets on to their next undecided entry, or to the end, in ever longer steps."""
    step = 8
    while len(which):
        stops = np.minimum(head[which] + step, end[which])
        entries, owners = _ranges(head[which], stops)
        fine = ~decided[rows[entries]]
        entries, owners = entries[fine], owners[fine]
        first = _changes(owners)
        head[which] = stops
        head[which[owners[first]]] = entries[first]
        left = stops < end[which]
        left[owners[first]] = False
        which, step = which[left], 2 * step


def _ranges(starts: Places, stops: Places) -> tuple[Places, Places]:
    """Count from each start to its stop: (all the numbers, for each the range that it is of)."""
    sizes = stops - starts
    owners = np.repeat(np.arange(len(sizes)), sizes)
    return np.arange(len(owners)) + (starts - np.cumsum(sizes) + sizes)[owners], owners


def _of(values: Places, bounds: Places, which: Places) -> Places:
    """Take all values of these owners: owner i has `values[bounds[i]:bounds[i + 1]]`."""
    return values[_ranges(bounds[which], bounds[which + 1])[0]]


def _distinct(left: Places, right: Places, count: int) -> tuple[Places, Places]:
    """Name each pair once, though several buckets have it."""
    pairs = np.sort(left * count + right)
    pairs = pairs[_changes(pairs)]
    return pairs // count, pairs % count


def _improve(best: Places, value: Values, left: Places, right: Places, values: Values) -> None:
    """Give each row on the right the most similar on the left, if it beats the row's best so far."""
    order = np.lexsort((left, -values, right))
    order = order[_changes(right[order])]
    left, right, values = left[order], right[order], values[order]
    better = (values > value[right]) | ((values == value[right]) & (left < best[right]))
    best[right[better]], value[right[better]] = left[better], values[better]


def _changes(values: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Mark where a value differs from the one before; the first does."""
    changes = np.ones(len(values), bool)
    changes[1:] = values[1:] != values[:-1]
    return changes


# ---- what is published ----------------------------------------------------------------------------------


def keep_rows(reason: str, judged: Judged) -> Tables:
    """Divide one shard into kept and dropped; the reason is that of rows that are near to their keeper, not equal."""
    table = judged.rows.read()
    own = pc.equal(table["row_id"].combine_chunks().storage, judged.keepers)
    other = pc.invert(own)
    why = pc.if_else(pa.array(judged.near), reason, "duplicate")
    dropped = dropped_rows(
        table["row_id"].filter(other),
        why.filter(other),
        pa.array(judged.scores).filter(other),
        pa.ExtensionArray.from_storage(ID, judged.keepers.filter(other)),
    )
    return {"rows": table.filter(own), "dropped": dropped}


def choice_borders(choice: Choice, ids: pa.Array, rule: str, threshold: float) -> pa.Table:
    """List the dropped rows with their leaders, and the kept rows with the nearest that fell short.

    Args:
        choice: the choice among n rows.
        ids: their row ids, 16 bytes each, in the order of their rank.
        rule: the rule's name.
        threshold: its threshold.
    """
    dropped = np.flatnonzero(choice.leader >= 0)
    kept = np.flatnonzero((choice.leader < 0) & (choice.nearest >= 0))
    rows = np.concatenate([dropped, kept])
    partners = np.concatenate([choice.leader[dropped], choice.nearest[kept]])
    columns = {
        "rule": pa.repeat(rule, len(rows)),
        "kept": np.arange(len(rows)) >= len(dropped),
        "row_id": pa.ExtensionArray.from_storage(ID, ids.take(pa.array(rows))),
        "value": np.concatenate([choice.likeness[dropped], choice.closeness[kept]]),
        "threshold": pa.repeat(threshold, len(rows)),
        "partner": pa.ExtensionArray.from_storage(ID, ids.take(pa.array(partners))),
        "detail": pa.nulls(len(rows), pa.string()),
    }
    return pa.table(columns, schema=borders_schema())
