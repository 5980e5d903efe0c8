"""What rows share with evaluation items: n-grams, whole texts and whole prompts, found by hash and checked by word.

The items are read into an index once. Its pieces are n-grams, and texts and prompts as wholes; an occurrence is a piece
in an item. An item's own n-grams are those that tell it from other items.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.contracts import LABELLED, PREFERENCE, UNLABELLED, contract_of
from data.ids import mixed
from data.text import Part, row_texts
from tasks.curate.ngrams import Bounds, Hashes, Words, ngrams, words_of

Column = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]
Shares = npt.NDArray[np.float64]

BLOCK = 250_000  # words of rows that are looked up at once, for the sake of memory
MOST_ITEMS = 16  # evaluation items that are kept of one n-gram; of equal prompts there may be more
MULTIPLIER = np.uint64(0xD1342543DE82EF95)  # odd, so that no word of a whole text is lost
NEVER = np.iinfo(np.int64).max


# ---- texts and their pieces ------------------------------------------------------------------------------


class Pieces(NamedTuple):
    """Hashed runs of words: the n-grams of texts, whole texts, and whole parts of texts (a prompt): (k,) each."""

    hashes: Column  # uint64
    texts: Column  # number of the text that has it
    starts: Column  # first word, among all words
    lengths: Column  # words
    whole: Column  # bool


def parts_of(rows: pa.Table, part: Part) -> list[pa.Array]:
    """Take the texts that a row is made of, in order (prompt and answers), or only the wanted one: strings per row."""
    contract = contract_of(rows.schema)
    if part != "all" or contract in (LABELLED, UNLABELLED):
        return [row_texts(rows, contract, part)]
    parts = [row_texts(rows, contract, "prompt"), row_texts(rows, contract, "answer")]
    if contract == PREFERENCE:
        other = rows.set_column(rows.schema.get_field_index("chosen"), "chosen", rows["rejected"])
        parts.append(row_texts(other, contract, "answer"))
    return parts


def split(parts: Sequence[pa.Array]) -> tuple[Words, Bounds]:
    """Split texts, given part by part, into words: (words of each text, (texts * parts + 1,) bounds of its parts)."""
    order = np.arange(len(parts) * len(parts[0])).reshape(len(parts), -1).T.ravel()
    words = words_of(pa.concat_arrays(parts).take(pa.array(order)))
    return Words(words.words, words.bounds[:: len(parts)]), words.bounds


def pieces_of(words: Words, codes: Bounds, parts: Bounds, leading: int, n: int) -> Pieces:
    """Hash the n-grams of texts, the texts themselves, and the `leading` first of their parts.

    A text of fewer than n words has no n-gram, and one without words has no piece at all.
    """
    grams = ngrams(words, n)
    long = np.flatnonzero(grams.starts + n <= words.bounds[1:][grams.owners])
    sizes, flags = np.full(len(long), n), np.zeros(len(long), bool)
    found = [(grams.hashes[long], grams.owners[long], grams.starts[long], sizes, flags)]
    each = (len(parts) - 1) // max(len(words.bounds) - 1, 1)
    for bounds, per_text in ((words.bounds, 1), (parts, max(each, 1))):
        lengths = np.diff(bounds)
        at = np.arange(len(lengths))
        at = at[(lengths > 0) & (at % per_text < leading)]
        found.append((whole_hashes(codes, bounds)[at], at // per_text, bounds[at], lengths[at], np.ones(len(at), bool)))
    return Pieces(*map(np.concatenate, zip(*found, strict=True)))


def whole_hashes(codes: Bounds, bounds: Bounds) -> Hashes:
    """Hash whole texts, given their words' places in the vocabulary and the texts' bounds: (texts,)."""
    lengths = np.diff(bounds)
    powers = np.multiply.accumulate(np.full(max(lengths, default=0), MULTIPLIER))
    terms = mixed((codes + 1).astype(np.uint64)) * powers[spans(np.zeros_like(lengths), lengths)]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    return mixed(np.diff(sums[bounds]))


def spans(starts: Bounds, lengths: Bounds) -> Bounds:
    """List the places start, start + 1, … of each span, one span after the other: (sum of lengths,)."""
    ends = np.cumsum(lengths)
    listed: Bounds = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)
    return listed


def firsts(*columns: Column) -> Flags:
    """Mark the first of each run of equal values, columns taken together."""
    first = np.ones(len(columns[0]), bool)
    first[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return first


# ---- the evaluation sets ---------------------------------------------------------------------------------


class Known(NamedTuple):
    """The pieces of all evaluation items, (g,) each, ascending by hash; and their occurrences, (o,) each.

    An occurrence is a piece in an item, where it first stands there. An item's own are those that tell it from others
    (see `own_ngrams`), and whole texts.
    """

    hashes: Hashes
    whole: Flags
    lengths: Bounds
    spread: Bounds  # items of different prompts that have it
    bounds: Bounds  # (g + 1,) piece j has the occurrences from bounds[j] to bounds[j + 1]
    items: Bounds
    starts: Bounds  # first word, among all words of the items
    own: Flags


class Index(NamedTuple):
    """The evaluation items, numbered by source and row id, their words and their pieces."""

    ids: pa.Array  # (items,) uuid
    sources: pa.Array  # (items,) string
    vocabulary: pa.Array  # (v,) words
    codes: Bounds  # (words,) places in the vocabulary
    ends: Bounds  # (items,) end of each item, among all words
    prompts: Bounds  # (items,) end of its prompt, among all words
    known: Known
    likely: Flags  # (2^k,) whether a piece's hash begins with these k bits: most strange ones are told apart at once
    own_words: Shares  # (items,) words that its own n-grams cover
    own_prompts: Shares  # (items,) likewise of its prompt


def index_of(ids: pa.Array, sources: pa.Array, words: Words, parts: Bounds, common: int, n: int) -> Index:
    """Index evaluation items that are ordered by source and row id, each of two parts: its prompt, and the rest."""
    ends, prompts, coded = words.bounds[1:], parts[1::2], words.words.dictionary_encode()
    codes = coded.indices.to_numpy().astype(np.int64)
    asked = np.where(prompts > words.bounds[:-1], whole_hashes(codes, parts)[::2], whole_hashes(codes, words.bounds))
    asked = np.unique(asked, return_inverse=True)[1]
    known = sort_pieces(pieces_of(words, codes, parts, 1, n), asked, common)
    own = np.flatnonzero(known.own & ~np.repeat(known.whole, np.diff(known.bounds)))
    own = own[np.lexsort((known.starts[own], known.items[own]))]
    items, starts = known.items[own], known.starts[own]
    inside = [starts + n <= limits[items] for limits in (ends, prompts)]
    own_words, own_prompts = (covered(items[within], starts[within], n, len(ids)) for within in inside)
    bits = min((len(known.hashes) * 16 + 1024).bit_length(), 28)
    likely = np.zeros(1 << bits, bool)
    likely[known.hashes >> np.uint64(64 - bits)] = True
    return Index(ids, sources, coded.dictionary, codes, ends, prompts, known, likely, own_words, own_prompts)


def sort_pieces(pieces: Pieces, asked: Bounds, common: int) -> Known:
    """Sort the pieces of evaluation items.

    Of a piece that is nobody's own one occurrence is kept, as an example; of others at most `MOST_ITEMS`.

    Args:
        pieces: the pieces of all items.
        asked: (items,) number of each item's prompt, the same for equal prompts.
        common: most items of different prompts that an own piece may have.
    """
    at = np.lexsort((pieces.starts, pieces.texts, pieces.hashes))
    at = at[firsts(pieces.hashes[at], pieces.texts[at])]
    hashes, items, starts, lengths, whole = (column[at] for column in pieces)
    first = np.flatnonzero(firsts(hashes))
    numbers = np.repeat(np.arange(len(first)), np.diff(first, append=len(hashes)))
    prompts = len(asked) + 1
    spread = np.bincount(np.unique(numbers * prompts + asked[items]) // prompts, minlength=len(first))
    own = whole | own_ngrams(items, starts, lengths, whole, spread[numbers] > common)
    at = np.lexsort((items, ~own, numbers))
    at = at[np.arange(len(at)) - first[numbers] < np.where(own[at], MOST_ITEMS, 1)]
    bounds = np.cumsum(np.bincount(numbers[at] + 1, minlength=len(first) + 1))
    return Known(hashes[first], whole[first], lengths[first], spread, bounds, items[at], starts[at], own[at])


def own_ngrams(items: Bounds, starts: Bounds, lengths: Bounds, whole: Flags, spread: Flags) -> Flags:
    """Mark the n-grams that tell an item from others: (o,).

    They are not spread over many items, and not mostly inside those that are. If an item has none, those that are the
    least inside them; if all are spread, all.
    """
    rare, inside = ~whole & ~spread, words_inside(starts, lengths, spread & ~whole)
    telling = rare & (2 * inside <= lengths)
    least = np.full(int(np.max(items, initial=-1)) + 1, NEVER)
    np.minimum.at(least, items[rare], inside[rare])
    for others in (rare & (inside == least[items]), ~whole):
        telling |= others & (np.bincount(items, weights=telling, minlength=1)[items] == 0)
    return telling


def words_inside(starts: Bounds, lengths: Bounds, phrases: Flags) -> Bounds:
    """Count the words of each run that lie inside those runs that are phrases: (o,)."""
    edges = np.zeros(int(np.max(starts + lengths, initial=0)) + 1, np.int64)
    np.add.at(edges, starts[phrases], 1)
    np.add.at(edges, (starts + lengths)[phrases], -1)
    before = np.append(0, np.cumsum(np.cumsum(edges) > 0))
    inside: Bounds = before[starts + lengths] - before[starts]
    return inside


# ---- what rows and items share ---------------------------------------------------------------------------


class Texts(NamedTuple):
    """The words of some rows, and the bounds of the parts (prompt, answers) that they are made of."""

    words: Words
    parts: Bounds  # (rows * parts of a row + 1,)
    codes: Bounds  # (words,) places in the index's vocabulary; -1: not there


class Hits(NamedTuple):
    """The pieces that rows share with evaluation items, sorted by row, item and place in the item: (h,) each."""

    rows: Bounds
    items: Bounds
    pieces: Bounds  # number among the known
    found: Bounds  # occurrence
    places: Bounds  # first word, among all words of the items
    starts: Bounds  # first word, among all words of the rows
    pairs: Bounds  # number of its (row, item)


def blocks(index: Index, rows: pa.Table, part: Part) -> Iterator[tuple[int, Texts]]:
    """Split rows into words, and give some at a time: (number of the first row, texts)."""
    parts = parts_of(rows, part)
    words, bounds = split(parts)
    codes = pc.fill_null(pc.index_in(words.words, value_set=index.vocabulary), -1).to_numpy().astype(np.int64)
    cuts = np.unique(np.searchsorted(words.bounds, np.arange(BLOCK, len(codes), BLOCK))).tolist()
    for first, stop in pairwise([0, *(cut for cut in cuts if cut < len(rows)), len(rows)]):
        begin, end = words.bounds[first], words.bounds[stop]
        some = Words(words.words.slice(begin, end - begin), words.bounds[first : stop + 1] - begin)
        yield first, Texts(some, bounds[first * len(parts) : stop * len(parts) + 1] - begin, codes[begin:end])


def find_hits(index: Index, texts: Texts, n: int) -> Hits:
    """Find the pieces that rows share with evaluation items; a row's piece counts once, where it first stands."""
    known, leading = index.known, len(texts.parts)  # all parts of a row
    pieces = pieces_of(texts.words, texts.codes, texts.parts, leading, n)
    at = np.flatnonzero(index.likely[pieces.hashes >> np.uint64(65 - len(index.likely).bit_length())])
    piece = np.searchsorted(known.hashes, pieces.hashes[at])
    at, piece = take_each(np.append(known.hashes, np.uint64(0))[piece] == pieces.hashes[at], at, piece)
    at, piece = take_each(known.lengths[piece] == pieces.lengths[at], at, piece)
    once = np.unique(pieces.texts[at] * len(known.hashes) + piece, return_index=True)[1]
    at, piece = take_each(once, at, piece)
    sizes = np.diff(known.bounds)[piece]
    where = spans(known.bounds[piece], sizes)
    rows, starts, piece = (np.repeat(each, sizes) for each in (pieces.texts[at], pieces.starts[at], piece))
    same = same_words(texts.codes, starts, index.codes, known.starts[where], known.lengths[piece])
    rows, starts, piece, where = take_each(same, rows, starts, piece, where)
    order = np.lexsort((known.starts[where], known.items[where], rows))
    rows, starts, piece, where = take_each(order, rows, starts, piece, where)
    items, places = known.items[where], known.starts[where]
    return Hits(rows, items, piece, where, places, starts, np.cumsum(firsts(rows, items)) - 1)


def same_words(codes: Bounds, starts: Bounds, others: Bounds, places: Bounds, lengths: Bounds) -> Flags:
    """Compare runs of words, from their starts in `codes` and their places in `others`: (k,) whether they are equal."""
    same, left = np.ones(len(lengths), bool), np.arange(len(lengths))
    for word in range(max(lengths, default=0)):
        left = left[lengths[left] > word]
        same[left] &= codes[starts[left] + word] == others[places[left] + word]
    return same


def covered(groups: Bounds, places: Bounds, n: int, size: int) -> Shares:
    """Count the words that n-grams cover, overlaps once: (size,), for groups 0 to size - 1.

    Args:
        groups: (k,) ascending.
        places: (k,) first word of each n-gram, ascending in its group.
        n: words in an n-gram.
        size: number of groups.
    """
    steps = np.diff(places, append=0)
    steps[np.append(firsts(groups)[1:], True)[: len(steps)]] = n
    words: Shares = np.bincount(groups, weights=np.minimum(steps, n), minlength=size)  # type: ignore[assignment]
    return words


def shares(index: Index, hits: Hits, used: Flags, n: int) -> Shares:
    """Share of an item's own words that some hits cover, or of its prompt's if that is more: (pairs,), 0 to 1."""
    items, whole = hits.items[firsts(hits.pairs)], index.known.whole[hits.pieces]
    largest = np.zeros(len(items))
    for ends, own in ((index.ends, index.own_words), (index.prompts, index.own_prompts)):
        inside = used & ~whole & (hits.places + n <= ends[hits.items])
        words = covered(hits.pairs[inside], hits.places[inside], n, len(items))
        largest = np.maximum(largest, np.divide(words, own[items], out=np.zeros(len(items)), where=own[items] > 0))
    largest[hits.pairs[used & whole]] = 1
    return largest


def longest_runs(index: Index, hits: Hits, used: Flags) -> tuple[Bounds, Bounds]:
    """Find each pair's longest run of words in some hits, at least one of each pair: (first word, words)."""
    pairs, places, starts, pieces = take_each(used, hits.pairs, hits.places, hits.starts, hits.pieces)
    steps = np.arange(len(places))
    begin = np.flatnonzero(firsts(pairs, places - steps, starts - steps))
    last = np.append(begin[1:], len(places))[: len(begin)] - 1
    words = places[last] + index.known.lengths[pieces[last]] - places[begin]
    order = np.lexsort((places[begin], -words, pairs[begin]))
    best = order[firsts(pairs[begin][order])]
    return places[begin][best], words[best]


def take_each(at: Column, *columns: Column) -> tuple[Column, ...]:
    """Take the same places, or those where a mask is true, of several columns."""
    return tuple(column[at] for column in columns)
