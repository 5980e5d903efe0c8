"""Means with bootstrap intervals (Efron 1979), as the evaluations of alignment report them."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data.fingerprint import seed_for
from infra.stage import Parameters

Floats = npt.NDArray[np.float64]


class IntervalParameters(Parameters):
    """Say how sure to be."""

    level: float = Field(0.95, gt=0.5, lt=1, description="Confidence level of the intervals.")
    draws: int = Field(10_000, ge=100, description="Bootstrap samples.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")


def mean_intervals(
    columns: Mapping[str, Floats], level: float, draws: int, seed: int, groups: Sequence[Hashable] | None = None
) -> dict[str, float]:
    """Estimate means with percentile intervals: {name, name_low, name_high} of each column.

    Args:
        columns: (n,) numbers of the same n rows, n > 0; all columns see the same resamples.
        level: confidence level, in (0, 1).
        draws: bootstrap samples.
        seed: of the draws.
        groups: what a row belongs to; rows of one group (the answers to one prompt) are drawn together. None: each
            row is drawn by itself.
    """
    values = np.stack([np.asarray(each, np.float64) for each in columns.values()], axis=1)
    rows, width = values.shape
    numbers: dict[Hashable, int] = {}
    unit = np.array([numbers.setdefault(each, len(numbers)) for each in (range(rows) if groups is None else groups)])
    sums = np.zeros((len(numbers), width + 1))
    np.add.at(sums, unit, np.concatenate([values, np.ones((rows, 1))], axis=1))
    generator = np.random.default_rng(seed_for("intervals", seed))
    means = np.empty((draws, width))
    for start in range(0, draws, 1000):  # a thousand samples at a time bound the memory to 8 kB a row
        size = min(1000, draws - start)
        drawn = generator.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=size) @ sums
        means[start : start + size] = drawn[:, :width] / drawn[:, width:]
    lows, highs = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    found: dict[str, float] = {}
    for name, mean, low, high in zip(columns, values.mean(axis=0), lows, highs, strict=True):
        found |= {name: float(mean), f"{name}_low": float(low), f"{name}_high": float(high)}
    return found


def wins(margins: Floats) -> Floats:
    """Say of each margin whether it is above 0: 1, 0, or .5 for a tie."""
    return np.asarray((np.sign(margins) + 1) / 2, np.float64)


def reward_margins(scores: Mapping[str, Floats]) -> Floats:
    """Compute each pair's margin of implicit rewards (Rafailov et al. 2023, without beta), in nats (n,).

    Args:
        scores: summed log-probabilities (n,) of chosen and rejected answers, by the model and by its base.
    """
    return (scores["chosen"] - scores["chosen_base"]) - (scores["rejected"] - scores["rejected_base"])
