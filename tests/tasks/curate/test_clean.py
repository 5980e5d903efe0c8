"""Clean text: the same row with other content, or a row dropped with its length."""

import unicodedata
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.artifact import SHARD_ROWS, Artifact
from data.contracts import contract_of
from data.ids import content_ids
from tasks.curate.clean import CleanParameters, clean, normalise

Loaded = Callable[..., Artifact]
DIRT = st.sampled_from("ae\u0301\u0308\uac00\u1100\u1161\u212b \t\n\r\0\x1f\x7f\x85\ufeff\u2003\u200b🦉")
TEXTS = st.lists(st.text(DIRT | st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1, max_size=5)


def cleaned(text: str) -> str:
    (result,) = normalise(pa.array([text])).to_pylist()
    assert isinstance(result, str)
    return result


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("e\u0301", "é"),
        ("\u212bngstro\u0308m", "\u00c5ngstr\u00f6m"),
        (" \n\ttext \r\n", "text"),
        ("a\r\nb\r\n\r\nc", "a\nb\n\nc"),
        ("old\rlines", "old\nlines"),
        ("a\tb\nc", "a\tb\nc"),
        ("a\0b\x07c\x1bd\x7fe\x85f\x9fg", "abcdefg"),
        ("\ufefftext\ufeff", "text"),
        ("e\0\u0301", "é"),
        ("\0 a \0", "a"),
        ("👩\u200d🚀 and \u200b", "👩\u200d🚀 and \u200b"),
        ("\0\r\n ", ""),
        ("", ""),
    ],
)
def test_a_text_becomes(before: str, after: str) -> None:
    assert cleaned(before) == after


@given(TEXTS)
@example(["e\0\u0301"])
@example(["\r\0\n"])
def test_a_clean_text_is_in_one_form_and_stays_as_it_is(texts: list[str]) -> None:
    once = normalise(pa.array(texts, pa.string()))
    assert normalise(once).equals(once)
    for text in once.to_pylist():
        assert unicodedata.is_normalized("NFC", text)
        assert not any(unicodedata.category(each) == "Cc" and each not in "\t\n" for each in text)
        assert text == text.strip(" \t\n")


@given(TEXTS)
def test_a_clean_text_does_not_depend_on_its_neighbours(texts: list[str]) -> None:
    assert normalise(pa.array(texts, pa.string())).to_pylist() == [cleaned(text) for text in texts]


def test_an_edited_row_keeps_its_id_and_gets_new_content(loaded: Loaded) -> None:
    rows = [
        {"prompt": "plain", "completion": "text"},
        {"prompt": "cafe\u0301 ", "completion": "x"},
        {"prompt": "p", "completion": "\0y"},
        {"prompt": "café", "completion": "x"},
    ]
    before = loaded(rows)
    after = clean(CleanParameters(), before)
    old, new = before.read(), after.read()
    assert new["row_id"].equals(old["row_id"])
    assert new.select(["prompt", "completion"]).to_pylist() == [
        {"prompt": "plain", "completion": "text"},
        {"prompt": "café", "completion": "x"},
        {"prompt": "p", "completion": "y"},
        {"prompt": "café", "completion": "x"},
    ]
    was, now = (table["content_id"].to_pylist() for table in (old, new))
    assert [a == b for a, b in zip(was, now, strict=True)] == [True, False, False, True]
    assert now[1] == now[3]
    assert content_ids(new, contract_of(new.schema)).equals(new["content_id"].combine_chunks())
    assert after.record["measures"]["rows_edited"] == 2


def test_rows_out_of_bounds_are_dropped_with_the_reason_and_the_length(loaded: Loaded) -> None:
    rows = [
        {"prompt": "ok", "completion": "ok"},
        {"prompt": "  ", "completion": "ok"},
        {"prompt": "ok", "completion": "\0"},
        {"prompt": "12345", "completion": "67890"},
        {"prompt": "12345", "completion": "678901"},
        {"prompt": "", "completion": ""},
        {"prompt": "ééééé", "completion": "🦉🦉🦉🦉🦉"},
    ]
    before = loaded(rows)
    after = clean(CleanParameters(min_characters=1, max_characters=10), before)
    ids = before.read(["row_id"])["row_id"].to_pylist()
    dropped = {line.pop("row_id"): line for line in after["dropped"].read().to_pylist()}
    empty = {"partner": None, "detail": None}
    assert dropped == {
        ids[1]: {"reason": "prompt too short", "score": 0.0, **empty},
        ids[2]: {"reason": "completion too short", "score": 0.0, **empty},
        ids[4]: {"reason": "row too long", "score": 11.0, **empty},
        ids[5]: {"reason": "prompt too short", "score": 0.0, **empty},
    }
    assert after.read(["row_id"])["row_id"].to_pylist() == [ids[0], ids[3], ids[6]]


def talk(*contents: str | None, tools: str | None = None) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(contents)
    turns = [
        {"role": role, "content": content} if content is not None else {"role": role, "tool_calls": '[ {"a": 1}]'}
        for role, content in zip(roles, contents, strict=False)
    ]
    return {"messages": turns, "tools": tools}


def contents(artifact: Artifact) -> list[list[str | None]]:
    return [[turn["content"] for turn in row] for row in artifact.read(["messages"])["messages"].to_pylist()]


def test_every_turn_of_a_conversation_is_cleaned_and_counts(loaded: Loaded) -> None:
    rows = [
        talk("q", "a"),
        talk(" q", "e\u0301", "\0", "z"),
        talk(" ", "\0"),
        talk("12345", "123456"),
    ]
    before = loaded(rows, layout="messages")
    after = clean(CleanParameters(max_characters=10), before)
    assert contents(after) == [["q", "a"], ["q", "é", "", "z"]]
    kept = after.read().to_pylist()
    old = before.read().to_pylist()
    assert [row["content_id"] == was["content_id"] for row, was in zip(kept, old[:2], strict=True)] == [True, False]
    reasons = {line["row_id"]: (line["reason"], line["score"]) for line in after["dropped"].read().to_pylist()}
    assert reasons[old[2]["row_id"]] == ("messages too short", 0.0)
    assert reasons[old[3]["row_id"]] == ("row too long", 11.0)


def test_calls_and_tools_are_left_as_they_are_and_count_as_text(loaded: Loaded) -> None:
    before = loaded([talk("q", None, tools=' [\u00a0"x"] ')], layout="messages")
    after = clean(CleanParameters(min_characters=12), before)
    assert after.read(["messages", "tools"]).to_pylist() == before.read(["messages", "tools"]).to_pylist()
    assert after["rows"].digest == before["rows"].digest
    assert clean(CleanParameters(min_characters=14), before).record["measures"]["rows_dropped"] == 1


def test_all_turns_of_a_preference_are_cleaned(loaded: Loaded) -> None:
    row = {"prompt": " p", "chosen": "e\u0301", "rejected": "\0r"}
    (after,) = clean(CleanParameters(), loaded([row], layout="preference")).read().to_pylist()
    assert [after[name][0]["content"] for name in ("prompt", "chosen", "rejected")] == ["p", "é", "r"]


def test_shards_that_no_longer_fit_their_files_are_cleaned_alike(loaded: Loaded) -> None:
    """After rows were dropped, a shard begins inside one file and ends in the next."""
    count = 2 * SHARD_ROWS + 10
    rows = [talk("" if n % 3 == 0 else f" {n}", "" if n % 3 == 0 else "e\u0301") for n in range(count)]
    first = clean(CleanParameters(), loaded(rows, layout="messages"))
    wanted = [[str(n), "é"] for n in range(count) if n % 3]
    assert contents(first) == wanted
    again = clean(CleanParameters(max_characters=4), first)
    assert contents(again) == [each for each in wanted if len(each[0]) <= 3]
    assert again.record["measures"]["rows_dropped"] == len([each for each in wanted if len(each[0]) > 3])


def test_a_clean_input_comes_out_as_it_went_in(loaded: Loaded) -> None:
    before = loaded([{"prompt": f"{n}", "completion": "c", "task": "t"} for n in range(5)], keep=["task"])
    assert clean(CleanParameters(), before)["rows"].digest == before["rows"].digest
