"""The text of a row, whatever its contract: lengths, and edits of every text at once."""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from data.contracts import TURNS, Contract

Edit = Callable[[pa.Array], pa.Array]


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
