"""Report on a build: what happened to every row, what was selected, what the models learnt, where five rows came from.

Writes `report.html`, one self-contained page, and the same facts as `report.json`.
"""

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from data.artifact import Artifact
from data.fingerprint import files_digest, seed_for
from data.graph import ancestors
from data.ids import lots
from infra.stage import Measures, Parameters, Records, Reference, References, stage
from infra.work import Work
from tasks.evaluate.alignment_facts import alignment_facts, asked_model, model_names
from tasks.evaluate.ancestry import ancestry
from tasks.evaluate.formats import number, percent
from tasks.evaluate.model_facts import arms_facts, by_group, comparison_facts, draw, history, side_by_side
from tasks.evaluate.render import render
from tasks.evaluate.row_facts import overlap_facts, personal_facts, stage_facts, thresholds
from tasks.evaluate.selection_facts import arms_of, is_selection, picked_from, selection_facts
from tasks.evaluate.texts import present

COMMONEST = 3  # reasons in the headline
SPARE = 20  # rows drawn for each whose ancestry is shown, for those that are not to be shown

Facts = dict[str, Any]


class ReportParameters(Parameters):
    """What to show."""

    title: str = Field("Stillhouse build", description="Heading of the report.")
    generations: int = Field(6, ge=0, le=100, description="Held-out rows whose answers are shown side by side.")
    ancestries: int = Field(5, ge=0, le=100, description="Rows of the dataset whose ancestry is shown.")
    seed: int = Field(0, ge=0, description="Chooses other rows to show.")


@stage("exact")
def report(
    work: Work,
    parameters: ReportParameters,
    dataset: Reference,
    made: Records,
    selections: Records,
    evaluations: References,
    comparison: Records,
) -> Measures:
    """Write the report of a flow.

    `made` are its artifacts in order; `selections` are further selections from the same pool; `evaluations` start with
    the base's; `comparison` is what the comparing stages have published, and `evaluate_pairs`, `evaluate_responses` and
    `teacher_check`.
    """
    facts = collect(parameters, dataset, made, selections, evaluations, comparison)
    text = json.dumps(facts, indent=1, ensure_ascii=False, sort_keys=True)
    (work.out / "report.json").write_text(text + "\n", encoding="utf-8")
    (work.out / "report.html").write_text(render(json.loads(text)), encoding="utf-8")
    return {}


def collect(
    parameters: ReportParameters,
    dataset: Artifact,
    made: list[Artifact],
    selections: list[Artifact],
    evaluations: list[Artifact],
    comparison: list[Artifact],
) -> Facts:
    """Collect the facts of a report from the records and tables of its artifacts; what there is none of is empty.

    Their shape is seen in tests/tasks/evaluate/samples.py, which has one of each.
    """
    bases = [each for each in comparison if "comparison" in each.record["outputs"]]
    arms = [each for each in comparison if "arms" in each.record["outputs"]]
    compared = [line for each in bases for line in pq.read_table(each.path / "comparison.parquet").to_pylist()]
    names = [line["model"] for line in compared if line["metric"] == "loss"][: len(evaluations)]
    known = model_names(comparison)
    names += [known.get(asked_model(evaluations[n]), f"model {n + 1}") for n in range(len(names), len(evaluations))]
    models = {line["digest"]: line["model"] for line in compared if line["digest"]} | known
    scores = dict(zip(names, (pq.read_table(each.path / "scores.parquet") for each in evaluations), strict=True))
    asked = min((len(table) for table in scores.values()), default=0)
    levels = [float(each.record["key"]["parameters"]["level"]) for each in bases]
    private = [_private(made[at:]) for at in range(len(made))]
    picked, own = picked_from(made, selections), any(map(is_selection, made))
    facts = {
        "title": parameters.title,
        "flow": " → ".join(dict.fromkeys(each.stage for each in made)),
        "stages": [
            stage_facts(each, models.get(each.digest), tables) for each, tables in zip(made, private, strict=True)
        ],
        "thresholds": [
            found for each, tables in zip(made, private, strict=True) if (found := thresholds(each, tables))
        ],
        "overlaps": [found for each in made if (found := overlap_facts(each))],
        "personal": [line for each in made for line in personal_facts(each)],
        "selection": selection_facts(picked, own, arms_of(arms[0]) if arms else {}, parameters.seed),
        "losses": [
            history(each, models.get(each.digest, each.stage))
            for each in made
            if (each.path / "history.parquet").exists()
        ],
        "comparison": comparison_facts(compared, levels[0]) if compared else None,
        "arms": [arms_facts(each) for each in arms],
        "alignment": alignment_facts(comparison, known),
        "by_group": by_group(scores),
        "generations": side_by_side(scores, draw(asked, parameters.generations, parameters.seed)),
        "ancestry": ancestries(parameters, dataset, made, models),
        "provenance": provenance(dataset, made, models),
    }
    return facts | {"headline": headline(dataset, made, facts, compared)}


def _private(made: list[Artifact]) -> list[Artifact]:
    """List the tables of personal data that this stage or a later one has found: of rows as they are before it."""
    return [each["personal"] for each in made if "personal" in each.record["outputs"]]


# ---- headline --------------------------------------------------------------------------------------------


def headline(dataset: Artifact, made: list[Artifact], facts: Facts, compared: list[Facts]) -> list[dict[str, str]]:
    """State the few facts that matter most."""
    before = {each.fingerprint for each in ancestors(dataset, ["rows"]).there}
    loaded = sum(
        each.record["measures"]["rows_created"] + each.record["measures"]["rows_failed"]
        for each in made
        if each.record["source"] and each.fingerprint in before
    )
    kept = sum(output["rows"] for output in dataset.record["outputs"].values() if "contract" in output)
    told = [("rows kept", f"{kept:,} of {loaded:,}")]
    if any(map(is_selection, made)):
        told += _selected(facts)
    if facts["selection"]:
        told += _commonest(made, facts["stages"])
    if facts["arms"]:
        told += _separable(facts["arms"][0])
    if compared:
        told += _gained(compared, facts["comparison"]["level"])
    return [{"label": label, "value": value} for label, value in told]


def _selected(facts: Facts) -> list[tuple[str, str]]:
    chosen, pool = facts["selection"]["selections"][0], facts["selection"]["pool"]
    return [
        (f"rows selected, {chosen['name']}", f"{chosen['rows']:,} of {pool['rows']:,}"),
        (f"budget of {chosen['budget']:,} {chosen['unit']}", f"{percent(chosen['units'] / chosen['budget'])} used"),
    ]


def _commonest(made: list[Artifact], stages: list[Facts]) -> list[tuple[str, str]]:
    """Name the commonest reasons why rows were dropped, other than by a selector: that they were not selected."""
    reasons = Counter[str]()
    for artifact, each in zip(made, stages, strict=True):
        if not is_selection(artifact):
            reasons.update({why["reason"]: why["rows"] for why in each["reasons"] if why["kind"] == "dropped"})
    commonest = sorted(reasons, key=lambda reason: (-reasons[reason], reason))[:COMMONEST]
    return [(f"dropped: {reason}", f"{reasons[reason]:,}") for reason in commonest]


def _separable(arms: Facts) -> list[tuple[str, str]]:
    others = [arm for arm in arms["arms"] if arm["separable"] is not None and arm["name"] != arms["base"]]
    found = sum(arm["separable"] for arm in others)
    told = [(f"arms that differ from {arms['reference']}", f"{found} of {len(others)}")]
    if (least := arms["detectable"]) is None:
        return told
    unit = f"{number(least, 3)} nats per token" if arms["metric"] == "loss" else f"{number(100 * least, 1)} points"
    return [("smallest difference it could find", unit), *told]


def _gained(compared: list[Facts], level: float) -> list[tuple[str, str]]:
    trained = [line for line in compared if line["model"] != "base" and line["metric"] == "exact match"]
    told: list[tuple[str, str]] = []
    for line in [each for each in trained if each["model"] == "mean of seeds"] or trained[:1]:
        ends = [f"{100 * line[end]:+.1f}" for end in ("difference_low", "difference_high")]
        told += [
            (f"exact match, {line['model']}", f"{line['value']:.1%}"),
            ("gain over base", f"{100 * line['difference']:+.1f} points"),
            (f"{100 * level:g} % interval", " to ".join(ends)),
        ]
    return told


# ---- where rows came from --------------------------------------------------------------------------------


def ancestries(
    parameters: ReportParameters, dataset: Artifact, made: list[Artifact], models: dict[str, str]
) -> list[Facts]:
    """Follow some rows of the dataset through every stage that they passed; none that personal data was found in."""
    table = dataset["train"] if "train" in dataset.record["outputs"] else dataset
    ids = table.read(["row_id"])["row_id"].combine_chunks()
    order = np.argsort(lots(ids, seed_for("ancestry", parameters.seed)), kind="stable")
    drawn = ids.take(pa.array(order[: SPARE * parameters.ancestries])).to_pylist()
    hidden = present(_private(made), set(drawn))
    shown = [row for row in drawn if row not in hidden][: parameters.ancestries]
    return [{"row_id": str(row), **ancestry(row, made, models)} for row in shown]


def provenance(dataset: Artifact, made: list[Artifact], models: dict[str, str]) -> Facts:
    """Name the digests that everything rests on: also of what was only read, such as a target or an evaluation set."""
    own = {each.fingerprint for each in made}
    read = [each for each in ancestors(dataset).there if each.fingerprint not in own]
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
        "sources": [*_sources(made, "rows"), *_sources(read, "reference")],
        "packages": dict(sorted(packages.items())),
    }  # fmt: skip


def _sources(artifacts: list[Artifact], role: str) -> list[Facts]:
    """List the sources that some artifacts loaded, with the digests of their files."""
    sources = []
    for artifact in (each for each in artifacts if each.record["source"]):
        table = artifact.read(["source", "licence"])
        lines = table.group_by(["source", "licence"]).aggregate([([], "count_all")]).sort_by("source").to_pylist()
        for line in lines:
            reads = artifact.record["key"]["reads"][line["source"]]
            digest = reads.get("revision") or (files_digest(reads) if len(reads) > 1 else next(iter(reads.values())))
            sources.append(
                {
                    "name": line["source"],
                    "role": role,
                    "rows": line["count_all"],
                    "licence": line["licence"],
                    "digest": digest,
                }
            )
    return sources
