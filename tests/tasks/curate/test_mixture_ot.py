"""Shares of sources: a planted mixture is found again, with a certificate, and rows are drawn by it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from data.artifact import Artifact
from tasks.curate.mixture_ot import MixtureOtParameters, mixture_ot

Array = np.ndarray[Any, Any]
Made = Callable[..., tuple[Artifact, Artifact]]


def normal(n: int, centre: float, seed: int) -> Array:
    points = np.random.default_rng(seed).normal(size=(n, 16))
    points[:, 0] += centre
    return points


@pytest.fixture
def planted(mixed: Made, embedded: Made) -> tuple[Artifact, Artifact, Artifact]:
    """Two sources, left and right, and a target that is 30 % left: (rows, embeddings, target embeddings)."""
    target = np.concatenate([normal(57, -2, 1), normal(133, 2, 2)])
    return *mixed({"left": normal(150, -2, 3), "right": normal(150, 2, 4)}), embedded(target, "target")[1]


def mixture(made: Artifact) -> dict[str, dict[str, Any]]:
    return {line["source"]: line for line in made["mixture"].read().to_pylist()}


def test_a_planted_mixture_is_found(planted: tuple[Artifact, Artifact, Artifact]) -> None:
    made = mixture_ot(MixtureOtParameters(budget=100), *planted)
    shares = mixture(made)
    assert shares["left"]["share"] == pytest.approx(0.3, abs=0.03)
    assert shares["left"]["share"] + shares["right"]["share"] == pytest.approx(1, abs=1e-5)
    counts = Counter(made.read(["source"])["source"].to_pylist())
    assert counts.total() == 100 and abs(counts["left"] - 100 * shares["left"]["share"]) <= 1


def test_the_gap_falls_and_ends_below_what_was_asked_for(planted: tuple[Artifact, Artifact, Artifact]) -> None:
    made = mixture_ot(MixtureOtParameters(gap=1e-3), *planted)
    steps = made["steps"].read().to_pydict()
    assert all(after < before for before, after in zip(steps["gap"], steps["gap"][1:], strict=False))
    assert all(after <= before + 1e-6 for before, after in zip(steps["cost"], steps["cost"][1:], strict=False))
    gradients = [line["gradient"] for line in mixture(made).values()]
    assert max(np.abs(gradients)) < 1e-2  # at the optimum no source is better than another
    assert made.record["measures"]["cost"] < made.record["measures"]["pool_cost"]


def test_a_source_of_no_use_gets_nothing(mixed: Made, embedded: Made) -> None:
    rows, vectors = mixed({"near": normal(80, 0, 1), "far": normal(80, 40, 2)})
    made = mixture_ot(MixtureOtParameters(budget=50), rows, vectors, embedded(normal(60, 0, 3), "target")[1])
    assert mixture(made)["far"]["share"] < 1e-6
    assert set(made.read(["source"])["source"].to_pylist()) == {"near"}


def test_a_source_that_runs_out_leaves_its_share_to_the_others(mixed: Made, embedded: Made) -> None:
    target = embedded(np.concatenate([normal(100, -2, 1), normal(100, 2, 2)]), "target")[1]
    made = mixture_ot(
        MixtureOtParameters(budget=100), *mixed({"few": normal(12, -2, 3), "many": normal(300, 2, 4)}), target
    )
    counts = Counter(made.read(["source"])["source"].to_pylist())
    assert counts == {"few": 12, "many": 88}


def test_one_source_alone_and_one_row_alone(mixed: Made, embedded: Made) -> None:
    target = embedded(normal(20, 0, 1), "target")[1]
    alone = mixture_ot(MixtureOtParameters(budget=5), *mixed({"only": normal(30, 0, 2)}), target)
    assert alone.rows == 5 and mixture(alone)["only"]["share"] == 1.0
    assert mixture_ot(MixtureOtParameters(budget=5), *mixed({"single": normal(1, 0, 3)}), target).rows == 1


def test_the_same_seed_draws_the_same_rows(planted: tuple[Artifact, Artifact, Artifact]) -> None:
    first, second = (
        set(mixture_ot(MixtureOtParameters(budget=60, seed=seed), *planted).read(["text"])["text"].to_pylist())
        for seed in (0, 1)
    )
    assert first != second and len(first & second) > 5
