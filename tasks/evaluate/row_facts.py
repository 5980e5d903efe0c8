"""What became of a stage's rows: how many left and why, with examples, and which rows stood next to a threshold."""

import math
import uuid
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data.artifact import Artifact, read_parquet
from data.contracts import ID
from tasks.evaluate.texts import inputs_of, texts_of

BALANCE = ("rows_in", "rows_out", "rows_created", "rows_consumed", "rows_dropped", "rows_failed")
EXCERPT = 600  # characters of a row beside a threshold: a filter may list a hundred and fifty of them
PHRASES = 10  # common phrases that are shown

Facts = dict[str, Any]


def stage_facts(artifact: Artifact, model: str | None, private: Sequence[Artifact] = ()) -> Facts:
    """Count a stage's rows, and say why the rows that left did.

    Args:
        artifact: what the stage published.
        model: name of the model that it trained, if it did.
        private: tables whose rows are not to be shown as they came in.
    """
    record = artifact.record
    measures = record["measures"]
    tables = {name: output["rows"] for name, output in record["outputs"].items() if "contract" in output}
    return {
        "stage": f"{artifact.stage}, {model}" if model and record["trains"] else artifact.stage,
        "fingerprint": artifact.fingerprint,
        "class": record["class"],
        "trains": record["trains"],
        **{name: int(measures[name]) for name in BALANCE},
        "tables": tables,
        "reasons": reasons(artifact, private),
    }


def reasons(artifact: Artifact, private: Sequence[Artifact] = ()) -> list[Facts]:
    """Count the rows that left a stage by reason, each with an example, and the row on whose account that one left."""
    lost = _by_reason(artifact, "dropped", "reason") + _by_reason(artifact, "failed", "error")
    row, partner = _both_texts(artifact, [first for *_, first in lost], private)
    return [
        {
            "reason": reason,
            "kind": kind,
            "rows": count,
            "example": {
                "row_id": str(first["row_id"]),
                "text": row.get(first["row_id"], ""),
                "score": _finite(first.get("score")),
                "detail": first.get("detail", first.get("location")),
                **_partner(first, partner),
            },
        }
        for kind, reason, count, first in lost
    ]


def _by_reason(artifact: Artifact, kind: str, column: str) -> list[tuple[str, str, int, Facts]]:
    """Count a ledger's rows by reason, the commonest first: (kind, reason, rows, the one of the lowest id)."""
    path = artifact.path / f"{kind}.parquet"
    if not path.exists():
        return []
    table = read_parquet(path)
    counted = pc.value_counts(table[column]).to_pylist()
    counted.sort(key=lambda each: (-each["counts"], each["values"]))
    firsts = [table.slice(pc.index(table[column], each["values"]).as_py(), 1).to_pylist()[0] for each in counted]
    return [(kind, each["values"], each["counts"], first) for each, first in zip(counted, firsts, strict=True)]


# ---- thresholds ------------------------------------------------------------------------------------------


def thresholds(artifact: Artifact, private: Sequence[Artifact] = ()) -> Facts | None:
    """List the rows on both sides of each of a stage's thresholds, the nearest first; None if it has none.

    Rules that have rows on both sides come first: only there did the threshold decide.
    """
    if "borders" not in artifact.record["outputs"]:
        return None
    lines = artifact["borders"].read().to_pylist()
    row, partner = _both_texts(artifact, lines, private)
    rules = []
    for rule, group in groupby(lines, key=lambda line: str(line["rule"])):
        sides: dict[bool, list[Facts]] = {True: [], False: []}
        for line in group:
            threshold = line["threshold"]
            sides[line["kept"]].append({
                "row_id": str(line["row_id"]),
                "value": _finite(line["value"]),
                "detail": line["detail"],
                "text": _excerpt(row.get(line["row_id"], ""), line["partner"] in partner),
                **_partner(line, partner),
            })  # fmt: skip
        rules.append({"rule": rule, "threshold": _finite(threshold), "kept": sides[True], "dropped": sides[False]})
    rules.sort(key=lambda rule: not (rule["kept"] and rule["dropped"]))
    return {"stage": artifact.stage, "fingerprint": artifact.fingerprint, "rules": rules}


def _both_texts(
    artifact: Artifact, lines: Iterable[Facts], private: Sequence[Artifact]
) -> tuple[dict[uuid.UUID, str], dict[uuid.UUID, str]]:
    """Find the texts of rows that a stage judged, and of their partners, which may stand in an evaluation set."""
    lines = list(lines)
    rows, others = inputs_of(artifact, "rows"), inputs_of(artifact, "reference")
    partners = [line["partner"] for line in lines if line.get("partner")]
    return (
        texts_of(rows, [line["row_id"] for line in lines], private),
        texts_of([*rows, *others], partners, private),
    )


def _partner(line: Facts, texts: dict[uuid.UUID, str]) -> Facts:
    partner = line.get("partner")
    return {"partner": str(partner) if partner else None, "partner_text": texts.get(partner) if partner else None}


def _excerpt(text: str, compared: bool) -> str:
    """Cut a text, unless it stands beside another: what differs may come late."""
    return text if compared or len(text) <= EXCERPT else f"{text[:EXCERPT]} …"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# ---- what some stages found ------------------------------------------------------------------------------


def overlap_facts(artifact: Artifact) -> Facts | None:
    """Tell what `decontaminate` found: rows by evaluation set, and the phrases that were too common to count."""
    outputs, measures = artifact.record["outputs"], artifact.record["measures"]
    if "rows_sharing" not in measures:
        return None
    sets: list[Facts] = []
    if "overlaps" in outputs:
        table = _bare(artifact["overlaps"].read(["source", "row_id", "evaluation"]))
        count = "count_distinct"
        counted = table.group_by("source").aggregate([("row_id", count), ("evaluation", count)]).sort_by("source")
        rows, items = (counted[f"{name}_{count}"].to_pylist() for name in ("row_id", "evaluation"))
        sets = [
            {"source": source, "rows": row, "items": item}
            for source, row, item in zip(counted["source"].to_pylist(), rows, items, strict=True)
        ]
    phrases: list[Facts] = []
    if "common" in outputs:
        columns = ["text", "rows", "items", "source"]
        phrases = artifact["common"].take(range(min(PHRASES, artifact["common"].rows)), columns).to_pylist()
    counts = {name: int(measures[name]) for name in ("rows_equal", "rows_sharing", "rows_spared", "items")}
    return {"stage": artifact.stage, **counts, "sets": sets, "phrases": phrases}


def personal_facts(artifact: Artifact) -> list[Facts]:
    """Count the personal data that `filter` found, by kind: findings masked, findings dropped with their row, rows."""
    if "personal" not in artifact.record["outputs"]:
        return []
    table = _bare(artifact["personal"].read(["kind", "action", "row_id"]))
    masked = pc.equal(table["action"], "masked").cast(pa.int64())
    counted = (
        table.append_column("masked", masked)
        .group_by("kind")
        .aggregate([("masked", "sum"), ("masked", "count"), ("row_id", "count_distinct")])
    )
    return [
        {
            "kind": line["kind"],
            "masked": line["masked_sum"],
            "dropped": line["masked_count"] - line["masked_sum"],
            "rows": line["row_id_count_distinct"],
        }
        for line in counted.sort_by([("masked_count", "descending"), ("kind", "ascending")]).to_pylist()
    ]


def _bare(table: pa.Table) -> pa.Table:
    """Take ids as plain bytes, which Arrow can count."""
    arrays = [column.combine_chunks() for column in table.columns]
    return pa.table([each.storage if each.type == ID else each for each in arrays], table.column_names)
