"""Nothing is lost: every input row is kept, consumed, dropped or failed; every output row is kept or created.

Checked by id when a stage publishes; nothing is ever joined by position.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class ConservationError(Exception):
    """A stage lost, doubled or invented rows: a fault in the stage, never in the user's data."""


@dataclass(frozen=True)
class Balance:
    """Count the rows of a stage: rows_in = kept + consumed + dropped + failed; rows_out = kept + created."""

    rows_in: int
    rows_out: int
    rows_created: int
    rows_consumed: int
    rows_dropped: int
    rows_failed: int


def conserve(
    inputs: Mapping[str, pa.Array],
    outputs: Mapping[str, pa.Array],
    edges: pa.Table,
    dropped: pa.Array,
    failed: pa.Array,
    *,
    source: bool = False,
    trains: bool = False,
) -> Balance:
    """Check that no row is lost, doubled or invented, and count them.

    Args:
        inputs: row ids (uuid) of each input declared as rows.
        outputs: row ids of each table of rows that is published.
        edges: child and parent ids where ids change.
        dropped: row ids in the dropped ledger.
        failed: row ids in the failed ledger.
        source: the stage creates rows from files; its output and failed rows need no input.
        trains: the stage makes a model; it is made of all input rows that are not dropped or failed.

    Raises:
        ConservationError: with the kind of fault and the first row ids.
    """
    came = _distinct("an input", inputs)
    went = _distinct("an output", outputs)
    left = _distinct("dropped and failed", {"dropped": dropped, "failed": failed})
    parents, children = pc.unique(_storage(edges["parent"])), pc.unique(_storage(edges["child"]))
    kept, created = _split(went, came)
    consumed = _outside(came, left) if trains else _outside(_within(came, parents), went)
    _nothing("is both kept and dropped or failed", _within(left, went))
    _nothing("is both consumed and dropped or failed", _within(left, consumed))
    _nothing("has parents that were not in the input", _outside(parents, came))
    _nothing("is a child of an edge but not in the output", _outside(children, went))
    if source:
        _nothing("was dropped though it never came in", _outside(_storage(dropped), came))
    else:
        _nothing("was dropped or failed but never came in", _outside(left, came))
        _nothing("is new but has no parents", _outside(created, children))
    accounted = pa.concat_arrays([kept, consumed, left])
    _nothing("came in but is not kept, consumed, dropped or failed", _outside(came, accounted))
    return Balance(len(came), len(went), len(created), len(consumed), len(dropped), len(failed))


def _storage(ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Unwrap uuids to 16-byte binaries, which the compute functions can hash."""
    if isinstance(ids, pa.ChunkedArray):
        chunks = [chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk for chunk in ids.chunks]
        return pa.concat_arrays(chunks) if chunks else pa.array([], pa.binary(16))
    return ids.storage if isinstance(ids, pa.ExtensionArray) else ids


def _distinct(what: str, columns: Mapping[str, pa.Array]) -> pa.Array:
    arrays = [_storage(column) for column in columns.values()]
    whole = pa.concat_arrays(arrays) if arrays else pa.array([], pa.binary(16))
    # sorted, since hashing millions of ids takes ten times their memory
    ordered = np.sort(np.frombuffer(whole.buffers()[1], "S16", len(whole), whole.offset * 16))
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(twice):
        sample = _sample(pa.array(twice.view("V16").tolist(), pa.binary(16)))
        raise ConservationError(f"{len(twice)} row ids occur twice in {what} ({', '.join(columns)}): {sample}")
    return whole


def _within(ids: pa.Array, others: pa.Array) -> pa.Array:
    return _split(ids, others)[0]


def _outside(ids: pa.Array, others: pa.Array) -> pa.Array:
    return _split(ids, others)[1]


def _split(ids: pa.Array, others: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Part ids into those among the others and those that are not; nothing is hashed where that is plain."""
    if not len(ids) or not len(others):
        return ids[:0], ids
    if ids.equals(others):
        return ids, ids[:0]
    among = pc.is_in(ids, value_set=others)
    return ids.filter(among), ids.filter(pc.invert(among))


def _nothing(what: str, ids: pa.Array) -> None:
    if len(ids):
        raise ConservationError(f"{len(ids)} rows: each {what}: {_sample(ids)}")


def _sample(ids: pa.Array) -> str:
    shown = ", ".join(str(uuid.UUID(bytes=each)) for each in ids[:3].to_pylist())
    return shown + (", …" if len(ids) > 3 else "")
