"""Arms: means over seeds, intervals that hold the truth as often as they say, and what could have been seen at all."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from data.artifact import Artifact
from data.errors import BadInput
from infra.settings import use_settings
from infra.stage import Measures, Parameters, stage
from infra.store import current_store
from infra.work import Work
from tasks.evaluate.compare_arms import Arm, CompareArmsParameters, compare_arms, detectable, draw_means

Array = np.ndarray[Any, Any]


class GivenParameters(Parameters):
    """Losses as JSON."""

    losses: str
    tokens: str = "[]"
    first: int = 0


@stage("exact")
def given_scores(work: Work, parameters: GivenParameters) -> Measures:
    """Publish losses as `evaluate` does."""
    losses = json.loads(parameters.losses)
    tokens = json.loads(parameters.tokens) or [10] * len(losses)
    ids = [(parameters.first + n).to_bytes(16, "big") for n in range(len(losses))]
    work.write_single(pa.table({"row_id": pa.array(ids, pa.uuid()), "loss": losses, "tokens": tokens}), "scores")
    return {}


@pytest.fixture(autouse=True)
def store(tmp_path: Path) -> Iterator[None]:
    with use_settings(store=tmp_path / "store"):
        current_store().prepare()
        yield


def scores(losses: Any, **more: Any) -> Artifact:
    return given_scores(GivenParameters(losses=json.dumps(np.asarray(losses).tolist()), **more))


def lines(made: Artifact) -> dict[str, dict[str, Any]]:
    return {line["arm"]: line for line in made["arms"].read().to_pylist()}


def parameters(*arms: tuple[str, int], **more: Any) -> CompareArmsParameters:
    return CompareArmsParameters(arms=tuple(Arm(name=name, seeds=seeds) for name, seeds in arms), draws=2000, **more)


def test_an_arm_is_its_mean_over_seeds_weighted_by_tokens() -> None:
    weights = {"tokens": "[1, 3]"}
    made = compare_arms(
        parameters(("random", 2), ("ot", 1)),
        scores([4.0, 4.0], **weights),
        [scores([1.0, 2.0], **weights), scores([3.0, 2.0], **weights), scores([1.0, 1.0], **weights)],
    )
    found = lines(made)
    assert found["random"]["value"] == pytest.approx((1.75 + 2.25) / 2)
    assert found["ot"]["difference"] == pytest.approx(1.0 - 2.0)
    assert found["base"]["difference"] == pytest.approx(2.0)
    assert found["random"]["seed_deviation"] == pytest.approx(np.std([1.75, 2.25], ddof=1))
    assert found["random"]["difference"] is None and found["ot"]["seed_deviation"] is None


def test_a_clear_difference_is_separable_and_none_is_not() -> None:
    draw = np.random.default_rng(0)
    rows = draw.normal(2, 0.5, 200)
    seeds = [scores(rows + draw.normal(0, 0.02, 200)) for _ in range(9)]
    better = [scores(rows - 0.1 + draw.normal(0, 0.02, 200)) for _ in range(3)]
    arms = parameters(("random", 3), ("control", 3), ("ot", 3), ("more", 3), control="control")
    found = lines(compare_arms(arms, scores(rows + 1), [*seeds[:6], *better, *seeds[6:]]))
    assert found["ot"]["separable"] and not found["control"]["separable"] and not found["more"]["separable"]
    assert found["ot"]["low"] < -0.1 < found["ot"]["high"]


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(120):
        rows = draw.normal(2, 0.5, 150)
        arms = {
            "random": np.stack([rows + draw.normal(0, 0.2, 150) for _ in range(3)]),
            "ot": np.stack([rows - 0.05 + draw.normal(0, 0.2, 150) for _ in range(3)]),
        }
        means = draw_means(arms, np.ones(150), parameters(("random", 3), ("ot", 3)))
        low, high = np.quantile(means["ot"] - means["random"], [0.025, 0.975])
        held += low <= -0.05 <= high
    assert held >= 106  # 114 expected; fewer than 106 of 120 would have a chance below 1 %


def test_what_could_be_seen_falls_with_the_rows() -> None:
    draw = np.random.default_rng(2)

    def smallest(rows: int) -> float:
        base = draw.normal(2, 0.5, rows)
        arms = {name: base + draw.normal(0, 0.3, (3, rows)) for name in ("random", "control")}
        return detectable(arms, np.ones(rows), parameters(("random", 3), ("control", 3), control="control"))

    few, many = smallest(50), smallest(1250)
    assert 3 < few / many < 8  # the root of 25 is 5


def test_seeds_that_differ_widen_the_interval() -> None:
    rows = np.full(100, 2.0)
    alike = {"random": np.stack([rows] * 3), "ot": np.stack([rows] * 3)}
    apart = {"random": np.stack([rows, rows + 0.3, rows - 0.3]), "ot": np.stack([rows] * 3)}
    names = parameters(("random", 3), ("ot", 3))
    drawn = [draw_means(each, np.ones(100), names) for each in (alike, apart)]
    spread = [np.std(means["ot"] - means["random"]) for means in drawn]
    assert spread[0] == 0 and spread[1] > 0.1


def test_evaluations_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadInput, match="different rows"):
        compare_arms(parameters(("random", 1)), scores([1.0, 2.0]), [scores([1.0, 2.0], first=5)])
    with pytest.raises(BadInput, match="1 trainings for arms of 2 seeds"):
        compare_arms(parameters(("random", 2)), scores([1.0]), [scores([1.0])])
    with pytest.raises(ValidationError, match="no arm 'nobody'"):
        parameters(("random", 1), reference="nobody")
    with pytest.raises(ValidationError, match="name of its own"):
        parameters(("random", 1), ("random", 1))


class AnswersParameters(Parameters):
    """Right answers as JSON."""

    correct: str


@stage("exact")
def given_answers(work: Work, parameters: AnswersParameters) -> Measures:
    """Publish answers as `evaluate` does."""
    correct = json.loads(parameters.correct)
    ids = [n.to_bytes(16, "big") for n in range(len(correct))]
    columns = {"correct": correct, "loss": [9.0] * len(ids), "tokens": list(range(1, len(ids) + 1))}
    work.write_single(pa.table({"row_id": pa.array(ids, pa.uuid()), **columns}), "scores")
    return {}


class PairsParameters(Parameters):
    """Log-probabilities of pairs as JSON."""

    chosen: str
    rejected: str


@stage("exact")
def given_pairs(work: Work, parameters: PairsParameters) -> Measures:
    """Publish log-probabilities as `evaluate_pairs` does, of a base that finds all answers alike."""
    sides = {"chosen": json.loads(parameters.chosen), "rejected": json.loads(parameters.rejected)}
    ids = [n.to_bytes(16, "big") for n in range(len(sides["chosen"]))]
    base = {"chosen_base": [-1.0] * len(ids), "rejected_base": [-1.0] * len(ids)}
    work.write_single(pa.table({"row_id": pa.array(ids, pa.uuid()), **sides, **base}), "pairs")
    return {}


def test_right_answers_count_by_row_and_not_by_token() -> None:
    right = [given_answers(AnswersParameters(correct=json.dumps(each))) for each in ([0 > 1, True], [True, True])]
    found = lines(
        compare_arms(parameters(("ADPA", 1), base="SFT", reference="SFT", metric="exact_match"), right[0], right[1:])
    )
    assert (found["SFT"]["value"], found["ADPA"]["value"], found["ADPA"]["difference"]) == (0.5, 1.0, 0.5)


def test_rewards_are_right_where_the_margin_is_above_zero_and_half_right_at_zero() -> None:
    none = given_pairs(PairsParameters(chosen="[-1.0, -1.0, -1.0]", rejected="[-1.0, -1.0, -1.0]"))
    some = given_pairs(PairsParameters(chosen="[-0.5, -2.0, -0.1]", rejected="[-1.0, -1.0, -9.0]"))
    chosen = parameters(("DPO", 1), base="SFT", reference="SFT", metric="reward_accuracy")
    made = compare_arms(chosen, none, [some])
    found = lines(made)
    assert found["SFT"]["value"] == 0.5 and found["DPO"]["value"] == pytest.approx(2 / 3)
    assert made.record["measures"]["DPO, reward accuracy"] == pytest.approx(2 / 3)


def test_one_seed_without_a_control_does_not_say_what_it_would_have_missed() -> None:
    alone = compare_arms(
        parameters(("random", 1), ("ot", 1)), scores([3.0, 4.0]), [scores([1.0, 2.0]), scores([1.0, 1.0])]
    )
    assert "detectable" not in alone.record["measures"]
    arms = parameters(("random", 1), ("again", 1), control="again")
    other = compare_arms(arms, scores([3.0, 4.0]), [scores([1.0, 2.0]), scores([1.5, 2.0])])
    assert other.record["measures"]["detectable"] > 0


def test_a_metric_that_was_not_measured_is_refused() -> None:
    chosen = parameters(("DPO", 1), base="SFT", reference="SFT", metric="reward_accuracy")
    with pytest.raises(BadInput, match="and no pairs"):
        compare_arms(chosen, scores([1.0]), [scores([2.0])])
    silent = [given_answers(AnswersParameters(correct=json.dumps([None, each]))) for each in (None, True)]
    chosen = parameters(("DPO", 1), base="SFT", reference="SFT", metric="exact_match")
    with pytest.raises(BadInput, match="without answers"):
        compare_arms(chosen, silent[0], silent[1:])


def test_an_arm_may_not_be_called_as_the_base() -> None:
    with pytest.raises(ValidationError, match="give each a name of its own"):
        parameters(("base", 1), reference="base")
