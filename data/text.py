"""The text of a row, whatever its contract: as one string, its lengths, and edits of every text at once."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.contracts import GENERATION, MESSAGES, PREFERENCE, PROMPT_COMPLETION, TURNS, Contract
from data.errors import BadInput

Edit = Callable[[pa.Array], pa.Array]
Part = Literal["all", "prompt", "answer"]

# the columns that ask, and those that answer, of the contracts that tell these apart
_PARTS = {
    MESSAGES.name: (("messages",), ("messages",)),
    PROMPT_COMPLETION.name: (("prompt",), ("completion",)),
    PREFERENCE.name: (("prompt",), ("chosen",)),
    GENERATION.name: (("prompt",), ("completion",)),
}
_NO_TEXT = ("label", "finish_reason")


def row_texts(table: pa.Table, contract: Contract, part: Part = "all") -> pa.Array:
    """Write each row as one text, its columns and turns in order with a newline between: string per row, no nulls.

    The prompt is what is asked and the answer what is wanted (chosen, where there is a choice). Of a conversation the
    answer is the last turn, if it is the assistant's. Rows that only have a text have no answer: it is their prompt.

    Raises:
        BadInput: answers are wanted of rows that have none.
    """
    if part == "all" or contract.name not in _PARTS:
        if part == "answer":
            raise BadInput(
                f"{contract.name} rows, which have no answer", f"rows of {', '.join(_PARTS)}", "use `prompt`"
            )
        columns = [field.name for field in contract.schema if not field.nullable and field.name not in _NO_TEXT]
    else:
        columns = list(_PARTS[contract.name][part == "answer"])
    last = part if contract is MESSAGES and part != "all" else None
    texts = [
        _conversation_texts(column, last) if column.type == TURNS else column
        for column in (table[name].combine_chunks() for name in columns)
    ]
    return pc.binary_join_element_wise(*texts, "\n") if len(texts) > 1 else texts[0]


def _conversation_texts(column: pa.Array, part: str | None) -> pa.Array:
    """Join the contents of each row's turns: all, or those before the assistant's last word, or that alone."""
    turns = pc.list_flatten(column)
    contents = pc.fill_null(pc.struct_field(turns, "content"), "")
    offsets = _offsets(column).to_numpy()
    if part:
        final = np.zeros(len(turns), bool)
        final[offsets[1:] - 1] = True
        final &= pc.equal(pc.struct_field(turns, "role"), "assistant").to_numpy(zero_copy_only=False)
        wanted = final if part == "answer" else ~final
        contents = contents.filter(pa.array(wanted))
        offsets = np.concatenate([[0], np.cumsum(wanted)])[offsets]
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), contents), "\n")


def edit_text(table: pa.Table, contract: Contract, edit: Edit) -> tuple[pa.Table, pa.Array]:
    """Apply an edit to every text of the contract's columns: (edited table, bool per row: did it change).

    The edit takes and returns a string array of the same length; roles, tool calls and tools stay as they are.
    """
    changed = pa.repeat(pa.scalar(False), len(table))
    for field in contract.schema:
        column = table[field.name].combine_chunks()
        if field.type == TURNS:
            turns, parents = pc.list_flatten(column), pc.list_parent_indices(column)
            before = pc.struct_field(turns, "content")
            after = edit(before)
            differing = pc.unique(parents.filter(_differ(before, after)))
            changed = pc.or_(
                changed,
                pc.is_in(pa.array(range(len(table)), pa.int64()), value_set=differing.cast(pa.int64())),
            )
            fields = [after if part.name == "content" else pc.struct_field(turns, part.name) for part in turns.type]
            edited = pa.StructArray.from_arrays(fields, fields=list(turns.type))
            column = pa.ListArray.from_arrays(_offsets(column), edited, type=TURNS)
        elif not field.nullable:
            after = edit(column)
            changed = pc.or_(changed, _differ(column, after))
            column = after
        else:
            continue
        table = table.set_column(table.schema.get_field_index(field.name), field.name, column)
    return table, changed


def lengths(table: pa.Table, contract: Contract) -> dict[str, pa.Array]:
    """Count the characters of each column's text, turns summed: {column: int64 per row}."""
    counted = {}
    for field in contract.schema:
        column = table[field.name].combine_chunks()
        if field.type == TURNS:
            content = pc.struct_field(pc.list_flatten(column), "content")
            calls = pc.struct_field(pc.list_flatten(column), "tool_calls")
            size = pc.add(*(pc.fill_null(pc.utf8_length(each), 0).cast(pa.int64()) for each in (content, calls)))
            sums = (
                pa.table({"row": pc.list_parent_indices(column), "size": size})
                .group_by("row")
                .aggregate([("size", "sum")])
            )
            # a checked contract has no conversation without turns, so every row has its group, in order
            counted[field.name] = sums.sort_by("row")["size_sum"].combine_chunks()
        elif not field.nullable:
            counted[field.name] = pc.utf8_length(column).cast(pa.int64())
    return counted


def _differ(before: pa.Array, after: pa.Array) -> pa.Array:
    return pc.fill_null(pc.not_equal(before, after), False)


def _offsets(column: pa.Array) -> pa.Array:
    sizes = pc.list_value_length(column)
    return pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(sizes).cast(pa.int32())])
