"""Direct preference optimisation on TRL's DPOTrainer: make chosen answers likelier than rejected ones.

Paper: Rafailov et al. 2023, "Direct Preference Optimization". Equation 7 is `losses.dpo_loss`. The reference is the
base; its log-probabilities are computed once, before the first step, and kept beside the checkpoints.

What is different from the paper: an SFT term on the chosen answers can be added (`sft_weight`), since DPO alone lowers
the likelihood of both sides and easily ruins a small model (Pang et al. 2024, section 3, put the same term in).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from data.artifact import Artifact
from infra.child import run_in_child
from infra.stage import Measures, Reference, Rows, stage
from infra.work import Work
from tasks.train.checkpoints import OnStep
from tasks.train.losses import dpo_loss, log_probabilities
from tasks.train.models import load_tokenizer
from tasks.train.pairs import SIDES, Batch, Objective, PairParameters, encode_preferences, train_pairs
from tasks.train.passes import total_log_probabilities

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

COLUMNS = ("sft", "accuracy", "margin")


class DpoParameters(PairParameters):
    """Say how to optimise preferences; the defaults are those of ADPA's teachers."""

    method: Literal["dpo"] = Field(default="dpo", description="name of the method, where there is a choice")
    beta: float = Field(default=0.01, gt=0, description="factor of implicit rewards (ADPA's recipe; DPO's own is 0.1)")
    sft_weight: float = Field(default=0.0, ge=0, description="weight of the chosen answers' negative log-likelihood")
    learning_rate: float = Field(default=5e-7, gt=0, description="peak learning rate of AdamW (ADPA's recipe)")
    batch_size: int = Field(default=128, ge=1, description="pairs per optimizer step (ADPA's recipe)")


@stage("float", trains=True)
def dpo(work: Work, parameters: DpoParameters, rows: Rows, base: Reference) -> Measures:
    """Train the base to prefer the chosen answers; pairs of which a side is cut down to nothing are dropped.

    The artifact's folder is what `from_pretrained` opens; `history` has, of every step, the loss, its SFT term (nats
    per token), and accuracy and margin (nats) of the implicit rewards.

    Raises:
        BadInput: rows that are no preferences, none left, or a loss that is not finite or spikes.
    """
    what = f"dpo, seed {parameters.seed}"
    measures: Measures = run_in_child(fit, work, parameters, rows, base.path, folder=work.folder, what=what)
    return measures


def fit(work: Work, parameters: DpoParameters, rows: Artifact, base: Path, on_step: OnStep) -> Measures:
    """Encode the pairs, drop those with nothing to learn, and train: what the child process runs."""
    pairs, dropped = encode_preferences(rows.read(), load_tokenizer(base), parameters.max_length)
    work.ledger("dropped", [dropped])
    checkpoints = work.folder / "checkpoints"

    def prepared(model: Any) -> Objective:
        return objective(parameters, reference_log_probabilities(model, pairs, checkpoints, parameters))

    return train_pairs(base, pairs, prepared, COLUMNS, work.out, checkpoints, parameters, on_step)


def objective(parameters: DpoParameters, reference: Tensor) -> Objective:
    """Return DPO's loss, given the reference's log-probabilities of both sides of all pairs (n, 2), in nats."""

    def loss(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_p = batch.score(log_probabilities)
        ratios = batch.by_sequence(log_p).chunk(2)
        before = reference[batch.pairs].to(log_p.device)
        chosen, rejected = (each - before[:, side] for side, each in enumerate(ratios))
        sft = -(batch.weights * log_p)[: batch.chosen].sum()
        total = dpo_loss(chosen, rejected, parameters.beta).mean() * batch.share  # eq. 7
        if parameters.sft_weight:
            total = total + parameters.sft_weight * sft
        margins = parameters.beta * (chosen - rejected).detach()
        accuracy = (margins > 0).float().mean()
        return total, {"sft": sft, "accuracy": accuracy * batch.share, "margin": margins.mean() * batch.share}

    return loss


def reference_log_probabilities(
    model: PreTrainedModel, pairs: pa.Table, checkpoints: Path, parameters: DpoParameters
) -> Tensor:
    """Sum log-probabilities of both sides of all pairs (n, 2), in nats, by the model as it is; computed once."""
    import torch

    kept = checkpoints / "reference.npy"
    if not kept.exists():
        sides = (pairs[f"{side}_{what}"].to_pylist() for side in SIDES for what in ("ids", "mask"))
        chosen_ids, chosen_masks, second_ids, second_masks = sides
        rows = [*zip(chosen_ids, chosen_masks, strict=True), *zip(second_ids, second_masks, strict=True)]
        size = 2 * (parameters.micro_batch_size or parameters.batch_size)
        pad = model.config.get_text_config().pad_token_id
        totals = total_log_probabilities(model.eval(), pad, rows, size, parameters.precision)
        with (partial := kept.with_suffix(".partial")).open("wb") as file:
            np.save(file, totals.reshape(2, -1).T.astype(np.float32))
        partial.rename(kept)
    return torch.from_numpy(np.load(kept, allow_pickle=False))
