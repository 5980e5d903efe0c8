"""Who a row is: content ids, row ids and the digests of tables, independent of how the bytes are stored.

- `content_id`: 128-bit BLAKE2b of the row's content under its contract.
- `row_id`: given once, at load: digest(source name, content_id, n-th occurrence in that source). Editing a row
  keeps it; creating one gives digest(method, sorted parents, ordinal).

Both digest a length-prefixed encoding of the values (docs/lineage.md spells it out), not Arrow's or Parquet's
bytes: those depend on chunking, on neighbours and on the version of their writer.
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b, sha256
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.contracts import ID, Contract

Bounds = npt.NDArray[np.int64]
Piece = tuple[pa.Buffer, Bounds]  # row i owns buffer[bounds[i]:bounds[i+1]]


def content_ids(table: pa.Table, contract: Contract) -> pa.Array:
    """Digest each row's content: uuid array of the table's length.

    The table holds at least the contract's columns, in the contract's types.
    """
    columns = table.select(contract.columns).cast(contract.schema).combine_chunks()
    rows = np.arange(len(table) + 1)
    encoded, bounds = _joined([piece for column in columns.columns for piece in _pieces(_whole(column), rows)])
    return _hashed(contract.name.encode() + b"\0", (encoded[a:b] for a, b in pairwise(bounds.tolist())))


def renew_content_ids(table: pa.Table, contract: Contract, changed: pa.Array) -> pa.Table:
    """Digest the rows anew that an edit has changed (bool per row), and return the table with their content ids."""
    if not pc.any(changed).as_py():
        return table
    fresh = content_ids(table.filter(changed), contract).storage
    old = table["content_id"].combine_chunks().storage
    ids = pa.ExtensionArray.from_storage(ID, pc.replace_with_mask(old, changed, fresh))
    return table.set_column(table.schema.get_field_index("content_id"), "content_id", ids)


def row_ids(source: str, contents: pa.Array, occurrences: dict[bytes, int]) -> pa.Array:
    """Name the rows of a source: uuid array; `occurrences` counts equal contents and is carried on.

    Equal rows of one source get different ids, by their order; equal rows of two sources too.
    """

    def numbered() -> Iterator[bytes]:
        for content in bytes_from_ids(contents):
            n = occurrences.get(content, 0)
            occurrences[content] = n + 1
            yield content + n.to_bytes(8, "little")

    return _hashed(b"row\0" + source.encode() + b"\0", numbered())


def created_id(method: str, parents: Sequence[bytes], ordinal: int = 0) -> bytes:
    """Name a row that a method creates from parents (16 bytes each); the ordinal tells siblings apart."""
    digest = blake2b(b"created\0" + method.encode() + b"\0", digest_size=16)
    digest.update(b"".join(sorted(parents)) + ordinal.to_bytes(8, "little"))
    return digest.digest()


def ids_from_bytes(raw: bytes) -> pa.Array:
    """Wrap 16 bytes per id as a uuid array."""
    storage = pa.Array.from_buffers(pa.binary(16), len(raw) // 16, [None, pa.py_buffer(raw)])
    return pa.ExtensionArray.from_storage(ID, storage)


def bytes_from_ids(ids: pa.Array) -> list[bytes]:
    """Unwrap a uuid array without nulls: 16 bytes per id."""
    values = ids.storage
    unwrapped: list[bytes] = np.frombuffer(values.buffers()[1], "V16", len(values), values.offset * 16).tolist()
    return unwrapped


def lots(ids: pa.Array, seed: int) -> npt.NDArray[np.uint64]:
    """Draw a lot for each row from its id and a seed alone: (n,) uint64; rows sorted by them are a shuffle.

    Whatever order or shard the rows come in, a row draws the same lot.
    """
    halves = np.frombuffer(ids.storage.buffers()[1], "<u8", 2 * len(ids), ids.offset * 16).reshape(-1, 2)
    return mixed(mixed(mixed(halves[:, 0] ^ np.uint64(seed)) ^ halves[:, 1]))


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix 64-bit values so that each bit depends on all (finaliser of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    last: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return last


def sortable(ids: pa.Array) -> npt.NDArray[np.bytes_]:
    """View a uuid array without nulls as 16-byte values, which numpy sorts and compares: (n,) S16."""
    storage = ids.storage
    values: npt.NDArray[np.bytes_] = np.frombuffer(storage.buffers()[1], "S16", len(storage), storage.offset * 16)
    return values


def lowest(ids: pa.ChunkedArray, count: int | None) -> Bounds:
    """Choose the `count` rows with the lowest ids, all where it is None: their positions, ascending."""
    positions: Bounds = np.sort(np.argsort(sortable(_whole(ids)), kind="stable")[:count])
    return positions


def table_digest(batches: Iterable[pa.Table]) -> str:
    """Digest a table logically: 64 hex digits over its rows in order, column by column, sorted by name.

    The same values give the same digest, however they are chunked into batches, files or row groups.
    """
    columns: dict[str, _ColumnDigest] = {}
    rows = 0
    for batch in batches:
        rows += len(batch)
        for name in batch.column_names:
            column = _whole(batch[name])
            columns.setdefault(name, _ColumnDigest(column.type)).update(column)
    parts = [f"{name}:{_type_name(digest.kind)}:{digest.hexdigest()}" for name, digest in sorted(columns.items())]
    return sha256("\n".join([f"rows:{rows}", *parts]).encode()).hexdigest()


def _hashed(start: bytes, rows: Iterable[bytes | memoryview]) -> pa.Array:
    """Digest each row after a common start: uuid array."""
    begun = blake2b(start, digest_size=16)
    digests = []
    for row in rows:
        digest = begun.copy()
        digest.update(row)
        digests.append(digest.digest())
    return ids_from_bytes(b"".join(digests))


class _ColumnDigest:
    """The running digest of one column: one hash per piece, so that batch borders leave no trace."""

    def __init__(self, kind: pa.DataType) -> None:
        self.kind = kind
        self._hashes: list[object] = []

    def update(self, column: pa.Array) -> None:
        pieces = list(_pieces(column, np.array([0, len(column)])))
        self._hashes = self._hashes or [sha256() for _ in pieces]
        for digest, (buffer, bounds) in zip(self._hashes, pieces, strict=True):
            digest.update(buffer[bounds[0] : bounds[-1]])  # type: ignore[attr-defined]

    def hexdigest(self) -> str:
        return sha256("".join(each.hexdigest() for each in self._hashes).encode()).hexdigest()  # type: ignore[attr-defined]


def _type_name(kind: pa.DataType) -> str:
    """Spell a type without what Arrow and Parquet call a list's elements (`item`, `element`) and nested nullability."""
    if pa.types.is_fixed_size_list(kind):
        return f"list<{_type_name(kind.value_type)}>[{kind.list_size}]"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"{'large_' if pa.types.is_large_list(kind) else ''}list<{_type_name(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'{field.name}: {_type_name(field.type)}' for field in kind)}>"
    return str(kind)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def _joined(pieces: Sequence[Piece]) -> tuple[memoryview, Bounds]:
    """Join pieces row by row: one buffer, with its bounds per row."""
    texts = [
        pa.Array.from_buffers(pa.large_binary(), len(bounds) - 1, [None, pa.py_buffer(bounds), buffer])
        for buffer, bounds in pieces
    ]
    whole = pc.binary_join_element_wise(*texts, pa.scalar(b"", pa.large_binary()))
    _, bounds, buffer = whole.buffers()
    return memoryview(buffer or b""), np.frombuffer(bounds, np.int64, len(whole) + 1)


def _pieces(column: pa.Array, bounds: Bounds) -> list[Piece]:
    """Encode a column as buffers, each with its bounds per row: row i owns `buffer[bounds[i]:bounds[i+1]]`.

    Fixed-width values: one validity byte, then the value (zero if null). Text, bytes and
    lists: an int32 length (-1 if null), then the data or the elements. Lists of a fixed size: validity, then the
    elements. Structs: validity, then their fields.
    """
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _pieces(column.storage, bounds)
    if pa.types.is_dictionary(kind):
        return _pieces(column.dictionary_decode(), bounds)
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_string(kind):
        data = pc.fill_null(column, b"" if pa.types.is_binary(kind) else "").cast(pa.large_binary())
        offsets = np.frombuffer(data.buffers()[1], np.int64)[data.offset : data.offset + len(data) + 1]
        text = data.buffers()[2] or pa.py_buffer(b"")
        return [_lengths(column, np.diff(offsets), bounds), (text, offsets[bounds])]
    if pa.types.is_fixed_size_list(kind):
        valid = pa.py_buffer(column.is_valid().to_numpy(zero_copy_only=False))
        elements = _filled(column) if column.null_count else column.flatten()
        return [(valid, bounds), *_pieces(elements, bounds * kind.list_size)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return [_lengths(column, lengths, bounds), *_pieces(pc.list_flatten(column), offsets[bounds])]
    valid = pa.py_buffer(column.is_valid().to_numpy(zero_copy_only=False))
    if pa.types.is_struct(kind):
        fields = [pc.struct_field(column, [number]) for number in range(kind.num_fields)]
        return [(valid, bounds), *(piece for field in fields for piece in _pieces(field, bounds))]
    if pa.types.is_null(kind):
        return [(valid, bounds)]
    if pa.types.is_fixed_size_binary(kind):
        filled = pc.fill_null(column, b"\0" * kind.byte_width)
        return [(valid, bounds), (filled.buffers()[1], (bounds + filled.offset) * kind.byte_width)]
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        filled = pc.fill_null(column.cast(pa.uint8()) if pa.types.is_boolean(kind) else column, 0)
        values = filled.to_numpy(zero_copy_only=False)
        return [(valid, bounds), (pa.py_buffer(values), bounds * values.itemsize)]
    raise TypeError(f"column type {kind} has no canonical form; use text, numbers, booleans, lists or structs")


def _filled(column: pa.Array) -> pa.Array:
    """Flatten fixed-size lists with the elements of a null list as nulls."""
    size = column.type.list_size
    return pa.array(
        [each for row in column.to_pylist() for each in (row if row is not None else [None] * size)],
        column.type.value_type,
    )


def _lengths(column: pa.Array, lengths: npt.NDArray[np.integer], bounds: Bounds) -> Piece:
    present = column.is_valid().to_numpy(zero_copy_only=False)
    return pa.py_buffer(np.where(present, lengths, -1).astype("<i4")), bounds * 4
