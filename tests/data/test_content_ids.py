"""A content id depends on a row's content under its contract, and on nothing else."""

import uuid
from hashlib import blake2b
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from data.contracts import LABELLED, MESSAGES, PREFERENCE, PROMPT_COMPLETION, UNLABELLED, Contract
from data.ids import content_ids

Row = dict[str, Any]

quick = settings(deadline=None, max_examples=60)
texts = st.text(max_size=12)
turns = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant", "tool"]),
            "content": st.none() | texts,
            "tool_calls": st.none() | texts,
        }
    ),
    min_size=1,
    max_size=3,
)
rows_of: dict[str, tuple[Contract, st.SearchStrategy[Row]]] = {
    "messages": (MESSAGES, st.fixed_dictionaries({"messages": turns, "tools": st.none() | texts})),
    "prompt-completion": (PROMPT_COMPLETION, st.fixed_dictionaries({"prompt": texts, "completion": texts})),
    "preference": (PREFERENCE, st.fixed_dictionaries({"prompt": turns, "chosen": turns, "rejected": turns})),
}
tables = st.sampled_from(sorted(rows_of)).flatmap(
    lambda name: st.tuples(st.just(rows_of[name][0]), st.lists(rows_of[name][1], min_size=1, max_size=6))
)


def table(contract: Contract, rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=contract.schema)


def ids(contract: Contract, rows: list[Row]) -> list[str]:
    return [str(each) for each in content_ids(table(contract, rows), contract).to_pylist()]


def says(text: str) -> list[Row]:
    return [{"role": "user", "content": text, "tool_calls": None}]


@given(tables, st.data())
@quick
def test_chunks_and_slices_leave_no_trace(drawn: tuple[Contract, list[Row]], data: st.DataObject) -> None:
    contract, rows = drawn
    whole = table(contract, rows)
    cut = data.draw(st.integers(0, len(rows)))
    chunked = pa.concat_tables([whole.slice(0, cut), whole.slice(cut)])
    assert content_ids(chunked, contract).equals(content_ids(whole, contract))
    assert content_ids(whole.slice(cut), contract).equals(content_ids(whole, contract)[cut:])


@given(tables)
@quick
def test_a_row_has_the_same_id_alone_and_among_neighbours(drawn: tuple[Contract, list[Row]]) -> None:
    contract, rows = drawn
    assert ids(contract, rows) == [ids(contract, [row])[0] for row in rows]


@given(tables)
@quick
def test_rows_have_equal_ids_exactly_when_their_contents_are_equal(drawn: tuple[Contract, list[Row]]) -> None:
    contract, rows = drawn
    named = ids(contract, rows)
    for left, one in zip(named, rows, strict=True):
        for right, other in zip(named, rows, strict=True):
            assert (left == right) == (one == other)


@given(st.lists(texts, min_size=2, max_size=2), st.integers(0, 12))
@quick
def test_moving_text_from_one_column_to_the_next_changes_the_id(pair: list[str], cut: int) -> None:
    joined = "".join(pair)
    moved = [joined[:cut], joined[cut:]]
    first, second = (ids(PROMPT_COMPLETION, [{"prompt": p, "completion": c}])[0] for p, c in (pair, moved))
    assert (first == second) == (pair == moved)


def test_nothing_and_an_empty_text_differ() -> None:
    without, empty = ({"messages": says("hi"), "tools": tools} for tools in (None, ""))
    silent, mute = ({"messages": [{**says("")[0], "content": each}], "tools": None} for each in (None, ""))
    assert len(set(ids(MESSAGES, [without, empty, silent, mute]))) == 4


def test_one_turn_of_two_words_is_not_two_turns_of_one() -> None:
    one = {"messages": says("ab"), "tools": None}
    two = {"messages": [*says("a"), *says("b")], "tools": None}
    assert len(set(ids(MESSAGES, [one, two]))) == 2


def test_the_same_text_under_two_contracts_has_two_ids() -> None:
    under = [ids(UNLABELLED, [{"text": "a"}]), ids(LABELLED, [{"text": "a", "label": ""}])]
    under.append(ids(PROMPT_COMPLETION, [{"prompt": "a", "completion": ""}]))
    assert len({each[0] for each in under}) == 3


def test_columns_outside_the_contract_and_their_order_do_not_count() -> None:
    plain = table(PROMPT_COMPLETION, [{"prompt": "a", "completion": "b"}])
    more = plain.select(["completion", "prompt"]).append_column("score", pa.array([0.5]))
    assert content_ids(more, PROMPT_COMPLETION).equals(content_ids(plain, PROMPT_COMPLETION))


def test_no_rows_have_no_ids() -> None:
    assert ids(MESSAGES, []) == []


def test_the_encoding_is_the_one_that_published_ids_were_made_with() -> None:
    # These literals name rows in people's stores: a change here orphans every one of them.
    spoken = {
        "messages": [
            {"role": "system", "content": "be short", "tool_calls": None},
            {"role": "user", "content": "é?", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": '[{"name": "f"}]'},
        ],
        "tools": None,
    }
    assert ids(PROMPT_COMPLETION, [{"prompt": "upper: das", "completion": "DAS"}]) == [
        "64df89c1-47f5-9965-e791-a057ca7947df"
    ]
    assert ids(MESSAGES, [spoken]) == ["3e386f80-f301-e511-66bf-9b8ad8bab8e9"]
    assert ids(UNLABELLED, [{"text": ""}]) == ["a8584160-ef2a-9348-8477-8061a9f5c75f"]


def test_the_encoding_is_lengths_and_bytes() -> None:
    spelled = b"prompt-completion\0" + b"\x02\0\0\0" + "ö".encode() + b"\x01\0\0\0" + b"b"
    named = uuid.UUID(bytes=blake2b(spelled, digest_size=16).digest())
    assert ids(PROMPT_COMPLETION, [{"prompt": "ö", "completion": "b"}]) == [str(named)]
