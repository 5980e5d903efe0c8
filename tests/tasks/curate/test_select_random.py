"""Random selection: every row has the same chance, the same each time, another with another seed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from data.artifact import Artifact
from data.errors import BadInput
from tasks.curate.select_random import SelectRandomParameters, select_random

Loaded = Callable[..., Artifact]


def chosen(rows: Artifact, **parameters: Any) -> set[Any]:
    return set(select_random(SelectRandomParameters(**parameters), rows).read(["row_id"])["row_id"].to_pylist())


def test_a_seed_is_a_sample_and_another_seed_another(loaded: Loaded) -> None:
    rows = loaded([{"prompt": str(n), "completion": "c"} for n in range(400)])
    first = chosen(rows, budget=100)
    assert len(first) == 100 and first == chosen(rows, budget=100)
    overlap = len(first & chosen(rows, budget=100, seed=1))
    assert 10 < overlap < 45  # 25 expected, standard deviation 3.8
    assert chosen(rows, budget=50) < first


def test_values_are_spread_evenly_and_say_who_is_taken(loaded: Loaded) -> None:
    made = select_random(
        SelectRandomParameters(budget=50), loaded([{"prompt": str(n), "completion": "c"} for n in range(1000)])
    )
    scores = made["scores"].read().to_pydict()
    counts = np.histogram(scores["value"], bins=10, range=(0, 1))[0]
    assert counts.sum() == 1000 and counts.min() > 60
    assert max(v for v, s in zip(scores["value"], scores["selected"], strict=True) if s) < min(
        v for v, s in zip(scores["value"], scores["selected"], strict=True) if not s
    )
    assert set(made["dropped"].read()["reason"].to_pylist()) == {"not drawn"}


def test_rows_that_are_added_leave_most_of_a_sample_as_it_was(loaded: Loaded) -> None:
    lines = [{"prompt": str(n), "completion": "c"} for n in range(500)]
    before, after = (chosen(loaded(each), budget=100) for each in (lines[:450], lines))
    assert len(before & after) >= 80


def test_a_pool_without_rows_is_refused(loaded: Loaded) -> None:
    from tasks.curate.clean import CleanParameters, clean

    empty = clean(CleanParameters(min_characters=100), loaded([{"prompt": "p", "completion": "c"}]))
    with pytest.raises(BadInput, match="without a row"):
        select_random(SelectRandomParameters(), empty)
