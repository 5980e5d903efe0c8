"""The questions that people ask of the ledger: what happened to a row, and what was this made of?"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb

from data.artifact import ROWS


@dataclass(frozen=True)
class Event:
    """Say what one artifact did to one row."""

    stage: str
    fingerprint: str
    what: str  # loaded, kept, edited, created, dropped, failed, trained on
    detail: str
    content_id: uuid.UUID | None = None
    output: str | None = None
    partner: uuid.UUID | None = None


def find_rows(connection: duckdb.DuckDBPyConnection, name: str) -> list[uuid.UUID]:
    """Find rows by their id, the first 6 or more digits of it, or the FILE:LINE that they were loaded from."""
    file, _, line = name.rpartition(":")
    if file and line.isdigit():
        found = connection.execute(
            "SELECT DISTINCT row_id FROM origin WHERE file = ? AND line = ? "
            "UNION SELECT row_id FROM failed WHERE location = ?",
            [file, int(line), name],
        ).fetchall()
    elif len(name) >= 6:
        found = connection.execute(
            "SELECT DISTINCT row_id FROM (SELECT row_id FROM row UNION ALL SELECT row_id FROM failed) "
            "WHERE starts_with(row_id::VARCHAR, lower(?)) LIMIT 20",
            [name],
        ).fetchall()
    else:
        found = []
    return sorted(row[0] for row in found)


def parents(connection: duckdb.DuckDBPyConnection, row: uuid.UUID) -> list[uuid.UUID]:
    """Find the rows that a row was created from."""
    found = connection.execute("SELECT DISTINCT parent FROM row_edge WHERE child = ? ORDER BY parent", [row])
    return [each[0] for each in found.fetchall()]


def history(connection: duckdb.DuckDBPyConnection, row: uuid.UUID, fingerprints: list[str]) -> list[Event]:
    """Tell what a chain of artifacts (in the order in which they were made) did to a row."""
    events: list[Event] = []
    content: uuid.UUID | None = None
    for fingerprint in fingerprints:
        for event in _events(connection, row, fingerprint, content):
            content = event.content_id or content
            events.append(event)
    return events


_CHAIN = """
WITH made AS (SELECT fingerprint, position FROM run_stage WHERE run = $1 AND fingerprint IS NOT NULL),
     used AS (SELECT digest FROM input JOIN made USING (fingerprint) WHERE kind <> 'record'),
     ended AS (SELECT unnest([dataset, model]) AS artifact FROM run WHERE run = $1),
     onward AS (
        SELECT fingerprint FROM made
        WHERE EXISTS (FROM output JOIN used USING (digest) WHERE output.fingerprint = made.fingerprint)
           OR EXISTS (FROM ended WHERE ends_with(artifact, made.fingerprint))),
     taken AS (
        SELECT digest, fingerprint IN (FROM onward) AS onward, fingerprint
        FROM input JOIN made USING (fingerprint) WHERE kind = 'rows')
SELECT fingerprint FROM made
WHERE fingerprint IN (FROM onward)
   OR NOT EXISTS (
        FROM taken AS own JOIN taken AS other USING (digest)
        WHERE own.fingerprint = made.fingerprint AND other.onward)
ORDER BY position
"""


def latest_run(connection: duckdb.DuckDBPyConnection, row: uuid.UUID) -> list[str]:
    """List the fingerprints, in order, of the newest run that met a row; without one, all that hold it, by age.

    What the run only made to set beside the rest is left out: a stage whose result nothing went on with, while another
    stage took the same rows and its result was (a baseline of a selection).
    """
    met = (
        "SELECT fingerprint FROM row WHERE row_id = $1 UNION SELECT fingerprint FROM dropped WHERE row_id = $1 "
        "UNION SELECT fingerprint FROM failed WHERE row_id = $1"
    )
    run = connection.execute(
        f"SELECT run FROM run_stage JOIN run USING (run) WHERE fingerprint IN ({met}) ORDER BY began DESC LIMIT 1",
        [row],
    ).fetchone()
    if run:
        return [each[0] for each in connection.execute(_CHAIN, [run[0]]).fetchall()]
    query = f"SELECT fingerprint FROM artifact WHERE fingerprint IN ({met}) ORDER BY made"
    return [each[0] for each in connection.execute(query, [row]).fetchall()]


def _events(
    connection: duckdb.DuckDBPyConnection, row: uuid.UUID, fingerprint: str, before: uuid.UUID | None
) -> Iterator[Event]:
    def ask(query: str) -> list[Any]:
        found: list[Any] = connection.execute(query, [fingerprint, row]).fetchall()
        return found

    stage = connection.execute("SELECT stage FROM artifact WHERE fingerprint = ?", [fingerprint]).fetchone()
    name = stage[0] if stage else "?"
    origin = ask("SELECT file, line FROM origin WHERE fingerprint = $1 AND row_id = $2")
    for output, content in ask("SELECT output, content_id FROM row WHERE fingerprint = $1 AND row_id = $2"):
        where = "" if output == ROWS else f"in {output}"
        if origin:
            yield Event(name, fingerprint, "loaded", f"from {origin[0][0]}, line {origin[0][1]:,}", content, output)
        elif before is None:
            born = ask("SELECT parent FROM row_edge WHERE fingerprint = $1 AND child = $2 ORDER BY parent")
            yield Event(
                name,
                fingerprint,
                "created",
                f"from {', '.join(str(each[0]) for each in born)}",
                content,
                output,
            )
        else:
            yield Event(name, fingerprint, "kept" if content == before else "edited", where, content, output)
    for reason, score, partner, detail in ask(
        "SELECT reason, score, partner, detail FROM dropped WHERE fingerprint = $1 AND row_id = $2"
    ):
        words = [
            reason,
            f"score {score:g}" if score is not None else "",
            f"because of {partner}" if partner else "",
            detail,
        ]
        yield Event(name, fingerprint, "dropped", ", ".join(filter(None, words)), partner=partner)
    for error, location in ask("SELECT error, location FROM failed WHERE fingerprint = $1 AND row_id = $2"):
        yield Event(name, fingerprint, "failed", f"{location}: {error}" if location else error)
    for child in ask("SELECT child FROM row_edge WHERE fingerprint = $1 AND parent = $2"):
        yield Event(name, fingerprint, "consumed", f"into {child[0]}")
    if ask("SELECT 1 FROM trained_on WHERE model = $1 AND row_id = $2"):
        yield Event(name, fingerprint, "trained on", "")


def upstream(connection: duckdb.DuckDBPyConnection, fingerprint: str) -> list[tuple[int, str, str, str]]:
    """Walk an artifact's ancestors: (depth, stage, fingerprint, role of the input), each artifact once."""
    seen: set[str] = set()
    walked: list[tuple[int, str, str, str]] = []

    def walk(stage: str, name: str, role: str, depth: int) -> None:
        walked.append((depth, stage, name, role))
        if name in seen:
            return
        seen.add(name)
        for row in connection.execute(
            "SELECT DISTINCT input_stage, input_fingerprint, name FROM input WHERE fingerprint = ? ORDER BY ALL",
            [name],
        ).fetchall():
            walk(row[0], row[1], row[2], depth + 1)

    stage = connection.execute("SELECT stage FROM artifact WHERE fingerprint = ?", [fingerprint]).fetchone()
    walk(stage[0] if stage else "?", fingerprint, "", 0)
    return walked
