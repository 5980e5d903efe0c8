"""What the models of a flow learnt: their losses, how they compare, and what they answer."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.artifact import Artifact
from data.fingerprint import seed_for

Facts = dict[str, Any]


def history(artifact: Artifact, name: str) -> Facts:
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


def comparison_facts(compared: list[Facts], level: float) -> Facts:
    """Put the lines of a comparison with the base together by model.

    Args:
        compared: one line for each model and metric.
        level: of the intervals.
    """
    models: dict[str, Facts] = {}
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
    return {"metric": "exact match", "rows": compared[0]["rows"], "level": level, "models": list(models.values())}


def arms_facts(comparison: Artifact) -> Facts:
    """Tell how the arms of an experiment compare, and what difference it could have found at all."""
    lines = comparison["arms"].read().to_pylist()
    parameters = comparison.record["key"]["parameters"]
    return {
        "metric": parameters["metric"],
        "base": parameters["base"],
        "reference": parameters["reference"],
        "control": parameters["control"],
        "level": parameters["level"],
        "detectable": comparison.record["measures"].get("detectable"),
        "rows": lines[0]["rows"],
        "arms": [
            {
                "name": line["arm"],
                "seeds": line["seeds"],
                "value": line["value"],
                "seed_deviation": line["seed_deviation"],
                "separable": line["separable"],
                "difference": None
                if line["difference"] is None
                else {"mean": line["difference"], "low": line["low"], "high": line["high"]},
            }
            for line in lines
        ],
    }


def by_group(scores: dict[str, pa.Table]) -> list[Facts]:
    """Break exact match down by group; nothing where rows have no group."""
    means = {
        name: {
            line["group"]: (line["correct_mean"], line["correct_count"])
            for line in pa.table({"group": table["group"], "correct": table["correct"].cast(pa.float64())})
            .group_by("group")
            .aggregate([("correct", "mean"), ("correct", "count")])
            .to_pylist()
        }
        for name, table in scores.items()
    }
    groups = sorted(group for group in next(iter(means.values()), {}) if group is not None)
    return [
        {
            "group": group,
            "rows": next(iter(means.values()))[group][1],
            "scores": {name: each[group][0] for name, each in means.items()},
        }
        for group in groups
    ]


def side_by_side(scores: dict[str, pa.Table], positions: Sequence[int]) -> list[Facts]:
    """Set the answers of all models to the same rows beside each other."""
    lines = {name: table.take(pa.array(positions, pa.int64())).to_pylist() for name, table in scores.items()}
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
        for at, row in enumerate(next(iter(lines.values()), []))
    ]


def draw(rows: int, count: int, seed: int) -> list[int]:
    """Draw distinct positions, in ascending order, by seed alone."""
    order = sorted(range(rows), key=lambda at: seed_for("show", seed, at))
    return sorted(order[:count])
