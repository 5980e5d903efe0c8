"""Intervals of means: they hold the truth as often as they say, and rows of one group are drawn together."""

import numpy as np
import pytest

from tasks.evaluate.intervals import mean_intervals, reward_margins, wins


def test_a_constant_has_no_width_and_columns_see_the_same_draws() -> None:
    values = np.random.default_rng(0).normal(size=40)
    found = mean_intervals({"half": np.full(40, 0.5), "one": values, "two": 2 * values}, 0.95, 300, 0)
    assert [found[f"half{end}"] for end in ("", "_low", "_high")] == [0.5, 0.5, 0.5]
    for end in ("", "_low", "_high"):
        assert found[f"two{end}"] == pytest.approx(2 * found[f"one{end}"])
    assert found["one_low"] < found["one"] < found["one_high"]
    assert mean_intervals({"one": values}, 0.95, 300, 1)["one_low"] != found["one_low"]


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(7)
    held = 0
    for _ in range(300):
        found = mean_intervals({"x": random.normal(1.0, 2.0, 80)}, 0.95, 300, 0)
        held += found["x_low"] <= 1.0 <= found["x_high"]
    assert 0.90 <= held / 300 <= 0.98


def test_samples_of_one_prompt_are_drawn_together() -> None:
    values = np.random.default_rng(3).normal(size=50)
    repeated, groups = np.repeat(values, 4), np.repeat(np.arange(50), 4).tolist()
    alone = mean_intervals({"x": values}, 0.9, 2000, 0)
    assert mean_intervals({"x": repeated}, 0.9, 2000, 0, groups) == pytest.approx(alone)
    apart = mean_intervals({"x": repeated}, 0.9, 2000, 0)
    width, narrow = (each["x_high"] - each["x_low"] for each in (alone, apart))
    assert narrow == pytest.approx(width / 2, rel=0.15)  # as if 200 rows were 200 prompts


def test_groups_weigh_as_many_rows_as_they_have() -> None:
    found = mean_intervals({"x": np.array([0.0, 0.0, 0.0, 1.0])}, 0.95, 100, 0, ["a", "a", "a", "b"])
    assert found["x"] == 0.25


def test_a_tie_counts_half() -> None:
    assert wins(np.array([-2.0, 0.0, 1e-9])).tolist() == [0.0, 0.5, 1.0]


def test_a_margin_is_a_difference_of_rewards() -> None:
    names = ("chosen", "rejected", "chosen_base", "rejected_base")
    scores = {name: np.array([value]) for name, value in zip(names, (-1.0, -5.0, -3.0, -4.0), strict=True)}
    assert reward_margins(scores).tolist() == [3.0]
