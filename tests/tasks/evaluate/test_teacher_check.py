"""A teacher before it teaches: one whose weights were wrecked is refused, in words; one that was not goes on."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from data.artifact import Artifact
from data.errors import BadInput
from infra.store import current_store
from tasks.curate.load import LoadParameters, load
from tasks.evaluate.evaluate import EvaluateParameters, evaluate
from tasks.evaluate.evaluate_pairs import EvaluatePairsParameters, evaluate_pairs
from tasks.evaluate.teacher_check import TeacherCheckParameters, teacher_check
from tests.tasks.train.small import (
    ChangedParameters,
    GivenParameters,
    byte_tokenizer,
    changed,
    given,
    preferences,
    rows_of,
    write_base,
)

pytestmark = pytest.mark.usefixtures("shelf")

FEW = TeacherCheckParameters(draws=500)
ASK = EvaluateParameters(batch_size=8, max_length=128, max_new_tokens=4)
PAIRS = EvaluatePairsParameters(batch_size=8, max_length=128, draws=500)
PROMPTS = [f"say {n}" for n in range(16)]


class Trial(NamedTuple):
    """A reference that is right on 12 of 16 rows, a teacher that is hardly another, and one whose weights are noise."""

    rows: Artifact
    pairs: Artifact
    reference: Artifact
    sound: Artifact
    wrecked: Artifact


def loaded(folder: Path, answers: list[str]) -> Artifact:
    folder.mkdir()
    path = folder / "rows.jsonl"
    rows = [{"prompt": prompt, "completion": each} for prompt, each in zip(PROMPTS, answers, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(path), "licence": "CC0-1.0", "layout": "prompt-completion"}
    return load(LoadParameters.model_validate({"sources": [source]}))


@pytest.fixture(scope="module")
def trial(shelf: None, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    folder = tmp_path_factory.mktemp("trial")
    reference = given(GivenParameters(path=str(write_base(folder, byte_tokenizer(), seed=1))))
    wanted = evaluate(ASK, loaded(folder / "asked", ["?"] * 16), reference)["scores"].read()["answer"].to_pylist()
    return Trial(
        rows=loaded(folder / "rows", wanted[:12] + ["never"] * 4),
        pairs=rows_of(folder / "pairs", preferences(12)),
        reference=reference,
        sound=changed(ChangedParameters(by=1e-5), reference),
        wrecked=changed(ChangedParameters(by=2.0, head=True), reference),
    )


def checked(
    trial: Trial, teacher: Artifact, rows: Artifact, pairs: Artifact, ask: EvaluateParameters = ASK, **options: Any
) -> Artifact:
    before, after = evaluate(ask, rows, trial.reference), evaluate(ask, rows, teacher)
    preferred = evaluate_pairs(PAIRS, pairs, teacher, trial.reference)
    return teacher_check(FEW.model_copy(update=options), before, after, preferred)


def split_by(trial: Trial, teacher: Artifact, folder: Path) -> tuple[Artifact, Artifact]:
    """The pairs as a teacher has them, each chosen side the one that its rewards prefer, and the other way around."""
    scores = evaluate_pairs(PAIRS, trial.pairs, teacher, trial.reference)["pairs"].read().to_pylist()
    liked = [(line["chosen"] - line["chosen_base"]) > (line["rejected"] - line["rejected_base"]) for line in scores]
    sides = ({True: ("chosen", "rejected"), False: ("rejected", "chosen")}[each] for each in liked)
    agreeing = [
        {"prompt": row["prompt"], "chosen": row[one], "rejected": row[other]}
        for row, (one, other) in zip(preferences(12), sides, strict=True)
    ]
    opposed = [each | {"chosen": each["rejected"], "rejected": each["chosen"]} for each in agreeing]
    return rows_of(folder / "agreeing", agreeing), rows_of(folder / "opposed", opposed)


def test_a_teacher_that_was_wrecked_is_refused_although_its_rewards_are_right(trial: Trial, tmp_path: Path) -> None:
    agreeing, _ = split_by(trial, trial.wrecked, tmp_path)
    with pytest.raises(BadInput) as refused:
        checked(trial, trial.wrecked, trial.rows, agreeing)
    text = str(refused.value)
    assert "a teacher that got worse: exact match 0.750 -> 0." in text
    assert "95 % interval -" in text
    assert "16 rows), while it has reward accuracy 1.000 (95 % interval 1.000 to 1.000, 12 pairs)" in text
    assert "KL from its reference" in text
    assert "loss on the references" in text
    for remedy in ("sft_weight", "learning rate", "fewer steps", "teacher_check.allow_worse: true"):
        assert remedy in refused.value.remedy
    assert not list(current_store().artifacts("teacher_check"))


def test_it_passes_with_a_warning_where_that_is_allowed(
    trial: Trial, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    agreeing, _ = split_by(trial, trial.wrecked, tmp_path)
    made = checked(trial, trial.wrecked, trial.rows, agreeing, allow_worse=True)
    [line] = made["check"].read().to_pylist()
    measures = made.record["measures"]
    assert line["worse"] is True
    assert measures["worse"] == 1
    assert measures["difference"] == pytest.approx(measures["exact_match_after"] - measures["exact_match_before"])
    assert measures["low"] <= measures["difference"] <= measures["high"] < 0
    assert measures["loss_after"] > measures["loss_before"]
    assert measures["kl"] > 1
    assert {name: line[name] for name in ("accuracy", "kl", "margin", "low", "high")} == {
        name: measures[name] for name in ("accuracy", "kl", "margin", "low", "high")
    }
    assert "teacher_check: warning: a teacher that got worse" in capfd.readouterr().err


def test_a_teacher_that_is_as_right_as_before_goes_on(
    trial: Trial, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, opposed = split_by(trial, trial.sound, tmp_path)
    made = checked(trial, trial.sound, trial.rows, opposed)
    measures = made.record["measures"]
    assert (measures["exact_match_before"], measures["exact_match_after"]) == (0.75, 0.75)
    assert (measures["difference"], measures["low"], measures["high"], measures["worse"]) == (0, 0, 0, 0)
    assert measures["accuracy"] == 0  # reported, and not what decides where answers are verified
    told = capfd.readouterr().err
    assert "teacher_check: a teacher not shown to be worse" in told
    assert "warning" not in told


def test_without_answers_the_rewards_decide(trial: Trial, tmp_path: Path) -> None:
    agreeing, opposed = split_by(trial, trial.wrecked, tmp_path)
    silent = ASK.model_copy(update={"max_new_tokens": 0})
    made = checked(trial, trial.wrecked, trial.rows, agreeing, silent)
    [line] = made["check"].read().to_pylist()
    assert (line["worse"], line["verified"], line["exact_match_before"], line["low"]) == (False, False, None, None)
    assert "difference" not in made.record["measures"]
    with pytest.raises(BadInput, match=r"judged by reward accuracy 0\.000 .* since no answer was verified"):
        checked(trial, trial.wrecked, trial.rows, opposed, silent)
    assert checked(trial, trial.wrecked, trial.rows, opposed, silent, allow_worse=True).record["measures"]["worse"] == 1


def test_an_exact_match_of_zero_is_no_verifier(trial: Trial, tmp_path: Path) -> None:
    agreeing, opposed = split_by(trial, trial.wrecked, tmp_path)
    never = loaded(tmp_path / "never", ["never"] * 16)
    made = checked(trial, trial.wrecked, never, agreeing)
    measures = made.record["measures"]
    assert (measures["exact_match_before"], measures["exact_match_after"], measures["worse"]) == (0, 0, 0)
    with pytest.raises(BadInput, match="since no answer was verified"):
        checked(trial, trial.wrecked, never, opposed)


def test_chance_is_not_called_worse(trial: Trial, tmp_path: Path) -> None:
    """Half of the pairs right: the interval reaches above .5."""
    agreeing, opposed = (each.read().to_pylist() for each in split_by(trial, trial.wrecked, tmp_path))
    mixed = rows_of(tmp_path / "mixed", agreeing[:5] + opposed[5:])
    made = checked(trial, trial.wrecked, trial.rows, mixed, ASK.model_copy(update={"max_new_tokens": 0}))
    [line] = made["check"].read().to_pylist()
    assert line["accuracy"] == pytest.approx(5 / 12)
    assert line["accuracy_low"] < 0.5 < line["accuracy_high"]
    assert line["worse"] is False


def test_evaluations_that_do_not_belong_together_are_refused(trial: Trial, tmp_path: Path) -> None:
    before, after = evaluate(ASK, trial.rows, trial.reference), evaluate(ASK, trial.rows, trial.sound)
    pairs = evaluate_pairs(PAIRS, trial.pairs, trial.sound, trial.reference)
    with pytest.raises(BadInput, match="pairs asked of the teacher"):
        teacher_check(FEW, after, before, pairs)
    others = evaluate_pairs(PAIRS, trial.pairs, trial.sound, trial.wrecked)
    with pytest.raises(BadInput, match="pairs asked of the reference"):
        teacher_check(FEW, before, after, others)
    fewer = evaluate(ASK.model_copy(update={"rows": 5}), trial.rows, trial.sound)
    with pytest.raises(BadInput, match="evaluations of different rows"):
        teacher_check(FEW, before, fewer, pairs)
