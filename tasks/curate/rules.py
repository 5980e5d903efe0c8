r"""Judge the quality of texts by rules of thumb: each a number worked out from a text, and a threshold for it.

Sources: Gopher (Rae et al. 2021, arXiv 2112.11446, appendix A.1.1, "quality filtering" and "repetition removal" with
table A1), C4 (Raffel et al. 2020, section 2.2) and FineWeb (Penedo et al. 2024, section 3.6). Each parameter names
its own. What is done differently, and why:

- C4 drops single lines. Rows are kept or dropped whole here, so its rules count over a row.
- A word is a run of letters and digits, and each character of a script without spaces is one (ngrams.py). Text in
  repeated n-grams is characters of words, so that layout does not count.
- Only what came before in the same text is repeated: of three equal lines two are. An n-gram that occurs once is no
  repetition, however short the text. Web pages are long enough not to meet this; instructions are not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from infra.stage import Parameters
from tasks.curate.ngrams import Bounds, Words, words_of

Values = npt.NDArray[np.float64]  # (n,), one for each text
Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_BULLET = r"^[•‣◦▪●*\x{2013}-]\s"  # U+2013 is the dash of lists
_ELLIPSIS = r"…|\.\.\."
_TRAILS_OFF = r"(?:…|\.\.\.)$"
_ENDS_SENTENCE = r"[.!?…\"'”\x{2019}»。\x{FF01}\x{FF1F}]$"  # with closing quotes, and ! and ? of full width


def _number(default: float, description: str) -> Any:
    return Field(default, ge=0, description=description)


def _share(default: float, description: str) -> Any:
    return Field(default, ge=0, le=1, description=description)


class QualityParameters(Parameters):
    """The rules, in the order in which they judge, each with its threshold; none turns a rule off."""

    min_words: int | None = _number(50, "Words. Gopher.")
    max_words: int | None = _number(100_000, "Words. Gopher.")
    min_mean_word_length: float | None = _number(3.0, "Characters of a word, on average; scripts with spaces. Gopher.")
    max_mean_word_length: float | None = _number(10.0, "Characters of a word, on average; scripts with spaces. Gopher.")
    max_symbols_per_word: float | None = _number(0.1, "Hash signs or ellipses for each word, the larger. Gopher.")
    max_bullet_lines: float | None = _share(0.9, "Share of lines that begin with a bullet. Gopher.")
    max_ellipsis_lines: float | None = _share(0.3, "Share of lines that end with an ellipsis. Gopher.")
    min_alphabetic_words: float | None = _share(0.8, "Share of what stands between spaces that has a letter. Gopher.")
    min_stop_words: int | None = _number(2, "How many of eight common words occur; English. Gopher.")
    max_repeated_lines: float | None = _share(0.3, "Share of lines that stood before in the row. Gopher.")
    max_repeated_paragraphs: float | None = _share(0.3, "Share of paragraphs that stood before in the row. Gopher.")
    max_repeated_line_text: float | None = _share(0.2, "Share of characters in repeated lines. Gopher.")
    max_repeated_paragraph_text: float | None = _share(0.2, "Share of characters in repeated paragraphs. Gopher.")
    max_top_2_gram: float | None = _share(0.2, "Share of characters in the commonest run of two words. Gopher.")
    max_top_3_gram: float | None = _share(0.18, "The same, of three words. Gopher.")
    max_top_4_gram: float | None = _share(0.16, "The same, of four words. Gopher.")
    max_repeated_5_grams: float | None = _share(0.15, "Share of characters in repeated runs of five words. Gopher.")
    max_repeated_6_grams: float | None = _share(0.14, "The same, of six words. Gopher.")
    max_repeated_7_grams: float | None = _share(0.13, "The same, of seven words. Gopher.")
    max_repeated_8_grams: float | None = _share(0.12, "The same, of eight words. Gopher.")
    max_repeated_9_grams: float | None = _share(0.11, "The same, of nine words. Gopher.")
    max_repeated_10_grams: float | None = _share(0.1, "The same, of ten words. Gopher.")
    min_terminal_lines: float | None = _share(0.12, "Share of lines that end as sentences or quotes do. FineWeb, C4.")
    max_lorem_ipsum: int | None = _number(0, "Times that `lorem ipsum` occurs. C4.")
    max_javascript_lines: int | None = _number(0, "Lines that speak of JavaScript. C4.")
    max_curly_brackets: int | None = _number(0, "Opening curly brackets. C4.")


# ---- texts, and what they are made of ----


class Pieces(NamedTuple):
    """The pieces of n texts: text i has `pieces[bounds[i]:bounds[i + 1]]`, none of them blank."""

    pieces: pa.Array
    bounds: Bounds  # (n + 1,)


class Level(NamedTuple):
    """The n-grams of one length that occur more than once in their text, in reading order."""

    starts: Numbers  # place of each one's first word among all words
    groups: Numbers  # equal n-grams of one text have one number; numbers rise by first occurrence
    first: Mask  # is it the first of its group


@dataclass(frozen=True)
class Texts:
    """Texts (n strings without nulls) and what the rules look at, worked out when the first rule asks for it."""

    texts: pa.Array

    @cached_property
    def words(self) -> Words:
        """Words in lower case."""
        return words_of(self.texts)

    @cached_property
    def word_lengths(self) -> Numbers:
        """Characters of each word."""
        return _lengths(self.words.words)

    @cached_property
    def spaced(self) -> Pieces:
        """What stands between white space."""
        return pieces_of(self.texts, r"\s+")

    @cached_property
    def lines(self) -> Pieces:
        """Lines that are not blank."""
        return pieces_of(self.texts, "\n")

    @cached_property
    def paragraphs(self) -> Pieces:
        """What stands between blank lines."""
        return pieces_of(self.texts, r"\n\s*\n")

    @cached_property
    def levels(self) -> list[Level]:
        """The n-grams that occur more than once, for n = 1, 2, … 10."""
        return repeated_ngrams(self.words, 10)


def pieces_of(texts: pa.Array, separator: str) -> Pieces:
    """Cut texts at a regular expression; white space at a piece's ends goes, and so do blank pieces."""
    split = pc.split_pattern_regex(texts, separator)
    pieces = pc.utf8_trim_whitespace(pc.list_flatten(split))
    there = pc.not_equal(pieces, "").to_numpy(zero_copy_only=False)
    bounds = np.concatenate([[0], np.cumsum(pc.list_value_length(split).to_numpy(), dtype=np.int64)])
    return Pieces(pieces.filter(pa.array(there)), np.concatenate([[0], np.cumsum(there)])[bounds])


def repeated(pieces: Pieces) -> Mask:
    """Say of each piece whether an equal one stood before it in the same text: (k,)."""
    coded = pieces.pieces.dictionary_encode()
    again = np.ones(len(coded), bool)
    again[np.unique(_keys(coded, pieces.bounds), return_index=True)[1]] = False
    return again


def repeated_ngrams(words: Words, longest: int) -> list[Level]:
    """Find the n-grams that occur more than once in their text, for n = 1 to `longest`.

    An n-gram can occur twice only where its first and its last n - 1 words do, and two are equal if these parts are
    (Karp, Miller and Rosenberg 1972). So each length looks at no more than what the one before it left.
    """
    keys = _keys(words.words.dictionary_encode(), words.bounds)
    owners = _owners(words.bounds)
    level = _level(np.arange(len(keys)), keys)
    levels = [level]
    for _ in range(longest - 1):
        starts, groups = level.starts, level.groups
        goes_on = (starts[1:] - starts[:-1] == 1) & (owners[starts[1:]] == owners[starts[:-1]])
        pairs = groups[:-1] * (groups.max(initial=0) + 1) + groups[1:]
        level = _level(starts[:-1][goes_on], pairs[goes_on])
        levels.append(level)
    return levels


def _level(starts: Numbers, keys: Numbers) -> Level:
    """Keep the n-grams whose key occurs more than once, and number the keys by first occurrence."""
    groups = pa.array(keys).dictionary_encode().indices.to_numpy().astype(np.int64)
    several = np.bincount(groups, minlength=1)[groups] > 1
    groups = groups[several]
    highest = np.concatenate([[-1], np.maximum.accumulate(groups)])[: len(groups)]
    return Level(starts[several], groups, groups > highest)


def _keys(coded: pa.DictionaryArray, bounds: Bounds) -> Numbers:
    """Number the pieces of all texts so that only equal ones of the same text have the same number."""
    keys: Numbers = _owners(bounds) * max(len(coded.dictionary), 1) + coded.indices.to_numpy()
    return keys


def _owners(bounds: Bounds) -> Numbers:
    return np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))


def _lengths(strings: pa.Array) -> Numbers:
    lengths: Numbers = pc.utf8_length(strings).to_numpy().astype(np.int64)
    return lengths


def _matches(strings: pa.Array, pattern: str) -> Mask:
    found: Mask = pc.match_substring_regex(strings, pattern).to_numpy(zero_copy_only=False)
    return found


def _sums(weights: Mask | Numbers, bounds: Bounds) -> Numbers:
    """Sum the weights (k,) of each text's pieces: (n,)."""
    running = np.concatenate([[0], np.cumsum(weights, dtype=np.int64)])
    whole: Numbers = running[bounds[1:]] - running[bounds[:-1]]
    return whole


def _covered(texts: Texts, starts: Numbers, n: int) -> Values:
    """Say which share of the characters of each text's words lies in the n-grams that begin at `starts`."""
    edges = np.zeros(len(texts.word_lengths) + 1, np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + n, -1)
    inside = np.cumsum(edges[:-1]) > 0
    return _sums(texts.word_lengths * inside, texts.words.bounds) / np.maximum(word_characters(texts), 1)


# ---- the rules: n texts -> (n,) values; a share of nothing is 0 ----


def word_count(texts: Texts) -> Values:
    """Count the words."""
    return np.diff(texts.words.bounds).astype(np.float64)


def word_characters(texts: Texts) -> Values:
    """Count the characters of all words."""
    return _sums(texts.word_lengths, texts.words.bounds).astype(np.float64)


def mean_word_length(texts: Texts) -> Values:
    """Average the characters of a word."""
    return word_characters(texts) / np.maximum(word_count(texts), 1)


def symbols_per_word(texts: Texts) -> Values:
    """Divide the number of hash signs, or that of ellipses if it is larger, by the number of words."""
    return np.maximum(occurrences(texts, "#"), occurrences(texts, _ELLIPSIS)) / np.maximum(word_count(texts), 1)


def stop_words(texts: Texts) -> Values:
    """Count how many of the English stop words occur."""
    which = pc.fill_null(pc.index_in(texts.words.words, value_set=pa.array(STOP_WORDS)), len(STOP_WORDS)).to_numpy()
    there = np.zeros((len(texts.texts), len(STOP_WORDS) + 1), bool)
    there[_owners(texts.words.bounds), which] = True
    different: Values = there[:, :-1].sum(1).astype(np.float64)
    return different


def occurrences(texts: Texts, pattern: str) -> Values:
    """Count the places where a regular expression matches."""
    counted: Values = pc.count_substring_regex(texts.texts, pattern).to_numpy().astype(np.float64)
    return counted


def share_matching(pieces: Pieces, pattern: str) -> Values:
    """Say which share of each text's pieces matches a regular expression."""
    return _sums(_matches(pieces.pieces, pattern), pieces.bounds) / np.maximum(np.diff(pieces.bounds), 1)


def share_repeated(pieces: Pieces) -> Values:
    """Say which share of each text's pieces stood before in the same text."""
    return _sums(repeated(pieces), pieces.bounds) / np.maximum(np.diff(pieces.bounds), 1)


def share_of_text_repeated(pieces: Pieces) -> Values:
    """Say which share of the characters of each text's pieces is in those that stood before."""
    sizes = _lengths(pieces.pieces)
    return _sums(sizes * repeated(pieces), pieces.bounds) / np.maximum(_sums(sizes, pieces.bounds), 1)


def top_ngram(texts: Texts, n: int) -> Values:
    """Say which share of the characters of words lies in the n-gram that occurs most often, if it is more than once.

    Of n-grams that occur equally often the one of most characters counts, then the first.
    """
    starts, groups, first = texts.levels[n - 1]
    owners = _owners(texts.words.bounds)[starts[first]]
    running = np.concatenate([[0], np.cumsum(texts.word_lengths)])
    sizes = running[starts[first] + n] - running[starts[first]]
    numbers = groups[first]
    times = np.bincount(groups, minlength=1)[numbers]
    order = np.lexsort((numbers, -sizes, -times, owners))
    best = order[np.diff(owners[order], prepend=-1) > 0]
    return _covered(texts, starts[np.isin(groups, numbers[best])], n)


def repeated_ngram_text(texts: Texts, n: int) -> Values:
    """Say which share of the characters of words lies in n-grams that occurred before in the same text."""
    level = texts.levels[n - 1]
    return _covered(texts, level.starts[~level.first], n)


def javascript_lines(texts: Texts) -> Values:
    """Count the lines with the word JavaScript."""
    return _sums(_matches(texts.lines.pieces, "(?i)javascript"), texts.lines.bounds).astype(np.float64)


# ---- judging ----


class Rule(NamedTuple):
    """A rule: the parameter that holds its threshold, the reason that a dropped row is given, its value, its side."""

    name: str
    reason: str
    value: Callable[[Texts], Values]
    side: Literal["at least", "at most"]


RULES = (
    Rule("min_words", "too few words", word_count, "at least"),
    Rule("max_words", "too many words", word_count, "at most"),
    Rule("min_mean_word_length", "short words", mean_word_length, "at least"),
    Rule("max_mean_word_length", "long words", mean_word_length, "at most"),
    Rule("max_symbols_per_word", "many symbols", symbols_per_word, "at most"),
    Rule("max_bullet_lines", "bullet lines", lambda texts: share_matching(texts.lines, _BULLET), "at most"),
    Rule("max_ellipsis_lines", "ellipsis lines", lambda texts: share_matching(texts.lines, _TRAILS_OFF), "at most"),
    Rule("min_alphabetic_words", "few letters", lambda texts: share_matching(texts.spaced, r"\p{L}"), "at least"),
    Rule("min_stop_words", "few stop words", stop_words, "at least"),
    Rule("max_repeated_lines", "repeated lines", lambda texts: share_repeated(texts.lines), "at most"),
    Rule("max_repeated_paragraphs", "repeated paragraphs", lambda texts: share_repeated(texts.paragraphs), "at most"),
    Rule("max_repeated_line_text", "text in repeated lines", lambda it: share_of_text_repeated(it.lines), "at most"),
    Rule(
        "max_repeated_paragraph_text",
        "text in repeated paragraphs",
        lambda texts: share_of_text_repeated(texts.paragraphs),
        "at most",
    ),
    *(Rule(f"max_top_{n}_gram", f"one {n}-gram too often", partial(top_ngram, n=n), "at most") for n in (2, 3, 4)),
    *(
        Rule(f"max_repeated_{n}_grams", f"repeated {n}-grams", partial(repeated_ngram_text, n=n), "at most")
        for n in range(5, 11)
    ),
    Rule("min_terminal_lines", "unfinished lines", lambda it: share_matching(it.lines, _ENDS_SENTENCE), "at least"),
    Rule("max_lorem_ipsum", "lorem ipsum", lambda texts: occurrences(texts, "(?i)lorem ipsum"), "at most"),
    Rule("max_javascript_lines", "javascript", javascript_lines, "at most"),
    Rule("max_curly_brackets", "curly brackets", lambda texts: occurrences(texts, r"\{"), "at most"),
)


class Measured(NamedTuple):
    """What a rule found: its value of each text, and which texts fail."""

    rule: str
    reason: str
    wanted: str
    threshold: float
    values: Values
    fails: Mask


def measure(parameters: QualityParameters, texts: pa.Array) -> list[Measured]:
    """Work out every rule that is on, in order, for texts (n strings without nulls)."""
    whole, thresholds = Texts(texts), parameters.model_dump()
    measured = []
    for rule in RULES:
        if (threshold := thresholds[rule.name]) is not None:
            values = rule.value(whole)
            fails = values < threshold if rule.side == "at least" else values > threshold
            wanted = f"{rule.side} {threshold:,} wanted"
            measured.append(Measured(rule.name, rule.reason, wanted, threshold, values, fails))
    return measured
