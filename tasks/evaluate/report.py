"""Report on a build: what happened to every row, what the models learnt, and where five rows came from.

Writes `report.html`, one self-contained page, and the same facts as `report.json`.
"""

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from data.artifact import Artifact
from data.fingerprint import files_digest, seed_for
from infra.stage import Measures, Parameters, Records, Reference, References, stage
from infra.work import Work
from tasks.evaluate.ancestry import ancestry, input_of, text_of
from tasks.evaluate.render import render

BALANCE = ("rows_in", "rows_out", "rows_created", "rows_consumed", "rows_dropped", "rows_failed")


class ReportParameters(Parameters):
    """What to show."""

    title: str = Field("Stillhouse build", description="Heading of the report.")
    generations: int = Field(6, ge=0, le=100, description="Held-out rows whose answers are shown side by side.")
    ancestries: int = Field(5, ge=0, le=100, description="Trained rows whose ancestry is shown.")
    seed: int = Field(0, ge=0, description="Chooses other rows to show.")


@stage("exact")
def report(
    work: Work,
    parameters: ReportParameters,
    dataset: Reference,
    made: Records,
    evaluations: References,
    comparison: Reference,
) -> Measures:
    """Write the report of a flow: `made` are its artifacts in order, `evaluations` start with the base's."""
    facts = collect(parameters, dataset, made, evaluations, comparison)
    text = json.dumps(facts, indent=1, ensure_ascii=False, sort_keys=True)
    (work.out / "report.json").write_text(text + "\n", encoding="utf-8")
    (work.out / "report.html").write_text(render(json.loads(text)), encoding="utf-8")
    return {}


def collect(
    parameters: ReportParameters,
    dataset: Artifact,
    made: list[Artifact],
    evaluations: list[Artifact],
    comparison: Artifact,
) -> dict[str, Any]:
    """Collect the facts of a report from the records and tables of its artifacts (the shape: render.py)."""
    compared = pq.read_table(comparison.path / "comparison.parquet").to_pylist()
    names = [line["model"] for line in compared if line["metric"] == "loss"][: len(evaluations)]
    models = {line["digest"]: line["model"] for line in compared if line["digest"]}
    scores = dict(zip(names, (pq.read_table(each.path / "scores.parquet") for each in evaluations), strict=True))
    return {
        "title": parameters.title,
        "flow": " → ".join(dict.fromkeys(each.stage for each in made)),
        "headline": headline(dataset, made, compared, _level(comparison)),
        "stages": [stage_facts(each, models.get(each.digest)) for each in made],
        "losses": [history(each, models[each.digest]) for each in made if (each.path / "history.parquet").exists()],
        "comparison": comparison_facts(compared, comparison),
        "by_group": by_group(scores),
        "generations": side_by_side(
            scores, draw(evaluations[0]["scores"].rows, parameters.generations, parameters.seed)
        ),
        "ancestry": ancestries(parameters, dataset, made, models),
        "provenance": provenance(dataset, made, models),
    }


def headline(
    dataset: Artifact, made: list[Artifact], compared: list[dict[str, Any]], level: float
) -> list[dict[str, str]]:
    """State the few facts that matter most."""
    loaded = sum(
        each.record["measures"]["rows_created"] + each.record["measures"]["rows_failed"]
        for each in made
        if each.record["source"]
    )
    kept = sum(output["rows"] for output in dataset.record["outputs"].values() if "contract" in output)
    trained = [line for line in compared if line["model"] != "base" and line["metric"] == "exact match"]
    facts = [{"label": "rows kept", "value": f"{kept:,} of {loaded:,}"}]
    for line in [each for each in trained if each["model"] == "mean of seeds"] or trained[:1]:
        facts += [
            {"label": f"exact match, {line['model']}", "value": f"{line['value']:.1%}"},
            {"label": "gain over base", "value": f"{100 * line['difference']:+.1f} points"},
            {
                "label": f"{100 * level:g} % interval",
                "value": f"{100 * line['difference_low']:+.1f} to {100 * line['difference_high']:+.1f}",
            },
        ]
    return facts


def stage_facts(artifact: Artifact, model: str | None) -> dict[str, Any]:
    """Count a stage's rows, and say why the rows that left did."""
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
        "reasons": [*_dropped(artifact), *_failed(artifact)],
    }


def _dropped(artifact: Artifact) -> list[dict[str, Any]]:
    path = artifact.path / "dropped.parquet"
    if not path.exists():
        return []
    table = pq.read_table(path)
    return [_reason("dropped", reason, count, first, artifact) for reason, count, first in _by_reason(table, "reason")]


def _failed(artifact: Artifact) -> list[dict[str, Any]]:
    path = artifact.path / "failed.parquet"
    if not path.exists():
        return []
    table = pq.read_table(path)
    return [
        _reason(
            "failed",
            error,
            count,
            {**first, "detail": first["location"], "score": None, "partner": None},
            artifact,
        )
        for error, count, first in _by_reason(table, "error")
    ]


def _by_reason(table: pa.Table, column: str) -> list[tuple[str, int, dict[str, Any]]]:
    counted = pc.value_counts(table[column]).to_pylist()
    counted.sort(key=lambda each: (-each["counts"], each["values"]))
    return [
        (
            each["values"],
            each["counts"],
            table.filter(pc.equal(table[column], each["values"])).slice(0, 1).to_pylist()[0],
        )
        for each in counted
    ]


def _reason(kind: str, reason: str, count: int, first: dict[str, Any], artifact: Artifact) -> dict[str, Any]:
    sources = [input_of(artifact, each) for each in artifact.record["inputs"] if each["kind"] == "rows"]
    texts = [text for source in sources if (text := text_of(source, first["row_id"]))]
    return {
        "reason": reason,
        "kind": kind,
        "rows": count,
        "example": {
            "row_id": str(first["row_id"]),
            "text": texts[0] if texts else "",
            "partner": str(first["partner"]) if first["partner"] else None,
            "score": first["score"],
            "detail": first["detail"],
        },
    }


def history(artifact: Artifact, name: str) -> dict[str, Any]:
    """Read a model's loss curve, thinned to 400 points."""
    table = pq.read_table(artifact.path / "history.parquet", columns=["step", "loss"])
    every = max(1, len(table) // 400)
    thin = table.take(list(range(0, len(table), every)))
    return {
        "model": name,
        "fingerprint": artifact.fingerprint,
        "steps": thin["step"].to_pylist(),
        "loss": thin["loss"].to_pylist(),
    }


def comparison_facts(compared: list[dict[str, Any]], comparison: Artifact) -> dict[str, Any]:
    """Put the comparison's lines together by model."""
    models: dict[str, dict[str, Any]] = {}
    for line in compared:
        difference = None if line["difference"] is None else {
            "mean": line["difference"], "low": line["difference_low"], "high": line["difference_high"],
        }  # fmt: skip
        model = models.setdefault(line["model"], {"name": line["model"], "fingerprint": (line["digest"] or "")[:32]})
        if line["metric"] == "loss":
            model |= {"loss": line["value"], "loss_difference": difference}
        else:
            model |= {
                "exact_match": line["value"],
                "exact_match_low": line["low"],
                "exact_match_high": line["high"],
                "difference": difference,
            }
    return {
        "metric": "exact match",
        "rows": compared[0]["rows"],
        "level": _level(comparison),
        "models": list(models.values()),
    }


def _level(comparison: Artifact) -> float:
    level: float = comparison.record["key"]["parameters"]["level"]
    return level


def by_group(scores: dict[str, pa.Table]) -> list[dict[str, Any]]:
    """Break exact match down by group; nothing where rows have no group."""
    means = {
        name: {
            line["group"]: (line["correct_mean"], line["correct_count"])
            for line in pa.table({"group": table["group"], "correct": table["correct"].cast(pa.float64())})
            .group_by("group").aggregate([("correct", "mean"), ("correct", "count")]).to_pylist()
        }
        for name, table in scores.items()
    }  # fmt: skip
    groups = sorted(group for group in next(iter(means.values())) if group is not None)
    return [
        {
            "group": group,
            "rows": next(iter(means.values()))[group][1],
            "scores": {name: each[group][0] for name, each in means.items()},
        }
        for group in groups
    ]


def side_by_side(scores: dict[str, pa.Table], positions: list[int]) -> list[dict[str, Any]]:
    """Set the answers of all models to the same rows beside each other."""
    lines = {name: table.take(pa.array(positions, pa.int64())).to_pylist() for name, table in scores.items()}
    first = next(iter(lines.values()))
    return [
        {
            "row_id": str(row["row_id"]),
            "prompt": row["prompt"],
            "reference": row["reference"],
            "answers": [
                {"model": name, "text": each[at]["answer"], "correct": each[at]["correct"]}
                for name, each in lines.items()
            ],
        }
        for at, row in enumerate(first)
    ]


def draw(rows: int, count: int, seed: int) -> list[int]:
    """Draw distinct positions, in ascending order, by seed alone."""
    order = sorted(range(rows), key=lambda at: seed_for("show", seed, at))
    return sorted(order[:count])


def ancestries(
    parameters: ReportParameters, dataset: Artifact, made: list[Artifact], models: dict[str, str]
) -> list[dict[str, Any]]:
    """Follow some trained rows through every stage that they passed."""
    table = dataset["train"] if "train" in dataset.record["outputs"] else dataset
    chosen = draw(table.rows, parameters.ancestries, parameters.seed)
    ids = table.read(["row_id"])["row_id"].take(pa.array(chosen, pa.int64())).to_pylist()
    return [{"row_id": str(row), **ancestry(row, made, models)} for row in ids]


def provenance(dataset: Artifact, made: list[Artifact], models: dict[str, str]) -> dict[str, Any]:
    """Name the digests that everything rests on."""
    sources = []
    for artifact in made:
        if artifact.record["source"]:
            table = artifact.read(["source", "licence"])
            for line in (
                table.group_by(["source", "licence"]).aggregate([([], "count_all")]).sort_by("source").to_pylist()
            ):
                reads = artifact.record["key"]["reads"][line["source"]]
                digest = reads.get("revision") or (
                    files_digest(reads) if len(reads) > 1 else next(iter(reads.values()))
                )
                sources.append(
                    {
                        "name": line["source"],
                        "rows": line["count_all"],
                        "licence": line["licence"],
                        "digest": digest,
                    }
                )
    packages: dict[str, str] = {}
    for artifact in made:
        packages |= artifact.record["packages"]
    return {
        "dataset": {
            "stage": dataset.stage, "fingerprint": dataset.fingerprint, "digest": dataset.record["output_digest"],
        },
        "models": [
            {"name": models[each.digest], "fingerprint": each.fingerprint, "digest": each.record["output_digest"]}
            for each in made if each.digest in models
        ],
        "sources": sources,
        "packages": dict(sorted(packages.items())),
    }  # fmt: skip
