"""Load rows from files or the hub: give each its id, its source and its licence.

Every row gets its `row_id` here, once and for all: digest(source name, content_id, n-th occurrence in that source).
Where each row stands in its file is kept beside the rows, in `origin.parquet`. Rows that cannot be read go to the
failed ledger with file and line; the rest goes on, unless more than `max_failed_share` failed.
"""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import orjson
import pyarrow as pa
from pydantic import Field, model_validator

from data.artifact import SHARD_ROWS
from data.contracts import CONTRACTS, failed_schema, problems
from data.errors import BadInput
from data.fingerprint import NOT_IN_KEY
from data.ids import content_ids, ids_from_bytes, row_ids
from infra.shards import Tables, read_shard
from infra.stage import Measures, Parameters, stage
from infra.store import remembered_digest
from infra.work import Work
from tasks.curate.layouts import LAYOUTS
from tasks.curate.readers import Broken, Record, find_files, not_an_object, read_records

SHARD_BYTES = 64 << 20
HUB = "hub:"


class Source(Parameters):
    """One source of rows: a file, a folder of files, or a dataset on the hub."""

    path: Annotated[str, NOT_IN_KEY] = Field(description="File or folder, or hub:OWNER/NAME for a dataset on the hub.")
    name: str = Field("", description="Name of the source in row ids and lineage; default: the path's base name.")
    licence: str = Field(description="Licence of its rows, as an SPDX name where there is one.")
    layout: Literal[
        "prompt-completion",
        "messages",
        "sharegpt",
        "alpaca",
        "preference",
        "transcript",
        "dialogue",
        "labelled",
        "unlabelled",
    ] = Field(description="How its records are laid out.")
    columns: dict[str, str] = Field(
        {}, description="The layout's column -> the file's, where they differ; `a.0.b` looks into lists and objects."
    )
    keep: tuple[str, ...] = Field((), description="Further columns to keep, as text.")
    limit: int | None = Field(None, ge=1, description="Rows to read, from the start; none reads all.")
    revision: str = Field("", description="Commit of a hub dataset; default: the newest, looked up at each run.")
    split: str = Field("train", description="Split of a hub dataset.")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("name") and isinstance(values.get("path"), str):
            return {**values, "name": Path(values["path"].removeprefix(HUB)).name.partition(".")[0]}
        return values

    @model_validator(mode="after")
    def _keeps_others(self) -> Self:
        own = {"row_id", "content_id", *CONTRACTS[LAYOUTS[self.layout][1]].columns, "source", "licence"}
        if twice := sorted(own & set(self.keep)):
            raise ValueError(f"keep names {', '.join(twice)}, which every row has anyway; name further columns only")
        return self


class LoadParameters(Parameters):
    """What to load."""

    sources: tuple[Source, ...] = Field(min_length=1, description="The sources, in the order of their rows.")
    max_failed_share: float = Field(0.05, ge=0, le=1, description="Share of rows that may fail before the load does.")
    max_row_bytes: int = Field(4 << 20, ge=1, description="Longest line that is read as a row, in bytes.")


class Chunk(NamedTuple):
    """A shard to parse: consecutive records of one file."""

    source: Source
    file: str
    records: list[tuple[int, Record]]


def source_digests(parameters: LoadParameters) -> dict[str, Any]:
    """Digest what the sources hold: {source: {file name: digest}}, or the commit of a hub dataset."""
    return {
        source.name: {"hub": source.path, "revision": _hub_revision(source)}
        if source.path.startswith(HUB)
        else {name: remembered_digest(file) for name, file in _named_files(source)}
        for source in parameters.sources
    }


@stage("exact", source=True, reads=source_digests)
def load(work: Work, parameters: LoadParameters) -> Measures:
    """Read the sources, give each row its id, and keep what could not be read.

    Outputs: `rows`; `origin` (row_id, file, line).

    Raises:
        BadInput: a source is missing, empty or not what it says; too many rows failed; contracts differ.
    """
    names = [source.name for source in parameters.sources]
    if len(set(names)) < len(names):
        raise BadInput(f"sources named {', '.join(names)}", "a different name for each", "set `name` on them")
    contracts = {LAYOUTS[source.layout][1] for source in parameters.sources}
    if len(contracts) > 1:
        raise BadInput(f"layouts that give {' and '.join(sorted(contracts))} rows", "one contract", "load them apart")
    shards = work.map(parse, chunks(parameters), "parsed", draft=True)
    occurrences: dict[str, dict[bytes, int]] = {name: {} for name in names}
    origins, failures, filled, read = [], [], set[tuple[str, str]](), set[str]()

    def numbered() -> Iterator[pa.Table]:
        nonlocal filled
        for shard in shards:
            rows, origin, failed = (read_shard(shard, name) for name in ("rows", "origin", "unread"))
            source = (rows if len(rows) else failed)["source"][0].as_py()
            read.add(source)
            ids = row_ids(source, rows["content_id"].combine_chunks(), occurrences[source])
            origins.append(origin.add_column(0, "row_id", ids))
            broken = row_ids(source, failed["content_id"].combine_chunks(), occurrences[source])
            failures.append(failed.add_column(0, "row_id", broken).select(failed_schema().names))
            filled |= {(source, name) for name in rows.column_names if rows[name].null_count < len(rows)}
            yield rows.add_column(0, "row_id", ids)

    work.write(numbered())
    if read and (empty := [source for source in parameters.sources if source.name not in read]):
        found = f"{', '.join(source.path for source in empty)} without a single row"
        raise BadInput(found, "rows in every source", "put rows into it, or take it out of the recipe")
    _check_kept(parameters, filled)
    work.ledger("failed", failures)
    good, bad = sum(map(len, origins)), sum(map(len, failures))
    if good == 0 or bad / (good + bad) > parameters.max_failed_share:
        raise _too_many(parameters, good, failures)
    work.write_single(pa.concat_tables(origins), "origin")
    return {"sources": len(names)}


def chunks(parameters: LoadParameters) -> Iterator[Chunk]:
    """Cut the sources into chunks of at most 10,000 records or 64 MiB, by content alone."""
    for source in parameters.sources:
        left = source.limit
        for file, records in _files(source, parameters.max_row_bytes):
            for chunk in _cut(islice(records, left)):
                left = None if left is None else left - len(chunk)
                yield Chunk(source, file, chunk)


def _cut(records: Iterable[tuple[int, Record]]) -> Iterator[list[tuple[int, Record]]]:
    chunk: list[tuple[int, Record]] = []
    size = 0
    for numbered in records:
        chunk.append(numbered)
        size += len(numbered[1]) if isinstance(numbered[1], bytes) else 1000
        if len(chunk) == SHARD_ROWS or size >= SHARD_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def parse(chunk: Chunk) -> Tables:
    """Parse one chunk: rows (without row ids), their origin, and the unread with their errors."""
    source, file, records = chunk
    layout, contract = LAYOUTS[source.layout][0], CONTRACTS[LAYOUTS[source.layout][1]]
    contents: list[dict[str, Any]] = []
    lines: list[int] = []
    unread: list[tuple[bytes, str, int]] = []
    for line, record in records:
        try:
            row = _decode(record)
            content = layout(_renamed(row, source.columns) if source.columns else row)
            for name in source.keep:
                content[name] = None if row.get(name) is None else str(row[name])
        except ValueError as error:
            unread.append((_raw(record), str(error), line))
            continue
        contents.append(content)
        lines.append(line)
    rows = _table(contents, pa.schema([*contract.schema, *((name, pa.string()) for name in source.keep)]))
    bad: dict[int, str] = {}
    for position, column, what in problems(rows, contract):
        bad.setdefault(position, f"column {column!r} {what}")
    unread += [(orjson.dumps(contents[at])[:1000], error, lines[at]) for at, error in bad.items()]
    numbers = pa.array(lines, pa.int64())
    if bad:
        good = pa.array([at for at in range(len(contents)) if at not in bad], pa.int64())
        rows, numbers = rows.take(good), numbers.take(good)
    constants = {"source": source.name, "licence": source.licence}
    for at, (name, value) in enumerate(constants.items()):
        rows = rows.add_column(len(contract.columns) + at, name, pa.repeat(pa.scalar(value), len(rows)))
    return {
        "rows": rows.add_column(0, "content_id", content_ids(rows, contract)),
        "origin": pa.table({"file": pa.repeat(pa.scalar(file), len(rows)), "line": numbers}),
        "unread": pa.table(
            {
                "content_id": ids_from_bytes(b"".join(blake2b(raw, digest_size=16).digest() for raw, _, _ in unread)),
                "error": pa.array([error for _, error, _ in unread], pa.string()),
                "location": pa.array([f"{file}:{line}" for _, _, line in unread], pa.string()),
                "source": pa.repeat(pa.scalar(source.name), len(unread)),
            }
        ),
    }


def _decode(record: Record) -> dict[str, Any]:
    if isinstance(record, Broken):
        raise ValueError(record.error)
    row = orjson.loads(record) if isinstance(record, bytes) else record
    if not isinstance(row, dict):
        raise ValueError(not_an_object(row))
    return row


def _renamed(row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    flat = row | {theirs: _inside(row, theirs) for theirs in columns.values() if "." in theirs and theirs not in row}
    return {**row, **{ours: flat[theirs] for ours, theirs in columns.items() if theirs in flat}}


def _inside(row: dict[str, Any], name: str) -> Any:
    """Follow a name with dots into lists (by number) and objects (by key); None where it leads nowhere."""
    at: Any = row
    for part in name.split("."):
        if isinstance(at, list) and part.isdigit() and int(part) < len(at):
            at = at[int(part)]
        else:
            at = at.get(part) if isinstance(at, dict) else None
    return at


def _raw(record: Record) -> bytes:
    if isinstance(record, Broken):
        return record.raw
    return record if isinstance(record, bytes) else orjson.dumps(record, default=str)


def _table(contents: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.table({field.name: pa.array([row[field.name] for row in contents], field.type) for field in schema})


def _check_kept(parameters: LoadParameters, filled: set[tuple[str, str]]) -> None:
    """Refuse a column to keep that no row of its source has: most likely its name is misspelt."""
    for source in parameters.sources:
        if missing := [name for name in source.keep if (source.name, name) not in filled]:
            found = f"{source.path} without a value in {', '.join(missing)}"
            raise BadInput(found, "columns that some rows have", "correct `keep` in the recipe")


def _too_many(parameters: LoadParameters, good: int, failures: list[pa.Table]) -> BadInput:
    bad = pa.concat_tables(failures) if failures else failed_schema().empty_table()
    if not len(bad):
        paths = ", ".join(source.path for source in parameters.sources)
        return BadInput(f"{paths} without a single row", "at least one row", "put rows into the files")
    first = "; ".join(f"{row['location']}: {row['error']}" for row in bad.slice(0, 3).to_pylist())
    return BadInput(
        f"{len(bad):,} of {good + len(bad):,} rows could not be read: {first}",
        f"at most a share of {parameters.max_failed_share} that fails (max_failed_share)",
        "mend the rows, map the columns with `columns`, choose another layout, or raise max_failed_share",
    )


def _files(source: Source, max_row_bytes: int) -> Iterator[tuple[str, Iterator[tuple[int, Record]]]]:
    if source.path.startswith(HUB):
        yield source.name, _hub_records(source)
        return
    for name, file in _named_files(source):
        yield name, read_records(file, max_row_bytes)


def _named_files(source: Source) -> list[tuple[str, Path]]:
    """Name each file of a source: its base name, or its path inside the source's folder."""
    path = Path(source.path)
    return [(str(file.relative_to(path)) if file != path else file.name, file) for file in find_files(path)]


def _hub_records(source: Source) -> Iterator[tuple[int, Record]]:
    import datasets

    revision = _hub_revision(source)
    try:
        rows = datasets.load_dataset(source.path.removeprefix(HUB), split=source.split, revision=revision)
    except Exception as error:  # datasets, the hub and httpx have a dozen kinds
        raise _unreachable(source, error) from None
    yield from enumerate(map(dict, rows), 1)


def _hub_revision(source: Source) -> str:
    """Return the pinned commit, or ask the hub for the newest."""
    if source.revision:
        return source.revision
    from huggingface_hub import HfApi

    try:
        sha = HfApi().dataset_info(source.path.removeprefix(HUB)).sha
    except Exception as error:
        raise _unreachable(source, error) from None
    return str(sha)


def _unreachable(source: Source, error: Exception) -> BadInput:
    why = str(error).partition("\n")[0]
    return BadInput(
        f"{source.path}, split {source.split!r}, which the hub does not give ({type(error).__name__}: {why})",
        "a dataset that can be reached",
        "check the name, the split and the network, or name a local file",
    )
