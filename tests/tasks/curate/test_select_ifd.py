"""IFD: the ratio of two losses by the model at hand, and by no other."""

from collections.abc import Callable

import numpy as np
import pytest

from data.artifact import Artifact
from data.errors import BadInput
from tasks.curate.select_ifd import SelectIfdParameters, ratio, select_ifd
from tasks.train.scratch import ScratchParameters, scratch

Loaded = Callable[..., Artifact]
ROWS = [{"prompt": f"say {word}", "completion": word} for word in ("one", "two", "three", "four", "five", "six")]
SMALL = {"layers": 1, "width": 16, "heads": 2, "feed_forward": 16, "context": 64}


def test_the_ratio_is_that_of_both_losses_and_easy_rows_go_first(loaded: Loaded) -> None:
    rows, model = loaded(ROWS), scratch(ScratchParameters(**SMALL))
    made = select_ifd(SelectIfdParameters(budget=2, max_length=64), rows, model)
    scores = made["scores"].read().to_pylist()
    for line in scores:
        assert line["value"] == pytest.approx(-line["loss_given_prompt"] / line["loss_alone"], rel=1e-6)
    helped = [line for line in scores if line["value"] > -1]
    assert made["rows"].rows == min(2, len(helped)) and len(helped) > 0
    assert ratio(np.array([[1.0, 2.0], [3.0, 0.0]])).tolist() == [0.5, 3e9]


def test_another_model_gives_its_own_losses(loaded: Loaded) -> None:
    rows = loaded(ROWS)
    models = [scratch(ScratchParameters(**SMALL, seed=seed)) for seed in (0, 1)]
    first, second = (select_ifd(SelectIfdParameters(budget=2, max_length=64), rows, each) for each in models)
    losses = [each["scores"].read()["loss_alone"].to_pylist() for each in (first, second)]
    assert all(one != other for one, other in zip(*losses, strict=True))
    memos = sorted((first.path.parents[1] / ".memo").glob("select_ifd-*"))
    assert len(memos) == 2  # each model's losses are remembered apart


def test_rows_that_the_prompt_does_not_help_with_are_told(loaded: Loaded) -> None:
    with pytest.raises(BadInput, match="no answer that its prompt helps with"):
        select_ifd(SelectIfdParameters(max_length=8), loaded(ROWS), scratch(ScratchParameters(**SMALL)))
