"""Where marks go: one scale for all bars, no row lost, and everything within the drawing."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluate.drawing import LABEL_GAP, curves, forest, funnel, spread, ticks
from tests.tasks.evaluate.samples import sample


def test_funnel_bars_share_one_scale_and_lose_no_row() -> None:
    stages = sample()["stages"]
    bars = funnel(stages)
    for stage, bar in zip(stages, bars, strict=True):
        rows = sum(part["rows"] for part in bar["segments"])
        left = stage["rows_out"] + stage["rows_consumed"] + stage["rows_dropped"] + stage["rows_failed"]
        assert rows == max(left, stage["rows_in"] + (stage["rows_created"] if stage["rows_in"] else 0))
        assert bar["segments"][-1]["x"] + bar["segments"][-1]["width"] <= 100 + 1e-6
        assert all(part["width"] > 0 for part in bar["segments"])
    assert bars[0]["segments"][0]["kind"] == "kept"
    assert bars[3]["onward"] == pytest.approx(100 * 3281 / 4020)
    assert bars[-2]["cuts"] == [pytest.approx(100 * 3412 / 4020)]
    assert bars[-1]["segments"][0]["name"] == "used" and bars[-1]["onward"] is None
    (trained,) = funnel([{"stage": "sft", "rows_in": 9, "rows_consumed": 8, "rows_dropped": 1, "trains": True}])
    assert [(part["name"], part["rows"]) for part in trained["segments"]] == [("trained on", 8), ("dropped", 1)]


def test_reasons_that_do_not_add_up_are_completed() -> None:
    stage = {"stage": "filter", "rows_in": 10, "rows_out": 4, "rows_dropped": 5, "rows_failed": 1}
    assert [(part["name"], part["rows"]) for part in funnel([stage])[0]["segments"]] == [
        ("kept", 4), ("dropped", 5), ("failed", 1)]  # fmt: skip


def test_curves_choose_a_log_scale_when_losses_span_much_and_skip_what_is_not_finite() -> None:
    wide = curves([{"model": "a", "steps": [1, 2, 3, 4], "loss": [4.0, math.nan, None, 0.1]}])
    narrow = curves([{"model": "a", "steps": [1], "loss": [4.0]}])
    assert wide and wide["log"] and wide["lines"][0]["path"].count(",") == 2
    assert narrow and not narrow["log"] and narrow["x"]
    assert curves([{"model": "a", "steps": [1], "loss": [math.inf]}]) is None


def test_forest_shows_zero_and_marks_intervals_that_cross_it() -> None:
    models = sample()["comparison"]["models"]
    plot = forest(models, "difference", 100)
    assert plot and [row["name"] for row in plot["rows"]] == ["seed 0", "seed 1", "seed 2"]
    assert all(0 < row["low"] < row["mean"] < row["high"] < 100 for row in plot["rows"])
    assert 0 < plot["zero"] < 100
    zero = next(tick for tick in plot["ticks"] if tick["text"] == "0")
    assert zero["at"] == pytest.approx(plot["zero"])
    assert forest(models[:1], "difference", 100) is None
    none = {"name": "same", "difference": {"mean": 0.0, "low": 0.0, "high": 0.0}}
    assert forest([none], "difference", 100)


def test_a_band_shows_what_could_not_have_been_found() -> None:
    arms = sample()["arms"][0]["arms"][1:]
    plain, banded = forest(arms, "difference"), forest(arms, "difference", unseen=0.2)
    assert plain and banded and plain["band"] is None
    assert [row["name"] for row in banded["rows"]] == ["random value", "ot"]
    band = banded["band"]
    assert band["x"] > 0 and band["x"] + band["width"] < 100
    assert band["x"] + band["width"] / 2 == pytest.approx(banded["zero"])
    assert all(band["x"] < row["low"] and row["high"] < band["x"] + band["width"] for row in banded["rows"])


def test_a_stage_without_rows_has_no_bar_and_does_not_break_the_funnel() -> None:
    stages = [
        {"stage": "clean", "rows_in": 10, "rows_out": 9, "rows_dropped": 1},
        {"stage": "embed", "rows_in": 0, "rows_out": 0},
        {"stage": "select_ot", "rows_in": 9, "rows_out": 2, "rows_dropped": 7},
    ]
    bars = funnel(stages)
    assert [bar["stage"]["stage"] for bar in bars] == ["clean", "select_ot"]
    assert bars[0]["onward"] == pytest.approx(90)


@given(st.lists(st.floats(0, 260), max_size=12))
def test_labels_keep_their_distance_and_their_order(wanted: list[float]) -> None:
    placed = spread(wanted, LABEL_GAP)
    ordered = sorted(placed)
    assert all(after - before >= LABEL_GAP - 1e-6 for before, after in itertools.pairwise(ordered))
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    assert [placed[i] for i in order] == ordered
    assert spread([10.0, 11.0, 50.0], 10) == [1.0, 11.0, 50.0]


@given(st.floats(-1e4, 1e4), st.floats(1e-6, 1e4))
def test_ticks_are_few_inside_and_even(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-6 * width - 1e-9 <= tick <= low + width + 1e-6 * width + 1e-9 for tick in found)
