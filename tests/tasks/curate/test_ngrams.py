"""Words and n-grams of many texts at once are those of each text alone."""

import unicodedata
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.curate.ngrams import ngrams, words_of

quick = settings(deadline=None, max_examples=100)

# one or more of each kind: letters of three scripts, marks, digits, scripts without spaces, signs, blanks, controls
SIGNS = "aBé\u0301ßЖ7٣²中の한カไก \t\n\u00a0\u2003.,-_'\u2019\u201c!🦉\0"
TEXTS = st.lists(st.text(st.sampled_from(SIGNS), max_size=14), max_size=6)
UNSPACED = "中のカไก"


def split(texts: list[str]) -> list[list[str]]:
    words = words_of(pa.array(texts, pa.string()))
    return [words.words[start:stop].to_pylist() for start, stop in pairwise(words.bounds.tolist())]


def plainly(text: str) -> list[str]:
    """Split a text character by character."""
    words = [""]
    for sign in text.lower():
        if sign in UNSPACED:
            words += [sign, ""]
        elif unicodedata.category(sign)[0] in "LMN":
            words[-1] += sign
        else:
            words.append("")
    return [word for word in words if word]


@quick
@given(TEXTS)
@example(["", " ", "..", "a", "a  b", " a-b\n"])
@example(["中の", "aの中b", "ไก"])
def test_words_are_runs_of_letters_and_digits(texts: list[str]) -> None:
    assert split(texts) == [plainly(text) for text in texts]


@quick
@given(TEXTS, st.integers(1, 4))
def test_ngrams_of_many_texts_are_those_of_each_alone(texts: list[str], n: int) -> None:
    together = ngrams(words_of(pa.array(texts, pa.string())), n)
    alone = [ngrams(words_of(pa.array([text])), n).hashes.tolist() for text in texts]
    assert [together.hashes[start:stop].tolist() for start, stop in pairwise(together.bounds.tolist())] == alone
    assert together.owners.tolist() == [row for row, each in enumerate(alone) for _ in each]


@quick
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=7), min_size=1, max_size=8), st.integers(1, 4))
def test_ngrams_have_the_same_hash_where_they_have_the_same_words(rows: list[list[str]], n: int) -> None:
    texts = [" ".join(words) for words in rows]
    grams = ngrams(words_of(pa.array(texts, pa.string())), n)
    wanted = [
        [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
        if len(words) >= n
        else [tuple(words)][: len(words)]
        for words in rows
    ]
    assert np.diff(grams.bounds).tolist() == [len(each) for each in wanted]
    flat = [gram for each in wanted for gram in each]
    assert len(set(flat)) == len(set(zip(flat, grams.hashes.tolist(), strict=True))) == len(set(grams.hashes.tolist()))


@pytest.mark.parametrize(
    ("text", "n", "grams"),
    [
        ("one two three", 2, ["one two", "two three"]),
        ("one two three", 3, ["one two three"]),
        ("One, two!", 5, ["one two"]),
        ("...", 1, []),
        ("", 3, []),
    ],
)
def test_an_ngram_can_be_read_where_it_starts(text: str, n: int, grams: list[str]) -> None:
    words = words_of(pa.array(["before it", text, "after it"]))
    found = ngrams(words, n)
    own = slice(found.bounds[1], found.bounds[2])
    ends = np.minimum(found.starts[own] + n, words.bounds[2])
    assert [words.text(start, stop) for start, stop in zip(found.starts[own], ends, strict=True)] == grams


def test_hashes_are_the_same_on_every_machine() -> None:
    words = words_of(pa.array(["Of the two, one is the other's ghost."]))
    digest = blake2b(b"of", digest_size=8).digest()
    assert int(words.hashes()[0]) == int.from_bytes(digest, "little")
    assert [f"{each:016x}" for each in ngrams(words, 5).hashes[:2]] == ["821b806e9125af1c", "b5306b34991541ee"]


def test_no_texts_have_no_words_and_no_ngrams() -> None:
    words = words_of(pa.array([], pa.string()))
    assert words.bounds.tolist() == [0]
    assert ngrams(words, 3).bounds.tolist() == [0]
