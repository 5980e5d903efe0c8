"""DPO: the loss of TRL's own trainer, pairs that are learned, and a training that a kill does not change."""

import copy
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from data.artifact import Artifact
from data.errors import BadInput
from tasks.train.chat import last_stretch
from tasks.train.checkpoints import newest_checkpoint
from tasks.train.dpo import DpoParameters, dpo, fit
from tasks.train.models import load_model, load_tokenizer
from tasks.train.pairs import encode_preferences
from tasks.train.passes import open_model, total_log_probabilities
from tasks.train.training import arguments
from tests.tasks.train.small import (
    Family,
    alike,
    answer,
    byte_tokenizer,
    contents,
    killed_at_checkpoint,
    preferences,
    rows_of,
    table_of,
    trained,
    turns,
    write_base,
)


def options(**changes: Any) -> DpoParameters:
    small = {"batch_size": 4, "max_length": 64, "epochs": 2, "learning_rate": 3e-3, "checkpoint_every": 1, "beta": 0.1}
    return DpoParameters(threads=1, **(small | changes))


@pytest.fixture(scope="module")
def rows(shelf: None, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return rows_of(tmp_path_factory.mktemp("rows") / "pairs", preferences(14))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student without dropout of any kind, since TRL leaves attention's on."""
    return write_base(tmp_path_factory.mktemp("base"), byte_tokenizer(), attention_dropout=0.0)


# ---- the same as TRL ----


class TrlTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's own, given ids in place of text."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def as_trl_wants(pairs: pa.Table) -> Dataset:
    """Cut each side into the prompt and the answer that is learned; what the template writes after it is left out."""
    lines = []
    for each in pairs.to_pylist():
        first = each["chosen_mask"].index(1)
        assert first == each["second_mask"].index(1)
        chosen, rejected = (last_stretch(each[f"{side}_ids"], each[f"{side}_mask"]) for side in ("chosen", "second"))
        lines.append({"prompt_ids": each["chosen_ids"][:first], "chosen_ids": chosen, "rejected_ids": rejected})
    return Dataset.from_list(lines)


@pytest.mark.parametrize("sft_weight", [0.0, 0.5])
def test_losses_gradients_and_weights_are_those_of_trl(
    base: Path, rows: Artifact, sft_weight: float, tmp_path: Path
) -> None:
    parameters = options(sft_weight=sft_weight)
    ours = trained(fit, tmp_path / "ours", parameters, rows, base)

    tokenizer = load_tokenizer(base)
    model = load_model(base, tokenizer, seed=0)
    pairs, _ = encode_preferences(rows.read(), tokenizer, parameters.max_length)
    terms = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, sft_weight]}
    theirs = TrlTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=arguments(DPOConfig, model, tmp_path / "theirs", parameters, beta=parameters.beta, **terms),
        train_dataset=as_trl_wants(pairs),
        processing_class=tokenizer,
    )
    theirs.train()

    logged = [entry for entry in theirs.state.log_history if "loss" in entry]
    assert len(logged) == ours.measures["steps"] == 8
    history = ours.history
    assert alike(history["loss"], [entry["loss"] for entry in logged])
    assert alike(history["gradient_norm"], [entry["grad_norm"] for entry in logged], 1e-4)
    # the first two steps see the base (the first has rate 0): all margins are 0, but for rounding
    assert alike(history["accuracy"][2:], [entry["rewards/accuracies"] for entry in logged[2:]])
    assert alike(history["margin"], [entry["rewards/margins"] for entry in logged], 1e-4)
    for name, weight in theirs.model.state_dict().items():
        if name in ours.weights:
            assert float((weight - ours.weights[name]).abs().max()) < 1e-4, name


# ---- what it does ----


def test_the_first_loss_is_that_of_a_coin(models: Family, rows: Artifact, tmp_path: Path) -> None:
    run = trained(fit, tmp_path, options(max_steps=1), rows, models.student.path)
    assert run.history["loss"] == pytest.approx([math.log(2)], abs=1e-6)
    assert run.history["margin"] == pytest.approx([0], abs=1e-6)


def planted(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"prompt": turns(f"ask {n}"), "chosen": answer(f"{n} good"), "rejected": answer(f"{n} evil")}
        for n in range(start, start + count)
    ]


def test_planted_preferences_are_learned_and_hold_for_other_prompts(models: Family, tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows", planted(32))
    run = trained(fit, tmp_path / "run", options(epochs=6, warmup=0), rows, models.student.path)
    assert run.history["loss"][-1] < 0.5 < math.log(2)
    assert run.measures["accuracy"] == 1
    assert run.measures["margin"] > 0.5

    tokenizer = load_tokenizer(models.student.path)
    others, _ = encode_preferences(table_of(planted(20, 100)), tokenizer, 64)
    rewards = []
    for side in ("chosen", "second"):
        encoded = list(zip(others[f"{side}_ids"].to_pylist(), others[f"{side}_mask"].to_pylist(), strict=True))
        after, before = (
            total_log_probabilities(open_model(folder)[0], tokenizer.pad_token_id, encoded, 20, "fp32")
            for folder in (run.model, models.student.path)
        )
        rewards.append(after - before)
    assert np.mean(rewards[0] > rewards[1]) == 1


def test_an_sft_term_keeps_the_chosen_answers_likely(models: Family, tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows", planted(16))
    tails = [
        trained(fit, tmp_path / str(weight), options(epochs=6, sft_weight=weight), rows, models.student.path)
        for weight in (0.0, 1.0)
    ]
    assert tails[1].measures["sft"] < tails[0].measures["sft"] - 0.5


# ---- after a kill ----


def test_a_resumed_training_ends_in_the_same_bytes(models: Family, rows: Artifact, tmp_path: Path) -> None:
    parameters = options(micro_batch_size=2, sft_weight=0.1)
    whole = trained(fit, tmp_path / "whole", parameters, rows, models.student.path)

    stopped = tmp_path / "stopped"
    inputs = (rows, models.student.path)
    assert killed_at_checkpoint(5, fit, stopped, parameters, *inputs) == -signal.SIGKILL
    checkpoints = stopped / "checkpoints"
    assert newest_checkpoint(checkpoints) == checkpoints / "checkpoint-4"
    reference = (checkpoints / "reference.npy").read_bytes()
    stamp = (checkpoints / "reference.npy").stat().st_mtime_ns
    steps: list[int] = []
    again = trained(fit, stopped, parameters, *inputs, on_step=lambda *step: steps.append(step[0]))
    assert steps == [5, 6, 7, 8]
    assert contents(again.model) == contents(whole.model)
    assert again.measures == whole.measures
    # the reference is that of the start, and was computed once
    assert (tmp_path / "whole" / "checkpoints" / "reference.npy").read_bytes() == reference
    assert (checkpoints / "reference.npy").stat().st_mtime_ns == stamp


def test_pairs_that_are_cut_to_nothing_are_dropped_and_none_is_lost(models: Family, tmp_path: Path) -> None:
    records = preferences(5)
    records[2] = records[2] | {"prompt": turns("a long question " * 20)}
    rows = rows_of(tmp_path / "rows", records)
    made = dpo(options(max_steps=1), rows, models.student)
    ids = rows.read(["row_id"])["row_id"].to_pylist()
    assert made["dropped"].read().select(["row_id", "reason"]).to_pylist() == [
        {"row_id": ids[2], "reason": "nothing to learn within max_length"}
    ]
    measures = made.record["measures"]
    assert (measures["rows_in"], measures["rows_consumed"], measures["rows_dropped"]) == (5, 4, 1)
    assert list(load_model(made.path, load_tokenizer(made.path), 0).parameters())


def test_rows_that_are_no_preferences_are_refused(models: Family, tmp_path: Path) -> None:
    from data.contracts import PROMPT_COMPLETION

    rows = rows_of(tmp_path / "rows", [{"prompt": "say", "completion": "x"}], PROMPT_COMPLETION)
    with pytest.raises(BadInput, match="preferences: prompt, chosen, rejected"):
        trained(fit, tmp_path / "run", options(), rows, models.student.path)


def test_pairs_that_are_all_dropped_are_refused(models: Family, rows: Artifact, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no pairs to train on"):
        trained(fit, tmp_path, options(max_length=8), rows, models.student.path)
