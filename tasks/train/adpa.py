"""Advantage-guided distillation: learn the chosen answers, and on one's own responses what preference training teaches.

Paper: Gao et al. 2025, "Advantage-Guided Distillation for Preference Alignment in Small Language Models". The advantage
of a token is log teacher - log reference, the teacher being trained by DPO and the reference what it began as (section
on the token-level reading of DPO); the loss is equation 11, `losses.advantage_loss`:

    L = sft_weight * L_SFT(chosen) - gamma * E_student[log teacher - log reference] on the student's responses

The responses come from the student that training begins with, before it (stage `respond`). ADPA+ is this stage after
`dckd`, with the distilled student's responses: a flow joins them.

What is done differently from the released code, which clips advantages to [0, 1], and so never says what to avoid, cuts
them to 50 tokens, and leaves the end of a turn untaught: nothing is clipped unless `clip` says so, the whole vocabulary
counts, and ends are taught. Nothing in the loss keeps the student from becoming certain; the SFT term does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data.artifact import Artifact
from data.contracts import dropped_rows
from infra.child import run_in_child
from infra.stage import Measures, Reference, References, Rows, stage
from infra.work import Work
from tasks.train.checkpoints import OnStep
from tasks.train.losses import log_probabilities
from tasks.train.models import load_tokenizer
from tasks.train.pairs import (
    SIDES,
    Batch,
    Objective,
    PairParameters,
    encode_pairs,
    talks_of,
    train_pairs,
    want_preferences,
)
from tasks.train.teachers import Teacher, teacher_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("sft", "advantage", "coverage")


class AdpaParameters(PairParameters):
    """Say how to distil advantages; the defaults are those of the paper's code."""

    method: Literal["adpa"] = Field(default="adpa", description="name of the method, where there is a choice")
    sft_weight: float = Field(default=1.0, ge=0, description="weight of the chosen answers' negative log-likelihood")
    gamma: float = Field(default=1.6, ge=0, description="weight of the expected advantage (eq. 11)")
    clip: tuple[float, float] | None = Field(
        default=None,
        title="Clip",
        description="bounds of advantages in nats; None: none (the paper); the code has [0, 1]",
    )
    without_reference: bool = Field(
        default=False, description="take log teacher alone for the advantage: the paper's ablation, not its method"
    )
    learning_rate: float = Field(default=5e-7, gt=0, description="peak learning rate of AdamW")
    batch_size: int = Field(default=128, ge=1, description="responses per optimizer step, each with its chosen answer")
    epochs: float = Field(default=3.0, gt=0, description="passes over the responses; max_steps, if given, overrides it")


@stage("float", trains=True)
def adpa(
    work: Work, parameters: AdpaParameters, rows: Rows, responses: Rows, base: Reference, teachers: References
) -> Measures:
    """Teach the base, on its own responses, the advantages of a teacher over its reference.

    `rows` are preferences (their rejected sides are not used); `responses` are what `respond` made of the same prompts.
    `teachers` is the `teacher_cache` of these responses, or the teacher and its reference, which then stay in memory.
    Dropped are pairs without a response, responses without a pair, and those that max_length cuts down to nothing. The
    artifact's folder is what `from_pretrained` opens; `history` has, of every step, the loss, the SFT term and the
    expected advantage (nats per token; larger is better), and the coverage: the student's mass on the cache's tokens.

    Raises:
        BadInput: rows that are no preferences, responses that are not in the cache, a teacher with other tokens than
        the
            base, no reference where one is wanted, or a loss that is not finite or spikes.
    """
    what = f"adpa, seed {parameters.seed}"
    measures: Measures = run_in_child(
        fit, work, parameters, rows, responses, base.path, teachers, folder=work.folder, what=what
    )
    return measures


def fit(
    work: Work,
    parameters: AdpaParameters,
    rows: Artifact,
    responses: Artifact,
    base: Path,
    teachers: list[Artifact],
    on_step: OnStep,
) -> Measures:
    """Pair responses with chosen answers, drop what has no partner, and train: what the child process runs."""
    pairs, dropped = encode_responses(rows.read(), responses.read(), load_tokenizer(base), parameters.max_length)
    work.ledger("dropped", dropped)

    def prepared(model: Any) -> Objective:
        teacher = teacher_of(
            teachers, pairs, {"second": "response"}, model, base, parameters.precision,
            advantage=True, reference=not parameters.without_reference, clip=parameters.clip,
        )  # fmt: skip
        return objective(parameters, teacher)

    return train_pairs(base, pairs, prepared, COLUMNS, work.out, work.folder / "checkpoints", parameters, on_step)


def encode_responses(
    rows: pa.Table, responses: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[pa.Table, list[pa.Table]]:
    """Encode each response with the chosen answer of its prompt.

    Returns:
        `PAIRS` with the response second and its row_id, and the parts of the dropped ledger.
    """
    want_preferences(rows.schema)
    chosen = dict(zip(rows["row_id"].to_pylist(), talks_of(rows)["chosen"], strict=True))
    asked = responses["prompt_id"].to_pylist()
    paired = pa.array([each in chosen for each in asked], pa.bool_())
    talks = [talk for talk, good in zip(talks_of(responses)["response"], paired.to_pylist(), strict=True) if good]
    firsts = [chosen[each] for each in asked if each in chosen]
    pairs, dropped = encode_pairs(responses["row_id"].filter(paired), firsts, talks, tokenizer, max_length)
    kept = set(pairs["row_id"].to_pylist())
    prompts = {prompt for prompt, row in zip(asked, responses["row_id"].to_pylist(), strict=True) if row in kept}
    unused = pa.array([each not in prompts for each in rows["row_id"].to_pylist()], pa.bool_())
    return pairs, [
        dropped,
        dropped_rows(responses["row_id"].filter(pc.invert(paired)), "its prompt is not among the pairs"),
        dropped_rows(rows["row_id"].filter(unused), "no response to learn from"),
    ]


def objective(parameters: AdpaParameters, teacher: Teacher) -> Objective:
    """Return ADPA's loss (eq. 11)."""

    def loss(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        first = batch.chosen
        log_p = batch.score(log_probabilities, stop=first)
        sft = -(batch.weights[:first] * log_p).sum()
        scores = batch.score(teacher.advantage, *teacher.lines(batch, SIDES[1:]), start=first)
        negative, coverage = (scores * batch.weights[first:]).sum(-1)
        total = parameters.sft_weight * sft + parameters.gamma * negative
        return total, {"sft": sft, "advantage": -negative, "coverage": coverage}

    return loss
