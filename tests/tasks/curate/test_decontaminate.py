"""Rows that share words with evaluation items are dropped; common phrases and short answers alone drop nothing."""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.artifact import SHARD_ROWS, Artifact
from data.errors import BadInput
from data.ids import ids_from_bytes
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.decontaminate import (
    COPY,
    LARGEST,
    DecontaminateParameters,
    Pairs,
    decontaminate,
    evident,
    judge,
)
from tasks.curate.overlap import BLOCK, Index, blocks, find_hits, index_of, split

Loaded = Callable[..., Artifact]
Row = dict[str, Any]

# Two questions that share nothing but everyday words, and an answer to each.
PLANE = (
    "A plane travels 1200 miles in 3 hours. At the same rate, how many additional hours would it take to travel an "
    "additional 2000 miles?"
)
PLANE_ANSWER = "It flies 400 miles an hour, so 2000 more miles take 2000 / 400 = 5 hours."
STAMPS = (
    "Max bought stamps at the post office. Some of the stamps had a snowflake design, some had a truck design, and "
    "some had a rose design. Max bought 16 snowflake stamps, 3 more truck stamps than that, and 9 fewer rose stamps "
    "than truck stamps. How many stamps did Max buy in all?"
)
STAMPS_ANSWER = "He bought 19 truck stamps and 10 rose stamps, which makes 45 together."
FRAME = (
    "Solve the following problem step by step, explain every step in a full sentence, and write nothing but the final "
    "number on the last line."
)


def row(prompt: str, completion: str = "x") -> Row:
    return {"prompt": prompt, "completion": completion}


def strange(count: int, name: str = "w") -> list[Row]:
    """Rows of fifteen words that no other text has."""
    return [row(" ".join(f"{name}{n}x{word}" for word in range(15)), f"{name}{n}") for n in range(count)]


def lines(artifact: Artifact, table: str) -> list[Row]:
    return artifact[table].read().to_pylist() if table in artifact.record["outputs"] else []


def prompts(artifact: Artifact) -> list[str]:
    found: list[str] = artifact.read(["prompt"])["prompt"].to_pylist()
    return found


def run(rows: Artifact, *evaluations: Artifact, **parameters: Any) -> Artifact:
    return decontaminate(DecontaminateParameters(**parameters), rows, list(evaluations))


# ---- laws ----

quick = settings(deadline=None, max_examples=100)
WORDS = st.lists(st.sampled_from("abcd"), max_size=9)
ITEMS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6)


def indexed(items: list[tuple[list[str], list[str]]], common: int, n: int) -> Index:
    ids = ids_from_bytes(b"".join(number.to_bytes(16, "big") for number in range(len(items))))
    texts = [pa.array([" ".join(item[part]) for item in items], pa.string()) for part in (0, 1)]
    return index_of(ids, pa.array(["set"] * len(items)), *split(texts), common, n)


def judged(index: Index, rows: list[list[str]], counts: Any, **parameters: Any) -> Pairs:
    table = pa.table({"text": pa.array([" ".join(each) for each in rows], pa.string())})
    ((start, texts),) = blocks(index, table, "all")
    assert start == 0
    wanted = DecontaminateParameters(**parameters)
    return judge(wanted, index, counts, evident(index, counts, wanted.common), texts)


def grams_of(words: list[str], n: int) -> dict[tuple[str, ...], int]:
    """The n-grams of a text, and where each first stands."""
    return {tuple(words[at : at + n]): at for at in reversed(range(len(words) - n + 1))}


def places_of(places: Iterable[int], n: int) -> set[int]:
    return {place + word for place in places for word in range(n)}


def own_places(text: list[str], spread: set[tuple[str, ...]], n: int) -> dict[tuple[str, ...], int]:
    """The n-grams that tell an item from others, found as slowly and plainly as can be."""
    grams = grams_of(text, n)
    phrases = places_of((place for gram, place in grams.items() if gram in spread), n)
    inside = {gram: len(places_of([place], n) & phrases) for gram, place in grams.items() if gram not in spread}
    few = max(n // 2, min(inside.values(), default=0))
    return {gram: place for gram, place in grams.items() if inside.get(gram, n + 1) <= few} if inside else grams


@quick
@given(ITEMS, st.lists(WORDS, min_size=1, max_size=4), st.integers(1, 3), st.integers(3, 4))
@example([([], list("aaa")), ([], list("aaab"))], [list("aaa")], 1, 3)
@example([(list("a"), list("a")), (list("aa"), list("a"))], [list("aa")], 1, 3)
def test_shares_are_what_counting_word_by_word_gives(
    items: list[tuple[list[str], list[str]]], rows: list[list[str]], common: int, n: int
) -> None:
    index = indexed(items, common, n)
    pairs = judged(index, rows, np.zeros(len(index.known.hashes), np.int64), n=n, common=common, min_words=1)
    found = dict(zip(zip(pairs.rows.tolist(), pairs.items.tolist(), strict=True), pairs.share.tolist(), strict=True))

    texts = [prompt + rest for prompt, rest in items]
    having = defaultdict(set)
    for (prompt, rest), text in zip(items, texts, strict=True):
        for gram in grams_of(text, n):
            having[gram].add(tuple(prompt or rest))
    spread = {gram for gram, asked in having.items() if len(asked) > common}
    for number, words in enumerate(rows):
        for item, text in enumerate(texts):
            prompt, own = items[item][0], own_places(text, spread, n)
            shares = [float(bool(words) and words in (text, prompt))]
            for end in (len(text), len(prompt)):
                inside = {gram: place for gram, place in own.items() if place + n <= end}
                shared = [place for gram, place in inside.items() if gram in grams_of(words, n)]
                shares.append(len(places_of(shared, n)) / max(len(places_of(inside.values(), n)), 1))
            assert found.get((number, item), 0.0) == pytest.approx(max(shares))


@quick
@given(ITEMS, WORDS, WORDS, st.integers(1, 3), st.randoms())
def test_a_row_with_an_item_in_it_is_a_copy_whatever_stands_around_it_and_however_common_it_is(
    items: list[tuple[list[str], list[str]]], before: list[str], after: list[str], common: int, random: Any
) -> None:
    index = indexed(items, common, 3)
    counts = np.array([random.randrange(100) for _ in index.known.hashes], np.int64)
    texts = [prompt + rest for prompt, rest in items]
    whole = [number for number, text in enumerate(texts) if len(text) >= 3]
    pairs = judged(index, [before + texts[number] + after for number in whole], counts, n=3, common=common)
    copies = {(a, b) for a, b, share in zip(pairs.rows, pairs.items, pairs.share, strict=True) if share == 1}
    assert copies >= set(enumerate(whole))


@quick
@given(ITEMS, st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=12), min_size=1), st.integers(3, 5))
def test_a_row_shares_something_exactly_if_it_has_a_words_run_or_equals_an_item(
    items: list[tuple[list[str], list[str]]], rows: list[list[str]], n: int
) -> None:
    index = indexed(items, 10, n)
    pairs = judged(index, rows, np.zeros(len(index.known.hashes), np.int64), n=n)
    texts = [prompt + rest for prompt, rest in items]
    known = {gram for text in texts for gram in grams_of(text, n)}
    whole = [each for each in [*texts, *(prompt for prompt, _ in items)] if each]
    wanted = {number for number, words in enumerate(rows) if grams_of(words, n).keys() & known or words in whole}
    assert set(pairs.rows.tolist()) == wanted


@pytest.mark.parametrize("seed", range(3))
def test_neither_the_order_of_rows_nor_of_evaluations_changes_who_falls_and_why(loaded: Loaded, seed: int) -> None:
    draw = random.Random(seed)
    phrase = " ".join(f"phrase{n}" for n in range(20))
    items = [
        row(PLANE, PLANE_ANSWER),
        row(STAMPS, STAMPS_ANSWER),
        row(f"{phrase} and then what happens in the end of it all", "no"),
    ]
    pool = [*strange(30), *[row(f"{phrase} {n}", f"{n}") for n in range(14)], *[row(PLANE, f"{n}") for n in range(12)]]
    pool += [row(STAMPS[: 40 + 20 * n], f"half {n}") for n in range(5)]
    two = [[items[0], items[2]], [items[1], items[0]]]
    orders = [loaded(draw.sample(pool, len(pool)), "pool") for _ in range(2)]
    sets = [[loaded(draw.sample(each, 2), f"set{number}") for number, each in enumerate(two)] for _ in range(2)]
    one, other = run(orders[0], *sets[0]), run(orders[1], *reversed(sets[1]))
    assert orders[0]["rows"].digest != orders[1]["rows"].digest
    for table in ("dropped", "common", "borders"):
        assert one[table].digest == other[table].digest
    for table in ("rows", "overlaps", "spared"):
        ours, theirs = (sorted(lines(each, table), key=str) for each in (one, other))
        assert ours == theirs
        assert ours
    assert {line["reason"] for line in lines(one, "dropped")} == {
        "equals an evaluation item",
        "shares words with an evaluation item",
    }


# ---- what is dropped, and what is told of it ----


def test_a_dropped_row_names_item_source_and_words(loaded: Loaded) -> None:
    rows = loaded([*strange(3), row(f"Here is a puzzle. {PLANE.upper().replace(',', ' --')} Thank you!", "no idea")])
    test = loaded([*strange(2, "other"), row(PLANE, PLANE_ANSWER)], "miles")
    after = run(rows, test)
    (line,) = lines(after, "dropped")
    item = test.read()["row_id"].to_pylist()[2]
    assert line["row_id"] == rows.read()["row_id"].to_pylist()[3]
    assert (line["reason"], line["score"], line["partner"]) == ("shares words with an evaluation item", 1.0, item)
    assert line["detail"].startswith('miles: "a plane travels 1200 miles in 3 hours at the same rate how many')
    assert prompts(after) == prompts(rows)[:3]
    (overlap,) = lines(after, "overlaps")
    assert (overlap["row_id"], overlap["evaluation"], overlap["source"]) == (line["row_id"], item, "miles")
    assert overlap["text"] in line["detail"]
    measures = after.record["measures"]
    assert (measures["rows_sharing"], measures["rows_equal"], measures["items"]) == (1, 0, 3)


def test_an_item_that_stands_in_a_row_twice_is_shown_once_and_whole(loaded: Loaded) -> None:
    rows = loaded([*strange(1), row(f"{PLANE} I said: {PLANE}")])
    (line,) = lines(run(rows, loaded([row(PLANE, PLANE_ANSWER)], "test")), "overlaps")
    assert len(line["text"].split()) == len(PLANE.split())


def test_equality_is_named_before_what_is_merely_shared(loaded: Loaded) -> None:
    rows = loaded([*strange(1), row("Where is the post office?", f"Over there. {PLANE} {PLANE_ANSWER}")])
    shared, equal = loaded([row(PLANE, PLANE_ANSWER)], "a"), loaded([row("Where is the post office?", "Here")], "b")
    after = run(rows, shared, equal)
    (line,) = lines(after, "dropped")
    assert (line["reason"], line["detail"]) == ("equals an evaluation item", 'b: "where is the post office"')
    assert [each["source"] for each in lines(after, "overlaps")] == ["b", "a"]


def test_long_rows_are_looked_up_block_by_block(loaded: Loaded) -> None:
    filling = " ".join(f"f{n}" for n in range(600))
    count = 2 * BLOCK // 600
    items = [row(" ".join(f"i{n}x{word}" for word in range(15))) for n in range(count)]
    pool = [*strange(3), *[row(f"{filling} {each['prompt']}", f"{n}") for n, each in enumerate(items)]]
    rows, test = loaded(pool), loaded(items, "items")
    after = run(rows, test)
    assert prompts(after) == [each["prompt"] for each in pool[:3]]
    ids, partners = rows.read()["row_id"].to_pylist()[3:], test.read()["row_id"].to_pylist()
    named = {line["row_id"]: line["partner"] for line in lines(after, "dropped")}
    assert named == dict(zip(ids, partners, strict=True))


def test_one_shared_ngram_drops_a_row_and_one_word_less_does_not(loaded: Loaded) -> None:
    words = PLANE.split()
    rows = loaded([row(" ".join(["so", *words[3:16], "then"])), row(" ".join(["so", *words[3:15], "then"]))])
    after = run(rows, loaded([row(PLANE, PLANE_ANSWER)], "test"))
    (line,) = lines(after, "dropped")
    assert prompts(after) == [prompts(rows)[1]]
    text = line["detail"].partition('"')[2].rstrip('"')
    assert text == re.sub(r"[^a-z0-9 ]", "", " ".join(words[3:16]).lower())
    assert line["score"] == pytest.approx(13 / len(words))  # of the question, which is shorter than the whole


def test_the_share_decides_on_both_sides_of_its_threshold(loaded: Loaded) -> None:
    words = [f"u{n}" for n in range(40)]
    rows = loaded([*strange(2), row(" ".join(words[:30])), row(" ".join(words[20:]))])
    test = loaded([{"text": " ".join(words)}], "test", layout="unlabelled")
    after = run(rows, test, min_share=0.75)
    assert [line["score"] for line in lines(after, "dropped")] == [0.75]
    (spared,) = lines(after, "spared")
    assert (spared["share"], spared["why"], spared["text"]) == (0.5, "small share", " ".join(words[20:]))
    shown = {(line["kept"], line["value"]) for line in lines(after, "borders") if line["rule"].startswith("share of")}
    assert shown == {(False, 0.75), (True, 0.5)}
    assert run(rows, test, min_share=0.5).rows == 2
    assert run(rows, test, min_share=0.76).rows == 4


def test_of_several_items_the_largest_share_is_named_then_the_first_source(loaded: Loaded) -> None:
    words = [f"u{n}" for n in range(60)]
    items = [{"text": " ".join(words[n : n + 30])} for n in range(0, 30, 3)]
    rows = loaded([*strange(1), row(" ".join(words[:40]))])
    two = [loaded(items, name, layout="unlabelled") for name in ("b", "a")]
    after = run(rows, *two)
    (line,) = lines(after, "dropped")
    ids = two[1].read(["row_id"])["row_id"].to_pylist()
    assert line["detail"].startswith('a: "')
    assert line["score"] == 1
    assert line["partner"] == min(ids[:4], key=lambda each: each.bytes)  # four items of each set lie in the row whole
    overlaps = lines(after, "overlaps")
    assert len(overlaps) == LARGEST
    assert [each["share"] for each in overlaps] == [1.0] * LARGEST
    assert [each["source"] for each in overlaps] == ["a"] * 4 + ["b"]


# ---- common phrases ----


def test_a_phrase_of_many_rows_is_no_evidence_and_is_shown(loaded: Loaded) -> None:
    phrase = "four score and seven years ago our fathers brought forth on this continent a new nation"
    items = [row(f"Name the speech that begins with {phrase} and say who gave it, where, and to whom", "Gettysburg")]
    rows = loaded([*strange(5), *[row(f"{phrase} number{n} tells of {n}") for n in range(11)]])
    test = loaded(items, "speeches")
    after = run(rows, test)
    assert after.rows == rows.rows
    spared = lines(after, "spared")
    assert len(spared) == 11
    assert {(each["why"], each["text"], each["source"]) for each in spared} == {("common phrase", phrase, "speeches")}
    assert all(0 < each["share"] < COPY for each in spared)
    common = lines(after, "common")
    assert len(common) == after.record["measures"]["ngrams_common"] == len(phrase.split()) - 12
    assert {(each["rows"], each["items"]) for each in common} == {(11, 1)}
    assert {each["row_id"] for each in common} == {min((each["row_id"] for each in spared), key=lambda id: id.bytes)}
    assert {each["evaluation"] for each in common} == set(test.read()["row_id"].to_pylist())
    (ours,) = {(line["kept"], line["value"]) for line in lines(after, "borders") if line["rule"].startswith("rows")}
    assert ours == (True, 11)
    ten = loaded([*strange(5), *[row(f"{phrase} number{n} tells of {n}") for n in range(10)]], "ten")
    assert run(ten, test).record["measures"]["rows_dropped"] == 10
    assert run(rows, test, common=11).record["measures"]["rows_dropped"] == 11


@pytest.mark.parametrize(
    "leaked",
    [
        pytest.param(lambda n: row(PLANE, PLANE_ANSWER), id="the same row"),
        pytest.param(lambda n: row(PLANE, f"It takes {n} hours, as far as I can see."), id="with other answers"),
        pytest.param(lambda n: row(f"Question {n}: {PLANE} Think about it for {n} minutes.", f"{n}"), id="inside"),
        pytest.param(lambda n: row(PLANE.replace("2000", f"{n}"), f"{n}"), id="with another number"),
        pytest.param(lambda n: {"prompt": f"{n}", "completion": f"{PLANE} {PLANE_ANSWER} {n}"}, id="as an answer"),
    ],
)
def test_an_item_that_leaked_more_often_than_a_phrase_is_common_is_dropped_all_the_same(
    loaded: Loaded, leaked: Callable[[int], Row]
) -> None:
    rows = loaded([*strange(5), *[leaked(n) for n in range(30)]])
    after = run(rows, loaded([row(PLANE, PLANE_ANSWER), row(STAMPS, STAMPS_ANSWER)], "test"))
    assert prompts(after) == prompts(rows)[:5]
    assert min(line["score"] for line in lines(after, "dropped")) >= COPY


def test_a_common_phrase_and_a_word_that_follows_it_by_chance_are_no_evidence(loaded: Loaded) -> None:
    phrase, own = ([f"{name}{n}" for n in range(20)] for name in ("phrase", "own"))
    pool = [row(" ".join([*phrase, f"number{n}"])) for n in range(11)]
    pool += [row(" ".join([*phrase, *own[:6]]), "six words by chance"), row(" ".join([*phrase, *own[:7]]), "seven")]
    after = run(loaded(pool), loaded([row(" ".join(phrase + own))], "test"))
    (line,) = lines(after, "dropped")
    assert line["detail"] == f'test: "{" ".join(phrase[14:] + own[:7])}"'
    assert after.rows == 12


def test_copies_do_not_make_the_words_of_an_item_common(loaded: Loaded) -> None:
    half = row(" ".join(PLANE.split()[:14]), "and so on")
    copies = [row(PLANE, f"{n} hours") for n in range(30)]
    after = run(loaded([*strange(5), *copies, half]), loaded([row(PLANE, PLANE_ANSWER)], "test"))
    assert after.rows == 5
    assert min(line["score"] for line in lines(after, "dropped")) < COPY


def test_a_frame_around_all_items_is_no_evidence_but_an_item_that_leaked_with_it_is(loaded: Loaded) -> None:
    questions = [f"What is {n} plus {n} times {n + 1}?" for n in range(40, 55)]
    test = loaded([row(f"{FRAME} {question}", "a number") for question in questions], "framed")
    pool = [*strange(3), *[row(f"{FRAME} {each}", "no") for each in ("Who was it?", "Where is it?", "When?")]]
    leak = row(f"{FRAME} {questions[4]}", "I have to think about this one")
    after = run(loaded([*pool, leak]), test)
    assert prompts(after) == [each["prompt"] for each in pool]
    (line,) = lines(after, "dropped")
    assert line["partner"] == test.read()["row_id"].to_pylist()[4]
    assert {each["why"] for each in lines(after, "spared")} == {"common phrase"}
    spread = [each for each in lines(after, "common") if each["items"] == len(questions)]
    assert {each["evaluation"] for each in spread} == {min(test.read()["row_id"].to_pylist(), key=lambda id: id.bytes)}
    few = loaded([row(f"{FRAME} {question}", "a number") for question in questions[:5]], "few")
    assert run(loaded([*pool, leak]), few).rows == 3  # five items do not show that it is a frame


def test_of_a_short_question_in_a_frame_the_ngrams_with_most_of_it_tell(loaded: Loaded) -> None:
    questions = [f"What is {number} times two?" for number in ("one", "three", "five", "seven", "nine", "ten")]
    questions += [f"Who wrote {number} plays?" for number in ("two", "four", "six", "eight", "eleven", "twelve")]
    test = loaded([{"text": f"{FRAME} {question}"} for question in questions], "framed", layout="unlabelled")
    pool = [row(f"{FRAME} {question}") for question in ("What was it?", "Who knows?", questions[3])]
    after = run(loaded(pool), test)
    assert prompts(after) == [each["prompt"] for each in pool[:2]]


def test_rows_of_all_shards_make_a_phrase_common(loaded: Loaded) -> None:
    phrase = " ".join(f"phrase{n}" for n in range(14))
    pool = [row(f"only this {n}") for n in range(SHARD_ROWS + 6)]
    for n in (*range(6), *range(SHARD_ROWS, SHARD_ROWS + 6)):
        pool[n] = row(f"{phrase} {n}")
    test = loaded([row(f"{phrase} {' '.join(f'own{n}' for n in range(20))}")], "test")
    assert run(loaded(pool), test).record["measures"]["rows_spared"] == 12
    pool[0] = row("without it")
    pool[1] = row("nor here")
    assert run(loaded(pool), test).record["measures"]["rows_dropped"] == 10


# ---- items that are compared whole ----


@pytest.mark.parametrize(
    ("pooled", "reason"),
    [
        (row("what IS the capital... of Peru", "Lima!"), "equals an evaluation item"),
        (row("What is the capital of Peru?", "I do not know."), "equals an evaluation item"),
        (row("Ask me something.", "What is the capital of Peru?"), "equals an evaluation item"),
        (row("What is the capital of Peru? Or rather, of Chile?", "Lima"), None),
        (row("What is the capital of Chile?", "Lima"), None),
        (row("", "What is the capital of Peru? Lima"), "equals an evaluation item"),
    ],
)
def test_an_item_without_ngrams_drops_what_equals_it_or_its_prompt(
    loaded: Loaded, pooled: Row, reason: str | None
) -> None:
    test = loaded([row("What is the capital of Peru?", "Lima")], "short")
    after = run(loaded([*strange(2), pooled]), test)
    dropped = lines(after, "dropped")
    assert [line["reason"] for line in dropped] == ([reason] if reason else [])
    for line in dropped:
        assert (line["score"], line["partner"]) == (1.0, test.read()["row_id"][0].as_py())
        assert re.fullmatch(r'short: "what is the capital of peru( lima)?"', line["detail"])
    assert after.record["measures"]["items_compared_whole"] == 1


def test_items_of_a_word_or_two_drop_nothing_and_are_shown(loaded: Loaded) -> None:
    test = loaded([{"text": text} for text in ("Yes.", "Thank you", "who made berlin")], "short", layout="unlabelled")
    pool = [*strange(2), row("Is it so?", "yes"), row("Here you are.", "Thank you!"), row("Who made Berlin?", "nobody")]
    after = run(loaded(pool), test)
    assert [line["detail"] for line in lines(after, "dropped")] == ['short: "who made berlin"']
    assert sorted((each["text"], each["why"]) for each in lines(after, "spared")) == [
        ("thank you", "too few words to compare"),
        ("yes", "too few words to compare"),
    ]
    shown = [(each["kept"], each["value"]) for each in lines(after, "borders") if each["rule"].startswith("words")]
    assert shown == [(False, 3), (True, 2), (True, 1)]
    assert run(loaded(pool), test, min_words=1).rows == 2
    assert run(loaded(pool), test, min_words=4).rows == 5


def test_a_row_that_equals_a_long_item_is_told_apart_from_one_that_contains_it(loaded: Loaded) -> None:
    rows = loaded([*strange(1), row(PLANE, PLANE_ANSWER), row(f"{PLANE} {PLANE_ANSWER} Right?", "no")])
    after = run(rows, loaded([row(PLANE, PLANE_ANSWER)], "test"))
    reasons = {line["row_id"]: line["reason"] for line in lines(after, "dropped")}
    ids = rows.read()["row_id"].to_pylist()
    assert reasons == {ids[1]: "equals an evaluation item", ids[2]: "shares words with an evaluation item"}


# ---- contracts and parts ----


def talk(*contents: str) -> Row:
    roles = ["user", "assistant"] * len(contents)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]}


def test_sets_and_pool_may_follow_different_contracts(loaded: Loaded) -> None:
    pool = loaded(
        [talk("Hello there", "Good day"), talk("Hi", "So?", PLANE, "5"), talk(STAMPS, "45")], layout="messages"
    )
    sets = [
        loaded([{"text": PLANE}], "plain", layout="unlabelled"),
        loaded([{"prompt": STAMPS, "chosen": "45", "rejected": "no"}], "pairs", layout="preference"),
        loaded([{"text": "something else entirely", "label": "Good day"}], "labels", layout="labelled"),
    ]
    after = run(pool, *sets)
    named = {line["row_id"]: line["detail"].partition(":")[0] for line in lines(after, "dropped")}
    ids = pool.read()["row_id"].to_pylist()
    assert named == {ids[1]: "plain", ids[2]: "pairs"}


def test_both_answers_of_a_preference_are_compared(loaded: Loaded) -> None:
    pool = [{"prompt": "a", "chosen": "fine", "rejected": STAMPS}, {"prompt": "b", "chosen": PLANE, "rejected": "no"}]
    pool += [{"prompt": "c", "chosen": "d", "rejected": "e f g"}]
    rows = loaded(pool, layout="preference")
    test = loaded([row(STAMPS, "45"), row(PLANE, "5")], "test")
    assert run(rows, test).rows == 1
    assert run(rows, test, part="answer").rows == 2  # of the two answers the chosen one
    assert run(rows, test, part="prompt").rows == 3


def test_parts_that_are_not_wanted_are_not_compared(loaded: Loaded) -> None:
    pool = loaded([row("short question", PLANE_ANSWER), row(PLANE, "so it goes"), *strange(1)])
    test = loaded([row(PLANE, PLANE_ANSWER)], "test")
    assert run(pool, test).rows == 1
    assert prompts(run(pool, test, evaluation_part="prompt"))[0] == "short question"
    assert prompts(run(pool, test, evaluation_part="answer"))[0] == PLANE
    assert prompts(run(pool, test, part="prompt"))[0] == "short question"
    assert prompts(run(pool, test, part="answer"))[0] == PLANE
    plain = loaded([{"text": PLANE}, {"text": "nothing"}], "plain", layout="unlabelled")
    with pytest.raises(BadInput, match="unlabelled rows, which have no answer"):
        run(plain, test, part="answer")


def test_characters_of_a_script_without_spaces_are_words(loaded: Loaded) -> None:
    question = "小明有三个苹果又买了五个苹果现在他一共有几个苹果"
    after = run(loaded([row(f"请回答{question}谢谢", "八"), *strange(1)]), loaded([row(question, "八个")], "test"))
    (line,) = lines(after, "dropped")
    assert line["score"] == 1
    assert " ".join(question) in line["detail"]


# ---- input that is strange, or bad ----


def test_without_evaluation_sets_everything_is_kept(loaded: Loaded) -> None:
    rows = loaded(strange(3))
    after = run(rows)
    assert after["rows"].digest == rows["rows"].digest
    assert after.record["measures"]["items"] == 0
    assert set(after.record["outputs"]) == {"rows"}


def test_an_empty_pool_stays_empty(loaded: Loaded) -> None:
    nothing = clean(CleanParameters(min_characters=10_000), loaded(strange(3)))
    assert nothing.rows == 0
    assert run(nothing, loaded([row(PLANE)], "test")).rows == 0


def test_one_row_is_kept_or_refused(loaded: Loaded) -> None:
    test = loaded([row(PLANE, PLANE_ANSWER)], "test")
    assert run(loaded(strange(1)), test).rows == 1
    with pytest.raises(BadInput, match="nothing would be left: 1 rows overlap with items of test"):
        run(loaded([row(PLANE, "5")], "one"), test)


@pytest.mark.parametrize("order", [1, -1])
def test_an_evaluation_set_that_is_the_pool_is_refused(loaded: Loaded, order: int) -> None:
    pool = [*strange(20), row("yes", "no"), row("...", ""), row(PLANE, PLANE_ANSWER)]
    rows, same = loaded(pool, "pool"), loaded(pool[::order], "evaluation")
    with pytest.raises(BadInput, match="all 23 rows stand in the evaluation sets as they are") as refused:
        run(rows, loaded([row(STAMPS)], "other"), same)
    assert "the pool itself" in refused.value.wanted


def test_a_pool_of_which_nothing_is_left_is_refused_with_the_numbers(loaded: Loaded) -> None:
    pool = [*strange(20), row(PLANE, PLANE_ANSWER)]
    dressed = [row(each["prompt"].upper() + "!", each["completion"]) for each in pool]
    with pytest.raises(BadInput) as refused:
        run(loaded(pool), loaded(dressed[:10], "one"), loaded(dressed[10:], "two"))
    assert "10 rows overlap with items of one; 11 rows overlap with items of two" in refused.value.found
    kept = run(loaded([*pool, row("yes", "no")]), loaded([*dressed, row("Yes!", "No!")], "all"))
    assert prompts(kept) == ["yes"]  # too short to be compared, and shown
    assert [line["why"] for line in lines(kept, "spared")] == ["too few words to compare"]


def test_an_evaluation_set_that_is_half_the_pool_leaves_the_other_half(loaded: Loaded) -> None:
    pool = strange(40)
    after = run(loaded(pool), loaded(pool[::2], "half"))
    assert prompts(after) == [each["prompt"] for each in pool[1::2]]


def test_a_set_without_words_is_refused_and_an_item_without_them_is_counted(loaded: Loaded) -> None:
    rows = loaded(strange(2))
    with pytest.raises(BadInput, match="2 items without a single word"):
        run(rows, loaded([row(PLANE)], "test"), loaded([row("...", "?!"), row("", "-")], "empty"))
    with pytest.raises(BadInput, match="evaluation_part: prompt"):
        run(rows, loaded([row("", "an answer")], "answers"), evaluation_part="prompt")
    after = run(rows, loaded([row("...", "?!"), row(PLANE)], "some"))
    assert after.record["measures"]["items_without_words"] == 1


def test_equal_hashes_of_different_words_are_no_match() -> None:
    """An index that is forged so that a row's n-gram has the hash of another one stands for a collision."""
    item, other = ([f"{name}{n}" for n in range(13)] for name in "ab")
    honest, strangers = (indexed([(words, [])], 10, 13) for words in (item, other))
    at, theirs = (int(np.flatnonzero(~each.known.whole)[0]) for each in (honest, strangers))
    hashes = honest.known.hashes.copy()
    hashes[at] = strangers.known.hashes[theirs]
    order = np.argsort(hashes)
    known = honest.known._replace(
        hashes=hashes[order], whole=honest.known.whole[order], lengths=honest.known.lengths[order]
    )
    everything = np.ones_like(honest.likely)
    forged = honest._replace(known=known, likely=everything)
    table = pa.table({"text": [" ".join(["well", *other])]})
    ((_, texts),) = blocks(forged, table, "all")
    assert strangers.known.hashes[theirs] in forged.known.hashes
    assert len(find_hits(forged, texts, 13).rows) == 0
    ((_, texts),) = blocks(strangers, table, "all")
    assert len(find_hits(strangers, texts, 13).rows) == 1


def test_ids_are_uuids_of_rows_that_exist(loaded: Loaded) -> None:
    rows, test = loaded([*strange(2), row(PLANE, "5")]), loaded([row(PLANE, PLANE_ANSWER)], "test")
    after = run(rows, test)
    known: set[UUID] = {*rows.read()["row_id"].to_pylist(), *test.read()["row_id"].to_pylist()}
    for table, columns in (("overlaps", ("row_id", "evaluation")), ("borders", ("row_id", "partner"))):
        assert {line[column] for line in lines(after, table) for column in columns} <= known
