"""Whether two published folders hold the same: table by table, then row by row and column by column.

What is exact is the same or not. Floats of a stage of the class `float` may differ by a tolerance, everything beside
them may not. Rows are matched by row id where a table has one line for each, and by position elsewhere.
"""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.artifact import FILES, Artifact
from data.fingerprint import file_digest
from data.ids import sortable

ABSOLUTE, RELATIVE = 1e-4, 1e-3  # floats are near if |a - b| <= ABSOLUTE + RELATIVE * |a|
SHOWN = 5  # rows, files or lines that are named

Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]
Names = npt.NDArray[np.bytes_]  # 16 bytes at most


class Finding(NamedTuple):
    """How one table of an artifact, or its files, differ from what was made again."""

    table: str
    near: bool  # only floats differ, and within the tolerance
    what: str
    rows: int = 0  # how many rows (lines, files) differ: beyond the tolerance, if any does
    row_ids: tuple[str, ...] = ()  # the first of them
    columns: tuple[str, ...] = ()


class Matched(NamedTuple):
    """Which lines of two tables are the same row: places in each, and the places of rows that one of them lacks."""

    published: Places
    rebuilt: Places
    lost: Places  # in the published table alone
    new: Places  # in the rebuilt table alone


def differing_outputs(
    published: Artifact, holds: dict[str, Any], rebuilt: Artifact, *, tolerant: bool
) -> Iterator[Finding]:
    """Find the outputs that differ.

    Args:
        published: the folder as it is.
        holds: its outputs, digested now (`describe_outputs`): its record may say something else.
        rebuilt: what was made again.
        tolerant: whether floats may differ by the tolerance.
    """
    made = rebuilt.record["outputs"]
    for name in sorted({*holds, *made}):
        if name not in made or name not in holds:
            rows = (holds.get(name) or made[name]).get("rows", 0)
            yield Finding(name, False, f"only in the {'published' if name in holds else 'rebuilt'} folder", rows)
        elif holds[name]["digest"] == made[name]["digest"]:
            continue
        elif name == FILES:
            ours, theirs = (each[FILES]["files"] for each in (holds, made))
            other = sorted(file for file in {*ours, *theirs} if ours.get(file) != theirs.get(file))
            yield Finding(name, False, f"other bytes in {', '.join(other[:SHOWN])}", len(other))
        else:
            yield differing_rows(Artifact("", "", published.path, name), rebuilt[name], tolerant=tolerant)


def other_bytes(published: Path, rebuilt: Path) -> list[str]:
    """Name the Parquet files that one folder lacks, or whose bytes differ."""
    names = {file.name for folder in (published, rebuilt) for file in folder.glob("*.parquet")}
    return sorted(
        name
        for name in names
        if not ((published / name).exists() and (rebuilt / name).exists())
        or file_digest(published / name) != file_digest(rebuilt / name)
    )


def differing_rows(published: Artifact, rebuilt: Artifact, *, tolerant: bool) -> Finding:
    """Compare two tables of different digests: which rows one of them lacks, and which columns of the others differ."""
    name = published.table
    types, others = ({field.name: field.type for field in each.schema} for each in (published, rebuilt))
    if types != others:
        columns = sorted(each for each in {*types, *others} if types.get(each) != others.get(each))
        return Finding(name, False, "other columns", columns=tuple(columns))
    ours, theirs = _names(published), _names(rebuilt)
    matched = match(ours, theirs)
    within, beyond = differing_columns(published, rebuilt, matched, tolerant=tolerant)
    lacking = [
        f"{len(each):,} only in the {where} table"
        for each, where in ((matched.lost, "published"), (matched.new, "rebuilt"))
        if len(each)
    ]
    moved = np.flatnonzero(np.diff(matched.rebuilt) < 0) + 1
    other = _rows_of(beyond or within, len(ours))
    if not (lacking or len(other) or len(moved)):
        return Finding(name, tolerant, "equal values in other bits")
    what = "; ".join(
        [
            *lacking,
            *([f"{len(other):,} with other values{'' if beyond else ' within the tolerance'}"] if len(other) else []),
            *(["in another order"] if len(moved) else []),
        ]
    )
    first = [*ours[matched.lost][:SHOWN], *theirs[matched.new][:SHOWN], *ours[other][:SHOWN]]
    first = first or [*ours[matched.published[moved]][:SHOWN]]
    count = len(other) + len(matched.lost) + len(matched.new) or len(moved)
    is_near = not (beyond or lacking or len(moved))
    return Finding(name, is_near, what, count, tuple(map(_spelt, first)), tuple(sorted(beyond or within)))


def match(published: Names, rebuilt: Names) -> Matched:
    """Match lines by their names (distinct in each table)."""
    order = np.argsort(rebuilt, kind="stable")
    at = np.searchsorted(rebuilt, published, sorter=order)
    found = at < len(rebuilt)
    found[found] = rebuilt[order[at[found]]] == published[found]
    places = order[at[found]]
    new = np.ones(len(rebuilt), bool)
    new[places] = False
    return Matched(np.flatnonzero(found), places, np.flatnonzero(~found), np.flatnonzero(new))


def differing_columns(
    published: Artifact, rebuilt: Artifact, matched: Matched, *, tolerant: bool
) -> tuple[dict[str, Places], dict[str, Places]]:
    """Find the columns that differ, with the lines (places in the published table): within the tolerance, and beyond.

    One column at a time, so that no table need be in memory whole.
    """
    within: dict[str, Places] = {}
    beyond: dict[str, Places] = {}
    for column in published.schema.names:
        ours = _whole(published.read([column])[column]).take(pa.array(matched.published))
        theirs = _whole(rebuilt.read([column])[column]).take(pa.array(matched.rebuilt))
        different = differing_values(ours, theirs, tolerant=False)
        if not different.any():
            continue
        far = differing_values(ours, theirs, tolerant=True) if tolerant else different
        if far.any():
            beyond[column] = matched.published[far]
        else:
            within[column] = matched.published[different]
    return within, beyond


def differing_values(ours: pa.Array, theirs: pa.Array, *, tolerant: bool) -> Mask:
    """Say of each pair of values of one type whether they differ; floats near each other do not, if tolerant."""
    kind = ours.type
    if isinstance(kind, pa.BaseExtensionType):
        return differing_values(ours.storage, theirs.storage, tolerant=tolerant)
    if ours.equals(theirs):
        return np.zeros(len(ours), bool)
    if pa.types.is_floating(kind):
        gaps = ours.is_null().to_numpy(zero_copy_only=False), theirs.is_null().to_numpy(zero_copy_only=False)
        a, b = (pc.fill_null(each, 0).to_numpy(zero_copy_only=False).astype(np.float64) for each in (ours, theirs))
        return _mask((gaps[0] != gaps[1]) | ~near(a, b, tolerant=tolerant))
    if pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type) and not ours.null_count:
        inner = differing_values(ours.flatten(), theirs.flatten(), tolerant=tolerant)
        if not theirs.null_count:
            return _mask(inner.reshape(len(ours), kind.list_size).any(1))
    if pa.types.is_nested(kind):
        pairs = zip(ours.to_pylist(), theirs.to_pylist(), strict=True)
        return _mask([not _alike(a, b, tolerant) for a, b in pairs])
    unequal = pc.fill_null(pc.not_equal(ours, theirs), pc.xor(ours.is_null(), theirs.is_null()))
    return _mask(unequal.to_numpy(zero_copy_only=False))


def near(a: npt.ArrayLike, b: npt.ArrayLike, *, tolerant: bool) -> Mask:
    """Say whether numbers are equal or, if tolerant, within the tolerance of `a`; NaN is near NaN."""
    absolute, relative = (ABSOLUTE, RELATIVE) if tolerant else (0.0, 0.0)
    return _mask(np.isclose(b, a, rtol=relative, atol=absolute, equal_nan=True))


def _mask(values: Any) -> Mask:
    mask: Mask = np.asarray(values, bool)
    return mask


def _alike(a: Any, b: Any, tolerant: bool) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[name], b[name], tolerant) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_alike(x, y, tolerant) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return bool(near(a, b, tolerant=tolerant))
    return bool(a == b)


def _names(table: Artifact) -> Names:
    """Name the lines of a table: by row id (16 bytes) where each has its own, else by position: (n,) S16."""
    names = table.schema.names
    if "row_id" in names:
        ids = sortable(_whole(table.read(["row_id"])["row_id"]))
        if len(np.unique(ids)) == len(ids):
            return ids
    return np.char.mod("line %d", np.arange(len(table.read(names[:1])))).astype("S16")


def _spelt(name: bytes) -> str:
    return name.decode() if name.startswith(b"line ") else str(uuid.UUID(bytes=name.ljust(16, b"\0")))


def _rows_of(columns: dict[str, Places], rows: int) -> Places:
    places = np.zeros(rows, bool)
    for each in columns.values():
        places[each] = True
    return np.flatnonzero(places)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
