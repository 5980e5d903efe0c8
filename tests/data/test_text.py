"""Edits and lengths of a row's text, whatever its contract."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.contracts import LABELLED, MESSAGES, PREFERENCE, PROMPT_COMPLETION, UNLABELLED, Contract
from data.errors import BadInput
from data.text import Part, edit_text, lengths, row_texts

Row = dict[str, Any]

texts = st.none() | st.text(alphabet="aB é", max_size=4)
turns = st.lists(
    st.fixed_dictionaries({"role": st.just("user"), "content": texts, "tool_calls": texts}), min_size=1, max_size=3
)
talks = st.lists(st.fixed_dictionaries({"messages": turns, "tools": texts}), min_size=1, max_size=6)


def upper(column: pa.Array) -> pa.Array:
    return pc.utf8_upper(column)


def turn(content: str | None, tool_calls: str | None = None) -> Row:
    return {"role": "user", "content": content, "tool_calls": tool_calls}


def test_an_edit_reaches_every_text_and_says_which_rows_changed() -> None:
    rows = [{"prompt": "a", "completion": "A"}, {"prompt": "A", "completion": "A"}, {"prompt": "A", "completion": "a"}]
    edited, changed = edit_text(pa.Table.from_pylist(rows, PROMPT_COMPLETION.schema), PROMPT_COMPLETION, upper)
    assert edited.to_pylist() == [{"prompt": "A", "completion": "A"}] * 3
    assert changed.to_pylist() == [True, False, True]


def test_roles_calls_and_tools_stay_as_they_are() -> None:
    rows = [{"messages": [turn("a", "call"), turn(None, "call")], "tools": "tool"}]
    edited, changed = edit_text(pa.Table.from_pylist(rows, MESSAGES.schema), MESSAGES, upper)
    assert edited.to_pylist() == [{"messages": [turn("A", "call"), turn(None, "call")], "tools": "tool"}]
    assert changed.to_pylist() == [True]


def test_other_columns_ride_along() -> None:
    table = pa.table({"score": [0.5], "prompt": ["a"], "completion": ["b"], "source": ["s"]})
    edited, _ = edit_text(table, PROMPT_COMPLETION, upper)
    assert edited.column_names == table.column_names
    assert edited.to_pylist() == [{"score": 0.5, "prompt": "A", "completion": "B", "source": "s"}]


@given(talks, st.integers(0, 6))
@settings(deadline=None, max_examples=60)
def test_an_edit_of_a_slice_is_the_slice_of_the_edit(rows: list[Row], cut: int) -> None:
    table = pa.Table.from_pylist(rows, MESSAGES.schema)
    whole, changed = edit_text(table, MESSAGES, upper)
    part, part_changed = edit_text(table.slice(cut), MESSAGES, upper)
    assert part.to_pylist() == whole.to_pylist()[cut:]
    assert part_changed.to_pylist() == changed.to_pylist()[cut:]
    assert changed.to_pylist() == [old != new for old, new in zip(table.to_pylist(), whole.to_pylist(), strict=True)]


@given(talks, st.integers(0, 6))
@settings(deadline=None, max_examples=60)
def test_lengths_are_the_characters_of_all_turns(rows: list[Row], cut: int) -> None:
    table = pa.Table.from_pylist(rows, MESSAGES.schema).slice(cut)
    counted = [sum(len(t["content"] or "") + len(t["tool_calls"] or "") for t in row["messages"]) for row in rows[cut:]]
    assert {name: each.to_pylist() for name, each in lengths(table, MESSAGES).items()} == {"messages": counted}


def test_lengths_count_characters_and_not_bytes() -> None:
    table = pa.table({"prompt": ["é", ""], "completion": ["ab", "\U0001f600"]})
    counted = {name: each.to_pylist() for name, each in lengths(table, PROMPT_COMPLETION).items()}
    assert counted == {"prompt": [1, 0], "completion": [2, 1]}


def test_each_column_of_turns_has_its_own_length() -> None:
    row = {"prompt": [turn("ab")], "chosen": [turn("c"), turn("d")], "rejected": [turn(None, "call")]}
    counted = lengths(pa.Table.from_pylist([row], PREFERENCE.schema), PREFERENCE)
    assert {name: each.to_pylist() for name, each in counted.items()} == {"prompt": [2], "chosen": [2], "rejected": [4]}


# ---- a row as one text ----


def talk(*turns: tuple[str, str | None]) -> list[Row]:
    return [{"role": role, "content": content, "tool_calls": None} for role, content in turns]


AS_TEXT: list[tuple[Contract, Row, str, str, str]] = [
    (PROMPT_COMPLETION, {"prompt": "p", "completion": "c"}, "p\nc", "p", "c"),
    (
        MESSAGES,
        {"messages": talk(("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b"))},
        "s\nu\na\nv\nb",
        "s\nu\na\nv",
        "b",
    ),
    (MESSAGES, {"messages": talk(("user", "u"), ("assistant", None))}, "u\n", "u", ""),
    (MESSAGES, {"messages": talk(("user", "u"))}, "u", "u", ""),
    (
        PREFERENCE,
        {"prompt": talk(("user", "p")), "chosen": talk(("assistant", "c")), "rejected": talk(("assistant", "r"))},
        "p\nc\nr",
        "p",
        "c",
    ),
]


@pytest.mark.parametrize(("contract", "row", "whole", "prompt", "answer"), AS_TEXT)
def test_a_row_is_one_text_or_what_is_asked_or_what_is_answered(
    contract: Contract, row: Row, whole: str, prompt: str, answer: str
) -> None:
    filler = {"prompt": "x", "completion": "y", "messages": talk(("user", "x"), ("assistant", "y")), "tools": None}
    other = filler if contract is not PREFERENCE else row
    table = pa.Table.from_pylist([other, row, other], contract.schema).slice(1, 1)
    parts: list[tuple[Part, str]] = [("all", whole), ("prompt", prompt), ("answer", answer)]
    for part, text in parts:
        assert row_texts(table, contract, part).to_pylist() == [text]


def test_a_label_is_no_text_and_a_text_no_answer() -> None:
    table = pa.Table.from_pylist([{"text": "t", "label": "l"}], LABELLED.schema)
    assert row_texts(table, LABELLED).to_pylist() == row_texts(table, LABELLED, "prompt").to_pylist() == ["t"]
    for contract in (LABELLED, UNLABELLED):
        with pytest.raises(BadInput, match="which have no answer"):
            row_texts(table, contract, "answer")
