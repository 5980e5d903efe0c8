"""What a selection by transport rests on: every value counted, and the target rows that it serves."""

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from infra.settings import use_settings
from tasks.curate.select_ot import SelectOtParameters, select_ot
from tasks.evaluate.transport_facts import BARS, histogram, transport_facts

values_and_sides = st.lists(st.tuples(st.floats(-10, 10), st.booleans()), min_size=1, max_size=200)


@given(values_and_sides)
def test_a_histogram_counts_every_row_once(pairs: list[tuple[float, bool]]) -> None:
    values, selected = (np.array(each) for each in zip(*pairs, strict=True))
    found = histogram(values, selected.astype(bool))
    assert len(found["selected"]) == len(found["left"]) == BARS
    assert sum(found["selected"]) == selected.sum()
    assert sum(found["selected"]) + sum(found["left"]) == len(pairs)
    assert found["step"] > 0


def test_the_tails_stand_in_the_outermost_bars() -> None:
    values = np.r_[np.linspace(0, 1, 998), -1000, 1000]
    found = histogram(values, values < 0.5)
    assert -0.1 < found["from"] < 0.1 and found["step"] < 0.1
    assert found["selected"][0] > found["selected"][1] - 2 and found["left"][-1] >= 1


def test_it_tells_what_the_scores_say(curation: Any) -> None:
    told = transport_facts([curation.chosen], ["ot"])
    assert told
    scores = curation.chosen["scores"].read().to_pylist()
    selected = [line for line in scores if line["selected"]]
    assert sum(told["selected"]) == 20 and sum(told["left"]) == 72
    assert told["last"] == max(line["value"] for line in selected)
    unsure = [line for line in selected if abs(line["value"]) < line["deviation"]]
    assert told["unsure"] == round(len(unsure) / 20, 4)
    measures = curation.chosen.record["measures"]
    assert (told["epsilon"], told["marginal_error"]) == (measures["epsilon"], measures["marginal_error"])


def test_target_rows_are_served_by_the_rows_nearest_to_them(curation: Any) -> None:
    told = transport_facts([curation.chosen], ["ot"])
    assert told
    scores = curation.chosen["scores"].read().to_pylist()
    near = Counter(str(line["nearest"]) for line in scores if line["selected"])
    assert told["targets"] == curation.target.rows and told["targets_served"] == len(near)
    assert [each["rows"] for each in told["most_served"]] == sorted(near.values(), reverse=True)[
        : len(told["most_served"])
    ]
    texts = {str(row["row_id"]): row["prompt"] for row in curation.target.read().to_pylist()}
    for each in told["most_served"]:
        assert each["rows"] == near[each["row_id"]]
        assert each["text"].startswith(f"prompt: {texts[each['row_id']]}")


def test_the_first_selection_that_goes_by_its_values_is_told(curation: Any) -> None:
    inputs = (curation.apart, curation.vectors, curation.target, curation.target_vectors, [])
    with use_settings(store=curation.folder / "store", workers=1):
        control = select_ot(SelectOtParameters(budget=20, mode="control", parts=0), *inputs)
    told = transport_facts([curation.random, control, curation.chosen], ["random", "control", "ot"])
    assert told and told["selection"] == "ot"
    own = transport_facts([control, curation.chosen], ["control", "ot"])
    assert own and own["selection"] == "control" and own["unsure"] is None
    assert transport_facts([curation.random, control], ["random", "control"]) is None
