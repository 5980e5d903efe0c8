"""Give each prompt the completion of another row: the control that shows what training on wrong answers does.

A model trained on shuffled rows sees the same prompts, the same completions and the same lengths; only the
connection is gone. A score that it reaches too was never learnt from the answers.
"""

import numpy as np
import pyarrow as pa
from pydantic import Field

from data.contracts import ID, PROMPT_COMPLETION, contract_of, edges_schema
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
    """Make a new row of each prompt and the completion of the next row in a random cycle.

    Raises:
        BadInput: the rows are not of the prompt-completion contract, or fewer than two.
    """
    table = rows.read()
    if contract_of(table.schema) != PROMPT_COMPLETION or len(table) < 2:
        raise BadInput(f"{len(table)} rows with {', '.join(table.column_names)}", "two or more prompt-completion rows",
                       "load them with a layout that gives prompt and completion")  # fmt: skip
    donors = next_in_cycle(len(table), seed_for("shuffle", parameters.seed))
    ids = table["row_id"].combine_chunks().storage.to_pylist()
    pairs = [(ids[at], ids[donor]) for at, donor in enumerate(donors.tolist())]
    made = ids_from_bytes(b"".join(created_id("shuffle", pair, ordinal) for ordinal, pair in enumerate(pairs)))
    completions = table["completion"].take(pa.array(donors))
    mixed = table.set_column(table.schema.get_field_index("completion"), "completion", completions)
    mixed = mixed.set_column(0, "row_id", made)
    mixed = mixed.set_column(1, "content_id", content_ids(mixed, PROMPT_COMPLETION))
    parents = ids_from_bytes(b"".join(parent for pair in pairs for parent in pair))
    children = pa.ExtensionArray.from_storage(ID, made.storage.take(pa.array(np.repeat(np.arange(len(ids)), 2))))
    work.write([mixed])
    work.ledger("edges", [pa.table({"child": children, "parent": parents}, schema=edges_schema())])
    return {}


def next_in_cycle(rows: int, seed: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Draw one cycle through all rows and give each its successor: (rows,) positions, none its own."""
    order = np.random.default_rng(seed).permutation(rows)
    after = np.empty(rows, np.int64)
    after[order] = np.roll(order, -1)
    return after
