"""The vectors of rows, out of what `embed` published: joined by row id, never by position."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.artifact import Artifact
from data.errors import BadInput
from data.ids import sortable

Vectors = npt.NDArray[np.float32]


def vectors_of(embeddings: Artifact, ids: pa.Array) -> Vectors:
    """Read the vectors of rows (uuid array): (n, d), in the order of the ids.

    Raises:
        BadInput: a row has no vector, or one that is not finite.
    """
    wanted = sortable(ids)
    order = np.argsort(wanted)
    vectors: Vectors | None = None
    found = np.zeros(len(wanted), bool)
    for names, block in blocks(embeddings):
        if vectors is None:
            vectors = np.empty((len(wanted), block.shape[1]), np.float32)
        at = np.minimum(np.searchsorted(wanted, names, sorter=order), max(len(wanted) - 1, 0))
        hit = wanted[order[at]] == names if len(wanted) else np.zeros(len(names), bool)
        vectors[order[at[hit]]] = block[hit]
        found[order[at[hit]]] = True
    if vectors is None or not found.all():
        raise _missing(int((~found).sum()), len(wanted), embeddings)
    return vectors


def blocks(embeddings: Artifact) -> Iterator[tuple[npt.NDArray[np.bytes_], Vectors]]:
    """Read vectors shard by shard: (row ids (n,) S16, vectors (n, d)).

    Raises:
        BadInput: a vector is not finite, or vectors are of different lengths.
    """
    width = None
    for table in embeddings["embeddings"].batches(["row_id", "vector"]):
        ids, block = table["row_id"].combine_chunks(), as_matrix(table["vector"])
        width = width or block.shape[1]
        if block.shape[1] != width:
            raise _bad(embeddings, f"a vector of {block.shape[1]} numbers among those of {width}")
        broken = ~np.isfinite(block).all(1)
        if broken.any():
            row = ids[int(broken.argmax())].as_py()
            raise _bad(embeddings, f"{int(broken.sum())} vectors that are not finite, the first of row {row}")
        yield sortable(ids), block


def _bad(embeddings: Artifact, what: str) -> BadInput:
    return BadInput(f"{embeddings} with {what}", "finite vectors of one length", "embed the rows again")


def as_matrix(column: pa.ChunkedArray, dtype: type[np.floating] = np.float32) -> Any:
    """View a column of fixed-size lists as a matrix (n, d)."""
    whole = column.combine_chunks()
    whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) and whole.num_chunks else whole
    size = column.type.list_size
    return whole.flatten().to_numpy(zero_copy_only=False).reshape(-1, size).astype(dtype, copy=False)


def join(found: pa.Table, ids: pa.Array, embeddings: Artifact) -> pa.Table:
    """Take the lines of what was found for vectors (row_id and more) that belong to rows (uuid array), in their order.

    Raises:
        BadInput: there is none for a row.
    """
    at = pc.index_in(ids.storage, value_set=found["row_id"].combine_chunks().storage)
    if at.null_count:
        raise _missing(at.null_count, len(ids), embeddings)
    return found.take(at)


def _missing(count: int, rows: int, embeddings: Artifact) -> BadInput:
    return BadInput(
        f"{count:,} of {rows:,} rows without a vector in {embeddings}",
        "a vector for every row",
        "embed these rows, with the same artifact of rows as input",
    )


def check_widths(pool: Vectors, target: Vectors) -> None:
    """Refuse vectors of pool (n, d) and target (m, d) that cannot be compared.

    Raises:
        BadInput: their lengths differ, or one side has no rows.
    """
    if pool.shape[1] != target.shape[1] or not len(pool) or not len(target):
        raise BadInput(
            f"{len(pool):,} vectors of {pool.shape[1]} numbers against {len(target):,} of {target.shape[1]}",
            "a pool and a target, each of one row or more, embedded by the same encoder",
            "embed both with the same parameters, and see that neither is empty",
        )
