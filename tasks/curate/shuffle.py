"""Take the connection out of rows: the control that shows what training on wrong answers, or on no preference, does.

A model trained on shuffled rows sees the same prompts, the same answers and the same lengths; only the connection is
gone. A score that it reaches too was never learnt from the answers.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data.contracts import ID, PREFERENCE, PROMPT_COMPLETION, contract_of, edges_schema
from data.errors import BadInput
from data.fingerprint import seed_for
from data.ids import content_ids, created_id, ids_from_bytes
from infra.stage import Measures, Parameters, Rows, stage
from infra.work import Work


class ShuffleParameters(Parameters):
    """How to shuffle."""

    seed: int = Field(0, ge=0, description="Chooses another shuffle.")


@stage("exact")
def shuffle(work: Work, parameters: ShuffleParameters, rows: Rows) -> Measures:
    """Make a new row of each prompt with the completion of another row; of pairs, with the sides changed by lot.

    Raises:
        BadInput: rows of another contract than prompt-completion or preference, or fewer than two.
    """
    table = rows.read()
    contract = contract_of(table.schema)
    if contract not in (PROMPT_COMPLETION, PREFERENCE) or len(table) < 2:
        raise BadInput(f"{len(table)} rows with {', '.join(table.column_names)}",
                       "two or more rows of prompt and completion, or of prompt, chosen and rejected",
                       "load them with a layout that gives these")  # fmt: skip
    seed = seed_for("shuffle", parameters.seed)
    ids = table["row_id"].combine_chunks().storage.to_pylist()
    parents: list[tuple[bytes, ...]] = [(each,) for each in ids]
    if contract == PREFERENCE:
        mixed = with_sides_changed(table, seed)
    else:
        donors = next_in_cycle(len(table), seed)
        completions = table["completion"].take(pa.array(donors))
        mixed = table.set_column(table.schema.get_field_index("completion"), "completion", completions)
        parents = [(ids[at], ids[donor]) for at, donor in enumerate(donors.tolist())]
    made = ids_from_bytes(b"".join(created_id("shuffle", each, ordinal) for ordinal, each in enumerate(parents)))
    mixed = mixed.set_column(0, "row_id", made)
    mixed = mixed.set_column(1, "content_id", content_ids(mixed, contract))
    work.write([mixed])
    work.ledger("edges", [edges(made, parents)])
    return {}


def edges(made: pa.ExtensionArray, parents: Sequence[Sequence[bytes]]) -> pa.Table:
    """Say of each new row which rows it was made of, all of as many."""
    each = np.repeat(np.arange(len(parents)), len(parents[0]))
    children = pa.ExtensionArray.from_storage(ID, made.storage.take(pa.array(each)))
    flat = ids_from_bytes(b"".join(parent for own in parents for parent in own))
    return pa.table({"child": children, "parent": flat}, schema=edges_schema())


def with_sides_changed(table: pa.Table, seed: int) -> pa.Table:
    """Let chosen and rejected change places in half of the pairs, drawn by lot: which is better is no longer told."""
    order = np.random.default_rng(seed).permutation(len(table))
    changed = pa.array(order < len(table) // 2)
    chosen, rejected = table["chosen"], table["rejected"]
    sides = {
        "chosen": pc.if_else(changed, rejected, chosen),
        "rejected": pc.if_else(changed, chosen, rejected),
    }
    for name, values in sides.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table


def next_in_cycle(rows: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw one cycle through all rows and give each its successor: (rows,) positions, none its own."""
    order = np.random.default_rng(seed).permutation(rows)
    after = np.empty(rows, np.int64)
    after[order] = np.roll(order, -1)
    return after
