"""Compare the arms of an experiment on the same held-out rows, each arm one or more trainings that differ by seed.

An arm is its mean over seeds. Differences to a reference arm have paired bootstrap intervals over rows (both arms
answer the same drawn rows) and over seeds (the seeds of each arm are drawn anew, where it has more than one), so that
neither the luck of the rows nor that of a seed passes for an effect.

What could have been seen at all is said first: the smallest true difference that an experiment of this size would find
four times in five (80 % power at the 5 % level), 2.8 standard errors of the difference between the reference and a
control that should not differ from it (Bloom 1995: minimum detectable effect).
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from data.artifact import Artifact
from data.errors import BadInput
from data.fingerprint import seed_for
from infra.stage import Measures, Parameters, Reference, References, stage
from infra.work import Work

Floats = npt.NDArray[np.float64]

DETECTABLE = 2.8  # standard errors: 1.96 for the level of 5 %, 0.84 for the power of 80 %

ARMS = pa.schema(
    [
        ("arm", pa.string()), ("seeds", pa.int64()), ("rows", pa.int64()), ("loss", pa.float64()),
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

    reference: str = Field("random", description="Arm that differences are taken to.")
    control: str = Field("", description="Arm that should equal the reference; default: the reference itself.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Confidence level of the intervals.")
    draws: int = Field(10_000, ge=100, description="Bootstrap samples.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")
    arms: tuple[Arm, ...] = Field((), description="The arms, in the order of their trainings; a flow fills them in.")

    @model_validator(mode="after")
    def _named(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"arms named {', '.join(names)}; give each a name of its own")
        for role in (self.reference, self.control):
            if names and role and role not in names:
                raise ValueError(f"no arm {role!r} among {', '.join(names)}")
        return self


@stage("float")
def compare_arms(work: Work, parameters: CompareArmsParameters, base: Reference, trained: References) -> Measures:
    """Compare the arms in loss (nats per token of the answers), with the untrained base beside them.

    Output `arms`: one line for each arm, the base first; `separable` says that the interval does not hold 0.

    Raises:
        BadInput: the evaluations asked different rows, or are not as many as the arms have seeds.
    """
    count = sum(arm.seeds for arm in parameters.arms)
    if count != len(trained):
        found = f"{len(trained)} trainings for arms of {count} seeds"
        raise BadInput(found, "one training for each seed", "correct `arms`")
    losses, tokens = read_losses([base, *trained])
    of_arms, start = {"base": losses[:1]}, 1
    for arm in parameters.arms:
        of_arms[arm.name] = losses[start : start + arm.seeds]
        start += arm.seeds
    drawn = draw_means(of_arms, tokens, parameters)
    tail = (1 - parameters.level) / 2
    lines: list[dict[str, Any]] = []
    for name, own in of_arms.items():
        means = np.average(own, axis=1, weights=tokens)
        reference = np.average(of_arms[parameters.reference], axis=1, weights=tokens).mean()
        low, high = np.quantile(drawn[name] - drawn[parameters.reference], [tail, 1 - tail]).tolist()
        itself = name == parameters.reference
        lines.append(
            {
                "arm": name,
                "seeds": len(own),
                "rows": own.shape[1],
                "loss": float(means.mean()),
                "seed_deviation": float(means.std(ddof=1)) if len(own) > 1 else None,
                "difference": None if itself else float(means.mean() - reference),
                "low": None if itself else low,
                "high": None if itself else high,
                "separable": None if itself else bool(low > 0 or high < 0),
            }
        )
    work.write_single(pa.Table.from_pylist(lines, schema=ARMS), "arms")
    return {"detectable": detectable(of_arms, tokens, parameters)} | {f"{x['arm']}, loss": x["loss"] for x in lines}


def read_losses(evaluations: list[Artifact]) -> tuple[Floats, Floats]:
    """Read the loss of each row in each evaluation, (k, rows) nats per token, and the rows' tokens (rows,).

    Raises:
        BadInput: they asked different rows.
    """
    tables = [pq.read_table(each.path / "scores.parquet", columns=["row_id", "loss", "tokens"]) for each in evaluations]
    if any(not table["row_id"].equals(tables[0]["row_id"]) for table in tables):
        raise BadInput("evaluations of different rows", "the same held-out rows for every training",
                       "evaluate all models with the same parameters on the same rows")  # fmt: skip
    return np.stack([table["loss"].to_numpy() for table in tables]), tables[0]["tokens"].to_numpy().astype(np.float64)


def draw_means(arms: dict[str, Floats], tokens: Floats, parameters: CompareArmsParameters) -> dict[str, Floats]:
    """Draw each arm's mean anew: {arm: (draws,)}; all arms see the same rows of a draw, each its own seeds.

    Args:
        arms: (seeds, rows) losses of each arm.
        tokens: (rows,) weights.
        parameters: draws and seed.
    """
    generator = np.random.default_rng(seed_for("compare_arms", parameters.seed))
    rows = len(tokens)
    means: dict[str, list[Floats]] = {name: [] for name in arms}
    for start in range(0, parameters.draws, 1000):
        size = min(1000, parameters.draws - start)
        counts = generator.multinomial(rows, np.full(rows, 1 / rows), size=size) * tokens
        for name, losses in arms.items():
            by_seed = counts @ losses.T / counts.sum(1, keepdims=True)
            chosen = generator.integers(len(losses), size=(size, len(losses)))
            means[name].append(np.take_along_axis(by_seed, chosen, axis=1).mean(1))
    return {name: np.concatenate(parts) for name, parts in means.items()}


def detectable(arms: dict[str, Floats], tokens: Floats, parameters: CompareArmsParameters) -> float:
    """Compute the smallest difference in loss that would be found four times in five, in nats per token.

    Without a control of its own, the reference is held against itself drawn apart.
    """
    other = arms[parameters.control or parameters.reference]
    drawn = draw_means({"reference": arms[parameters.reference], "control": other}, tokens, parameters)
    return float(DETECTABLE * np.std(drawn["control"] - drawn["reference"]))
