"""k-centre: each next centre is the row furthest from those before it, within twice the best cover."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data.artifact import Artifact
from tasks.curate.select_kcentre import SelectKcentreParameters, centres, select_kcentre
from tasks.curate.selection import Pool

Embedded = Callable[..., tuple[Artifact, Artifact]]
NOWHERE = Artifact("load", "0" * 32, Path())


def pool(count: int) -> Pool:
    ids = pa.array([n.to_bytes(16, "big") for n in range(1, count + 1)], pa.uuid())
    return Pool(NOWHERE, ids, np.ones(count, np.int64))


@pytest.mark.parametrize("seed", range(5))
def test_the_cover_is_within_twice_the_best(seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(14, 2)).astype(np.float32)
    order, _ = centres(points, pool(14), 3)
    distances = np.sqrt(((points[:, None] - points) ** 2).sum(2))
    ours = distances[:, order].min(1).max()
    best = min(distances[:, list(three)].min(1).max() for three in itertools.combinations(range(14), 3))
    assert len(order) == 3 and ours <= 2 * best + 1e-6


def test_every_group_is_visited_before_any_is_visited_twice(embedded: Embedded) -> None:
    draw = np.random.default_rng(0)
    means = 50 * np.eye(6)
    vectors = np.repeat(means, [100, 50, 20, 5, 2, 1], axis=0) + draw.normal(size=(178, 6))
    rows, given = embedded(vectors, "pool")
    made = select_kcentre(SelectKcentreParameters(budget=6), rows, given)
    groups = np.searchsorted(
        [100, 150, 170, 175, 177, 178], [int(t.split()[1]) for t in made.read()["text"].to_pylist()], "right"
    )
    assert sorted(groups.tolist()) == [0, 1, 2, 3, 4, 5]
    scores = made["scores"].read().to_pydict()
    ranked = [v for _, v in sorted(zip(scores["rank"], scores["value"], strict=True))]
    assert ranked[0] == 0 and ranked[1:6] == sorted(ranked[1:6])  # distances only shrink


def test_the_order_of_rows_counts_for_nothing(embedded: Embedded) -> None:
    vectors = np.random.default_rng(1).normal(size=(60, 4))
    order = np.random.default_rng(2).permutation(60).tolist()
    made = [
        select_kcentre(SelectKcentreParameters(budget=9), *embedded(vectors, "pool", order=each))
        for each in (None, order)
    ]
    assert {*made[0].read()["text"].to_pylist()} == {*made[1].read()["text"].to_pylist()}


def test_equal_rows_and_a_budget_above_them(embedded: Embedded) -> None:
    assert select_kcentre(SelectKcentreParameters(budget=5), *embedded(np.ones((3, 2)), "pool")).rows == 3
    assert select_kcentre(SelectKcentreParameters(budget=2), *embedded(np.ones((3, 2)), "pool")).rows == 2
