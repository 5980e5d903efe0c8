"""Each rule of quality, on both sides of its threshold; repetition against a plain count of it."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.curate.rules import RULES, Measured, QualityParameters, Texts, measure, repeated_ngram_text, top_ngram

NONE = dict.fromkeys(QualityParameters.model_fields)
TEN = "one two three four five six seven eight nine ten"


def measured(rule: str, threshold: float, *texts: str) -> Measured:
    """What one rule alone says of texts."""
    [found] = measure(QualityParameters.model_validate({**NONE, rule: threshold}), pa.array(texts, pa.string()))
    assert found.rule == rule
    return found


# rule, threshold, a text that passes with its value, a text that fails with its value
BOTH_SIDES = [
    ("min_words", 3, "one two, three!", 3, "one -- two", 2),
    ("max_words", 3, "one two, three!", 3, "don't you go", 4),
    ("min_mean_word_length", 3.0, "abc ab abcd", 3, "ab ab abcd", 8 / 3),
    ("max_mean_word_length", 10.0, "abcdefghij", 10, "abcdefghij abcdefghijkl", 11),
    ("max_symbols_per_word", 0.1, f"# {TEN}", 0.1, f"… {TEN} ...", 0.2),
    ("max_bullet_lines", 0.5, "* a\n\n- b\nc\n*d*", 0.5, "• a\n\u2013 b\n-5", 2 / 3),
    ("max_ellipsis_lines", 0.5, "a ...\nb... c", 0.5, "a…\nb...\nc.", 2 / 3),
    ("min_alphabetic_words", 0.5, "a 1 b2 +", 0.5, "a 1 + =", 0.25),
    ("min_stop_words", 2, "The cat and a dog", 2, "the other, the theme", 1),
    ("max_repeated_lines", 0.5, "a\nb\n a\n\nb", 0.5, "a\na\nb\na\na", 0.6),
    ("max_repeated_paragraphs", 0.5, "a\nb\n\na\nb", 0.5, "a\n \na\n\n\na", 2 / 3),
    ("max_repeated_line_text", 0.25, "aaa\naaa\nbbbbbb", 0.25, "aaaa\naaaa\nbbbb", 1 / 3),
    ("max_repeated_paragraph_text", 0.25, "aaa\n\naaa\n\nbbbbbb", 0.25, "aaaa\n\naaaa\n\nbbbb", 1 / 3),
    ("max_top_2_gram", 0.5, "a b c d. A, b! e f", 0.5, "a b c a b d a b e f", 0.6),
    ("max_top_3_gram", 0.6, "a b c d e f a b c g", 0.6, "a b c d e a b c", 0.75),
    ("max_top_4_gram", 0.8, "a b c d e f a b c d", 0.8, "a b c d a b c d", 1),
    ("max_repeated_5_grams", 0.5, "a b c d e " * 2, 0.5, "a b c d e " * 3, 2 / 3),
    ("max_repeated_6_grams", 0.5, "a b c d e f " * 2, 0.5, "a b c d e f " * 3, 2 / 3),
    ("max_repeated_7_grams", 0.5, "a b c d e f g " * 2, 0.5, "a b c d e f g " * 3, 2 / 3),
    ("max_repeated_8_grams", 0.5, "a b c d e f g h " * 2, 0.5, "a b c d e f g h " * 3, 2 / 3),
    ("max_repeated_9_grams", 0.5, "a b c d e f g h i " * 2, 0.5, "a b c d e f g h i " * 3, 2 / 3),
    ("max_repeated_10_grams", 0.5, f"{TEN} {TEN}", 0.5, f"{TEN} {TEN} {TEN}", 2 / 3),
    ("min_terminal_lines", 0.5, "A line.\nanother", 0.5, 'heading\n"Said he."\nlist', 1 / 3),
    ("max_lorem_ipsum", 0, "Ipsum lorem", 0, "Lorem ipsum dolor", 1),
    ("max_javascript_lines", 1, "JavaScript and javascript\nJava", 1, "JavaScript\nno JAVASCRIPT", 2),
    ("max_curly_brackets", 0, "f(x)}", 0, "f {x}", 1),
]


@pytest.mark.parametrize(
    ("rule", "threshold", "fine", "passes", "bad", "fails"), BOTH_SIDES, ids=lambda each: str(each)[:30]
)
def test_a_rule_passes_at_its_threshold_and_fails_beyond(
    rule: str, threshold: float, fine: str, passes: float, bad: str, fails: float
) -> None:
    found = measured(rule, threshold, fine, bad)
    np.testing.assert_allclose(found.values, [passes, fails], rtol=0, atol=1e-12)
    assert found.fails.tolist() == [False, True]
    assert found.threshold == threshold
    assert found.wanted == f"at {'least' if rule.startswith('min') else 'most'} {threshold} wanted"


def test_every_rule_has_its_parameter_in_the_same_order_and_is_tested() -> None:
    assert [rule.name for rule in RULES] == list(QualityParameters.model_fields) == [each[0] for each in BOTH_SIDES]
    assert len({rule.reason for rule in RULES}) == len(RULES)
    assert all((rule.side == "at least") == rule.name.startswith("min_") for rule in RULES)


def test_rules_that_are_off_are_not_worked_out() -> None:
    assert measure(QualityParameters.model_validate(NONE), pa.array(["text"])) == []
    assert [each.rule for each in measure(QualityParameters(), pa.array(["text"]))] == [rule.name for rule in RULES]


def test_texts_without_words_or_lines_have_values_all_the_same() -> None:
    for found in measure(QualityParameters(), pa.array(["", " \n ", "!?", "\n\n\n", "…"])):
        assert np.isfinite(found.values).all(), found.rule
    for found in measure(QualityParameters(), pa.array([], pa.string())):
        assert found.values.shape == found.fails.shape == (0,)


def test_a_character_of_a_script_without_spaces_is_a_word() -> None:
    assert measured("min_words", 6, "今天天气好。", "今天天气很好。").fails.tolist() == [True, False]


def test_what_occurs_once_is_no_repetition_in_however_short_a_text() -> None:
    found = measure(QualityParameters(), pa.array(["Write a poem", "2+2", "word"]))
    for each in found:
        if "repeated" in each.rule or "gram" in each.rule:
            assert not each.values.any(), each.rule


# ---- repetition, counted the plain way ----

WORDS = st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=25)


def covered(words: list[str], starts: list[int], n: int) -> float:
    inside = {place for start in starts for place in range(start, start + n)}
    return sum(len(words[place]) for place in inside) / max(sum(map(len, words)), 1)


def plainly_repeated(words: list[str], n: int) -> float:
    grams = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
    return covered(words, [at for at, gram in enumerate(grams) if gram in grams[:at]], n)


def plain_top(words: list[str], n: int) -> float:
    grams = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
    several = {gram: times for gram, times in Counter(grams).items() if times > 1}
    if not several:
        return 0.0
    top = max(several, key=lambda gram: (several[gram], len("".join(gram)), -grams.index(gram)))
    return covered(words, [at for at, gram in enumerate(grams) if gram == top], n)


@given(st.lists(WORDS, min_size=1, max_size=4), st.integers(1, 10))
def test_repetition_is_what_a_plain_count_finds(texts: list[list[str]], n: int) -> None:
    whole = Texts(pa.array([" ".join(words) for words in texts], pa.string()))
    np.testing.assert_allclose(repeated_ngram_text(whole, n), [plainly_repeated(words, n) for words in texts])
    np.testing.assert_allclose(top_ngram(whole, n), [plain_top(words, n) for words in texts])


@given(st.lists(st.text(st.sampled_from("ab #{}…•.\n é天"), max_size=30), min_size=1, max_size=5))
def test_a_value_does_not_depend_on_the_texts_beside(texts: list[str]) -> None:
    together = measure(QualityParameters(), pa.array(texts, pa.string()))
    for at, text in enumerate(texts):
        alone = measure(QualityParameters(), pa.array([text], pa.string()))
        assert [each.values[at] for each in together] == [each.values[0] for each in alone]


@given(WORDS)
def test_longer_ngrams_repeat_no_more_than_shorter_ones(words: list[str]) -> None:
    whole = Texts(pa.array([" ".join(words)], pa.string()))
    shares = [repeated_ngram_text(whole, n)[0] for n in range(1, 11)]
    assert all(0 <= longer <= shorter <= 1 for shorter, longer in pairwise(shares))
