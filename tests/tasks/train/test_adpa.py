"""ADPA: its loss by hand, teachers that teach nothing, what is not read, and a training that a kill does not change."""

import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from data.artifact import Artifact
from data.contracts import GENERATION
from tasks.train.adpa import AdpaParameters, adpa, encode_responses, fit
from tasks.train.checkpoints import newest_checkpoint
from tasks.train.losses import advantage_loss
from tasks.train.models import load_tokenizer
from tasks.train.passes import open_model
from tasks.train.teacher_cache import TeacherCacheParameters, teacher_cache
from tests.tasks.train.small import (
    Family,
    Trained,
    alike,
    answer,
    contents,
    farthest,
    killed_at_checkpoint,
    preferences,
    responses_to,
    rows_of,
    trained,
    turns,
)


def options(**changes: Any) -> AdpaParameters:
    small = {"batch_size": 4, "max_length": 64, "epochs": 2, "learning_rate": 1e-3, "checkpoint_every": 100}
    return AdpaParameters(threads=1, warmup=0, **(small | changes))


Run = Any


@pytest.fixture(scope="module")
def run(models: Family, rows: Artifact, responses: Artifact) -> Run:
    def run(folder: Path, *teachers: Artifact, **changes: Any) -> Trained:
        return trained(fit, folder, options(**changes), rows, responses, models.student.path, list(teachers))

    return run


# ---- the loss ----


@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_the_first_loss_is_equation_11(
    clip: tuple[float, float] | None, run: Run, models: Family, rows: Artifact, responses: Artifact, tmp_path: Path
) -> None:
    step = run(
        tmp_path, models.other, models.reference, clip=clip, gamma=0.8, sft_weight=0.5, batch_size=12, max_steps=1
    ).history
    tokenizer = load_tokenizer(models.student.path)
    pairs, _ = encode_responses(rows.read(), responses.read(), tokenizer, 64)
    opened = [open_model(each.path)[0] for each in (models.student, models.other, models.reference)]
    negative, states, nats, tokens = 0.0, 0, 0.0, 0
    for each in pairs.to_pylist():
        ids, mask = torch.tensor([each["second_ids"]]), torch.tensor([each["second_mask"]])[:, 1:]
        assert int(ids[0, 1:][mask[0].bool()][-1]) == tokenizer.eos_token_id, "the end of the turn counts"
        with torch.no_grad():
            logits = [model(ids).logits[:, :-1].double() for model in opened]
        negative += float(advantage_loss(*logits, mask, clip)) * int(mask.sum())
        states += int(mask.sum())
        ids, mask = torch.tensor([each["chosen_ids"]]), torch.tensor([each["chosen_mask"]])[:, 1:]
        with torch.no_grad():
            log_p = opened[0](ids).logits[:, :-1].double().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        nats -= float((log_p * mask).sum())
        tokens += int(mask.sum())
    assert step["sft"] == pytest.approx([nats / tokens], rel=1e-5)
    assert step["advantage"] == pytest.approx([-negative / states], rel=1e-4, abs=1e-5)
    assert step["loss"] == pytest.approx([0.5 * nats / tokens + 0.8 * negative / states], rel=1e-4)
    if clip:
        assert 0 <= step["advantage"][0] <= 1
    else:
        assert step["advantage"][0] < 0, "tokens that the teacher avoids count: most of a flat student's mass"


def test_clipping_changes_what_is_learned(run: Run, models: Family, tmp_path: Path) -> None:
    signed, clipped = (run(tmp_path / str(clip), models.other, models.reference, clip=clip) for clip in (None, (0, 1)))
    assert farthest(signed, clipped) > 1e-4
    assert all(0 <= each <= 1 for each in clipped.history["advantage"])


def test_swapped_teachers_turn_the_advantage_round(run: Run, models: Family, rows: Artifact, tmp_path: Path) -> None:
    """Both are of one origin, so each may be the other's reference."""
    one, other = (
        run(tmp_path / str(at), *teachers, batch_size=12, max_steps=1, sft_weight=0.0)
        for at, teachers in enumerate([(models.other, models.reference), (models.reference, models.other)])
    )
    assert abs(one.history["advantage"][0]) > 0.01
    # an expectation under the student, which has not moved yet
    assert one.history["advantage"][0] == pytest.approx(-other.history["advantage"][0], rel=1e-4)
    assert one.history["loss"][0] == pytest.approx(-other.history["loss"][0], rel=1e-4)
    before = open_model(models.student.path)[0].state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    moved = [each.weights[name] - before[name] for each in (one, other)]
    large = moved[0].abs() > 5e-4  # where the gradient is not all rounding, Adam's first step goes by its sign
    assert large.float().mean() > 0.5
    assert (moved[0][large].sign() == -moved[1][large].sign()).float().mean() > 0.99


def test_without_a_reference_another_thing_is_learned(run: Run, models: Family, tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", models.other, without_reference=True)
    against = run(tmp_path / "against", models.other, models.reference)
    assert max(alone.history["advantage"]) < 0
    assert farthest(alone, against) > 1e-4


def test_the_advantage_rises(run: Run, models: Family, tmp_path: Path) -> None:
    long = run(tmp_path, models.other, models.reference, epochs=20, learning_rate=3e-3)
    assert long.measures["advantage"] > long.history["advantage"][0] + 0.1
    assert long.measures["sft"] < long.history["sft"][0]


# ---- teachers that teach nothing ----


@pytest.mark.parametrize("cached", [False, True])
def test_equal_teachers_give_a_gradient_of_exactly_nothing(
    cached: bool, run: Run, models: Family, responses: Artifact, tmp_path: Path
) -> None:
    pair = (models.reference, models.reference)
    parameters = TeacherCacheParameters(max_length=64)
    teachers = (teacher_cache(parameters, responses, pair[0], [pair[1]]),) if cached else pair
    with_advantage = run(tmp_path / "with", *teachers, gamma=1.6)
    without = run(tmp_path / "without", *teachers, gamma=0.0)
    assert with_advantage.history["advantage"] == [0.0] * 6
    assert with_advantage.history["gradient_norm"] == without.history["gradient_norm"]
    assert farthest(with_advantage, without) == 0
    file = "model.safetensors"
    assert (with_advantage.model / file).read_bytes() == (without.model / file).read_bytes()
    alone = run(tmp_path / "alone", *teachers, gamma=1.6, sft_weight=0.0, max_steps=2)
    assert alone.history["gradient_norm"] == [0.0, 0.0]


def test_without_weight_decay_a_gradient_of_nothing_moves_nothing(run: Run, models: Family, tmp_path: Path) -> None:
    alone = run(tmp_path, models.reference, models.reference, sft_weight=0.0, max_steps=2)
    before = open_model(models.student.path)[0].state_dict()
    for name, weight in alone.weights.items():
        assert torch.equal(weight, before[name]), name


# ---- what is read ----


def test_rejected_sides_do_not_matter(
    run: Run, models: Family, rows: Artifact, responses: Artifact, tmp_path: Path
) -> None:
    records = [
        each | {"rejected": answer("quite another answer " * (n % 3 + 1))} for n, each in enumerate(preferences(12))
    ]
    others = rows_of(tmp_path / "others", records)
    ids = dict(zip(*(each.read(["row_id"])["row_id"].to_pylist() for each in (rows, others)), strict=True))
    table = responses.read()
    moved = [
        each | {"prompt_id": ids[each["prompt_id"]]}
        for each in table.select(["prompt", "completion", "finish_reason", "prompt_id"]).to_pylist()
    ]
    again = rows_of(tmp_path / "again", moved, GENERATION)
    assert again.read()["row_id"].to_pylist() == table["row_id"].to_pylist()
    teachers = [models.other, models.reference]
    one = run(tmp_path / "one", *teachers)
    other = trained(fit, tmp_path / "other", options(), others, again, models.student.path, teachers)
    assert farthest(one, other) == 0
    assert one.history == other.history


def test_the_end_of_a_turn_is_taught_and_the_end_of_a_cut_response_is_not(
    models: Family, rows: Artifact, responses: Artifact, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(models.student.path)
    cut = responses_to(tmp_path / "cut", rows, lambda n: "z" * (n % 6) + "y", finish="length")
    whole, partial = (encode_responses(rows.read(), each.read(), tokenizer, 64)[0] for each in (responses, cut))
    difference = sum(map(sum, whole["second_mask"].to_pylist())) - sum(map(sum, partial["second_mask"].to_pylist()))
    assert difference == 12  # one end of turn each
    teachers = [models.other, models.reference]
    losses = [
        trained(
            fit, tmp_path / name, options(batch_size=12, max_steps=1), rows, each, models.student.path, teachers
        ).history["advantage"]
        for name, each in (("whole", responses), ("partial", cut))
    ]
    assert not alike(*losses, 1e-4)


def test_the_end_alone_is_enough_to_learn_from(models: Family, rows: Artifact, tmp_path: Path) -> None:
    """An empty response has one position: that of its end."""
    tokenizer = load_tokenizer(models.student.path)
    ends = responses_to(tmp_path / "ends", rows, lambda n: " ")
    pairs, _ = encode_responses(rows.read(), ends.read(), tokenizer, 64)
    assert set(map(sum, pairs["second_mask"].to_pylist())) == {2}
    step = trained(
        fit, tmp_path / "run", options(sft_weight=0.0, max_steps=1), rows, ends, models.student.path,
        [models.other, models.reference],
    )  # fmt: skip
    assert step.history["gradient_norm"][0] > 0


# ---- rows ----


def test_what_has_no_partner_is_dropped_with_the_reason_and_nothing_is_lost(models: Family, tmp_path: Path) -> None:
    records = preferences(6)
    records[1] = records[1] | {"prompt": turns("a long question " * 20)}
    rows = rows_of(tmp_path / "rows", records)
    strangers = rows_of(tmp_path / "strangers", preferences(8)[6:])
    table = rows.read()
    prompts = [*table["row_id"].to_pylist()[:4], *strangers.read()["row_id"].to_pylist()]
    said = [
        {"prompt": turns("say"), "completion": f"z{n}", "finish_reason": "stop", "prompt_id": each}
        for n, each in enumerate(prompts)
    ]
    responses = rows_of(tmp_path / "said", said, GENERATION)
    cache = teacher_cache(TeacherCacheParameters(max_length=64), responses, models.teacher, [models.reference])
    made = adpa(options(max_steps=1), rows, responses, models.student, [cache])
    ids, answers = table["row_id"].to_pylist(), responses.read()["row_id"].to_pylist()
    dropped = {each["row_id"]: each["reason"] for each in made["dropped"].read().to_pylist()}
    assert dropped == {
        answers[1]: "nothing to learn within max_length",
        answers[4]: "its prompt is not among the pairs",
        answers[5]: "its prompt is not among the pairs",
        ids[1]: "no response to learn from",
        ids[4]: "no response to learn from",
        ids[5]: "no response to learn from",
    }
    measures = made.record["measures"]
    assert (measures["rows_in"], measures["rows_consumed"], measures["rows_dropped"]) == (12, 6, 6)


def test_several_responses_to_one_prompt_are_several_pairs(models: Family, rows: Artifact, tmp_path: Path) -> None:
    first = rows.read(["row_id"])["row_id"].to_pylist()[0]
    said = [
        {"prompt": turns("say"), "completion": f"z{n}", "finish_reason": "stop", "prompt_id": first} for n in range(3)
    ]
    responses = rows_of(tmp_path / "said", said, GENERATION)
    pairs, dropped = encode_responses(rows.read(), responses.read(), load_tokenizer(models.student.path), 64)
    assert pairs["row_id"].to_pylist() == responses.read()["row_id"].to_pylist()
    assert len(set(map(tuple, pairs["chosen_ids"].to_pylist()))) == 1
    assert len(pa.concat_tables(dropped)) == 11


# ---- after a kill ----


@pytest.mark.parametrize("cached", [False, True])
def test_a_resumed_training_ends_in_the_same_bytes(
    cached: bool, models: Family, rows: Artifact, responses: Artifact, tmp_path: Path
) -> None:
    parameters = options(checkpoint_every=1, micro_batch_size=2)
    teachers = [models.other, models.reference]
    if cached:
        teachers = [teacher_cache(TeacherCacheParameters(max_length=64), responses, models.other, [models.reference])]
    inputs = (rows, responses, models.student.path, teachers)
    whole = trained(fit, tmp_path / "whole", parameters, *inputs)
    stopped = tmp_path / "stopped"
    assert killed_at_checkpoint(4, fit, stopped, parameters, *inputs) == -signal.SIGKILL
    assert newest_checkpoint(stopped / "checkpoints") == stopped / "checkpoints" / "checkpoint-3"
    steps: list[int] = []
    again = trained(fit, stopped, parameters, *inputs, on_step=lambda *step: steps.append(step[0]))
    assert steps == [4, 5, 6]
    assert contents(again.model) == contents(whole.model)
    assert again.measures == whole.measures
