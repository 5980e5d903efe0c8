"""DSIR: rows whose words are the target's weigh more, by the formula, and are drawn by their weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from data.artifact import Artifact
from tasks.curate.select_dsir import SelectDsirParameters, gumbel, log_ratios, select_dsir

Loaded = Callable[..., Artifact]


def row(text: str) -> dict[str, Any]:
    return {"prompt": text, "completion": "ok"}


def test_ratios_are_logs_of_smoothed_shares() -> None:
    found = log_ratios(np.array([3, 0]), np.array([1, 1]), 1.0)
    assert np.allclose(found, np.log([4 / 5, 1 / 5]) - np.log([2 / 4, 2 / 4]))


def test_the_weight_of_a_row_is_the_sum_over_its_words_and_pairs(loaded: Loaded) -> None:
    pool = loaded([row("red fish"), row("blue bird"), row("red bird")], "pool")
    target = loaded([row("red fish"), row("red fish")], "target")
    made = select_dsir(SelectDsirParameters(budget=1, draw=False, buckets=100_003), pool, target)
    weights = dict(
        zip(pool.read(["prompt"])["prompt"].to_pylist(), made["scores"].read()["log_weight"].to_pylist(), strict=True)
    )
    total_target, total_pool, buckets = 10 + 100_003, 15 + 100_003, 1.0

    def ratio(in_target: int, in_pool: int) -> float:
        return float(np.log((in_target + buckets) / total_target) - np.log((in_pool + buckets) / total_pool))

    # words red, fish, ok and pairs "red fish", "fish ok": counts in the target, in the pool
    expected = ratio(2, 2) + ratio(2, 1) + ratio(2, 3) + ratio(2, 1) + ratio(2, 1)
    assert weights["red fish"] == pytest.approx(expected, abs=1e-5)
    assert made.read(["prompt"])["prompt"].to_pylist() == ["red fish"]


def test_rows_are_drawn_without_replacement_by_their_weights(loaded: Loaded) -> None:
    pool = loaded([row(f"{'sea' if n % 2 else 'sky'} {n}") for n in range(400)], "pool")
    target = loaded([row("sea") for _ in range(40)], "target")
    shares = []
    for seed in range(3):
        texts = (
            select_dsir(SelectDsirParameters(budget=100, seed=seed), pool, target)
            .read(["prompt"])["prompt"]
            .to_pylist()
        )
        shares.append(sum(text.startswith("sea") for text in texts))
        assert len(texts) == 100
    assert min(shares) > 60 and len(set(shares)) > 1
    top = select_dsir(SelectDsirParameters(budget=100, draw=False), pool, target).read(["prompt"])["prompt"].to_pylist()
    assert all(text.startswith("sea") for text in top)


def test_gumbel_noise_has_its_mean_and_variance() -> None:
    noise = gumbel(np.random.default_rng(0).integers(0, 2**64, size=200_000, dtype=np.uint64))
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.01)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.03)
    assert np.isfinite(gumbel(np.array([0, 2**64 - 1], np.uint64))).all()
