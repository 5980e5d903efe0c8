"""Compare models on the same held-out rows: paired bootstrap intervals (Efron 1979), row by row.

Rows are resampled, not answers: both models answer the same drawn rows, so what makes a row hard for both cancels.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from data.errors import BadInput
from data.fingerprint import seed_for
from infra.stage import Measures, Parameters, Reference, References, stage
from infra.work import Work

Floats = npt.NDArray[np.float64]

BASE, POOLED = "base", "mean of seeds"  # what the comparison calls them

COMPARISON = pa.schema(
    [
        ("model", pa.string()), ("digest", pa.string()), ("metric", pa.string()), ("rows", pa.int64()),
        ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64()),
        ("difference", pa.float64()), ("difference_low", pa.float64()), ("difference_high", pa.float64()),
    ]
)  # fmt: skip


class CompareParameters(Parameters):
    """What to call the models, and how sure to be."""

    names: tuple[str, ...] = Field(
        (), description="Names of the trained models, in order; default: trained, or trained 1, 2, …"
    )
    pooled: int = Field(
        0,
        ge=0,
        description="How many of the first trained models differ only by seed; their mean is compared too.",
    )
    level: float = Field(0.95, gt=0.5, lt=1, description="Confidence level of the intervals.")
    draws: int = Field(10_000, ge=100, description="Bootstrap samples.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")

    @field_validator("names")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len({*names, BASE, POOLED}) < len(names) + 2:
            raise ValueError(f"names that are not all different, or {BASE!r} or {POOLED!r} among them")
        return names

    def check(self, trained: int, alike: int) -> None:
        """Check that the names and `pooled` fit a flow that trains so many models, the first `alike` by seed only.

        Raises:
            ValueError: they do not.
        """
        if self.names and len(self.names) != trained:
            raise ValueError(f"as many compare.names as models are trained: {trained}, not {len(self.names)}")
        if self.pooled > alike:
            raise ValueError(f"compare.pooled of at most {alike}, the models that differ only by seed")


@stage("float")
def compare(work: Work, parameters: CompareParameters, base: Reference, trained: References) -> Measures:
    """Compare trained models with their base, in exact match and in loss (nats per token).

    Output `comparison`: one line per model and metric, with the difference to the base (none for the base).

    Raises:
        BadInput: the evaluations asked different rows, or the names or `pooled` do not fit.
    """
    try:
        parameters.check(len(trained), len(trained))
    except ValueError as error:
        raise BadInput(f"{len(trained)} trained models", str(error), "correct the parameters of compare") from None
    names = parameters.names or tuple(
        f"trained {n}" if len(trained) > 1 else "trained" for n in range(1, len(trained) + 1)
    )
    tables = {
        name: pq.read_table(each.path / "scores.parquet")
        for name, each in zip((BASE, *names), (base, *trained), strict=True)
    }
    if any(not table["row_id"].equals(tables[BASE]["row_id"]) for table in tables.values()):
        raise BadInput("evaluations of different rows", "the same held-out rows for every model",
                       "evaluate all models with the same parameters on the same rows")  # fmt: skip
    scores = {
        name: {"exact match": _floats(table, "correct"), "loss": _floats(table, "loss")}
        for name, table in tables.items()
    }
    models = {
        name: each.record["inputs"][1]["digest"] for name, each in zip((BASE, *names), (base, *trained), strict=True)
    }
    if parameters.pooled > 1:
        first = names[: parameters.pooled]
        scores[POOLED] = {metric: np.mean([scores[name][metric] for name in first], axis=0) for metric in scores[BASE]}
    weights = {"exact match": np.ones(len(tables[BASE])), "loss": _floats(tables[BASE], "tokens")}
    lines: list[dict[str, Any]] = [
        {"model": name, "digest": models.get(name), "metric": metric, "rows": len(values)}
        for name, metrics in scores.items()
        for metric, values in metrics.items()
    ]
    columns = [scores[line["model"]][line["metric"]] for line in lines]
    paired = [column - scores[BASE][line["metric"]] for column, line in zip(columns, lines, strict=True)]
    weighed = [weights[line["metric"]] for line in lines]
    of_values, of_differences = np.split(
        bootstrap(np.stack(columns + paired, 1), np.stack(weighed * 2, 1), parameters), 2, axis=1
    )
    for line, value, difference in zip(lines, of_values.T.tolist(), of_differences.T.tolist(), strict=True):
        line |= dict(zip(("value", "low", "high"), value, strict=True))
        if line["model"] != BASE:
            line |= dict(zip(("difference", "difference_low", "difference_high"), difference, strict=True))
    work.write_single(pa.Table.from_pylist(lines, schema=COMPARISON), "comparison")
    numbers = [field.name for field in COMPARISON if field.type == pa.float64()]
    return {
        f"{line['model']}, {line['metric']}, {name}": line[name] for line in lines for name in numbers if name in line
    }


def bootstrap(values: Floats, weights: Floats, parameters: CompareParameters) -> Floats:
    """Estimate weighted means with percentile intervals: (3, k) mean, low and high of each column.

    Args:
        values: (n, k) numbers per row; the difference of two models makes an interval paired.
        weights: (n, k) non-negative weights per row, such as its tokens.
        parameters: level, draws and seed. Every column sees the same resamples of the n rows.
    """
    generator = np.random.default_rng(seed_for("bootstrap", parameters.seed))
    rows, columns = values.shape
    both = np.concatenate([values * weights, weights], axis=1)
    means = np.empty((parameters.draws, columns))
    for start in range(0, parameters.draws, 1000):  # a thousand samples at a time bound the memory to 8 kB a row
        counts = generator.multinomial(rows, np.full(rows, 1 / rows), size=min(1000, parameters.draws - start))
        drawn = counts @ both
        means[start : start + len(counts)] = drawn[:, :columns] / np.maximum(drawn[:, columns:], 1e-300)
    tail = (1 - parameters.level) / 2
    return np.stack([np.average(values, axis=0, weights=weights), *np.quantile(means, [tail, 1 - tail], axis=0)])


def _floats(table: pa.Table, column: str) -> Floats:
    values: Floats = table[column].cast(pa.float64()).to_numpy()
    return values
