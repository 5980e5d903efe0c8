"""Compare the arms of an experiment on the same held-out rows, each arm one or more trainings that differ by seed.

What is compared is a metric: the loss on reference answers or the exact match of greedy ones, as `evaluate` has scored
them, or the accuracy of implicit rewards, as `evaluate_pairs` has.

An arm is its mean over seeds. Differences to a reference arm have paired bootstrap intervals over rows (both arms
answer the same drawn rows) and over seeds (the seeds of each arm are drawn anew, where it has more than one), so that
neither the luck of the rows nor that of a seed passes for an effect.

What could have been seen at all is said first: the smallest true difference that an experiment of this size would find
four times in five (80 % power at the 5 % level), 2.8 standard errors of the difference between the reference and a
control that should not differ from it (Bloom 1995: minimum detectable effect).
"""

from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from data.artifact import Artifact, read_parquet
from data.errors import BadInput
from data.fingerprint import seed_for
from infra.stage import Measures, Parameters, Reference, References, stage
from infra.work import Work
from tasks.evaluate.intervals import reward_margins, wins

Floats = npt.NDArray[np.float64]

# metric: the file that holds it, and its columns; the last of a loss is what rows are weighted by
METRICS = {
    "loss": ("scores", ["loss", "tokens"]),
    "exact_match": ("scores", ["correct"]),
    "reward_accuracy": ("pairs", ["chosen", "rejected", "chosen_base", "rejected_base"]),
}
DETECTABLE = 2.8  # standard errors: 1.96 for the level of 5 %, 0.84 for the power of 80 %

ARMS = pa.schema(
    [
        ("arm", pa.string()), ("seeds", pa.int64()), ("rows", pa.int64()), ("value", pa.float64()),
        ("seed_deviation", pa.float64()), ("difference", pa.float64()), ("low", pa.float64()), ("high", pa.float64()),
        ("separable", pa.bool_()),
    ]
)  # fmt: skip


class Arm(Parameters):
    """One arm: its name, and how many of the trainings, in order, are its seeds."""

    name: str = Field(min_length=1, description="Name of the arm.")
    seeds: int = Field(1, ge=1, description="Trainings of this arm that differ by seed.")


class CompareArmsParameters(Parameters):
    """Which arms there are, and which of them the others are held against."""

    metric: Literal["loss", "exact_match", "reward_accuracy"] = Field(
        "loss",
        description="loss: nats per token; exact_match: share of right answers; reward_accuracy: share of pairs.",
    )
    base: str = Field("base", min_length=1, description="Name of the model that all arms began with.")
    reference: str = Field("random", description="Arm that differences are taken to.")
    control: str = Field("", description="Arm that should equal the reference; default: the reference itself.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Confidence level of the intervals.")
    draws: int = Field(10_000, ge=100, description="Bootstrap samples.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")
    arms: tuple[Arm, ...] = Field((), description="The arms, in the order of their trainings; a flow fills them in.")

    @model_validator(mode="after")
    def _named(self) -> Self:
        names = [self.base, *(arm.name for arm in self.arms)]
        if len(set(names)) < len(names):
            raise ValueError(f"arms named {', '.join(names)}; give each a name of its own")
        for role in (self.reference, self.control):
            if self.arms and role and role not in names:
                raise ValueError(f"no arm {role!r} among {', '.join(names)}")
        return self


@stage("float")
def compare_arms(work: Work, parameters: CompareArmsParameters, base: Reference, trained: References) -> Measures:
    """Compare the arms in a metric, with the base that they began with beside them.

    `base` and `trained` are what `evaluate` (loss, exact match) or `evaluate_pairs` (reward accuracy) have published.
    Output `arms`: one line for each arm, the base first; `separable` says that the interval does not hold 0.

    Raises:
        BadInput: the evaluations asked different rows, or are not as many as the arms have seeds.
    """
    count = sum(arm.seeds for arm in parameters.arms)
    if count != len(trained):
        found = f"{len(trained)} trainings for arms of {count} seeds"
        raise BadInput(found, "one training for each seed", "correct `arms`")
    values, weights = read_values([base, *trained], parameters.metric)
    of_arms, start = {parameters.base: values[:1]}, 1
    for arm in parameters.arms:
        of_arms[arm.name] = values[start : start + arm.seeds]
        start += arm.seeds
    drawn = draw_means(of_arms, weights, parameters)
    tail = (1 - parameters.level) / 2
    lines: list[dict[str, Any]] = []
    for name, own in of_arms.items():
        means = np.average(own, axis=1, weights=weights)
        reference = np.average(of_arms[parameters.reference], axis=1, weights=weights).mean()
        low, high = np.quantile(drawn[name] - drawn[parameters.reference], [tail, 1 - tail]).tolist()
        itself = name == parameters.reference
        lines.append(
            {
                "arm": name,
                "seeds": len(own),
                "rows": own.shape[1],
                "value": float(means.mean()),
                "seed_deviation": float(means.std(ddof=1)) if len(own) > 1 else None,
                "difference": None if itself else float(means.mean() - reference),
                "low": None if itself else low,
                "high": None if itself else high,
                "separable": None if itself else bool(low > 0 or high < 0),
            }
        )
    work.write_single(pa.Table.from_pylist(lines, schema=ARMS), "arms")
    measures = {f"{line['arm']}, {parameters.metric.replace('_', ' ')}": line["value"] for line in lines}
    least = detectable(of_arms, weights, parameters)
    return measures | ({} if least is None else {"detectable": least})


def read_values(evaluations: list[Artifact], metric: str) -> tuple[Floats, Floats]:
    """Read the metric of each row in each evaluation (k, rows), and the rows' weights (rows,).

    Raises:
        BadInput: they asked different rows, or did not measure this metric.
    """
    file, columns = METRICS[metric]
    for each in evaluations:
        if file not in each.record["outputs"]:
            found = f"{each}, which has {', '.join(each.record['outputs'])} and no {file}"
            raise BadInput(found, f"evaluations with {metric}", "evaluate for this metric, or compare another")
    tables = [read_parquet(each.path / f"{file}.parquet", ["row_id", *columns]) for each in evaluations]
    if any(not table["row_id"].equals(tables[0]["row_id"]) for table in tables):
        raise BadInput("evaluations of different rows", "the same held-out rows for every training",
                       "evaluate all models with the same parameters on the same rows")  # fmt: skip
    if any(table[columns[0]].null_count for table in tables):
        raise BadInput("evaluations without answers", f"{metric} of each row", "raise evaluate.max_new_tokens above 0")
    read = [{name: table[name].to_numpy().astype(np.float64) for name in columns} for table in tables]
    if metric == "reward_accuracy":
        values = np.stack([wins(reward_margins(each)) for each in read])
    else:
        values = np.stack([each[columns[0]] for each in read])
    return values, read[0]["tokens"] if metric == "loss" else np.ones(values.shape[1])


def draw_means(arms: dict[str, Floats], weights: Floats, parameters: CompareArmsParameters) -> dict[str, Floats]:
    """Draw each arm's mean anew: {arm: (draws,)}; all arms see the same rows of a draw, each its own seeds.

    Args:
        arms: (seeds, rows) values of each arm.
        weights: (rows,) how much each row counts.
        parameters: draws and seed.
    """
    generator = np.random.default_rng(seed_for("compare_arms", parameters.seed))
    rows = len(weights)
    means: dict[str, list[Floats]] = {name: [] for name in arms}
    for start in range(0, parameters.draws, 1000):
        size = min(1000, parameters.draws - start)
        counts = generator.multinomial(rows, np.full(rows, 1 / rows), size=size) * weights
        for name, values in arms.items():
            by_seed = counts @ values.T / counts.sum(1, keepdims=True)
            chosen = generator.integers(len(values), size=(size, len(values)))
            means[name].append(np.take_along_axis(by_seed, chosen, axis=1).mean(1))
    return {name: np.concatenate(parts) for name, parts in means.items()}


def detectable(arms: dict[str, Floats], weights: Floats, parameters: CompareArmsParameters) -> float | None:
    """Compute the smallest difference that would be found four times in five, in the metric's unit.

    Without a control of its own, the reference is held against itself drawn apart; with one seed nobody can say.
    """
    other = arms[parameters.control or parameters.reference]
    if len(other) == 1 and parameters.control in ("", parameters.reference):
        return None
    drawn = draw_means({"reference": arms[parameters.reference], "control": other}, weights, parameters)
    return float(DETECTABLE * np.std(drawn["control"] - drawn["reference"]))
