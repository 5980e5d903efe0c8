"""One of each group of equal or like rows is kept, the same one in whatever order the rows come."""

import random
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.artifact import SHARD_ROWS, Artifact
from infra.settings import use_settings
from infra.shards import stop_ray
from infra.store import current_store
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.deduplicate import DeduplicateParameters, NearParameters, deduplicate, keepers
from tasks.curate.leaders import source_ranks
from tasks.curate.load import LoadParameters, load

quick = settings(deadline=None, max_examples=100)

Write = Callable[[str, list[dict[str, Any]]], Path]


def row(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": "c"}


def sources(*paths: Path) -> Artifact:
    given = [{"path": str(path), "licence": "MIT", "layout": "prompt-completion"} for path in paths]
    return load(LoadParameters.model_validate({"sources": given}))


def kept(artifact: Artifact) -> list[tuple[str, str]]:
    table = artifact.read(["source", "prompt"])
    return list(zip(table["source"].to_pylist(), table["prompt"].to_pylist(), strict=True))


def sixteen(numbers: list[int]) -> pa.Array:
    return pa.array([number.to_bytes(16, "big") for number in numbers], pa.binary(16))


Group = tuple[int, int]  # content, rank


@quick
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=30), st.randoms())
def test_keepers_do_not_depend_on_the_order(groups: list[Group], random: Any) -> None:
    ids = [random.getrandbits(96) << 32 | at for at in range(len(groups))]
    order = random.sample(range(len(groups)), len(groups))

    def keeper_of_each(places: list[int]) -> dict[int, int]:
        best = keepers(
            sixteen([groups[place][0] for place in places]),
            sixteen([ids[place] for place in places]),
            np.array([groups[place][1] for place in places], np.int64),
        )
        return {ids[place]: ids[places[at]] for place, at in zip(places, best.tolist(), strict=True)}

    found = keeper_of_each(list(range(len(groups))))
    assert found == keeper_of_each(order)
    by_id = dict(zip(ids, groups, strict=True))
    for each, keeper in found.items():
        equal = [(by_id[other][1], other) for other in ids if by_id[other][0] == by_id[each][0]]
        assert keeper == min(equal)[1]


def test_sources_that_are_not_preferred_come_last_and_are_equal() -> None:
    ranks = source_ranks(pa.chunked_array([["c", "b"], ["a", None]], pa.string()), ["b", "x", "c"])
    assert ranks.tolist() == [2, 0, 3, 3]


@pytest.mark.usefixtures("store")
def test_each_dropped_row_names_the_equal_row_that_was_kept(write: Write) -> None:
    before = sources(write("one.jsonl", [row("p"), row("q"), row("p")]), write("two.jsonl", [row("p"), row("r")]))
    after = deduplicate(DeduplicateParameters(), before)
    contents = dict(zip(*before.read(["row_id", "content_id"]).to_pydict().values(), strict=True))
    stayed = set(after.read(["row_id"])["row_id"].to_pylist())
    lines = after["dropped"].read().to_pylist()
    assert [(line["reason"], line["score"]) for line in lines] == [("duplicate", 1.0)] * 2
    for line in lines:
        assert line["row_id"] not in stayed
        assert line["partner"] in stayed
        assert contents[line["row_id"]] == contents[line["partner"]]
    assert sorted(prompt for _, prompt in kept(after)) == ["p", "q", "r"]
    assert after.record["measures"]["groups"] == 3
    of_p = [each for each, content in contents.items() if content == contents[lines[0]["row_id"]]]
    assert min(of_p, key=lambda each: each.bytes) in stayed


@pytest.mark.usefixtures("store")
def test_the_order_of_the_sources_changes_neither_rows_nor_partners(write: Write) -> None:
    one = write("one.jsonl", [row(str(n % 7)) for n in range(40)])
    two = write("two.jsonl", [row(str(n % 11)) for n in range(40)])
    made = [deduplicate(DeduplicateParameters(), sources(*order)) for order in ((one, two), (two, one))]
    assert {tuple(sorted(kept(each))) for each in made} == {tuple(sorted(kept(made[0])))}
    assert made[0].digest != made[1].digest
    assert made[0]["dropped"].digest == made[1]["dropped"].digest


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("prefer", [("two",), ("two", "one"), ("one",)])
def test_the_preferred_source_keeps_its_rows(write: Write, prefer: tuple[str, ...]) -> None:
    before = sources(
        write("one.jsonl", [row(f"{n}") for n in range(20)]), write("two.jsonl", [row(f"{n}") for n in range(10, 30)])
    )
    after = kept(deduplicate(DeduplicateParameters(prefer=prefer), before))
    assert len(after) == 30
    shared = {source for source, prompt in after if 10 <= int(prompt) < 20}
    assert shared == {prefer[0]}


@pytest.mark.usefixtures("store")
def test_duplicates_are_found_across_shards_and_order_is_kept(write: Write) -> None:
    count = SHARD_ROWS + 500
    before = sources(write("many.jsonl", [row(str(n % SHARD_ROWS)) for n in range(count)]))
    after = deduplicate(DeduplicateParameters(), before)
    assert after.rows == SHARD_ROWS
    assert after.record["measures"]["rows_dropped"] == 500
    places = {each: at for at, each in enumerate(before.read(["row_id"])["row_id"].to_pylist())}
    order = [places[each] for each in after.read(["row_id"])["row_id"].to_pylist()]
    assert order == sorted(order)


@pytest.mark.usefixtures("store")
def test_rows_that_differ_in_any_content_stay(write: Write) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "ab", "completion": ""}, {"prompt": "", "completion": "ab"}]
    assert deduplicate(DeduplicateParameters(), sources(write("a.jsonl", rows))).rows == 3


# ---- near-duplicates ----

WORDS = [f"w{n}" for n in range(3000)]


def near(prefer: tuple[str, ...] = (), **settings: Any) -> DeduplicateParameters:
    return DeduplicateParameters(near=NearParameters(**settings), prefer=prefer)


def varied(texts: int, copies: int = 2, words: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """Make texts, and of each some copies with one or two words replaced."""
    draw = random.Random(seed)
    rows = []
    for _ in range(texts):
        first = draw.choices(WORDS, k=words)
        for copy in range(copies):
            changed = list(first)
            for place in draw.sample(range(words), min(copy, 2)):
                changed[place] = draw.choice(WORDS)
            rows.append(row(" ".join(changed)))
    return rows


def shingles(text: str, size: int = 5) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[at : at + size]) for at in range(max(1, len(words) - size + 1))}


def likeness(one: str, other: str) -> float:
    a, b = (shingles(f"{text} c") for text in (one, other))
    return len(a & b) / len(a | b)


def texts_of(artifact: Artifact) -> dict[Any, str]:
    return dict(zip(*artifact.read(["row_id", "prompt"]).to_pydict().values(), strict=True))


def fate(artifact: Artifact) -> set[tuple[Any, ...]]:
    """What became of each row, wherever it stands."""
    dropped = artifact["dropped"].read().to_pylist() if "dropped" in artifact.record["outputs"] else []
    lines = [tuple(line.values()) for line in dropped]
    return {*lines, *((each,) for each in artifact.read(["row_id"])["row_id"].to_pylist())}


@pytest.mark.usefixtures("store")
def test_a_near_duplicate_names_a_kept_row_that_it_is_really_like(write: Write) -> None:
    before = sources(write("a.jsonl", varied(200, copies=3)))
    after = deduplicate(near(), before)
    texts, stayed = texts_of(before), set(after.read(["row_id"])["row_id"].to_pylist())
    lines = after["dropped"].read().to_pylist()
    for line in lines:
        assert line["reason"] == "near-duplicate"
        assert line["partner"] in stayed
        assert line["score"] == likeness(texts[line["row_id"]], texts[line["partner"]]) >= 0.8
    assert len(lines) > 150
    assert after.record["measures"]["rows_near"] == len(lines)
    # no pair that is similar enough is kept: bands miss 3 of 200 at the threshold itself, and hardly any above
    left = [text for each, text in texts.items() if each in stayed]
    assert max(likeness(a, b) for a, b in combinations(left, 2)) < 0.86


@pytest.mark.usefixtures("store")
def test_of_near_duplicates_the_preferred_source_then_the_lowest_row_id_is_kept(write: Write) -> None:
    first, second = varied(40, seed=1)[::2], varied(40, seed=1)[1::2]
    before = sources(write("one.jsonl", first), write("two.jsonl", second))
    assert {source for source, _ in kept(deduplicate(near(("two",), threshold=0.7), before))} == {"two"}
    texts = texts_of(before)
    for line in deduplicate(near(threshold=0.7), before)["dropped"].read().to_pylist():
        assert line["partner"].bytes < line["row_id"].bytes
        assert likeness(texts[line["row_id"]], texts[line["partner"]]) >= 0.7


@pytest.mark.usefixtures("store")
def test_the_order_of_the_rows_changes_nothing_about_near_duplicates(write: Write) -> None:
    rows = varied(150, copies=4)
    mixed = random.Random(4).sample(rows, len(rows))
    made = []
    for name, each in (("a", rows), ("b", mixed)):
        path = write(f"{name}/same.jsonl", each)
        made.append(deduplicate(near(), sources(path)))
    assert fate(made[0]) == fate(made[1])
    assert made[0]["borders"].digest == made[1]["borders"].digest
    assert made[0].digest != made[1].digest


@pytest.mark.usefixtures("store")
def test_near_duplicates_are_found_across_shards(write: Write) -> None:
    long = [word for line in varied(1, words=40) for word in line["prompt"].split()][:40]
    ends = [row(" ".join([*long, end])) for end in ("one", "two")]
    rows = [ends[0], *(row(f"text {n}") for n in range(SHARD_ROWS)), ends[1]]
    before = sources(write("many.jsonl", rows))
    after = deduplicate(near(), before)
    (line,) = after["dropped"].read().to_pylist()
    texts = texts_of(before)
    assert {texts[line["row_id"]], texts[line["partner"]]} == {each["prompt"] for each in ends}


@pytest.mark.usefixtures("store")
def test_copies_of_a_near_duplicate_follow_it(write: Write) -> None:
    base = " ".join(WORDS[:50])
    rows = [row(base), *[row(f"{base} more")] * 3, *[row("another text")] * 2]
    before = sources(write("a.jsonl", rows))
    after = deduplicate(near(), before)
    assert after.record["measures"] | {"groups": 3, "rows_out": 2, "rows_dropped": 4} == after.record["measures"]
    texts = texts_of(before)
    (alone,) = [each for each, text in texts_of(after).items() if text != "another text"]
    for line in after["dropped"].read().to_pylist():
        if texts[line["row_id"]] == "another text" or texts[line["row_id"]] == texts[alone]:
            assert (line["reason"], line["score"]) == ("duplicate", 1.0)
            assert texts[line["partner"]] == texts[line["row_id"]]
        else:
            assert (line["reason"], line["partner"]) == ("near-duplicate", alone)
            assert line["score"] == likeness(base, f"{base} more")


@pytest.mark.usefixtures("store")
def test_borders_show_what_just_fell_and_what_just_stayed(write: Write) -> None:
    """Seven words of one text after the other are replaced: the likeness falls step by step."""
    words = WORDS[:100]
    rows = [row(" ".join([*words[:-n], *(f"{n}x{at}" for at in range(n))])) for n in (1, 7, 11, 13, 20)]
    before = sources(write("a.jsonl", rows))
    texts = texts_of(before)
    lines = deduplicate(near(threshold=0.75), before)["borders"].read().to_pylist()
    assert {line["kept"] for line in lines} == {True, False}
    for line in lines:
        assert (line["rule"], line["threshold"]) == ("near-duplicate", 0.75)
        assert line["value"] == likeness(texts[line["row_id"]], texts[line["partner"]])
        assert line["kept"] == (line["value"] < 0.75)


@pytest.mark.usefixtures("store")
def test_a_part_of_a_row_can_be_compared_alone(write: Write) -> None:
    question = " ".join(WORDS[:30])
    rows = [{"prompt": question, "completion": " ".join(WORDS[at : at + 40])} for at in (100, 200, 300)]
    before = sources(write("a.jsonl", rows))
    assert [deduplicate(near(part=part), before).rows for part in ("all", "prompt", "answer")] == [3, 1, 3]


@pytest.mark.usefixtures("store")
def test_rows_without_a_word_are_equal_or_different_never_near(write: Write) -> None:
    rows = [{"prompt": prompt, "completion": ""} for prompt in ("", "!", "!!", "?", "?", "a", "a!")]
    before = sources(write("a.jsonl", rows))
    after = deduplicate(near(), before)
    reasons = [line["reason"] for line in after["dropped"].read().to_pylist()]
    assert sorted(reasons) == ["duplicate", "near-duplicate"]
    assert after.rows == 5


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("rows", "threshold", "left"),
    [
        ([row("only one")], 0.8, 1),
        ([row("the same")] * 50, 0.8, 1),
        ([row("a b c d e f"), row("A, b c; d e f!")], 1.0, 1),
        ([row("a b c d e f"), row("a b c d e g")], 1.0, 2),
        ([row("a b c d e f g h i j k l"), row("x b c d e f g h i j k l")], 0.1, 1),
        ([row(""), row(".")], 0.1, 1),  # their completion is a word, and the same
    ],
)
def test_few_or_equal_rows_and_a_threshold_at_its_bounds(
    write: Write, rows: list[dict[str, Any]], threshold: float, left: int
) -> None:
    assert deduplicate(near(threshold=threshold), sources(write("a.jsonl", rows))).rows == left


@pytest.mark.usefixtures("store")
def test_no_rows_at_all_are_published_as_such(write: Write) -> None:
    """A filter may leave nothing."""
    nothing = clean(CleanParameters(min_characters=9), sources(write("a.jsonl", [row("p"), row("q")])))
    assert nothing.rows == 0
    assert deduplicate(DeduplicateParameters(), nothing).rows == deduplicate(near(), nothing).rows == 0


@pytest.mark.usefixtures("store")
def test_a_long_text_that_all_rows_share_does_not_hide_the_near_ones(write: Write) -> None:
    """1,500 rows have half of their words in common, and 100 of them are copies with a word changed."""
    shared, draw = " ".join(WORDS[:50]), random.Random(2)
    own = [draw.choices(WORDS[50:], k=25) for _ in range(1400)]
    copies = [[*each[:12], "changed", *each[13:]] for each in own[:100]]
    before = sources(write("a.jsonl", [row(f"{shared} {' '.join(each)}") for each in own + copies]))
    texts = texts_of(before)
    lines = deduplicate(near(), before)["dropped"].read().to_pylist()
    assert 99 <= len(lines) <= 100
    assert all(likeness(texts[line["row_id"]], texts[line["partner"]]) > 0.8 for line in lines)


@pytest.mark.usefixtures("store")
def test_without_near_nothing_is_sketched_and_the_rows_are_as_they_were(write: Write) -> None:
    before = sources(write("a.jsonl", varied(20)))
    after = deduplicate(DeduplicateParameters(), before)
    assert after["rows"].digest == before["rows"].digest
    assert sorted(after.record["outputs"]) == ["rows"]
    assert set(after.record["measures"]) - set(before.record["measures"]) <= {"groups"}


@pytest.mark.heavy
def test_workers_change_no_byte(write: Write, tmp_path: Path) -> None:
    paths = [write("a.jsonl", varied(SHARD_ROWS + 500, words=20)), write("b.jsonl", varied(500, words=20))]
    made = []
    for name, more in (("loop", {"workers": 1}), ("ray", {"workers": 2, "ray_min_seconds": 0})):
        with use_settings(store=tmp_path / name, **more):
            current_store().prepare()
            made.append(deduplicate(near(), sources(*paths)))
    stop_ray()
    assert made[0].fingerprint == made[1].fingerprint
    first, second = ({file.name: file.read_bytes() for file in each.path.glob("*.parquet")} for each in made)
    assert len(first) > 3
    assert first == second
