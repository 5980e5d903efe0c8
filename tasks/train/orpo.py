"""Odds ratio preference optimisation: fine-tune on chosen answers, and prefer them to rejected ones, in one stage.

Paper: Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model". Equation 6 is the
objective, equation 7 `losses.odds_ratio_loss`. No reference is needed. TRL has a trainer of this among its experiments,
which come and go; this stage does not use it.

What is different from the released code: the SFT term is over the answer's tokens alone, as equation 6 has it, where
the code counts the prompt's too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from data.artifact import Artifact
from infra.child import run_in_child
from infra.stage import Measures, Reference, Rows, stage
from infra.work import Work
from tasks.train.checkpoints import OnStep
from tasks.train.losses import log_probabilities, odds_ratio_loss
from tasks.train.models import load_tokenizer
from tasks.train.pairs import Batch, Objective, PairParameters, encode_preferences, train_pairs

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = ("sft", "odds_ratio", "accuracy")


class OrpoParameters(PairParameters):
    """Say how to optimise odds ratios; the defaults are the paper's (section 5 and appendix)."""

    method: Literal["orpo"] = Field(default="orpo", description="name of the method, where there is a choice")
    odds_weight: float = Field(default=0.1, ge=0, description="weight of the odds ratio term (lambda in eq. 6)")
    learning_rate: float = Field(default=8e-6, gt=0, description="peak learning rate of AdamW")
    batch_size: int = Field(default=64, ge=1, description="pairs per optimizer step")


@stage("float", trains=True)
def orpo(work: Work, parameters: OrpoParameters, rows: Rows, base: Reference) -> Measures:
    """Train the base on the chosen answers and against the rejected; pairs that are cut down to nothing are dropped.

    The artifact's folder is what `from_pretrained` opens; `history` has, of every step, the loss, its SFT term (nats
    per token), its odds ratio term (nats per pair), and how often the chosen answer is likelier per token.

    Raises:
        BadInput: rows that are no preferences, none left, or a loss that is not finite or spikes.
    """
    what = f"orpo, seed {parameters.seed}"
    measures: Measures = run_in_child(fit, work, parameters, rows, base.path, folder=work.folder, what=what)
    return measures


def fit(work: Work, parameters: OrpoParameters, rows: Artifact, base: Path, on_step: OnStep) -> Measures:
    """Encode the pairs, drop those with nothing to learn, and train: what the child process runs."""
    pairs, dropped = encode_preferences(rows.read(), load_tokenizer(base), parameters.max_length)
    work.ledger("dropped", [dropped])
    checkpoints = work.folder / "checkpoints"
    return train_pairs(
        base, pairs, lambda _: objective(parameters), COLUMNS, work.out, checkpoints, parameters, on_step
    )


def objective(parameters: OrpoParameters) -> Objective:
    """Return ORPO's loss (eq. 6)."""

    def loss(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_p = batch.score(log_probabilities)
        means = batch.by_sequence(log_p) / batch.by_sequence(log_p.new_ones(len(log_p)))
        chosen, rejected = means.chunk(2)
        sft = -(batch.weights * log_p)[: batch.chosen].sum()
        odds = odds_ratio_loss(chosen, rejected).mean() * batch.share
        accuracy = (chosen > rejected).float().mean() * batch.share
        return sft + parameters.odds_weight * odds, {"sft": sft, "odds_ratio": odds, "accuracy": accuracy}

    return loss
