"""Files row by row: every format, the right line numbers, and one bad row that costs only itself."""

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data.errors import BadInput
from tasks.curate.readers import Broken, Record, find_files, read_records

LIMIT = 4 << 20
ROWS = [{"prompt": "a, b", "completion": 'say "hi"'}, {"prompt": "é\nü", "completion": "2\r\n3"}]
FORMATS = ["jsonl", "json", "csv", "parquet"]
Write = Callable[[str, list[dict[str, Any]]], Path]


def read(path: Path, limit: int = LIMIT) -> list[tuple[int, Record]]:
    return list(read_records(path, limit))


def as_dicts(records: list[tuple[int, Record]]) -> list[Any]:
    return [orjson.loads(record) if isinstance(record, bytes) else record for _, record in records]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_and_compression_gives_the_same_records(write: Write, kind: str, compression: str) -> None:
    path = write(f"talk.{kind}{compression}", ROWS)
    assert as_dicts(read(path)) == ROWS


def test_blank_lines_count_as_lines_but_not_as_rows(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(b'\n{"a": 1}\n  \n\n{"a": 2}')
    assert [(number, orjson.loads(record)) for number, record in read(lines)] == [(2, {"a": 1}), (5, {"a": 2})]
    table = tmp_path / "a.csv"
    table.write_text("a,b\n\n1,2\n\n3,4\n\n")
    assert read(table) == [(3, {"a": "1", "b": "2"}), (5, {"a": "3", "b": "4"})]


def test_a_csv_row_has_the_line_on_which_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n"one\ntwo\nthree",x\nfour,"y\n\nz"\nfive,w\n')
    assert read(path) == [
        (2, {"a": "one\ntwo\nthree", "b": "x"}),
        (5, {"a": "four", "b": "y\n\nz"}),
        (8, {"a": "five", "b": "w"}),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(write: Write, kind: str) -> None:
    path = write(f"a.{kind}", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert as_dicts(read(path)) == ROWS


def test_two_compressed_streams_in_one_file_are_both_read(tmp_path: Path) -> None:
    halves = [b'{"a": 1}\n', b'{"a": 2}\n']
    for name, compress in (("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)):
        path = tmp_path / name
        path.write_bytes(b"".join(map(compress, halves)))
        assert as_dicts(read(path)) == [{"a": 1}, {"a": 2}]


def test_the_last_line_of_jsonl_needs_no_newline_and_the_limit_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a":1}\n{"a":12}\n{"a":3}')
    assert [type(record) for _, record in read(path, 7)] == [bytes, Broken, bytes]
    path.write_bytes(b'{"a":12}')
    assert [type(record) for _, record in read(path, 7)] == [Broken]


def test_a_row_of_a_hundred_megabytes_is_named_with_its_size_and_never_held(tmp_path: Path) -> None:
    size = 100_000_000
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": 1}\n{"a": "')
        file.writelines(b"x" * 1_000_000 for _ in range(size // 1_000_000))
        file.write(b'"}\n{"a": 3}\n')
    tracemalloc.start()
    records = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000
    assert [number for number, _ in records] == [1, 2, 3]
    broken = records[1][1]
    assert isinstance(broken, Broken)
    assert f"{size + 9:,} bytes" in broken.error or f"{size + 10:,} bytes" in broken.error
    assert "max_row_bytes" in broken.error


def test_a_field_of_a_csv_that_is_too_long_costs_only_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"a,b\n1,2\n{'x' * 5000},4\n5,6\n")
    records = read(path, 1000)
    assert [type(record) for _, record in records] == [dict, Broken, dict]
    assert "max_row_bytes" in records[1][1].error  # type: ignore[union-attr]


def test_invalid_utf8_costs_only_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n1,2\n\xff,4\n5,6\n")
    records = read(path)
    assert [number for number, _ in records] == [2, 3, 4]
    assert [type(record) for _, record in records] == [dict, Broken, dict]
    assert records[1][1].error == "invalid UTF-8"  # type: ignore[union-attr]


def test_rows_of_a_csv_with_too_few_or_too_many_fields_are_broken(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1\n1,2,3\n1,2\n")
    errors = [record.error if isinstance(record, Broken) else None for _, record in read(path)]
    assert errors == ["1 fields, where the header names 2", "3 fields, where the header names 2", None]


def test_what_is_no_object_in_a_json_array_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, 42, "x", {"a": 2}]')
    assert [type(record) for _, record in read(path)] == [dict, Broken, Broken, dict]


# ---- files that are not what their names say -----------------------------------------------------------------


def parquet_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"prompt": ["a"] * 1000, "completion": [str(n) for n in range(1000)]}), sink)
    return bytes(sink.getvalue().to_pybytes())


def damaged_parquet() -> bytes:
    """Parquet whose footer is whole and whose pages are not."""
    whole = parquet_bytes()
    return whole[:4] + b"\xff" * 200 + whole[204:]


JSONL = b'{"a": 1}\n' * 2000
WRONG = {
    "text.parquet": b"prompt,completion\n1,2\n",
    "cut.parquet": parquet_bytes()[:-40],
    "damaged.parquet": damaged_parquet(),
    "plain.jsonl.gz": JSONL,
    "plain.jsonl.zst": JSONL,
    "packed.jsonl": gzip.compress(JSONL),
    "packed-zstd.csv": zstandard.compress(b"a,b\n1,2\n"),
    "cut.jsonl.gz": gzip.compress(JSONL)[:-12],
    "damaged.jsonl.gz": gzip.compress(JSONL)[:15] + b"\xff" * 9 + gzip.compress(JSONL)[24:],
    "cut.jsonl.zst": zstandard.compress(JSONL)[:-5],
    "damaged.jsonl.zst": zstandard.compress(JSONL)[:9] + b"\xff" * 9 + zstandard.compress(JSONL)[18:],
    "array.jsonl": b'[{"a": 1}]',
    "array-on-lines.jsonl": b'[\n{"a": 1}\n]',
    "binary.jsonl": b"\x7fELF\x02\x01\x01\0\0\0" * 10,
    "utf-16.jsonl": '{"a": 1}\n'.encode("utf-16"),
    "parquet.jsonl": parquet_bytes(),
    "binary.csv": b"PK\x03\x04\0\0\0" * 100,
    "latin.csv": "prompt,r\u00e9ponse\n1,2\n".encode("latin-1"),
    "lines.json": JSONL,
    "object.json": b'{"a": 1}',
    "cut.json": b'[{"a": 1}, {"a"',
    "not-utf8.json": b'[{"a": "\xff"}]',
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(WRONG[name])
    with pytest.raises(BadInput) as refused:
        read(path)
    assert name in refused.value.found
    assert refused.value.wanted.startswith("what its name says: " + name.split(".")[1])
    assert refused.value.remedy


def test_a_file_that_is_not_there_is_refused_with_those_that_are(write: Write, tmp_path: Path) -> None:
    write("talk.jsonl", ROWS)
    with pytest.raises(BadInput) as refused:
        find_files(tmp_path / "talks.jsonl")
    assert "talks.jsonl" in refused.value.found
    assert "talk.jsonl" in refused.value.remedy
    with pytest.raises(BadInput, match="check the path"):
        find_files(tmp_path / "nowhere" / "talk.jsonl")


def test_empty_files_folders_and_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    for name, found in (("empty.jsonl", "0 bytes"), ("notes.txt", "another kind"), ("folder", "without data files")):
        with pytest.raises(BadInput) as refused:
            find_files(tmp_path / name)
        assert found in refused.value.found
        assert ".jsonl, .ndjson, .json, .csv, .parquet" in refused.value.wanted


def test_a_folder_gives_its_data_files_in_the_order_of_their_names(write: Write, tmp_path: Path) -> None:
    for name in ("set/b.csv.gz", "set/a.jsonl", "set/c/a.parquet"):
        write(name, ROWS)
    (tmp_path / "set" / "README.md").write_text("about")
    found = [str(file.relative_to(tmp_path)) for file in find_files(tmp_path / "set")]
    assert found == ["set/a.jsonl", "set/b.csv.gz", "set/c/a.parquet"]
