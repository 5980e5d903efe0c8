"""Judge a model by its own answers to held-out prompts: how far it went, and what a teacher thinks of that.

    kl          KL(model || base), averaged over the answer's positions
    advantage   E_model[log teacher - log reference], the same: what ADPA maximises (Gao et al. 2025, eq. 11)
    taken       log teacher - log reference of the tokens that were taken, the same

All over the whole vocabulary. `advantage` is over what the model could have said at each position, `taken` over what it
said; where answers were sampled at temperature 1, both have one expectation.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from data.artifact import Artifact
from data.contracts import GENERATION, ID, contract_of
from data.errors import BadInput
from data.ids import lowest
from infra.devices import torch_device
from infra.shards import Tables, read_shard
from infra.stage import Measures, Reference, References, stage
from infra.work import Work
from tasks.evaluate.intervals import IntervalParameters, mean_intervals
from tasks.evaluate.responses import UNLIMITED, expected_ratio, hear, positions_of, score
from tasks.train.chat import teaches
from tasks.train.compatible import check_one_origin, check_same_tokens
from tasks.train.losses import advantages
from tasks.train.pairs import encode_talk, talks_of
from tasks.train.passes import open_model

if TYPE_CHECKING:
    from torch import Tensor

ROWS_AT_ONCE = 128  # responses in a shard: sorted by length within it

RESPONSE_SCORES = pa.schema(
    [
        ("row_id", ID), ("tokens", pa.int64()), ("finished", pa.bool_()),
        ("kl", pa.float64()), ("advantage", pa.float64()), ("taken", pa.float64()),
    ]
)  # fmt: skip


class EvaluateResponsesParameters(IntervalParameters):
    """Which responses to score, and how sure to be."""

    rows: int | None = Field(
        None, ge=1, title="Rows", description="Responses to score, those of the lowest row ids; none scores all."
    )
    max_length: int = Field(
        1024, ge=8, description="Longest prompt with its response, in tokens; what is longer is not scored."
    )
    batch_size: int = Field(8, ge=1, description="Responses in one pass of a model.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Weights and arithmetic of the models.")


@stage("float")
def evaluate_responses(
    work: Work,
    parameters: EvaluateResponsesParameters,
    rows: Reference,
    model: Reference,
    base: Reference,
    teachers: References,
) -> Measures:
    """Score a model's own responses (rows of `respond`) against its base, and by a teacher and its reference.

    Output `responses`: one line per response that was scored; without teachers `advantage` and `taken` are empty.

    Raises:
        BadInput: rows that are no responses, none left to score; teachers other than none or a teacher and its
            reference; models with other tokens than each other's.
    """
    if contract_of(rows.schema) != GENERATION:
        raise BadInput(f"rows of the contract {contract_of(rows.schema).name}", "responses: prompt, completion, "
                       "finish_reason", "pass what the stage respond has made")  # fmt: skip
    check_teachers(model, base, teachers)
    asked = lowest(rows.read(["row_id"])["row_id"], parameters.rows).tolist()
    shards = [asked[start : start + ROWS_AT_ONCE] for start in range(0, len(asked), ROWS_AT_ONCE)]
    models = [each.path for each in (model, base, *teachers)]
    done = work.map(
        partial(score_responses, parameters, rows, models), shards, "responses", 1 if torch_device() == "cuda" else 0
    )
    scores = pa.concat_tables([RESPONSE_SCORES.empty_table(), *(read_shard(shard, "responses") for shard in done)])
    if not len(scores):
        found = f"{rows.rows} responses, none with a token and within {parameters.max_length} tokens"
        raise BadInput(found, "at least one response to score", "take more prompts or raise max_length")
    work.write_single(scores, "responses")
    columns = {name: scores[name].to_numpy() for name in ("kl", *(("advantage", "taken") if teachers else ()))}
    found_means = mean_intervals(
        columns, parameters.level, parameters.draws, parameters.seed, groups=prompts_of(rows, scores)
    )
    return {
        "responses": float(len(scores)),
        "responses_not_asked": float(len(asked) - len(scores)),
        "tokens": float(np.mean(scores["tokens"].to_numpy())),
        "finished": float(np.mean(scores["finished"].to_numpy(zero_copy_only=False))),
        **{name: value for name, value in found_means.items() if not name.startswith("taken_")},
    }


def check_teachers(model: Artifact, base: Artifact, teachers: list[Artifact]) -> None:
    """Refuse models that cannot be held against each other.

    Raises:
        BadInput: they are not none or two, have other tokens, or the reference is not what the teacher began as.
    """
    if len(teachers) not in (0, 2):
        raise BadInput(f"{len(teachers)} models as teachers", "none, or a teacher and its reference, in this order",
                       "name both or none")  # fmt: skip
    named = dict(zip(("teacher", "reference"), (each.path for each in teachers), strict=False))
    check_same_tokens(model=model.path, base=base.path, **named)
    if teachers:
        check_one_origin(*teachers)


def score_responses(
    parameters: EvaluateResponsesParameters, rows: Artifact, models: list[Path], places: list[int]
) -> Tables:
    """Score some responses by the model, its base, and teachers; those that are too long or empty are left out."""
    table = rows.take(places)
    tokenizer = open_model(models[0], parameters.precision)[1]
    talks = talks_of(table)["response"]
    whole = [encode_talk(tokenizer, talk, UNLIMITED) for talk in talks]
    fits = [at for at, (ids, mask) in enumerate(whole) if len(ids) <= parameters.max_length and teaches(mask)]
    if not fits:
        return {"responses": RESPONSE_SCORES.empty_table()}
    encoded = [whole[at] for at in fits]
    heard = [hear(each, parameters.precision, encoded, parameters.batch_size) for each in models]
    means = np.array([each.mean(axis=1) for each in score(divergences, heard, encoded)])
    columns = {
        "row_id": table["row_id"].take(pa.array(fits)),
        "tokens": pa.array(positions_of(encoded), pa.int64()),
        "finished": pa.array([talks[at].whole for at in fits]),
        "kl": means[:, 0],
        "advantage": means[:, 1] if len(models) > 2 else pa.nulls(len(fits), pa.float64()),
        "taken": means[:, 2] if len(models) > 2 else pa.nulls(len(fits), pa.float64()),
    }
    return {"responses": pa.table(columns, schema=RESPONSE_SCORES)}


def divergences(labels: "Tensor", model: "Tensor", base: "Tensor", *teachers: "Tensor") -> "Tensor":
    """Compute KL(model || base), and with teachers the advantage, expected and taken: nats (1 or 3, c)."""
    import torch

    terms = [expected_ratio(model, model, base)]
    if teachers:
        teacher, reference = teachers
        taken = advantages(teacher, reference).gather(1, labels[:, None])[:, 0]
        terms += [expected_ratio(model, teacher, reference), taken]
    return torch.stack(terms)


def prompts_of(rows: Artifact, scores: pa.Table) -> list[str] | None:
    """Name the prompt of each scored response, so that its samples are drawn together; None: the rows do not say."""
    if "prompt_id" not in rows.schema.names:
        return None
    table = rows.read(["row_id", "prompt_id"])
    prompts = dict(zip(*(map(str, table[name].to_pylist()) for name in table.column_names), strict=True))
    return [prompts[str(row)] for row in scores["row_id"].to_pylist()]
