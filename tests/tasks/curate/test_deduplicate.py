"""One of each group of equal rows is kept, the same one in whatever order the rows come."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.artifact import SHARD_ROWS, Artifact
from tasks.curate.deduplicate import DeduplicateParameters, deduplicate, keepers, source_ranks
from tasks.curate.load import LoadParameters, load

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
