"""Sets of shingles, their Jaccard similarity, and the MinHash bands by which like sets find each other.

Broder 1997, "On the resemblance and containment of documents": under a random order of all shingles, two sets have the
same least element with a probability of J, their Jaccard similarity. Banding (Indyk and Motwani 1998; Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4) cuts the least elements of `bands * rows` orders into
bands; two sets share at least one whole band with a probability of 1 - (1 - J^rows)^bands.

An order is h(x) = a x + b modulo 2^32 with a odd (Carter and Wegman 1979 is the root of this family): a bijection, so
that it makes no ties, and one multiplication that a processor does on 8 or 16 numbers at once. Such orders are not
min-wise independent for sets that an adversary chooses. Shingles are well mixed 64-bit hashes before, and of such
values simple families do as well as truly random ones (Mitzenmacher and Vadhan 2008). A test measures it. One
permutation hashing (Li, Owen and Zhang 2012) would need one pass instead of 128, but a short text has fewer shingles
than such a signature has bins, and filling the empty ones costs accuracy.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.fingerprint import seed_for
from data.ids import mixed
from tasks.curate.ngrams import ngrams, words_of

FOUND = 0.97  # least probability of finding a pair that is just as similar as the threshold
BITS = 48  # of a shingle's hash: two sets of 100 have a false common element with odds of 4e-11
BLOCK = 1 << 17  # elements at a time: a megabyte, which stays in a processor's cache


class Sets(NamedTuple):
    """Sets of shingles: set i has `elements[bounds[i]:bounds[i + 1]]`, ascending hashes of 48 bits."""

    elements: npt.NDArray[np.uint64]  # (k,)
    bounds: npt.NDArray[np.int64]  # (n + 1,)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """The number of elements of each set: (n,)."""
        sizes: npt.NDArray[np.int64] = np.diff(self.bounds)
        return sizes

    def take(self, which: npt.NDArray[np.int64]) -> "Sets":
        """Take the sets at these positions, in their order."""
        sizes = self.sizes[which]
        ends = np.cumsum(sizes)
        shift = np.repeat(self.bounds[which] - (ends - sizes), sizes)
        return Sets(self.elements[np.arange(len(shift)) + shift], np.concatenate([[0], ends]))


def joined(parts: Sequence[Sets]) -> Sets:
    """Put sets behind one another."""
    elements = [np.empty(0, np.uint64), *(each.elements for each in parts)]
    sizes = [np.zeros(1, np.int64), *(each.sizes for each in parts)]
    return Sets(np.concatenate(elements), np.cumsum(np.concatenate(sizes)))


def probability(similarity: float, bands: int, rows: int) -> float:
    """Say how probably two sets share a band: 1 - (1 - J^rows)^bands, J their similarity (0 to 1)."""
    return float(1 - (1 - similarity**rows) ** bands)


def bands_for(threshold: float, permutations: int) -> tuple[int, int]:
    """Cut permutations into bands: (bands, rows of a band).

    The rows are the most with which a pair at exactly the threshold is found with a probability of 0.97: the more
    rows, the fewer pairs below the threshold need to be looked at. One row does for permutations ≥ 34 and
    thresholds ≥ 0.1.
    """
    fitting = [
        rows
        for rows in range(1, permutations + 1)
        if rows == 1 or probability(threshold, permutations // rows, rows) >= FOUND
    ]
    return permutations // fitting[-1], fitting[-1]


def shingle_sets(texts: pa.Array, words: int) -> Sets:
    """Collect the different shingles of each text (at most 65,536 strings): runs of so many words.

    A shorter text is one shingle, and a text without a word has none.
    """
    grams = ngrams(words_of(texts), words)
    # text and hash in one number, so that one sort orders the elements of all texts
    keys = grams.owners.astype(np.uint64) << np.uint64(BITS) | grams.hashes >> np.uint64(64 - BITS)
    keys.sort()
    keys = keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]
    counts = np.bincount((keys >> np.uint64(BITS)).astype(np.int64), minlength=len(texts))
    return Sets(keys & np.uint64((1 << BITS) - 1), np.concatenate([[0], np.cumsum(counts)]))


def signatures(sets: Sets, count: int) -> npt.NDArray[np.uint32]:
    """Find the least element of each set under so many orders: (count, n); no set may be empty."""
    factors, shifts = _orders(count)
    least = np.empty((count, len(sets.sizes)), np.uint32)
    for start, stop in cuts(sets.sizes):
        first = sets.bounds[start]
        values = sets.elements[first : sets.bounds[stop]].astype(np.uint32)
        starts = sets.bounds[start:stop] - first
        ordered = np.empty_like(values)
        for order in range(count):
            np.multiply(values, factors[order], out=ordered)
            np.add(ordered, shifts[order], out=ordered)
            np.minimum.reduceat(ordered, starts, out=least[order, start:stop])
    return least


def band_hashes(least: npt.NDArray[np.uint32], bands: int) -> npt.NDArray[np.uint64]:
    """Hash each band of signatures (bands * rows, n): (bands, n), equal where all rows of the band are."""
    hashes = np.zeros((bands, least.shape[1]), np.uint64)
    for row in np.moveaxis(least.reshape(bands, -1, least.shape[1]), 1, 0):
        hashes = mixed(hashes ^ row)
    return hashes


def jaccard(sets: Sets, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Compare pairs of sets: (k,) |A and B| / |A or B|, the exact ratio rounded once; no set may be empty.

    Args:
        sets: the sets.
        left: (k,) positions of each pair's one set.
        right: (k,) positions of the other.
    """
    together = sets.sizes[left] + sets.sizes[right]
    common = np.empty(len(left), np.int64)
    for start, stop in cuts(together):
        pairs = np.tile(np.arange(stop - start, dtype=np.uint64) << np.uint64(BITS), 2)
        both = sets.take(np.concatenate([left[start:stop], right[start:stop]]))
        keys = np.repeat(pairs, both.sizes) | both.elements
        keys.sort()
        twice = keys[1:][keys[1:] == keys[:-1]] >> np.uint64(BITS)
        common[start:stop] = np.bincount(twice.astype(np.int64), minlength=stop - start)
    ratio: npt.NDArray[np.float64] = common / (together - common)
    return ratio


def cuts(sizes: npt.NDArray[np.int64], most: int = BLOCK) -> Iterator[tuple[int, int]]:
    """Cut into runs (start, stop) whose sizes sum to at most so many, or that are one long."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        done = ends[start] - sizes[start]
        stop = max(start + 1, int(np.searchsorted(ends, done + most, "right")))
        yield start, stop
        start = stop


def _orders(count: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Draw the factors, which are odd, and the shifts of so many orders: (count,) each, always the same."""
    draws = mixed(np.arange(2 * count, dtype=np.uint64) + np.uint64(seed_for("minhash")))
    high = (draws >> np.uint64(32)).astype(np.uint32)
    return high[:count] | np.uint32(1), high[count:]
