"""Selection by transport: it takes what the target asks for, explains each row, and scores later rows unchanged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.artifact import Artifact
from data.errors import BadInput
from infra.settings import use_settings
from infra.store import current_store
from tasks.curate.select_ot import SelectOtParameters
from tasks.curate.select_ot import select_ot as select_ot_stage

Array = np.ndarray[Any, Any]
Embedded = Callable[..., tuple[Artifact, Artifact]]


def around(centres: Array, which: list[int], seed: int = 0, spread: float = 1.0) -> Array:
    draw = np.random.default_rng(seed)
    return (centres[which] + spread * draw.normal(size=(len(which), centres.shape[1]))).astype(np.float32)


@pytest.fixture
def two() -> Array:
    """Two centres, six standard deviations apart."""
    return np.stack([np.zeros(16), np.full(16, 6 / 4)])


def select_ot(parameters: SelectOtParameters, *inputs: Artifact, earlier: Artifact | None = None) -> Artifact:
    """Select, by the potentials of an earlier selection if one is given."""
    return select_ot_stage(parameters, *inputs, [earlier["potentials"]] if earlier else [])


def scores(artifact: Artifact) -> dict[str, Any]:
    return dict(artifact["scores"].read().to_pydict())


def test_what_the_pool_has_too_little_of_is_taken_first(embedded: Embedded, two: Array) -> None:
    pool = embedded(around(two, [0] * 990 + [1] * 10), "pool")  # 99 % of one kind, 1 % of the other
    target = embedded(around(two, [0] * 50 + [1] * 50, seed=1), "target")
    taken = select_ot(SelectOtParameters(budget=10, per_target=None), *pool, *target).read(["text"])["text"].to_pylist()
    rare = {f"pool {n}" for n in range(990, 1000)}
    assert len(rare.intersection(taken)) == 10


def test_in_contrast_mode_what_is_like_the_target_comes_last(embedded: Embedded, two: Array) -> None:
    pool, target = embedded(around(two, [0] * 50 + [1] * 50), "pool"), embedded(around(two, [1] * 60, seed=1), "target")
    parameters = SelectOtParameters(budget=40, mode="contrast", per_target=None)
    taken = select_ot(parameters, *pool, *target).read(["text"])["text"].to_pylist()
    assert {int(text.split()[1]) < 50 for text in taken} == {True}


def test_as_a_control_values_are_dealt_out_at_random(embedded: Embedded, two: Array) -> None:
    pool, target = embedded(around(two, [0] * 300 + [1] * 300), "pool"), embedded(around(two, [1] * 60), "target")
    wanted, control, other = (
        select_ot(SelectOtParameters(budget=200, per_target=None, **more), *pool, *target)
        for more in ({}, {"mode": "control"}, {"mode": "control", "seed": 1})
    )
    shares = [np.mean([int(t.split()[1]) >= 300 for t in each.read(["text"])["text"].to_pylist()]) for each in
              (wanted, control, other)]  # fmt: skip
    assert shares[0] == 1.0 and 0.35 < shares[1] < 0.65
    assert sorted(scores(control)["value"]) == sorted(scores(wanted)["value"])
    assert scores(control)["value"] != scores(other)["value"]


def test_near_copies_of_one_row_are_not_all_taken(embedded: Embedded) -> None:
    draw = np.random.default_rng(0)
    wanted = draw.normal(size=(40, 16))
    copies = wanted[0] + 1e-3 * draw.normal(size=(30, 16))  # fewer than their target row asks for, were all rows alike
    others = np.repeat(wanted[1:], 2, axis=0) + 0.8 * draw.normal(size=(78, 16))
    far = 3 + draw.normal(size=(2000, 16))
    pool, target = embedded(np.concatenate([copies, others, far]), "pool"), embedded(wanted, "target")
    free, capped = (select_ot(SelectOtParameters(budget=40, per_target=most), *pool, *target) for most in (None, 2.0))
    copied = [
        sum(int(text.split()[1]) < 30 for text in each.read(["text"])["text"].to_pylist()) for each in (free, capped)
    ]
    assert copied[0] == 30
    assert copied[1] == 2  # a fair share is one row, and twice of it two
    kept_out = [line for line in capped["dropped"].read().to_pylist() if line["reason"] == "its target has enough"]
    selected = set(capped.read(["row_id"])["row_id"].to_pylist())
    assert len(kept_out) >= 28 and all(line["partner"] in selected for line in kept_out)


def test_a_cap_that_leaves_the_budget_unspent_gives_way(embedded: Embedded, two: Array) -> None:
    pool, target = embedded(around(two, [0] * 30), "pool"), embedded(around(two, [0] * 3, seed=1), "target")
    assert select_ot(SelectOtParameters(budget=25, per_target=0.1), *pool, *target).rows == 25


def test_every_row_has_its_score_and_its_reason(embedded: Embedded, two: Array) -> None:
    pool, target = embedded(around(two, [0] * 60 + [1] * 60), "pool"), embedded(around(two, [1] * 30, seed=1), "target")
    made = select_ot(SelectOtParameters(budget=50), *pool, *target)
    table = scores(made)
    assert sorted(table["rank"]) == list(range(1, 121))
    assert sum(table["selected"]) == made.rows == 50
    assert {*table["nearest"], *table["pulled_by"]} <= set(target[0].read(["row_id"])["row_id"].to_pylist())
    assert np.isfinite(table["deviation"]).all() and min(table["deviation"]) >= 0
    by_row = dict(zip(table["row_id"], table["value"], strict=True))
    lines = made["dropped"].read().to_pylist()
    assert len(lines) == 70
    assert all(line["score"] == by_row[line["row_id"]] for line in lines)
    assert {line["kept"] for line in made["borders"].read().to_pylist()} == {True, False}


def test_values_are_calibrated_and_a_row_far_from_the_target_has_a_high_one(embedded: Embedded, two: Array) -> None:
    pool, target = around(two, [0] * 100), embedded(around(two, [0] * 50), "target")
    pool[7] += 30
    table = scores(select_ot(SelectOtParameters(budget=10, per_target=None), *embedded(pool, "pool"), *target))
    assert abs(np.mean(table["value"])) < 1e-6
    assert np.argmax(table["value"]) == 7 and table["rank"][7] == 100


def test_deviations_fall_with_more_of_the_target(embedded: Embedded, two: Array) -> None:
    pool = embedded(around(two, [0, 1] * 100), "pool")
    targets = [embedded(around(two, [0, 1] * n, seed=2), f"target {n}") for n in (10, 400)]
    few, many = (np.median(scores(select_ot(SelectOtParameters(), *pool, *each))["deviation"]) for each in targets)
    assert many < few / 2


def test_the_order_of_pool_and_target_changes_nothing(embedded: Embedded, two: Array) -> None:
    pool, target = around(two, [0, 1] * 200), around(two, [1] * 80, seed=1)
    draw = np.random.default_rng(0)
    made = [
        select_ot(
            SelectOtParameters(budget=60),
            *embedded(pool, "pool", order=order),
            *embedded(target, "target", order=other),
        )
        for order, other in ((None, None), (draw.permutation(400).tolist(), draw.permutation(80).tolist()))
    ]
    assert made[0].digest != made[1].digest  # rows keep the order that they came in
    names = ["row_id", "value", "rank", "selected", "deviation", "nearest"]
    tables = [each["scores"].read(names).to_pylist() for each in made]
    by_row = [sorted(map(str, table)) for table in tables]
    assert by_row[0] == by_row[1]
    assert made[0]["dropped"].digest == made[1]["dropped"].digest


def test_the_number_of_shards_changes_nothing(embedded: Embedded, two: Array, store: Path) -> None:
    pool, target = around(two, [0, 1] * 400), around(two, [1] * 90, seed=1)
    made = []
    for shard in (10_000, 70, 11):
        with use_settings(store=store.parent / f"store-{shard}"):
            current_store().prepare()
            inputs = (*embedded(pool, "pool", shard=shard), *embedded(target, "target", shard=shard))
            assert len(inputs[1]["embeddings"].files()) == -(-800 // shard)
            made.append(select_ot(SelectOtParameters(budget=60), *inputs))
    assert len({each["scores"].digest for each in made}) == len({each.digest for each in made}) == 1


def test_later_rows_are_scored_by_the_potentials_that_are_kept(embedded: Embedded, two: Array) -> None:
    pool, target = around(two, [0, 1] * 150), embedded(around(two, [1] * 60, seed=1), "target")
    first = select_ot(SelectOtParameters(budget=50), *embedded(pool, "pool"), *target)
    more = np.concatenate([pool, around(two, [1] * 6, seed=5)])
    again = select_ot(SelectOtParameters(budget=50), *embedded(more, "pool"), *target, earlier=first)
    before, after = (dict(zip(scores(each)["row_id"], scores(each)["value"], strict=True)) for each in (first, again))
    n, m = len(before), len(after)
    assert m == n + 6
    # the factor n / (n - 1) of the calibration knows the pool's size; else nothing has changed
    assert all(abs(after[row] * (m - 1) / m - before[row] * (n - 1) / n) < 2e-6 for row in before)
    assert again["potentials"].digest == first["potentials"].digest
    entered = {row for row in again.read(["row_id"])["row_id"].to_pylist() if row not in before}
    assert entered  # some of what the target asks for is better than what there was


def test_labels_count_where_both_sides_have_them(embedded: Embedded, two: Array) -> None:
    draw = np.random.default_rng(4)
    true = draw.integers(2, size=200)
    flipped = draw.random(200) < 0.1
    seen = np.where(flipped, 1 - true, true)
    names = ["red", "blue"]
    pool = embedded(around(two, true.tolist()), "pool", [names[each] for each in seen])
    target = embedded(around(two, [0, 1] * 50, seed=1), "target", [names[each] for each in [0, 1] * 50])
    made = [select_ot(SelectOtParameters(budget=20, label_weight=w), *pool, *target) for w in (1.0, 0.0)]
    gaps = [
        np.mean(np.array(scores(each)["value"])[flipped]) - np.mean(np.array(scores(each)["value"])[~flipped])
        for each in made
    ]
    assert gaps[0] > 2.0 and abs(gaps[1]) < 1.0
    later = select_ot(SelectOtParameters(budget=20), *pool, *target, earlier=made[0])
    assert np.allclose(scores(later)["value"], scores(made[0])["value"], atol=2e-6)


# ---- degenerate input ----


def test_a_budget_above_the_pool_takes_all_of_it(embedded: Embedded, two: Array) -> None:
    made = select_ot(SelectOtParameters(budget=1000), *embedded(around(two, [0] * 20), "pool"),
                     *embedded(around(two, [1] * 10), "target"))  # fmt: skip
    assert made.rows == 20 and "dropped" not in made.record["outputs"]


def test_one_row_alone_is_taken(embedded: Embedded, two: Array) -> None:
    made = select_ot(SelectOtParameters(budget=1), *embedded(around(two, [0]), "p"), *embedded(around(two, [1]), "t"))
    assert made.rows == 1
    assert scores(made)["value"] == [0.0]


def test_equal_rows_are_taken_by_their_ids(embedded: Embedded) -> None:
    pool, target = embedded(np.ones((30, 4)), "pool"), embedded(np.ones((5, 4)), "target")
    made = select_ot(SelectOtParameters(budget=10), *pool, *target)
    ids = sorted(pool[0].read(["row_id"])["row_id"].to_pylist(), key=lambda each: each.bytes)
    assert set(made.read(["row_id"])["row_id"].to_pylist()) == set(ids[:10])


def test_vectors_of_another_length_are_refused(embedded: Embedded) -> None:
    with pytest.raises(BadInput) as refused:
        select_ot(SelectOtParameters(), *embedded(np.ones((5, 4)), "pool"), *embedded(np.ones((5, 3)), "target"))
    assert "5 vectors of 4 numbers against 5 of 3" in refused.value.found


def test_vectors_that_are_not_finite_are_refused_by_row(embedded: Embedded) -> None:
    broken = np.ones((5, 4))
    broken[3, 1] = np.nan
    rows, vectors = embedded(broken, "pool")
    with pytest.raises(BadInput) as refused:
        select_ot(SelectOtParameters(), rows, vectors, *embedded(np.ones((5, 4)), "target"))
    assert str(rows.read(["row_id"])["row_id"][3].as_py()) in refused.value.found


def test_rows_without_a_vector_are_refused(embedded: Embedded) -> None:
    rows, _ = embedded(np.ones((5, 4)), "pool")
    _, others = embedded(np.ones((5, 4)), "others")
    with pytest.raises(BadInput) as refused:
        select_ot(SelectOtParameters(), rows, others, *embedded(np.ones((5, 4)), "target"))
    assert "5 of 5 rows without a vector" in refused.value.found


def test_a_budget_of_tokens_wants_tokens(embedded: Embedded) -> None:
    pool, target = embedded(np.ones((5, 4)), "pool"), embedded(np.ones((5, 4)), "target")
    with pytest.raises(BadInput) as refused:
        select_ot(SelectOtParameters(unit="tokens"), *pool, *target)
    assert "count_tokens" in refused.value.remedy
