"""The drawings of a selection: every mark within its box, in one scale, and nothing lost."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluate.selection_drawing import FLATTEST, SOURCES, SQUAREST, bars, dots, maps, shifts, stacks
from tests.tasks.evaluate.samples import sample

NUMBER = st.floats(-1, 1).map(lambda value: round(value, 3))
POINTS = st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=30)


def marks(points: list[tuple[float, float]]) -> list[dict[str, Any]]:
    return [{"x": x, "y": y, "text": f"{x} {y}"} for x, y in points]


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"M(-?[\d.]+) (-?[\d.]+)", path)]


@given(POINTS, POINTS, POINTS)
def test_all_marks_are_within_the_map(
    pool: list[tuple[float, float]], target: list[tuple[float, float]], chosen: list[tuple[float, float]]
) -> None:
    drawn = maps(
        {"pool": pool, "target": marks(target), "selections": [{"name": "a", "rows": 3, "points": marks(chosen)}] * 2}
    )
    assert drawn
    height = float(drawn["height"])
    assert FLATTEST <= height <= SQUAREST
    found = [*places(drawn["pool"]), *places(drawn["small"][0]["dots"])]
    found += [place for mark in drawn["selected"] for place in places(mark["path"])]
    assert len(found) == len(pool) + 2 * len(chosen)
    assert all(0 <= x <= 100 and 0 <= y <= height for x, y in found)
    assert [mark["text"] for mark in drawn["selected"]] == [f"{x} {y}" for x, y in chosen]
    assert len(drawn["target"]) == len(target) == len(places(drawn["crosses"]))


@given(POINTS.filter(lambda points: len(set(points)) > 1))
def test_the_scale_of_a_map_is_the_same_both_ways_and_up_is_up(points: list[tuple[float, float]]) -> None:
    drawn = maps({"pool": points, "selections": [{"name": "a", "points": marks(points)}]})
    assert drawn
    found = places(drawn["pool"])
    (x, y), (left, top) = points[0], found[0]
    scales = []
    for (other_x, other_y), (other_left, other_top) in zip(points[1:], found[1:], strict=True):
        scales += [(other_left - left) / (other_x - x)] if abs(other_x - x) > 0.3 else []
        scales += [(top - other_top) / (other_y - y)] if abs(other_y - y) > 0.3 else []
    assert all(scale > 0 for scale in scales)
    assert all(scale == pytest.approx(scales[0], rel=0.05) for scale in scales)


@pytest.mark.parametrize("empty", [{}, {"pool": [[0, 0]]}, {"selections": []}, {"selections": [{"points": []}]}])
def test_a_map_without_a_selection_is_none(empty: dict[str, Any]) -> None:
    assert maps(empty) is None


def test_marks_without_a_place_are_left_out() -> None:
    drawn = maps({"selections": [{"name": "a", "points": [{"x": None, "y": 1}, {"x": 0.5, "y": 0.5, "text": None}]}]})
    assert drawn and len(drawn["selected"]) == 1 and drawn["pool"] == ""


def test_dots_are_short() -> None:
    assert dots([(1.23456, 2), (30, 4.05)]) == "M1.2 2.0h0M30.0 4.0h0"


def test_bars_share_one_scale_and_the_last_selected_value_has_its_place() -> None:
    drawn = bars(sample()["selection"]["transport"])
    assert drawn and len(drawn["bars"]) == 40
    assert max(bar["selected"] + bar["left"] for bar in drawn["bars"]) == pytest.approx(100)
    assert drawn["bars"][-1]["x"] + drawn["bars"][-1]["width"] == pytest.approx(100)
    assert drawn["last"] == pytest.approx(100 * (1.2 - 0.21) / 2)
    assert all(0 <= tick["at"] <= 100 for tick in drawn["ticks"])
    far = bars({"selected": [1, 0], "left": [0, 1], "from": 0.0, "step": 0.5, "last": 9.0})
    assert far and far["last"] == 100
    assert bars({}) is None and bars({"selected": [1], "left": [1, 2], "from": 0, "step": 1}) is None


def test_sources_fill_their_bar_and_keep_their_colour() -> None:
    selection = sample()["selection"]
    drawn = stacks(selection["pool"], selection["selections"])
    assert drawn and [line["name"] for line in drawn["lines"]][:2] == ["the pool", "ot"]
    assert len(drawn["legend"]) == SOURCES + 1 and drawn["legend"][-1] == {"name": "1 more", "hue": "used"}
    for line in drawn["lines"]:
        assert sum(part["share"] for part in line["parts"]) == pytest.approx(1)
        ends = [part["x"] for part in line["parts"]]
        assert ends == sorted(ends) and ends[0] == 0
    hues = {(part["name"], part["hue"]) for line in drawn["lines"] for part in line["parts"]}
    assert len({name for name, _ in hues}) == len(hues)
    assert stacks({}, selection["selections"]) is None


def test_shares_of_pool_and_mixture_have_one_scale() -> None:
    first, second = shifts(sample()["selection"]["mixture"])
    assert second["wide"]["mixture"] == 100
    assert first["wide"]["pool"] == pytest.approx(75) and first["wide"]["mixture"] == pytest.approx(25)
    assert shifts({}) == []
