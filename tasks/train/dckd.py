"""Dual-constrained knowledge distillation: learn the chosen answers, and a teacher's distribution on both sides.

Paper: Gao et al. 2025, "Advantage-Guided Distillation for Preference Alignment in Small Language Models". The teacher
was trained by DPO; the divergence is KL(teacher || student), `losses.forward_kl`.

    L = sft_weight * L_SFT(chosen) + chosen_weight * KL(chosen) + rejected_weight * KL(rejected)

With rejected_weight 0 this is plain knowledge distillation on the chosen answers (VanillaKD). What is done differently
from the released code: the end of a turn is taught, all models see the same ids, and the divergence is over the whole
vocabulary unless the cache is compact.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from data.artifact import Artifact
from infra.child import run_in_child
from infra.stage import Measures, Reference, References, Rows, stage
from infra.work import Work
from tasks.train.checkpoints import OnStep
from tasks.train.losses import log_probabilities
from tasks.train.models import load_tokenizer
from tasks.train.pairs import SIDES, Batch, Objective, PairParameters, encode_preferences, train_pairs
from tasks.train.teachers import Teacher, teacher_of

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = ("sft", "kl_chosen", "kl_rejected", "coverage")


class DckdParameters(PairParameters):
    """Say how to distil; the defaults are those of the paper's code."""

    method: Literal["dckd"] = Field(default="dckd", description="name of the method, where there is a choice")
    sft_weight: float = Field(default=1.0, ge=0, description="weight of the chosen answers' negative log-likelihood")
    chosen_weight: float = Field(default=0.1, ge=0, description="weight of the divergence on chosen answers (alpha)")
    rejected_weight: float = Field(
        default=0.1, ge=0, description="weight of the divergence on rejected answers (alpha); 0: VanillaKD"
    )
    learning_rate: float = Field(default=5e-7, gt=0, description="peak learning rate of AdamW")
    batch_size: int = Field(default=128, ge=1, description="pairs per optimizer step")
    epochs: float = Field(default=3.0, gt=0, description="passes over the pairs; max_steps, if given, overrides it")


@stage("float", trains=True)
def dckd(work: Work, parameters: DckdParameters, rows: Rows, base: Reference, teachers: References) -> Measures:
    """Distil a teacher into the base, on both sides of preferences; pairs that are cut down to nothing are dropped.

    `teachers` is one artifact: the `teacher_cache` of these rows, or the teacher itself, which then stays in memory.
    The artifact's folder is what `from_pretrained` opens; `history` has, of every step, the loss, its terms (nats per
    token) and the coverage: the student's mass on the tokens that the cache holds.

    Raises:
        BadInput: rows that are no preferences or are not in the cache, a teacher with other tokens than the base, or a
            loss that is not finite or spikes.
    """
    what = f"dckd, seed {parameters.seed}"
    measures: Measures = run_in_child(fit, work, parameters, rows, base.path, teachers, folder=work.folder, what=what)
    return measures


def fit(
    work: Work, parameters: DckdParameters, rows: Artifact, base: Path, teachers: list[Artifact], on_step: OnStep
) -> Measures:
    """Encode the pairs, drop those with nothing to learn, and train: what the child process runs."""
    pairs, dropped = encode_preferences(rows.read(), load_tokenizer(base), parameters.max_length)
    work.ledger("dropped", [dropped])

    def prepared(model: Any) -> Objective:
        sides = {"chosen": "chosen", "second": "rejected"}
        teacher = teacher_of(teachers, pairs, sides, model, base, parameters.precision, advantage=False)
        return objective(parameters, teacher)

    return train_pairs(base, pairs, prepared, COLUMNS, work.out, work.folder / "checkpoints", parameters, on_step)


def objective(parameters: DckdParameters, teacher: Teacher) -> Objective:
    """Return DCKD's loss."""

    def loss(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        import torch

        sides = SIDES if parameters.rejected_weight else SIDES[:1]
        stop = None if parameters.rejected_weight else batch.chosen

        def scored(logits: Tensor, labels: Tensor, *lines: Tensor) -> Tensor:
            return torch.stack([-log_probabilities(logits, labels), *teacher.divergence(logits, labels, *lines)])

        scores = batch.score(scored, *teacher.lines(batch, sides), stop=stop)
        nats, divergence, covered = scores * batch.weights[:stop]
        sft, kl_chosen = nats[: batch.chosen].sum(), divergence[: batch.chosen].sum()
        kl_rejected = divergence[batch.chosen :].sum()
        total = parameters.sft_weight * sft + parameters.chosen_weight * kl_chosen
        total = total + parameters.rejected_weight * kl_rejected
        coverage = covered.sum() / len(sides)  # the weights of each side add up to 1
        return total, {"sft": sft, "kl_chosen": kl_chosen, "kl_rejected": kl_rejected, "coverage": coverage}

    return loss
