"""What a row is: named pyarrow schemas in TRL's own column conventions.

A table of rows is `row_id, content_id`, then the contract's columns, then `source, licence`, then whatever
a stage or a recipe adds (a score, a task's name). Only the contract's columns are the row's content.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc

from data.errors import BadInput

ROLES = ("system", "user", "assistant", "tool")
TURN = pa.struct(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("content", pa.string()),
        pa.field("tool_calls", pa.string()),  # JSON: the arguments of a call have no common schema
    ]
)
TURNS = pa.list_(pa.field("element", TURN))
ID = pa.uuid()


@dataclass(frozen=True)
class Contract:
    """Name the columns that make a row's content, their types, and which of them may be null."""

    name: str
    schema: pa.Schema

    @property
    def columns(self) -> list[str]:
        """The content columns, in the order in which they are digested."""
        return list(self.schema.names)


def _contract(name: str, **columns: pa.DataType) -> Contract:
    optional = {"tools"}
    fields = [pa.field(column, kind, nullable=column in optional) for column, kind in columns.items()]
    return Contract(name, pa.schema(fields))


MESSAGES = _contract("messages", messages=TURNS, tools=pa.string())
PROMPT_COMPLETION = _contract("prompt-completion", prompt=pa.string(), completion=pa.string())
PREFERENCE = _contract("preference", prompt=TURNS, chosen=TURNS, rejected=TURNS)
LABELLED = _contract("labelled", text=pa.string(), label=pa.string())
UNLABELLED = _contract("unlabelled", text=pa.string())
GENERATION = _contract("generation", prompt=TURNS, completion=pa.string(), finish_reason=pa.string())

CONTRACTS = {each.name: each for each in (MESSAGES, PROMPT_COMPLETION, PREFERENCE, LABELLED, UNLABELLED, GENERATION)}


def contract_of(schema: pa.Schema) -> Contract:
    """Find the contract that a table of rows follows, by its column names and types.

    Raises:
        BadInput: no contract, or more than one, has all its columns in the schema.
    """
    fitting = [
        contract
        for contract in CONTRACTS.values()
        if all(field.name in schema.names and schema.field(field.name).type == field.type for field in contract.schema)
    ]
    # "labelled" holds the column of "unlabelled": the richer contract is meant.
    fitting.sort(key=lambda contract: -len(contract.columns))
    if not fitting:
        raise BadInput(
            f"a table with the columns {', '.join(schema.names)}",
            f"the columns of one contract: {'; '.join(_describe(c) for c in CONTRACTS.values())}",
            "map the columns to a contract when they are loaded",
        )
    return fitting[0]


def _describe(contract: Contract) -> str:
    return f"{contract.name} ({', '.join(contract.columns)})"


def problems(table: pa.Table, contract: Contract) -> Iterator[tuple[int, str, str]]:
    """Find what breaks a contract, as (row position, column, what is wrong), in the order of columns.

    The table's columns already have the contract's types; this looks at the values: nulls where a value is
    wanted, conversations without a turn, roles that do not exist, turns that say nothing.
    """
    for field in contract.schema:
        column = table[field.name].combine_chunks()
        if not field.nullable:
            for position in _where(pc.is_null(column)):
                yield position, field.name, "has no value"
        if field.type == TURNS:
            yield from _turn_problems(column, field.name)


def _turn_problems(column: pa.Array, name: str) -> Iterator[tuple[int, str, str]]:
    for position in _where(pc.fill_null(pc.equal(pc.list_value_length(column), 0), False)):
        yield position, name, "has no turns"
    rows, turns = pc.list_parent_indices(column), pc.list_flatten(column)
    role, content, calls = (pc.struct_field(turns, each) for each in ("role", "content", "tool_calls"))
    for turn in _where(pc.invert(pc.is_in(role, pa.array(ROLES)))):
        yield (
            rows[turn].as_py(),
            name,
            f"has a turn of role {role[turn].as_py()!r}, not one of {', '.join(ROLES)}",
        )
    for turn in _where(pc.and_(pc.is_null(content), pc.is_null(calls))):
        yield rows[turn].as_py(), name, "has a turn with neither content nor tool calls"


def _where(mask: pa.Array) -> list[int]:
    positions: list[int] = pc.indices_nonzero(mask).to_pylist()
    return positions


@cache
def dropped_schema() -> pa.Schema:
    """The ledger of rows that a stage dropped: why, by how much, and because of whom."""
    return pa.schema(
        [
            ("row_id", ID),
            ("reason", pa.string()),
            ("score", pa.float64()),
            ("partner", ID),
            ("detail", pa.string()),
        ]
    )


def dropped_rows(
    ids: pa.Array,
    reason: pa.Array | str,
    score: pa.Array | float | None = None,
    partner: pa.Array | None = None,
    detail: pa.Array | str | None = None,
) -> pa.Table:
    """Fill the dropped ledger for rows (uuid array): a value for all of them, or one each."""
    values = {"row_id": ids, "reason": reason, "score": score, "partner": partner, "detail": detail}
    columns = {
        field.name: value
        if isinstance(value, pa.Array | pa.ChunkedArray)
        else pa.nulls(len(ids), field.type)
        if value is None
        else pa.repeat(pa.scalar(value, field.type), len(ids))
        for field in dropped_schema()
        for value in [values[field.name]]
    }
    return pa.table(columns, schema=dropped_schema())


@cache
def failed_schema() -> pa.Schema:
    """The ledger of rows that a stage could not handle: the error, and where in the input they stand."""
    return pa.schema([("row_id", ID), ("error", pa.string()), ("location", pa.string())])


@cache
def edges_schema() -> pa.Schema:
    """The ancestry of rows whose ids change, sorted by child."""
    return pa.schema([("child", ID), ("parent", ID)])
