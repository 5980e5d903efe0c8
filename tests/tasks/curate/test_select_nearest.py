"""Nearest selection: by the distance to the target row that is nearest, and nothing else."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from data.artifact import Artifact
from data.errors import BadInput
from tasks.curate.select_nearest import SelectNearestParameters, nearest, select_nearest

Embedded = Callable[..., tuple[Artifact, Artifact]]


def test_distances_are_those_of_brute_force() -> None:
    draw = np.random.default_rng(0)
    pool, target = draw.normal(size=(700, 12)).astype(np.float32), draw.normal(size=(90, 12)).astype(np.float32)
    distances, places = nearest(pool, target)
    every = ((pool[:, None].astype(float) - target) ** 2).sum(2)
    assert np.allclose(distances, every.min(1), atol=1e-4)
    assert np.array_equal(places, every.argmin(1))
    alone, _ = nearest(pool[13:14], target)
    assert alone[0] == distances[13]


def test_the_nearest_rows_are_taken_with_the_row_they_are_near_to(embedded: Embedded) -> None:
    line = np.arange(20.0)[:, None] * [1.0, 0.0]
    rows, vectors = embedded(line, "pool")
    target, wanted = embedded(np.array([[3.2, 0.0], [15.9, 0.0]]), "target")
    made = select_nearest(SelectNearestParameters(budget=4), rows, vectors, wanted)
    assert sorted(made.read(["text"])["text"].to_pylist()) == ["pool 15", "pool 16", "pool 3", "pool 4"]
    scores = made["scores"].read().to_pydict()
    ids = target.read(["row_id"])["row_id"].to_pylist()
    assert scores["nearest"][3] == ids[0] and scores["nearest"][16] == ids[1]
    assert scores["value"][3] == pytest.approx(0.04, abs=1e-4)


def test_no_target_is_refused(embedded: Embedded, loaded: Callable[..., Any]) -> None:
    rows, vectors = embedded(np.ones((3, 2)), "pool")
    with pytest.raises(BadInput):
        select_nearest(SelectNearestParameters(), rows, vectors, embedded(np.ones((3, 5)), "target")[1])
