"""Find the texts of some rows, wherever among a stage's inputs they stand; each file is read at most once.

A text in which a stage has found personal data is not shown: a page is passed on more lightly than a dataset.
"""

import uuid
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.artifact import Artifact, read_parquet
from data.contracts import contract_of
from data.graph import input_of
from data.ids import sortable
from tasks.evaluate.ancestry import show

HIDDEN = "(not shown: personal data was found in this row)"


def inputs_of(artifact: Artifact, *kinds: str) -> list[Artifact]:
    """List the tables of rows among a stage's inputs of these kinds, in order, as far as the store still has them."""
    found = [input_of(artifact, each) for kind in kinds for each in artifact.record["inputs"] if each["kind"] == kind]
    return [each for each in found if held(each) and "contract" in each.record["outputs"].get(each.table, {})]


def held(artifact: Artifact) -> bool:
    """Say whether the store still has what a record names."""
    return (artifact.path / "record.json").exists()


def texts_of(
    tables: Sequence[Artifact], ids: Iterable[uuid.UUID], private: Sequence[Artifact] = ()
) -> dict[uuid.UUID, str]:
    """Write the rows of these ids as text, each out of the first table that has it.

    Args:
        tables: tables of rows.
        ids: row ids; those that no table has are left out.
        private: tables whose row ids name rows that are not to be shown.
    """
    wanted = set(ids)
    texts = dict.fromkeys(present(private, wanted), HIDDEN)
    for table in tables:
        columns = ["row_id", *contract_of(table.schema).columns]
        for file in table.files():
            places = _places(read_parquet(file, ["row_id"]), wanted - texts.keys())
            if len(places):
                lines = read_parquet(file, columns).take(pa.array(places)).to_pylist()
                texts |= {line["row_id"]: show(line, table) for line in lines}
    return texts


def present(tables: Sequence[Artifact], ids: set[uuid.UUID]) -> set[uuid.UUID]:
    """Find which of these ids stand in one of the tables, whatever these hold besides."""
    found: set[uuid.UUID] = set()
    for table in tables:
        for batch in table.batches(["row_id"]):
            found.update(batch["row_id"].take(pa.array(_places(batch, ids))).to_pylist())
    return found


def _places(table: pa.Table, ids: set[uuid.UUID]) -> npt.NDArray[np.int64]:
    """Find the lines of a table that name one of these ids, ascending."""
    wanted = np.array([each.bytes for each in ids], "S16")
    here = [np.isin(sortable(chunk), wanted) for chunk in table["row_id"].chunks]
    return np.flatnonzero(np.concatenate([np.empty(0, bool), *here]))
