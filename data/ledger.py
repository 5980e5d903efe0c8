"""The ledger: DuckDB tables and views over the records of a store.

Records and Parquet files are the truth. `lineage.duckdb` is an index derived from them: one process at a time adds
what is new to a private copy and renames it into place, so that readers always open a whole file and never wait.
Deleting it loses nothing.

    artifact  one line per published folder          row       which rows are in which table
    input     what an artifact was made of           row_edge  child and parent, where ids change
    output    its tables and files                   dropped   why a row left, with score and partner
    measure   its numbers                            failed    the error of a row, and where it stands
    run, run_stage   what each run did               origin    the file and line that a row was loaded from
    tag       each version of each name              trained_on   model -> each row it was trained on
    source_rows(model)   the loaded rows that a model (a fingerprint's first digits) descends from
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb

from data.artifact import Artifact
from data.errors import BadInput
from data.tags import Tag, read_tags

INDEX = "lineage.duckdb"

SCHEMA = """
CREATE TABLE artifact (
    fingerprint VARCHAR, stage VARCHAR, class VARCHAR, path VARCHAR, output_digest VARCHAR,
    source BOOLEAN, trains BOOLEAN, made TIMESTAMP, record_digest VARCHAR);
CREATE TABLE input (
    fingerprint VARCHAR, stage VARCHAR, name VARCHAR, kind VARCHAR,
    input_stage VARCHAR, input_fingerprint VARCHAR, input_output VARCHAR, digest VARCHAR);
CREATE TABLE output (
    fingerprint VARCHAR, stage VARCHAR, name VARCHAR, contract VARCHAR, rows BIGINT, digest VARCHAR);
CREATE TABLE measure (fingerprint VARCHAR, stage VARCHAR, name VARCHAR, value DOUBLE);
CREATE TABLE row (
    fingerprint VARCHAR, stage VARCHAR, output VARCHAR,
    row_id UUID, content_id UUID, source VARCHAR, licence VARCHAR);
CREATE TABLE row_edge (fingerprint VARCHAR, stage VARCHAR, child UUID, parent UUID);
CREATE TABLE dropped (
    fingerprint VARCHAR, stage VARCHAR, row_id UUID, reason VARCHAR, score DOUBLE, partner UUID, detail VARCHAR);
CREATE TABLE failed (fingerprint VARCHAR, stage VARCHAR, row_id UUID, error VARCHAR, location VARCHAR);
CREATE TABLE origin (fingerprint VARCHAR, stage VARCHAR, row_id UUID, file VARCHAR, line BIGINT);
CREATE TABLE run (
    run VARCHAR, flow VARCHAR, recipe VARCHAR, state VARCHAR, began TIMESTAMP, seconds DOUBLE,
    dataset VARCHAR, model VARCHAR, report VARCHAR);
CREATE TABLE run_stage (
    run VARCHAR, position INTEGER, stage VARCHAR, fingerprint VARCHAR, state VARCHAR, seconds DOUBLE);
CREATE TABLE tag (
    name VARCHAR, version INTEGER, stage VARCHAR, fingerprint VARCHAR, output VARCHAR, output_digest VARCHAR,
    made TIMESTAMP, note VARCHAR);
CREATE VIEW trained_on AS
    SELECT model.fingerprint AS model, row.row_id, row.content_id, row.source, row.licence
    FROM artifact AS model
    JOIN input ON input.fingerprint = model.fingerprint AND input.kind = 'rows'
    JOIN row ON row.fingerprint = input.input_fingerprint AND row.output = coalesce(input.input_output, 'rows')
    WHERE model.trains
      AND NOT EXISTS (FROM dropped WHERE dropped.fingerprint = model.fingerprint AND dropped.row_id = row.row_id)
      AND NOT EXISTS (FROM failed WHERE failed.fingerprint = model.fingerprint AND failed.row_id = row.row_id);
CREATE MACRO source_rows(chosen) AS TABLE
    WITH RECURSIVE up(row_id) AS (
        SELECT row_id FROM trained_on WHERE starts_with(model, chosen)
        UNION
        SELECT parent FROM row_edge JOIN up ON row_edge.child = up.row_id
    )
    SELECT DISTINCT up.row_id, row.source, row.licence, origin.file, origin.line
    FROM up JOIN origin USING (row_id) JOIN row USING (row_id, fingerprint)
    ORDER BY row.source, origin.file, origin.line;
"""

LEDGERS = {
    "edges": "INSERT INTO row_edge SELECT ?, ?, child, parent FROM read_parquet(?)",
    "dropped": "INSERT INTO dropped SELECT ?, ?, row_id, reason, score, partner, detail FROM read_parquet(?)",
    "failed": "INSERT INTO failed SELECT ?, ?, row_id, error, location FROM read_parquet(?)",
    "origin": "INSERT INTO origin SELECT ?, ?, row_id, file, line FROM read_parquet(?)",
}


@contextmanager
def ledger(store: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the views over everything that the store holds now, read-only.

    A process that opens a second ledger inside a first reads the first one's snapshot.

    Raises:
        FileNotFoundError: there is no store at this path.
    """
    with _open(refresh(store), read_only=True) as connection:
        yield connection


def _open(path: Path, *, read_only: bool) -> duckdb.DuckDBPyConnection:
    """Open a database, always with the same options: DuckDB refuses to open a file twice with different ones."""
    return duckdb.connect(str(path), read_only=read_only, config={"autoinstall_known_extensions": "false"})


def refresh(store: Path) -> Path:
    """Bring the index up to date with the store and return its path; a read-only store's is taken as it is."""
    index, following = store / INDEX, store / ".lineage.next"
    if not os.access(store, os.W_OK):
        if not index.exists():
            found = f"the store {store}, read-only and without {INDEX}"
            raise BadInput(found, "an index of what it holds", "ask once where the store can be written")
        return index
    with (store / ".lineage.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Listed under the lock: an older list would take out what another process has just added.
        records = {path: sha256(path.read_bytes()).hexdigest() for path in sorted(store.glob("*/*/record.json"))}
        runs, tags = sorted(store.glob("runs/*.json")), read_tags(store)
        if _known(index) == (set(records.values()), {path.stem for path in runs}, {_tag_line(tag) for tag in tags}):
            return index
        for rest in store.glob(f"{following.name}*"):  # of a refresh that was killed; DuckDB would replay its log
            rest.unlink()
        if index.exists():
            shutil.copyfile(index, following)
        with _open(following, read_only=False) as connection:
            if not index.exists():
                connection.execute(SCHEMA)
                connection.execute("CREATE TABLE made_by AS SELECT ? AS schema", [_schema_digest()])
            _forget(connection, set(records.values()), {path.stem for path in runs})
            known = {row[0] for row in connection.execute("SELECT record_digest FROM artifact").fetchall()}
            for path, digest in records.items():
                if digest not in known:
                    _ingest(connection, store, path.parent, digest)
            seen = {row[0] for row in connection.execute("SELECT run FROM run").fetchall()}
            for path in runs:
                if path.stem not in seen:
                    _ingest_run(connection, json.loads(path.read_bytes()))
            connection.execute("DELETE FROM tag")  # they are few, and it takes no care
            for tag in tags:
                values = [*_tag_line(tag)[:6], tag.made, tag.note]
                connection.execute(
                    "INSERT INTO tag VALUES (?, ?, ?, ?, ?, ?, make_timestamp((? * 1000000)::BIGINT), ?)", values
                )
        following.rename(index)
    return index


def _known(index: Path) -> tuple[set[str], set[str], set[tuple[Any, ...]]] | None:
    """Name the records, runs and tags that the index holds; an index of another schema or DuckDB is removed: None."""
    if not index.exists():
        return None
    try:
        with _open(index, read_only=True) as connection:
            if connection.execute("SELECT schema FROM made_by").fetchone() == (_schema_digest(),):
                artifacts = {row[0] for row in connection.execute("SELECT record_digest FROM artifact").fetchall()}
                runs = {row[0] for row in connection.execute("SELECT run FROM run").fetchall()}
                return artifacts, runs, set(connection.execute("SELECT * EXCLUDE made FROM tag").fetchall())
    except duckdb.Error:
        pass  # unreadable: everything in it stands in the records too
    index.unlink()
    return None


def _tag_line(tag: Tag) -> tuple[Any, ...]:
    return (tag.name, tag.version, tag.stage, tag.fingerprint, tag.output, tag.output_digest, tag.note)


def _schema_digest() -> str:
    return sha256(SCHEMA.encode()).hexdigest()


def _forget(connection: duckdb.DuckDBPyConnection, digests: set[str], runs: set[str]) -> None:
    """Take out what the store no longer holds."""
    gone = [
        fingerprint
        for fingerprint, digest in connection.execute("SELECT fingerprint, record_digest FROM artifact").fetchall()
        if digest not in digests
    ]
    if gone:
        for table in (
            "artifact",
            "input",
            "output",
            "measure",
            "row",
            "row_edge",
            "dropped",
            "failed",
            "origin",
        ):
            connection.execute(f"DELETE FROM {table} WHERE fingerprint IN (SELECT unnest(?))", [gone])
    for table in ("run", "run_stage"):
        connection.execute(f"DELETE FROM {table} WHERE NOT list_contains(?::VARCHAR[], run)", [sorted(runs)])


def _ingest(connection: duckdb.DuckDBPyConnection, store: Path, folder: Path, digest: str) -> None:
    record = json.loads((folder / "record.json").read_bytes())
    began = json.loads((folder / "run.json").read_bytes())["began"] if (folder / "run.json").exists() else None
    name = [record["fingerprint"], record["stage"]]
    connection.execute("BEGIN")
    connection.execute(
        "INSERT INTO artifact VALUES (?, ?, ?, ?, ?, ?, ?, make_timestamp((? * 1000000)::BIGINT), ?)",
        [*name, record["class"], str(folder.relative_to(store)), record["output_digest"],
         record["source"], record["trains"], began, digest],
    )  # fmt: skip
    for each in record["inputs"]:
        values = [each[column] for column in ("name", "kind", "stage", "fingerprint", "output", "digest")]
        connection.execute("INSERT INTO input VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [*name, *values])
    for measure, value in record["measures"].items():
        connection.execute("INSERT INTO measure VALUES (?, ?, ?, ?)", [*name, measure, value])
    for output, each in record["outputs"].items():
        connection.execute(
            "INSERT INTO output VALUES (?, ?, ?, ?, ?, ?)",
            [*name, output, each.get("contract"), each.get("rows"), each["digest"]],
        )
        if "contract" in each:
            files = [str(path) for path in Artifact("", "", folder, output).files()]
            connection.execute(
                "INSERT INTO row SELECT ?, ?, ?, row_id, content_id, source, licence FROM read_parquet(?)",
                [*name, output, files],
            )
    for table, statement in LEDGERS.items():
        if (folder / f"{table}.parquet").exists():
            connection.execute(statement, [*name, str(folder / f"{table}.parquet")])
    connection.execute("COMMIT")


def _ingest_run(connection: duckdb.DuckDBPyConnection, run: dict[str, Any]) -> None:
    columns = ("run", "flow", "recipe", "state", "began", "seconds", "dataset", "model", "report")
    connection.execute("BEGIN")
    connection.execute(
        "INSERT INTO run VALUES (?, ?, ?, ?, make_timestamp((? * 1000000)::BIGINT), ?, ?, ?, ?)",
        [run[column] for column in columns],
    )
    for position, each in enumerate(run["stages"]):
        values = [each[column] for column in ("stage", "fingerprint", "state", "seconds")]
        connection.execute("INSERT INTO run_stage VALUES (?, ?, ?, ?, ?, ?)", [run["run"], position, *values])
    connection.execute("COMMIT")
