"""Words and n-grams of many texts at once, as 64-bit hashes that are the same on every machine.

A word is a run of letters and digits in lower case; each character of a script without spaces is a word of its own.
Hashes collide with odds of about k² / 2⁶⁵ among k different n-grams: 3e-6 for ten million.
"""

from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.ids import mixed

Hashes = npt.NDArray[np.uint64]
Bounds = npt.NDArray[np.int64]

_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
_BETWEEN_WORDS = r"[^\p{L}\p{M}\p{N} ]+"  # spaces divide as they are: replacing each would take half of all the time
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that no word of an n-gram is lost


class Words(NamedTuple):
    """The words of n texts: text i has `words[bounds[i]:bounds[i + 1]]`."""

    words: pa.Array
    bounds: Bounds  # (n + 1,)

    def hashes(self) -> Hashes:
        """Hash each word: the same word always the same."""
        coded = self.words.dictionary_encode()
        hashes: Hashes = _word_hashes(coded.dictionary)[coded.indices.to_numpy()]
        return hashes

    def text(self, start: int, stop: int) -> str:
        """Write the words from start to stop, with spaces between."""
        return " ".join(self.words[start:stop].to_pylist())


class Grams(NamedTuple):
    """The n-grams of n texts, in reading order: text i has `hashes[bounds[i]:bounds[i + 1]]`."""

    hashes: Hashes
    bounds: Bounds  # (n + 1,)
    starts: Bounds  # place of each n-gram's first word among all words

    @property
    def owners(self) -> Bounds:
        """The text of each n-gram."""
        return np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))


def words_of(texts: pa.Array) -> Words:
    """Split texts (strings without nulls) into words."""
    spaced = pc.replace_substring_regex(pc.utf8_lower(texts), _UNSPACED, r" \1 ")
    split = pc.split_pattern(pc.replace_substring_regex(spaced, _BETWEEN_WORDS, " "), " ")
    bounds = np.concatenate([[0], np.cumsum(pc.list_value_length(split).to_numpy(), dtype=np.int64)])
    words = pc.list_flatten(split)
    empty = pc.equal(words, "").to_numpy(zero_copy_only=False)  # between two spaces, and at the ends
    if empty.any():
        words = words.filter(pa.array(~empty))
        bounds = np.concatenate([[0], np.cumsum(~empty)])[bounds]
    return Words(words, bounds)


def ngrams(words: Words, n: int) -> Grams:
    """Hash the n-grams of each text; a text of fewer than n words is one n-gram, and one without words has none."""
    hashes, bounds = words.hashes(), words.bounds
    lengths = np.diff(bounds)
    counts = np.where(lengths >= n, lengths - n + 1, lengths > 0)
    ends = np.cumsum(counts)
    owners = np.repeat(np.arange(len(lengths)), counts)
    starts = np.arange(int(ends[-1]) if len(ends) else 0) - (ends - counts)[owners] + bounds[:-1][owners]
    sums = np.zeros(len(starts), np.uint64)
    for place in range(n):
        at = starts + place
        inside = at < bounds[1:][owners]
        word = hashes[np.minimum(at, max(len(hashes) - 1, 0))] if len(hashes) else hashes
        sums += np.where(inside, word, np.uint64(0)) * np.uint64(pow(_MULTIPLIER, place, 1 << 64))
    return Grams(mixed(sums), np.concatenate([[0], ends]).astype(np.int64), starts)


def _word_hashes(words: pa.Array) -> Hashes:
    digests = b"".join(blake2b(word.encode(), digest_size=8).digest() for word in words.to_pylist())
    return np.frombuffer(digests, "<u8")
