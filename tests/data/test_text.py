"""Edits and lengths of a row's text, whatever its contract."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given, settings
from hypothesis import strategies as st

from data.contracts import MESSAGES, PREFERENCE, PROMPT_COMPLETION
from data.text import edit_text, lengths

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
