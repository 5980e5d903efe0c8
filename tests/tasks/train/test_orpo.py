"""ORPO: the loss of equation 6, computed by hand from a model's logits."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from data.artifact import Artifact
from tasks.train.models import load_tokenizer
from tasks.train.orpo import OrpoParameters, fit
from tasks.train.pairs import encode_preferences
from tasks.train.passes import open_model
from tests.tasks.train.small import Family, preferences, rows_of, trained


def options(**changes: Any) -> OrpoParameters:
    small = {"batch_size": 12, "max_length": 64, "learning_rate": 3e-3, "checkpoint_every": 100, "odds_weight": 0.7}
    return OrpoParameters(threads=1, **(small | changes))


@pytest.fixture(scope="module")
def rows(shelf: None, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return rows_of(tmp_path_factory.mktemp("rows") / "pairs", preferences(12))


def log_probabilities(model: Any, ids: list[int], mask: list[int]) -> list[float]:
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [float(log_p[at - 1, ids[at]]) for at in range(1, len(ids)) if mask[at]]


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_the_first_loss_is_equation_6(models: Family, rows: Artifact, micro_batch: int | None, tmp_path: Path) -> None:
    run = trained(fit, tmp_path, options(max_steps=1, micro_batch_size=micro_batch), rows, models.student.path)

    pairs, _ = encode_preferences(rows.read(), load_tokenizer(models.student.path), 64)
    model, _ = open_model(models.student.path)
    nats, odds, better = [], [], []
    for each in pairs.to_pylist():
        chosen, rejected = (log_probabilities(model, each[f"{s}_ids"], each[f"{s}_mask"]) for s in ("chosen", "second"))
        p, q = (math.exp(sum(side) / len(side)) for side in (chosen, rejected))
        ratio = math.log(p / (1 - p)) - math.log(q / (1 - q))
        odds.append(math.log1p(math.exp(-ratio)))
        better.append(p > q)
        nats += chosen
    sft, odds_ratio = -sum(nats) / len(nats), sum(odds) / len(odds)
    assert run.history["sft"] == pytest.approx([sft], rel=1e-5)
    assert run.history["odds_ratio"] == pytest.approx([odds_ratio], rel=1e-5)
    assert run.history["loss"] == pytest.approx([sft + 0.7 * odds_ratio], rel=1e-5)
    assert run.history["accuracy"] == pytest.approx([sum(better) / len(better)])


def test_chosen_answers_become_likelier_than_rejected_ones(models: Family, rows: Artifact, tmp_path: Path) -> None:
    run = trained(fit, tmp_path, options(epochs=30, batch_size=6, odds_weight=1.0), rows, models.student.path)
    assert run.measures["sft"] < run.history["sft"][0] - 1
    assert run.measures["odds_ratio"] < run.history["odds_ratio"][0] - 0.1
    assert run.measures["accuracy"] > 0.9 > run.history["accuracy"][0]
