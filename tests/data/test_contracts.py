"""A contract says what a row is, and its check names row and column."""

from typing import Any

import pyarrow as pa
import pytest

from data.contracts import (
    CONTRACTS,
    LABELLED,
    MESSAGES,
    PREFERENCE,
    PROMPT_COMPLETION,
    TURNS,
    UNLABELLED,
    Contract,
    contract_of,
    problems,
)
from data.errors import BadInput

Row = dict[str, Any]


def turn(role: str, content: str | None, tool_calls: str | None = None) -> Row:
    return {"role": role, "content": content, "tool_calls": tool_calls}


def found(contract: Contract, rows: list[Row]) -> list[tuple[int, str, str]]:
    loose = pa.schema([field.with_nullable(True) for field in contract.schema])
    return list(problems(pa.Table.from_pylist(rows, schema=loose), contract))


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=lambda contract: contract.name)
def test_each_contract_is_found_by_its_own_columns(contract: Contract) -> None:
    around = [pa.field("row_id", pa.uuid()), *contract.schema, pa.field("score", pa.float64())]
    assert contract_of(pa.schema(around)) is contract


def test_a_labelled_text_is_not_taken_for_an_unlabelled_one() -> None:
    assert contract_of(LABELLED.schema) is LABELLED
    assert contract_of(UNLABELLED.schema) is UNLABELLED


def test_the_type_of_a_prompt_tells_texts_from_turns() -> None:
    texts = pa.schema([(name, pa.string()) for name in ("prompt", "completion", "chosen", "rejected")])
    talks = pa.schema([(name, TURNS) for name in ("prompt", "chosen", "rejected")])
    assert contract_of(texts) is PROMPT_COMPLETION
    assert contract_of(talks) is PREFERENCE


def test_a_table_under_no_contract_is_told_its_columns_and_those_wanted() -> None:
    with pytest.raises(BadInput) as refused:
        contract_of(pa.schema([("question", pa.string()), ("answer", pa.string())]))
    assert "question, answer" in refused.value.found
    assert "prompt-completion (prompt, completion)" in refused.value.wanted


def test_good_rows_have_no_problems() -> None:
    rows: list[Row] = [
        {"messages": [turn("system", "s"), turn("user", "u"), turn("assistant", None, "[]")], "tools": None},
        {"messages": [turn("tool", ""), turn("assistant", "")], "tools": "[]"},
    ]
    assert found(MESSAGES, rows) == []


def test_a_missing_value_is_named_by_row_and_column() -> None:
    rows: list[Row] = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": None},
        {"prompt": None, "completion": ""},
    ]
    assert found(PROMPT_COMPLETION, rows) == [(2, "prompt", "has no value"), (1, "completion", "has no value")]


def test_each_fault_of_a_talk_is_named_where_it_is() -> None:
    rows: list[Row] = [
        {"messages": [turn("user", "u")], "tools": None},
        {"messages": [], "tools": None},
        {"messages": [turn("user", "u"), turn("robot", "r")], "tools": None},
        {"messages": None, "tools": None},
        {"messages": [turn("assistant", None)], "tools": None},
    ]
    assert sorted(found(MESSAGES, rows)) == [
        (1, "messages", "has no turns"),
        (2, "messages", "has a turn of role 'robot', not one of system, user, assistant, tool"),
        (3, "messages", "has no value"),
        (4, "messages", "has a turn with neither content nor tool calls"),
    ]


def test_a_slice_counts_its_rows_from_its_own_start() -> None:
    loose = pa.schema([field.with_nullable(True) for field in MESSAGES.schema])
    rows = [{"messages": [turn("user", "u")] * 2, "tools": None}, {"messages": [turn("bot", "b")], "tools": None}]
    table = pa.Table.from_pylist(rows, schema=loose).slice(1)
    assert [(row, column) for row, column, _ in problems(table, MESSAGES)] == [(0, "messages")]
