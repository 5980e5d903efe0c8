"""Paired bootstrap: an interval that covers what it says, nothing where nothing differs, and the planted difference."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.artifact import Artifact
from data.errors import BadInput
from infra.settings import use_settings
from infra.stage import Measures, Parameters, Reference, stage
from infra.store import current_store
from infra.work import Work
from tasks.curate.load import LoadParameters, load
from tasks.evaluate.compare import CompareParameters, bootstrap, compare
from tasks.evaluate.evaluate import SCORES

FEW = CompareParameters(draws=500)


def ones(values: np.ndarray) -> np.ndarray:
    return np.ones_like(values)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(-9, 9), st.integers(1, 9)), min_size=1, max_size=30))
def test_the_mean_is_the_weighted_mean_and_lies_between_the_extremes(rows: list[tuple[float, int]]) -> None:
    values, weights = (np.array(column, float)[:, None] for column in zip(*rows, strict=True))
    mean, low, high = bootstrap(values, weights, CompareParameters(draws=100))[:, 0]
    assert mean == pytest.approx(sum(v * w for v, w in rows) / sum(w for _, w in rows), abs=1e-9)
    assert values.min() - 1e-9 <= low <= high <= values.max() + 1e-9


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(level: float) -> None:
    """400 experiments of 200 normal rows with mean 1: the coverage is binomial around the level."""
    experiments, rows = 400, 200
    drawn = np.random.default_rng(7).normal(1.0, 2.0, (rows, experiments))
    parameters = CompareParameters(draws=1000, level=level)
    _, low, high = bootstrap(drawn, ones(drawn), parameters)
    covered = float(np.mean((low < 1.0) & (high > 1.0)))
    # every experiment is resampled alike, so the experiments stay independent; 200 rows cost about half a percent
    assert abs(covered - level) < 0.005 + 4 * np.sqrt(level * (1 - level) / experiments)


def test_the_width_is_that_of_the_standard_error() -> None:
    values = np.random.default_rng(3).normal(size=(2000, 1))
    mean, low, high = bootstrap(values, ones(values), CompareParameters(draws=5000))[:, 0]
    error = values.std() / np.sqrt(2000)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert low < mean < high


def test_a_row_of_weight_three_counts_as_three() -> None:
    values, weights = np.array([[0.0], [1.0]]), np.array([[1.0], [3.0]])
    assert bootstrap(values, weights, FEW)[0, 0] == 0.75
    scaled = bootstrap(values, 10 * weights, FEW)
    assert np.allclose(scaled, bootstrap(values, weights, FEW))


def test_every_column_sees_the_same_resamples_and_the_seed_chooses_them() -> None:
    values = np.random.default_rng(5).normal(size=(50, 1))
    both = bootstrap(np.hstack([values, values]), np.ones((50, 2)), FEW)
    assert np.array_equal(both[:, 0], both[:, 1])
    assert np.allclose(both[:, :1], bootstrap(values, ones(values), FEW), rtol=1e-12)
    other = bootstrap(values, ones(values), FEW.model_copy(update={"seed": 1}))
    assert not np.allclose(other[1:], both[1:, :1], rtol=1e-12)


def test_a_pair_makes_the_interval_narrow() -> None:
    """What makes a row hard for both models cancels."""
    random = np.random.default_rng(11)
    hard = random.normal(0, 5, 300)
    base, better = hard + random.normal(0, 0.1, 300), hard + 0.2 + random.normal(0, 0.1, 300)
    stacked = np.stack([base, better, better - base], 1)
    (_, _, difference), (_, low, paired_low), (high, _, paired_high) = bootstrap(stacked, ones(stacked), FEW)
    assert low < high  # the intervals of the two overlap
    assert 0.15 < paired_low < difference < paired_high < 0.25


# ---- the stage -----------------------------------------------------------------------------------------------


class Answers(Parameters):
    """What a model answered: one (correct, loss) per row."""

    model: str
    lines: tuple[tuple[bool, float], ...]


@stage("exact")
def asked(work: Work, parameters: Answers, rows: Reference, model: Reference) -> Measures:
    """Scores as `evaluate` publishes them, of answers that are given."""
    ids = rows.read(["row_id"])["row_id"].to_pylist()
    lines = [
        {"row_id": row, "group": None, "prompt": "p", "reference": "r", "answer": "a"}
        | {"correct": correct, "loss": loss, "tokens": 1 + at}
        for at, (row, (correct, loss)) in enumerate(zip(ids, parameters.lines, strict=False))
    ]
    work.write_single(pa.Table.from_pylist(lines, schema=SCORES), "scores")
    return {}


class Named(Parameters):
    """A model's name."""

    name: str


@stage("exact")
def named(work: Work, parameters: Named) -> Measures:
    """Stand for a model: a file that differs by name."""
    (work.out / "weights").write_text(parameters.name)
    return {}


@pytest.fixture(autouse=True)
def store(tmp_path: Path) -> Iterator[Path]:
    with use_settings(store=tmp_path / "store", workers=1) as options:
        current_store().prepare()
        yield options.store


@pytest.fixture
def rows(tmp_path: Path) -> Artifact:
    path = tmp_path / "held-out.jsonl"
    path.write_text("".join(json.dumps({"text": str(n)}) + "\n" for n in range(40)))
    source = {"path": str(path), "licence": "CC0-1.0", "layout": "unlabelled"}
    return load(LoadParameters.model_validate({"sources": [source]}))


def scored(rows: Artifact, model: str, right: int, loss: float, count: int = 40) -> Artifact:
    """A model that is right on the first rows, with losses around one number."""
    lines = tuple((at < right, loss + at / 100) for at in range(count))
    return asked(Answers(model=model, lines=lines), rows, named(Named(name=model)))


def compared(
    parameters: CompareParameters, base: Artifact, *trained: Artifact
) -> dict[tuple[str, str], dict[str, Any]]:
    lines = compare(parameters, base, list(trained))["comparison"].read().to_pylist()
    return {(line["model"], line["metric"]): line for line in lines}


def test_a_planted_difference_is_found_and_identical_models_differ_by_exactly_nothing(rows: Artifact) -> None:
    base, same, better = scored(rows, "b", 10, 2.0), scored(rows, "s", 10, 2.0), scored(rows, "t", 30, 1.5)
    lines = compared(FEW.model_copy(update={"names": ("same", "better")}), base, same, better)
    for metric in ("exact match", "loss"):
        assert lines["base", metric]["difference"] is None
        assert [lines["same", metric][f"difference{end}"] for end in ("", "_low", "_high")] == [0.0, 0.0, 0.0]
    match, loss = lines["better", "exact match"], lines["better", "loss"]
    assert (match["value"], match["difference"]) == (0.75, 0.5)
    assert 0 < match["difference_low"] < 0.5 < match["difference_high"] < 1
    assert loss["difference"] == pytest.approx(-0.5)
    assert loss["difference_high"] < -0.49
    assert match["rows"] == loss["rows"] == 40


def test_the_loss_is_weighed_by_tokens_and_matches_are_not(rows: Artifact) -> None:
    lines = compared(FEW, scored(rows, "b", 10, 2.0), scored(rows, "t", 30, 1.0))
    losses, tokens = [2.0 + at / 100 for at in range(40)], range(1, 41)
    wanted = sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)
    assert lines["base", "loss"]["value"] == pytest.approx(wanted)
    assert lines["base", "exact match"]["value"] == 0.25


def test_seeds_are_pooled_row_by_row_without_the_control(rows: Artifact) -> None:
    seeds = [scored(rows, f"t{right}", right, 1.0) for right in (20, 30)]
    control = scored(rows, "c", 0, 3.0)
    parameters = FEW.model_copy(update={"names": ("one", "two", "control"), "pooled": 2})
    lines = compared(parameters, scored(rows, "b", 10, 2.0), *seeds, control)
    assert lines["mean of seeds", "exact match"]["value"] == pytest.approx(25 / 40)
    assert lines["mean of seeds", "exact match"]["difference"] == pytest.approx(15 / 40)
    assert lines["mean of seeds", "loss"]["digest"] is None
    assert lines["one", "loss"]["digest"] == named(Named(name="t20")).digest


def test_more_pooled_than_trained_is_refused(rows: Artifact) -> None:
    base = scored(rows, "b", 10, 2.0)
    with pytest.raises(BadInput, match=r"1 trained models\nwanted: compare.pooled of at most 1"):
        compare(FEW.model_copy(update={"pooled": 3}), base, [base])


def test_models_without_names_are_called_trained(rows: Artifact) -> None:
    base, one, two = (scored(rows, name, 10, 2.0) for name in "bot")
    assert [model for model, metric in compared(FEW, base, one) if metric == "loss"] == ["base", "trained"]
    names = [model for model, metric in compared(FEW, base, one, two) if metric == "loss"]
    assert names == ["base", "trained 1", "trained 2"]


@pytest.mark.parametrize("names", [("one",), ("one", "two", "three")])
def test_too_few_or_too_many_names_are_refused(rows: Artifact, names: tuple[str, ...]) -> None:
    base = scored(rows, "b", 10, 2.0)
    with pytest.raises(BadInput, match=r"as many compare\.names as models are trained: 2"):
        compare(CompareParameters(names=names), base, [base, base])


@pytest.mark.parametrize("names", [("one", "one"), ("one", "base"), ("one", "mean of seeds")])
def test_names_that_could_be_mistaken_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="names that are not all different"):
        CompareParameters(names=names)


def test_evaluations_of_other_rows_are_refused(rows: Artifact) -> None:
    with pytest.raises(BadInput, match="evaluations of different rows"):
        compare(FEW, scored(rows, "b", 10, 2.0), [scored(rows, "t", 10, 2.0, count=30)])


def test_the_measures_hold_every_number_of_the_table(rows: Artifact) -> None:
    made = compare(FEW, scored(rows, "b", 10, 2.0), [scored(rows, "t", 30, 1.0)])
    measures = made.record["measures"]
    assert measures["trained, exact match, difference"] == 0.5
    assert "base, loss, value" in measures
    assert "base, loss, difference" not in measures
