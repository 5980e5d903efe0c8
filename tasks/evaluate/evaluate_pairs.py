"""Judge a model by held-out preferences: the implicit rewards of a model over its base (Rafailov et al. 2023, sec. 5).

    reward   log model(answer) - log base(answer)             beta would not change its order
    margin   reward(chosen) - reward(rejected)
    kl       mean over the chosen answer of KL(model || base)

Beside the share of pairs whose margin is above 0 stand the likelihood of the model alone, which a base without any
training has too, and what the length of the answers gives away.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from data.artifact import Artifact
from data.contracts import ID
from data.errors import BadInput
from data.ids import lowest
from infra.devices import torch_device
from infra.shards import Tables, read_shard
from infra.stage import Measures, Reference, stage
from infra.work import Work
from tasks.evaluate.intervals import Floats, IntervalParameters, mean_intervals, reward_margins, wins
from tasks.evaluate.responses import UNLIMITED, expected_ratio, hear, positions_of, score
from tasks.train.chat import teaches
from tasks.train.compatible import check_same_tokens
from tasks.train.losses import log_probabilities
from tasks.train.pairs import encode_talk, talks_of, want_preferences
from tasks.train.passes import open_model

if TYPE_CHECKING:
    from torch import Tensor

SIDES = ("chosen", "rejected")
PAIRS_AT_ONCE = 128  # in a shard: sorted by length within it

PAIR_SCORES = pa.schema(
    [
        ("row_id", ID), ("chosen_tokens", pa.int64()), ("rejected_tokens", pa.int64()),
        ("chosen", pa.float64()), ("rejected", pa.float64()),
        ("chosen_base", pa.float64()), ("rejected_base", pa.float64()), ("kl", pa.float64()),
    ]
)  # fmt: skip


class EvaluatePairsParameters(IntervalParameters):
    """Which pairs to ask, and how sure to be."""

    rows: int | None = Field(
        None, ge=1, title="Rows", description="Pairs to ask, those of the lowest row ids; none asks all."
    )
    max_length: int = Field(
        1024, ge=8, description="Longest prompt with one of its answers, in tokens; longer pairs are not asked."
    )
    batch_size: int = Field(8, ge=1, description="Answers in one pass of a model.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Weights and arithmetic of the models.")


@stage("float")
def evaluate_pairs(
    work: Work, parameters: EvaluatePairsParameters, rows: Reference, model: Reference, base: Reference
) -> Measures:
    """Score held-out preferences by a model and by the base that its rewards are measured from.

    Output `pairs`: one line per pair that was asked, with response tokens and summed log-probabilities (nats).

    Raises:
        BadInput: rows that are no preferences, none left to ask, or models with other tokens than each other's.
    """
    want_preferences(rows.schema)
    check_same_tokens(model=model.path, base=base.path)
    asked = lowest(rows.read(["row_id"])["row_id"], parameters.rows).tolist()
    shards = [asked[start : start + PAIRS_AT_ONCE] for start in range(0, len(asked), PAIRS_AT_ONCE)]
    scored = partial(score_pairs, parameters, rows, [model.path, base.path])
    done = work.map(scored, shards, "pairs", 1 if torch_device() == "cuda" else 0)
    pairs = pa.concat_tables([PAIR_SCORES.empty_table(), *(read_shard(shard, "pairs") for shard in done)])
    if not len(pairs):
        found = f"{rows.rows} held-out pairs, none with two answers within {parameters.max_length} tokens"
        raise BadInput(found, "at least one pair to ask", "hold out more pairs or raise max_length")
    work.write_single(pairs, "pairs")
    left = {"pairs": float(len(pairs)), "pairs_not_asked": float(len(asked) - len(pairs))}
    return left | pair_measures(pairs, parameters)


def score_pairs(parameters: EvaluatePairsParameters, rows: Artifact, models: list[Path], places: list[int]) -> Tables:
    """Score some pairs by the model and by its base; a pair of which an answer is too long or empty is left out."""
    table = rows.take(places)
    tokenizer = open_model(models[0], parameters.precision)[1]
    talks = talks_of(table)
    sides = [[encode_talk(tokenizer, talk, UNLIMITED) for talk in talks[side]] for side in SIDES]
    fits = [
        at
        for at, pair in enumerate(zip(*sides, strict=True))
        if all(len(ids) <= parameters.max_length and teaches(mask) for ids, mask in pair)
    ]
    if not fits:
        return {"pairs": PAIR_SCORES.empty_table()}
    encoded = [side[at] for side in sides for at in fits]
    heard = [hear(each, parameters.precision, encoded, parameters.batch_size) for each in models]
    terms = score(likelihoods, heard, encoded)
    sums = np.array([each.sum(axis=1) for each in terms]).reshape(2, len(fits), 3)
    tokens = np.array(positions_of(encoded)).reshape(2, len(fits))
    columns: dict[str, Any] = {"row_id": table["row_id"].take(pa.array(fits))}
    for at, side in enumerate(SIDES):
        columns |= {f"{side}_tokens": tokens[at], side: sums[at, :, 0], f"{side}_base": sums[at, :, 1]}
    columns["kl"] = sums[0, :, 2] / tokens[0]
    return {"pairs": pa.table({field.name: columns[field.name] for field in PAIR_SCORES}, schema=PAIR_SCORES)}


def likelihoods(labels: "Tensor", model: "Tensor", base: "Tensor") -> "Tensor":
    """Compute log model and log base of the labels, and KL(model || base): nats (3, c)."""
    import torch

    return torch.stack(
        [log_probabilities(model, labels), log_probabilities(base, labels), expected_ratio(model, model, base)]
    )


def pair_measures(pairs: pa.Table, parameters: EvaluatePairsParameters) -> Measures:
    """Summarise `PAIR_SCORES`: rewards with their intervals, and the baselines beside them."""
    scores: dict[str, Floats] = {
        name: pairs[name].to_numpy().astype(np.float64) for name in PAIR_SCORES.names if name != "row_id"
    }
    margins = reward_margins(scores)
    columns = {"accuracy": wins(margins), "margin": margins, "kl": scores["kl"]}
    by_token = scores["chosen"] / scores["chosen_tokens"] - scores["rejected"] / scores["rejected_tokens"]
    longer = wins(scores["chosen_tokens"] - scores["rejected_tokens"])
    return mean_intervals(columns, parameters.level, parameters.draws, parameters.seed) | {
        "likelihood_accuracy": float(wins(scores["chosen"] - scores["rejected"]).mean()),
        "likelihood_accuracy_per_token": float(wins(by_token).mean()),
        "shorter_accuracy": float(1 - longer.mean()),
        "longer_accuracy": float(longer.mean()),
    }
