"""DCKD: its loss by hand, plain distillation that reads no rejected side, and a student that is its teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data.artifact import Artifact
from tasks.train.dckd import DckdParameters, dckd, fit
from tasks.train.losses import forward_kl
from tasks.train.models import load_tokenizer
from tasks.train.pairs import encode_preferences
from tasks.train.passes import open_model
from tasks.train.teacher_cache import TeacherCacheParameters, teacher_cache
from tests.tasks.train.small import Family, Trained, alike, answer, farthest, preferences, rows_of, trained, turns


def options(**changes: Any) -> DckdParameters:
    small = {"batch_size": 4, "max_length": 64, "epochs": 2, "learning_rate": 1e-3, "checkpoint_every": 100}
    return DckdParameters(threads=1, warmup=0, **(small | changes))


@pytest.fixture(scope="module")
def rows(shelf: None, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return rows_of(tmp_path_factory.mktemp("rows") / "pairs", preferences(12))


def run(folder: Path, rows: Artifact, student: Artifact, teacher: Artifact, **changes: Any) -> Trained:
    return trained(fit, folder, options(**changes), rows, student.path, [teacher])


def test_the_first_loss_is_the_sum_of_its_terms(models: Family, rows: Artifact, tmp_path: Path) -> None:
    weights = {"sft_weight": 0.5, "chosen_weight": 0.3, "rejected_weight": 0.2}
    step = run(tmp_path, rows, models.student, models.other, batch_size=12, max_steps=1, **weights).history
    pairs, _ = encode_preferences(rows.read(), load_tokenizer(models.student.path), 64)
    student, teacher = (open_model(each.path)[0] for each in (models.student, models.other))
    sums, counts, nats = {"chosen": 0.0, "second": 0.0}, {"chosen": 0, "second": 0}, 0.0
    for each in pairs.to_pylist():
        for side in sums:
            ids, mask = torch.tensor([each[f"{side}_ids"]]), torch.tensor([each[f"{side}_mask"]])[:, 1:]
            with torch.no_grad():
                logits = [model(ids).logits[:, :-1].double() for model in (student, teacher)]
            sums[side] += float(forward_kl(*logits, mask)) * int(mask.sum())
            counts[side] += int(mask.sum())
            if side == "chosen":
                log_p = logits[0].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
                nats -= float((log_p * mask).sum())
    sft, chosen, rejected = (
        nats / counts["chosen"],
        sums["chosen"] / counts["chosen"],
        sums["second"] / counts["second"],
    )
    assert step["sft"] == pytest.approx([sft], rel=1e-5)
    assert step["kl_chosen"] == pytest.approx([chosen], rel=1e-4)
    assert step["kl_rejected"] == pytest.approx([rejected], rel=1e-4)
    assert step["loss"] == pytest.approx([0.5 * sft + 0.3 * chosen + 0.2 * rejected], rel=1e-5)


@pytest.mark.parametrize("cached", [False, True])
def test_plain_distillation_reads_no_rejected_side(
    cached: bool, models: Family, rows: Artifact, tmp_path: Path
) -> None:
    """Rejected sides of the same lengths, so that batches have the same shapes: the same bits come out."""
    swapped = [each | {"rejected": answer("on" * (1 + n % 3))} for n, each in enumerate(preferences(12))]
    others = rows_of(tmp_path / "others", swapped)

    def trained_on(pairs: Artifact, name: str, weight: float) -> Trained:
        cache = TeacherCacheParameters(max_length=64)
        teacher = teacher_cache(cache, pairs, models.teacher, []) if cached else models.teacher
        return run(tmp_path / name, pairs, models.student, teacher, rejected_weight=weight)

    plain = [trained_on(pairs, f"plain{at}", 0.0) for at, pairs in enumerate((rows, others))]
    assert farthest(*plain) == 0
    assert plain[0].history["kl_rejected"] == [0.0] * 6
    both = [trained_on(pairs, f"both{at}", 0.1) for at, pairs in enumerate((rows, others))]
    assert farthest(*both) > 1e-5, "with a weight, they are read"


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(
    models: Family, rows: Artifact, tmp_path: Path
) -> None:
    weights = {"sft_weight": 0.0, "chosen_weight": 1.0, "rejected_weight": 1.0}
    step = run(tmp_path, rows, models.reference, models.reference, max_steps=1, **weights)
    assert alike(step.history["kl_chosen"] + step.history["kl_rejected"], [0, 0], 1e-5)
    assert step.history["gradient_norm"][0] < 1e-4


def test_a_student_comes_nearer_to_its_teacher_on_both_sides(models: Family, rows: Artifact, tmp_path: Path) -> None:
    weights = {"sft_weight": 0.0, "chosen_weight": 1.0, "rejected_weight": 1.0}
    step = run(tmp_path, rows, models.student, models.other, epochs=20, learning_rate=3e-3, **weights)
    for side in ("kl_chosen", "kl_rejected"):
        assert step.measures[side] < 0.5 * step.history[side][0]


def test_the_stage_publishes_a_model_and_says_what_it_dropped(models: Family, tmp_path: Path) -> None:
    records = preferences(5)
    records[3] = records[3] | {"rejected": answer("x"), "prompt": turns("a long question " * 20)}
    rows = rows_of(tmp_path / "rows", records)
    cache = teacher_cache(TeacherCacheParameters(max_length=64), rows, models.teacher, [])
    made = dckd(options(max_steps=1), rows, models.student, [cache])
    ids = rows.read(["row_id"])["row_id"].to_pylist()
    assert made["dropped"].read()["row_id"].to_pylist() == [ids[3]]
    measures = made.record["measures"]
    assert (measures["rows_in"], measures["rows_consumed"], measures["rows_dropped"]) == (5, 4, 1)
    assert {each["name"] for each in made.record["inputs"]} == {"rows", "base", "teachers"}
    open_model(made.path)
