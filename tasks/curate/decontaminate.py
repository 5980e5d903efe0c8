"""Drop rows that share words with items of evaluation sets; say with which item, and by which words.

Sources: Brown et al. 2020, "Language models are few-shot learners", appendix C; Lambert et al. 2024, "Tülu 3".

    n-grams of 13 lower-case words without punctuation         Brown, filtering      pieces_of
    an n-gram of more than 10 training documents is ignored    Brown, filtering      count_rows, evident
    share of an item's words that shared n-grams cover         Tülu 3, n-grams       covered, shares

Done differently, and why:

- A row is dropped whole, where Brown et al. cut 200 characters around a match: a row is one example and not a book.
- A row that covers most of an item is a copy, and what copies share is never common. By the count alone, an item that
  has leaked more than `common` times would pass.
- An n-gram of more than `common` evaluation items is common too: a system prompt or a task's frame tells of no item.
  What is left are an item's own words, and shares are shares of those.
- An n-gram of which more than half lies in common phrases is no evidence either: after a phrase that many rows and
  items have, some go on with the same word or two by chance.
- An item's prompt counts by itself: a question has leaked even if it stands in the pool with another answer.
- Items of fewer than n words, which have no n-gram, are compared whole with a row, its prompt and its answers.
- Every match of hashes is checked word by word.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data.artifact import Artifact
from data.borders import nearest
from data.contracts import ID, contract_of, dropped_rows
from data.errors import BadInput
from data.ids import ids_from_bytes, sortable
from data.text import Part
from infra.shards import Tables, read_shard
from infra.stage import Measures, Parameters, References, Rows, stage
from infra.work import Slice, Work
from tasks.curate.ngrams import Bounds
from tasks.curate.overlap import (
    NEVER,
    Column,
    Flags,
    Hits,
    Index,
    Texts,
    blocks,
    find_hits,
    firsts,
    index_of,
    longest_runs,
    parts_of,
    shares,
    spans,
    split,
    take_each,
    words_inside,
)

EQUAL, SHARING = "equals an evaluation item", "shares words with an evaluation item"
COPY = 0.8  # share of an item's own words, or of its prompt's, from which a row is a copy
MOST_BYTES = 1 << 30  # of text in all evaluation sets: splitting may double it, and Arrow's strings end at 2 GiB
LARGEST = 5  # overlaps of a row that are listed
SHOWN = 40  # words of a shared text that are shown
PHRASES = 1_000  # common n-grams that are listed


class DecontaminateParameters(Parameters):
    """What counts as an overlap, and what as a common phrase."""

    n: int = Field(13, ge=3, le=50, description="Words in an n-gram; evaluation items of fewer are compared whole.")
    common: int = Field(
        10, ge=1, description="An n-gram of more rows, or of more evaluation items, is a common phrase: no evidence."
    )
    min_share: float = Field(
        0.0, ge=0, le=1, description="Share of an item's words, 0 to 1, from which a row is dropped; 0: any n-gram."
    )
    min_words: int = Field(3, ge=1, description="Fewest words of an evaluation item that an equal row is dropped for.")
    part: Part = Field("all", description="Text of a row to compare: all of it, its prompt, or its answer.")
    evaluation_part: Part = Field("all", description="Text of an evaluation item to compare, likewise.")


@stage("exact")
def decontaminate(work: Work, parameters: DecontaminateParameters, rows: Rows, evaluations: References) -> Measures:
    """Count the rows of each n-gram of the evaluation sets, then drop the rows that share one which is not common.

    Outputs: `rows`; `overlaps`, `spared`, `common` and `borders`, each where there is something in it.

    Raises:
        BadInput: an evaluation set without a word; rows without the wanted part; no row would be left.
    """
    check_apart(rows, evaluations)
    index = build_index(parameters, evaluations)
    known, shards = index.known, work.slices(rows)
    counted = work.map(partial(count_rows, parameters, index), shards, "counted", draft=True)
    counts = total_counts(counted, len(known.hashes))
    positions = [read_shard(shard, "found")["row"].to_numpy() for shard in counted]
    kept = work.map(
        partial(keep_rows, parameters, index, counts, evident(index, counts, parameters.common)),
        list(map(Found, shards, positions)),
    )
    told = {name: _sum(kept, "told", name) for name in ("rows_equal", "rows_sharing", "rows_spared")}
    if rows.rows and told["rows_equal"] + told["rows_sharing"] == rows.rows:
        raise _nothing_left(rows, overlapping(kept))
    work.keep(kept, "rows", "overlaps", "spared")
    work.borders(read_shard(shard, "borders") for shard in kept)
    common = np.flatnonzero((np.maximum(counts, known.spread) > parameters.common) & (counts > 0) & ~known.whole)
    if len(common):
        work.write_single(common_phrases(index, counts, common, counted), "common")
    lengths = np.diff(index.ends, prepend=0)
    return told | {
        "items": float(len(lengths)),
        "items_without_words": float(np.sum(lengths == 0)),
        "items_compared_whole": float(np.sum((lengths > 0) & (lengths < parameters.n))),
        "ngrams": float(np.sum(~known.whole)),
        "ngrams_common": float(len(common)),
    }


# ---- the evaluation sets ---------------------------------------------------------------------------------


def check_apart(rows: Artifact, evaluations: Sequence[Artifact]) -> None:
    """Refuse a pool whose rows all stand in the evaluation sets as they are, before any work is done on it.

    Raises:
        BadInput: they do, or an evaluation set has no rows at all, like a model.
    """
    for each in evaluations:
        contract_of(each.schema)  # refuses what is no table of rows
    ours, *theirs = (each.read(["content_id"])["content_id"].combine_chunks().storage for each in (rows, *evaluations))
    if len(ours) and theirs and pc.all(pc.is_in(ours, value_set=pa.concat_arrays(theirs))).as_py():
        raise _nothing_left(rows, f"all {rows.rows:,} rows stand in the evaluation sets as they are")


def build_index(parameters: DecontaminateParameters, evaluations: Sequence[Artifact]) -> Index:
    """Read the evaluation sets; neither their order nor that of their items changes anything.

    Raises:
        BadInput: a set has no item with a word, its rows do not have the wanted part, or the sets are too large.
    """
    text = pa.string()
    schema = pa.schema([("id", ID), ("source", text), ("set", pa.int64()), ("prompt", text), ("rest", text)])
    items = schema.empty_table()
    for number, each in enumerate(evaluations):
        found = each.read(["row_id", "source", *contract_of(each.schema).columns])
        prompt, *others = parts_of(found, parameters.evaluation_part)
        rest = pc.binary_join_element_wise(*others, "\n") if others else pa.repeat("", len(found))
        sets = pa.repeat(pa.scalar(number, pa.int64()), len(found))
        columns = [found["row_id"], pc.fill_null(found["source"], ""), sets, prompt, rest]
        items = pa.concat_tables([items, pa.table(columns, schema=schema)])
    if items.nbytes > MOST_BYTES:
        raise _too_large(items.nbytes)
    keys = items.set_column(0, "id", items["id"].combine_chunks().storage.cast(pa.binary()))
    order = [(name, "ascending") for name in ("source", "id", "prompt", "rest")]
    items = items.take(pc.sort_indices(keys, sort_keys=order))
    ids, sources, sets, *parts = (column.combine_chunks() for column in items.columns)
    words, bounds = split(parts)
    having = np.bincount(sets.to_numpy(), weights=np.diff(words.bounds), minlength=len(evaluations))
    for number in np.flatnonzero(having == 0).tolist():
        raise _no_words(parameters, evaluations[number])
    return index_of(ids, sources, words, bounds, parameters.common, parameters.n)


# ---- first pass ------------------------------------------------------------------------------------------


def enough_words(parameters: DecontaminateParameters, index: Index, hits: Hits) -> Flags:
    """Mark the hits that are n-grams, or whole texts of enough words to be compared: (h,)."""
    enough: Flags = ~index.known.whole[hits.pieces] | (index.known.lengths[hits.pieces] >= parameters.min_words)
    return enough


def count_rows(parameters: DecontaminateParameters, index: Index, rows: Slice) -> Tables:
    """Count the rows of each n-gram in one shard, copies apart, and name the rows that share anything."""
    table, pieces = rows.read(), max(len(index.known.hashes), 1)
    counted, found = [], []
    for start, texts in blocks(index, table, parameters.part):
        hits = find_hits(index, texts, parameters.n)
        own = index.known.own[hits.found] & enough_words(parameters, index, hits)
        copies = (shares(index, hits, own, parameters.n) >= COPY)[hits.pairs]
        keys = hits.rows * pieces + hits.pieces
        counted.append(np.setdiff1d(keys, keys[copies]) + start * pieces)
        found.append(np.unique(hits.rows) + start)
    row, piece = np.divmod(np.concatenate(counted), pieces)
    row, piece = take_each(np.lexsort((sortable(table["row_id"].combine_chunks())[row], piece)), row, piece)
    first = np.flatnonzero(firsts(piece))
    counts = {
        "piece": piece[first],
        "rows": np.diff(first, append=len(piece)),
        "example": table["row_id"].take(pa.array(row[first])),
    }
    return {"counts": pa.table(counts), "found": pa.table({"row": np.concatenate(found)})}


def total_counts(shards: Iterable[Path], pieces: int) -> Bounds:
    """Sum the rows of each piece over all shards: (pieces,)."""
    counts = np.zeros(pieces, np.int64)
    for shard in shards:
        table = read_shard(shard, "counts")
        counts[table["piece"].to_numpy()] += table["rows"].to_numpy()
    return counts


# ---- second pass -----------------------------------------------------------------------------------------


class Pairs(NamedTuple):
    """What a row and an evaluation item share, sorted by row and item: (p,) each."""

    rows: Column
    items: Column
    equal: Column  # words of the item, or of its prompt, that the row or a part of it equals; 0: neither
    share: Column  # share of the item's own words, or of its prompt's, that is shared and not common
    close: Column  # likewise, common or not
    frequency: Column  # rows, or items, that have the rarest n-gram
    places: Column  # first word of the longest run that is shared, among all words of the items
    lengths: Column  # words of that run


class Found(NamedTuple):
    """A shard, and the rows of it that share anything with an evaluation item."""

    rows: Slice
    positions: Bounds


def evident(index: Index, counts: Bounds, common: int) -> Flags:
    """Mark the occurrences that are evidence: an item's own, not common, and not mostly inside common ones: (o,)."""
    known, sizes = index.known, np.diff(index.known.bounds)
    often, lengths = np.repeat((counts > common) & ~known.whole, sizes), np.repeat(known.lengths, sizes)
    inside = words_inside(known.starts, lengths, known.own & often)
    evidence: Flags = known.own & ~often & (2 * inside <= lengths)
    return evidence


def judge(parameters: DecontaminateParameters, index: Index, counts: Bounds, evidence: Flags, texts: Texts) -> Pairs:
    """Weigh what each row shares with each item, now that it is known which occurrences are evidence."""
    known, hits = index.known, find_hits(index, texts, parameters.n)
    whole, own = known.whole[hits.pieces], known.own[hits.found] & enough_words(parameters, index, hits)
    close = shares(index, hits, own, parameters.n)
    told = own & (evidence[hits.found] | (close >= COPY)[hits.pairs])
    share = shares(index, hits, told, parameters.n)
    shown = told | (share == 0)[hits.pairs]
    equal, frequency = np.zeros(len(close), np.int64), np.full(len(close), NEVER)
    np.maximum.at(equal, hits.pairs[whole], known.lengths[hits.pieces[whole]])
    often = np.where(known.own[hits.found], counts[hits.pieces], np.maximum(counts, known.spread)[hits.pieces])
    decided = shown & ~whole & (evidence[hits.found] | (often > parameters.common))
    np.minimum.at(frequency, hits.pairs[decided], often[decided])
    rows, items = take_each(firsts(hits.pairs), hits.rows, hits.items)
    return Pairs(rows, items, equal, share, close, frequency, *longest_runs(index, hits, shown))


def keep_rows(
    parameters: DecontaminateParameters, index: Index, counts: Bounds, evidence: Flags, found: Found
) -> Tables:
    """Divide one shard into kept and dropped, and tell why."""
    table = found.rows.read()
    some = table.take(pa.array(found.positions))
    judged = []
    for start, texts in blocks(index, some, parameters.part):
        each = judge(parameters, index, counts, evidence, texts)
        judged.append(each._replace(rows=each.rows + start))
    pairs = Pairs(*map(np.concatenate, zip(*judged, strict=True)))
    equal = pairs.equal >= parameters.min_words
    falls = equal | ((pairs.share > 0) & (np.round(pairs.share, 6) >= parameters.min_share))
    order = np.lexsort((pairs.items, -np.where(falls, pairs.share, pairs.close), ~equal, ~falls, pairs.rows))
    pairs, equal, falls = Pairs(*take_each(order, *pairs)), equal[order], falls[order]
    first = np.flatnonzero(firsts(pairs.rows))
    rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    best = rank == 0
    told = describe(index, some["row_id"], pairs, falls)
    drops, spared = (told.filter(pa.array(best & side)) for side in (falls, ~falls))
    why = np.select([pairs.equal > 0, pairs.share > 0], ["too few words to compare", "small share"], "common phrase")
    detail = pc.binary_join_element_wise(drops["source"], ': "', drops["text"], '"', "")
    fallen = np.zeros(len(table), bool)
    fallen[found.positions[pairs.rows[best & falls]]] = True
    reason = pa.array(np.where(equal, EQUAL, SHARING)[best & falls], pa.string())
    numbers = {
        "rows_equal": np.sum(best & equal),
        "rows_sharing": np.sum(best & falls & ~equal),
        "rows_spared": np.sum(best & ~falls),
    }
    tables = {
        "rows": table.filter(pa.array(~fallen)),
        "dropped": dropped_rows(drops["row_id"], reason, drops["share"], drops["evaluation"], detail),
        "borders": nearest(borders_of(parameters, pairs, told, falls, best)),
        "told": pa.table({name: [int(number)] for name, number in numbers.items()}),
        "because": drops.select(["source"]),
    }
    listed = {
        "overlaps": told.filter(pa.array(falls & (rank < LARGEST))),
        "spared": spared.append_column("why", pa.array(why[best & ~falls], pa.string())),
    }
    return tables | {name: each for name, each in listed.items() if len(each)}


# ---- what is told ----------------------------------------------------------------------------------------


def describe(index: Index, ids: pa.ChunkedArray, pairs: Pairs, falls: Flags) -> pa.Table:
    """Name row and item of each pair, and what they share: row_id, evaluation, source, share, text."""
    items = pa.array(pairs.items)
    return pa.table(
        {
            "row_id": ids.take(pa.array(pairs.rows)),
            "evaluation": index.ids.take(items),
            "source": index.sources.take(items),
            "share": np.where(falls, pairs.share, pairs.close),
            "text": run_texts(index, pairs.places, pairs.lengths),
        }
    )


def run_texts(index: Index, places: Bounds, lengths: Bounds) -> pa.Array:
    """Write runs of the items' words, the first forty words of each: (k,) strings."""
    shown = np.minimum(lengths, SHOWN)
    words = index.vocabulary.take(pa.array(index.codes[spans(places, shown)]))
    offsets = pa.array(np.cumsum(np.append(0, shown)), pa.int32())
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, words), " ")
    return pc.binary_join_element_wise(joined, pc.if_else(pa.array(lengths > SHOWN), " …", ""), "")


def borders_of(
    parameters: DecontaminateParameters, pairs: Pairs, told: pa.Table, falls: Flags, best: Flags
) -> Iterator[pa.Table]:
    """List, for each threshold, the rows that it decided on, and their values."""
    grams = (pairs.equal < parameters.min_words) & (pairs.frequency < NEVER)
    often = grams & (pairs.frequency > parameters.common)
    for rule, decided, values, threshold in (
        ("words of an equal evaluation item", pairs.equal > 0, pairs.equal, parameters.min_words),
        ("share of the evaluation item", grams, pairs.share, parameters.min_share),
        ("rows or items with the rarest n-gram", grams & ~(often & falls), pairs.frequency, parameters.common),
        ("share that makes a copy", often & (pairs.close > 0), pairs.close, COPY),
    ):
        at = np.flatnonzero(decided & best)
        row, partner, _, _, detail = told.take(pa.array(at)).columns
        columns = {
            "rule": pa.repeat(rule, len(at)),
            "kept": ~falls[at],
            "row_id": row,
            "value": values[at].astype(float),
            "threshold": np.full(len(at), float(threshold)),
            "partner": partner,
            "detail": detail,
        }
        yield pa.table(columns)


def common_phrases(index: Index, counts: Bounds, phrases: Bounds, counted: Iterable[Path]) -> pa.Table:
    """List the common n-grams of most rows, with the items of different prompts that have them, and one of each."""
    phrases = phrases[np.argsort(-counts[phrases], kind="stable")][:PHRASES]
    examples: dict[int, bytes] = {}
    for shard in counted:
        table = read_shard(shard, "counts")
        table = table.filter(pa.array(np.isin(table["piece"].to_numpy(), phrases)))
        for piece, row in zip(table["piece"].to_pylist(), table["example"].to_pylist(), strict=True):
            examples[piece] = min(row.bytes, examples.get(piece, row.bytes))
    first = index.known.bounds[phrases]
    items = pa.array(index.known.items[first])
    return pa.table(
        {
            "text": run_texts(index, index.known.starts[first], index.known.lengths[phrases]),
            "rows": counts[phrases],
            "items": index.known.spread[phrases],
            "row_id": ids_from_bytes(b"".join(examples[piece] for piece in phrases.tolist())),
            "evaluation": index.ids.take(items),
            "source": index.sources.take(items),
        }
    )


def overlapping(kept: Iterable[Path]) -> str:
    """Say how many rows overlap with the items of which source."""
    sources = pa.concat_tables([read_shard(shard, "because") for shard in kept])["source"]
    sets = sorted(zip(*(each.to_pylist() for each in sources.value_counts().flatten()), strict=True))
    return "; ".join(f"{count:,} rows overlap with items of {source}" for source, count in sets)


def _sum(shards: Iterable[Path], table: str, column: str) -> float:
    return float(sum(read_shard(shard, table)[column][0].as_py() for shard in shards))


def _no_words(parameters: DecontaminateParameters, evaluations: Artifact) -> BadInput:
    return BadInput(
        f"{evaluations}, an evaluation set of {evaluations.rows:,} items without a single word",
        f"words in its items (evaluation_part: {parameters.evaluation_part})",
        "choose another `evaluation_part`, or leave this set out",
    )


def _too_large(size: int) -> BadInput:
    return BadInput(
        f"evaluation sets of {size:,} bytes of text together",
        f"at most {MOST_BYTES:,}",
        "decontaminate in several stages, one after the other, each against some of the sets",
    )


def _nothing_left(rows: Artifact, why: str) -> BadInput:
    return BadInput(
        f"{rows}, of which nothing would be left: {why}",
        "an evaluation set that is not the pool itself",
        "look at what `evaluations` names, and leave out the set that these rows are",
    )
