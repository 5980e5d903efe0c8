"""What one dataset has that another has not, and why: asked of the ledger, row by row.

Rows are the same row if they have the same row id. The stages that each dataset was made by say why: a row that is
missing on one side was dropped there, or failed, or was consumed, or was left behind in a table that nothing read on,
or never came in.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import duckdb

from data.artifact import Artifact
from data.errors import BadInput
from data.graph import Ancestors, ancestors

GROUP = ("what", "reason", "stage", "source")
ROW = ("row_id", "table_a", "table_b", "content_a", "content_b", "score", "partner", "detail")


class Difference(NamedTuple):
    """The groups with their counts, and some rows of each."""

    counts: list[dict[str, Any]]  # GROUP and rows, for all rows of both
    rows: list[dict[str, Any]]  # GROUP and ROW, of rows that differ


def diff(connection: duckdb.DuckDBPyConnection, a: Artifact, b: Artifact, examples: int) -> Difference:
    """Compare two datasets: rows added in B, removed, changed (other content), moved (other table), unchanged.

    A row is in another table only where the two share tables: nothing is moved by a split of all rows.

    Args:
        connection: the ledger of the store that holds both.
        a: an artifact with tables of rows, or one of its tables.
        b: the same.
        examples: the most rows to list of each group, those of the lowest row ids.

    Raises:
        BadInput: one of them has no rows.
    """
    _set_side_by_side(connection, a, b)
    _chains(connection, {"A": ancestors(a, ["rows"]), "B": ancestors(b, ["rows"])})
    connection.execute(REASONS)
    group = ", ".join(GROUP)
    counts = connection.execute(
        f"FROM (SELECT {group}, count(*) AS rows FROM told GROUP BY ALL) "
        f"ORDER BY what = 'unchanged', what, rows DESC, {group}"
    )
    groups = _lines(counts)
    rows = connection.execute(
        f"SELECT {group}, {', '.join(ROW)} FROM told WHERE what <> 'unchanged' "
        f"QUALIFY row_number() OVER (PARTITION BY {group} ORDER BY row_id) <= ? ORDER BY {group}, row_id",
        [examples],
    )
    return Difference(groups, _lines(rows))


def _set_side_by_side(connection: duckdb.DuckDBPyConnection, a: Artifact, b: Artifact) -> None:
    """Join the rows of both by row id."""
    tables = []
    for side, each in (("a", a), ("b", b)):
        rows = [name for name, output in each.record["outputs"].items() if "contract" in output]
        if not rows or each.output not in (None, *rows):
            raise BadInput(f"{each}, which holds no rows", "a dataset", "name an artifact with tables of rows")
        tables.append([each.output] if each.output else rows)
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE side_{side} AS SELECT row_id, content_id, output, source FROM row "
            "WHERE fingerprint = ? AND stage = ? AND output = coalesce(?, output)",
            [each.fingerprint, each.stage, each.output],
        )
    connection.execute(SIDE_BY_SIDE, tables)


def _chains(connection: duckdb.DuckDBPyConnection, sides: Mapping[str, Ancestors]) -> None:
    """Note the artifacts that the rows of each side came through, in order, and whether these are all."""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE chain "
        "(side VARCHAR, fingerprint VARCHAR, stage VARCHAR, place INTEGER, whole BOOLEAN)"
    )
    for side, (there, gone) in sides.items():
        for place, each in enumerate(there):
            values = [side, each.fingerprint, each.stage, place, not gone]
            connection.execute("INSERT INTO chain VALUES (?, ?, ?, ?, ?)", values)


def _lines(asked: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    names: Sequence[str] = [column[0] for column in asked.description or []]
    return [dict(zip(names, line, strict=True)) for line in asked.fetchall()]


SIDE_BY_SIDE = """
CREATE OR REPLACE TEMP TABLE both_sides AS
SELECT row_id, a.content_id AS content_a, b.content_id AS content_b, a.output AS table_a, b.output AS table_b,
    coalesce(b.source, a.source) AS source,
    CASE WHEN a.content_id IS NULL THEN 'added' WHEN b.content_id IS NULL THEN 'removed'
         WHEN a.content_id <> b.content_id THEN 'changed'
         WHEN a.output <> b.output
             AND (list_contains($1, b.output) OR list_contains($2, a.output)) THEN 'moved'
         ELSE 'unchanged' END AS what
FROM side_a AS a FULL JOIN side_b AS b USING (row_id);
"""

# `missing`: on which side a row is missing. `met`: what the artifacts of that side did with it; the last one counts,
# and of one artifact its ledgers before its tables. `edits`: where the content changed on the way to one side alone.
REASONS = """
CREATE OR REPLACE TEMP TABLE missing AS
SELECT row_id, if(what = 'added', 'A', 'B') AS side, if(what = 'added', 'B', 'A') AS there
FROM both_sides WHERE what IN ('added', 'removed');

CREATE OR REPLACE TEMP TABLE met AS
WITH every AS (
    SELECT side, row_id, place, chain.stage, 4 AS weight, reason, score, partner, detail
    FROM dropped JOIN missing USING (row_id) JOIN chain USING (side, fingerprint)
    UNION ALL
    SELECT side, row_id, place, chain.stage, 3, 'failed', NULL, NULL, error
    FROM failed JOIN missing USING (row_id) JOIN chain USING (side, fingerprint)
    UNION ALL
    SELECT side, parent, place, chain.stage, 2, 'consumed into new rows', NULL, min(child), NULL
    FROM row_edge JOIN missing ON missing.row_id = parent JOIN chain USING (side, fingerprint) GROUP BY ALL
    UNION ALL
    SELECT side, row_id, place, chain.stage, 1, 'in table ' || output || ', which was not read on', NULL, NULL, NULL
    FROM row JOIN missing USING (row_id) JOIN chain USING (side, fingerprint)
)
FROM every QUALIFY row_number() OVER (PARTITION BY row_id ORDER BY place DESC, weight DESC, reason) = 1;

CREATE OR REPLACE TEMP TABLE born AS
SELECT child AS row_id, any_value(chain.stage) AS stage
FROM row_edge JOIN missing ON missing.row_id = child
    JOIN chain ON chain.side = there AND chain.fingerprint = row_edge.fingerprint
GROUP BY child;

CREATE OR REPLACE TEMP TABLE edits AS
WITH contents AS (
    SELECT side, row_id, place, chain.stage, chain.fingerprint, content_id,
        lag(content_id) OVER (PARTITION BY side, row_id ORDER BY place) AS before
    FROM row JOIN chain USING (fingerprint)
    WHERE row_id IN (SELECT row_id FROM both_sides WHERE what = 'changed')
)
SELECT row_id, arg_max(stage, place) FILTER (side = 'A') AS in_a, arg_max(stage, place) FILTER (side = 'B') AS in_b
FROM contents
WHERE content_id <> before AND fingerprint IN (SELECT fingerprint FROM chain GROUP BY fingerprint HAVING count(*) = 1)
GROUP BY row_id;

CREATE OR REPLACE TEMP TABLE told AS
SELECT what,
    CASE WHEN what = 'unchanged' THEN ''
         WHEN what = 'moved' THEN table_a || ' -> ' || table_b
         WHEN what = 'changed' AND in_a IS NOT NULL AND in_b IS NOT NULL THEN 'edited in A and in B'
         WHEN what = 'changed' AND in_a IS NOT NULL THEN 'edited in A'
         WHEN what = 'changed' AND in_b IS NOT NULL THEN 'edited in B'
         WHEN what = 'changed' THEN 'edited, where is not known'
         WHEN met.reason IS NOT NULL THEN met.reason
         WHEN born.stage IS NOT NULL THEN 'created in ' || there
         WHEN EXISTS (FROM chain WHERE chain.side = missing.side AND NOT whole)
             THEN 'not met in what is left of ' || missing.side
         ELSE 'not in the sources of ' || missing.side END AS reason,
    coalesce(met.stage, CASE WHEN met.reason IS NULL THEN born.stage END, in_b, in_a, '') AS stage,
    source, row_id, table_a, table_b, content_a, content_b, met.score, met.partner, met.detail
FROM both_sides LEFT JOIN missing USING (row_id) LEFT JOIN met USING (row_id) LEFT JOIN born USING (row_id)
    LEFT JOIN edits USING (row_id);
"""
