"""Read files row by row: JSONL, JSON, CSV and Parquet, plain, gzip or zstd, one file or a folder of them.

A reader yields `(number, record)`: the line (or row) number from 1, and bytes (a JSONL line), a dict, or a `Broken`
record with its error. One bad row never ends a file; a file that is not what its name says does.
"""

import csv
import io
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import BadInput

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
COMPRESSIONS = {".gz": ("gzip", b"\x1f\x8b"), ".zst": ("zstd", b"\x28\xb5\x2f\xfd")}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Broken:
    """A record that cannot be read, with its first bytes for identity and the reason."""

    raw: bytes
    error: str


Record = bytes | dict[str, Any] | Broken


def find_files(path: Path) -> list[Path]:
    """List the data files of a file or folder, sorted by name.

    Raises:
        BadInput: nothing there, no file of a known format, or an empty file.
    """
    wanted = f"a file, or a folder of files, ending in {', '.join(FORMATS)}, or one of these with .gz or .zst"
    if not path.exists():
        near = sorted(each.name for each in path.parent.glob("*") if _known(each))[:5] if path.parent.is_dir() else []
        hint = f"did you mean one of {', '.join(near)}?" if near else "check the path in the recipe"
        raise BadInput(f"no file {path}", wanted, hint)
    files = sorted(each for each in path.rglob("*") if each.is_file() and _known(each)) if path.is_dir() else [path]
    if not files or not all(_known(file) for file in files):
        raise BadInput(f"{path}, a {'folder without data files' if path.is_dir() else 'file of another kind'}", wanted,
                       "convert it, or name another file in the recipe")  # fmt: skip
    for file in files:
        if file.stat().st_size == 0:
            raise BadInput(f"{file} is empty (0 bytes)", wanted, "put rows into it, or take it out of the recipe")
    return files


def read_records(path: Path, max_row_bytes: int) -> Iterator[tuple[int, Record]]:
    """Read one file, in order; nothing larger than one row (or one Parquet batch) is held in memory.

    A `.json` file is the exception: it is one array, and is held whole.

    Raises:
        BadInput: the file is not what its name says.
    """
    kind = _format(path)
    read = _read_csv if kind == ".csv" else _read_jsonl
    try:
        with _open(path) as file:
            if kind == ".parquet":
                yield from _read_parquet(path, file)
            elif kind == ".json":
                yield from _read_json(path, file)
            else:
                yield from read(path, file, max_row_bytes)
    except OSError as error:
        if error.errno is not None or path.suffix not in COMPRESSIONS:
            raise
        raise _not_what_it_says(path, f"compressed data that is damaged or breaks off ({error})") from None


def _read_jsonl(path: Path, file: IO[bytes], max_row_bytes: int) -> Iterator[tuple[int, Record]]:
    number = 0
    while line := file.readline(max_row_bytes + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
            _refuse_other_kinds(path, line)
        if len(line) > max_row_bytes and not line.endswith(b"\n"):
            size = len(line)
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                size += len(rest)
            yield (
                number,
                Broken(
                    line[:1000],
                    f"a row of {size + len(rest):,} bytes, more than max_row_bytes = {max_row_bytes:,}",
                ),
            )
        elif not line.isspace():
            yield number, line


def _read_json(path: Path, file: IO[bytes]) -> Iterator[tuple[int, Record]]:
    content = file.read()
    try:
        rows = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise _not_what_it_says(path, f"text that is not one JSON value ({error})") from None
    if not isinstance(rows, list):
        raise _not_what_it_says(path, f"a JSON {type(rows).__name__}, where an array of objects is wanted")
    for number, row in enumerate(rows, 1):
        yield number, row if isinstance(row, dict) else Broken(orjson.dumps(row)[:1000], not_an_object(row))


def _read_csv(path: Path, file: IO[bytes], max_row_bytes: int) -> Iterator[tuple[int, Record]]:
    csv.field_size_limit(max_row_bytes)
    # surrogateescape keeps invalid bytes visible, so that only their row fails
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    lines = _Lines(text, max_row_bytes)
    reader = csv.reader(lines, strict=True)
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise _not_what_it_says(path, f"a first line that is no CSV header ({error})") from None
    if "\0" in "".join(names) or not _encodable("".join(names)):
        raise _not_what_it_says(path, "binary data, or a header that is not UTF-8")
    while True:
        number = lines.number + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, Broken(f"{path.name}:{number}".encode(), f"broken CSV: {error}")
            continue
        if not row:
            continue  # a blank line
        raw = ",".join(row)
        if len(row) != len(names):
            wrong = f"{len(row)} fields, where the header names {len(names)}"
            yield number, Broken(raw.encode(errors="surrogateescape")[:1000], wrong)
        elif not _encodable(raw):
            yield number, Broken(raw.encode(errors="surrogateescape")[:1000], "invalid UTF-8")
        else:
            yield number, dict(zip(names, row, strict=True))


class _Lines:
    """Count the lines of a CSV; one that is longer than a row may be is never held, and is an error."""

    def __init__(self, text: io.TextIOWrapper, longest: int) -> None:
        self.number, self._text, self._longest = 0, text, longest

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._longest + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) <= self._longest or line.endswith(("\n", "\r")):
            return line
        size = len(line)
        while (rest := self._text.readline(1 << 20)) and not rest.endswith(("\n", "\r")):
            size += len(rest)
        raise csv.Error(f"a row of {size + len(rest):,} characters, more than max_row_bytes = {self._longest:,}")


def _read_parquet(path: Path, file: IO[bytes]) -> Iterator[tuple[int, Record]]:
    number = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1_000):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _not_what_it_says(path, f"no Parquet that can be read after row {number:,} ({error})") from None


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        head = file.read(4)
    for suffix, (_, magic) in COMPRESSIONS.items():
        if head.startswith(magic) != (path.suffix == suffix):
            raise _not_what_it_says(
                path, f"{'data' if path.suffix == suffix else suffix[1:] + ' data'} that starts with {head!r}"
            )
    if path.suffix not in COMPRESSIONS:
        return path.open("rb")
    plain = io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), COMPRESSIONS[path.suffix][0]), 1 << 18)
    if _format(path) != ".parquet":
        return plain
    with plain:  # Parquet is read from its end
        whole = tempfile.TemporaryFile()  # noqa: SIM115 - the reader closes it
        shutil.copyfileobj(plain, whole)
    return whole


def _refuse_other_kinds(path: Path, first: bytes) -> None:
    if first.startswith(b"PAR1") or b"\0" in first[:1000]:
        raise _not_what_it_says(path, f"binary data that starts with {first[:8]!r}")
    if first.lstrip().startswith(b"["):
        raise _not_what_it_says(path, "a JSON array; a .jsonl file holds one object per line")


def _not_what_it_says(path: Path, found: str) -> BadInput:
    wanted = f"what its name says: {_format(path)[1:]}{', ' + path.suffix[1:] if path.suffix in COMPRESSIONS else ''}"
    return BadInput(f"{path} holds {found}", wanted, "rename the file after what it holds, or mend it")


def not_an_object(value: Any) -> str:
    """Say what a record is that is no object, in JSON's words."""
    kinds = {type(None): "null", bool: "a truth value", list: "a list", str: "text", int: "a number", float: "a number"}
    what = kinds.get(type(value), type(value).__name__)
    shown = "" if value is None else f" {str(value)[:40]!r},"
    return f"{what},{shown} where an object is wanted"


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _format(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def _known(path: Path) -> bool:
    return _format(path) in FORMATS
