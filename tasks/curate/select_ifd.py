"""Select the rows whose prompt helps least with an answer that it still helps with: IFD.

Instruction-following difficulty (Li et al., NAACL 2024, "From Quantity to Quality"): a model's mean loss on the answer
given the prompt, over its mean loss on the answer alone.

    s(A | Q) / s(A)                        -> ratio
    1 or more: the prompt does not help    -> dropped
    the highest below 1                    -> choose

Done differently: both losses are taken over the same tokens, the answer's as the model's chat template writes them,
with the end of the turn. The answer alone follows nothing but one end-of-text token, which its first token is predicted
from. The paper's code uses a ratio of perplexities; this is the paper's ratio of losses.
"""

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from data.errors import BadInput
from data.fingerprint import seed_for
from data.ids import lots
from infra.devices import torch_device
from infra.stage import Measures, Reference, Rows, stage
from infra.work import Pick, Work
from tasks.curate.selection import Floats, SelectParameters, choose, publish, read_pool, rounded
from tasks.train.chat import as_messages, encode, last_stretch
from tasks.train.passes import batches, mean_losses, open_model

CHUNK = 256  # rows that a kill may cost


class SelectIfdParameters(SelectParameters):
    """How many rows to score, and how."""

    method: Literal["ifd"] = Field("ifd", description="Selection by instruction-following difficulty.")
    scored: int | None = Field(
        None, ge=1, title="Scored", description="Rows to score, drawn at random; the others are dropped. None: all."
    )
    max_length: int = Field(512, ge=8, description="Longest row that is scored, in tokens; longer ones are dropped.")
    batch_size: int = Field(16, ge=1, description="Rows in one pass of the model.")
    seed: int = Field(0, ge=0, description="Chooses other rows to score.")


@stage("float")
def select_ifd(work: Work, parameters: SelectIfdParameters, rows: Rows, model: Reference) -> Measures:
    """Take the rows with the highest ratio below 1.

    Outputs: `rows`; `scores`, where a row's value is its ratio with a minus sign, with both losses in nats per token.

    Raises:
        BadInput: the pool is empty, or its rows have no prompt and answer.
    """
    pool = read_pool(rows, parameters)
    drawn = np.argsort(lots(pool.ids, seed_for("select_ifd", parameters.seed)), kind="stable")
    places = np.sort(drawn[: parameters.scored])
    gpus = 1 if torch_device() == "cuda" else 0
    losses = np.full((len(pool.ids), 2), np.nan)
    remembered = work.remember(partial(score_rows, parameters, model.path), rows, CHUNK, gpus, places, model)
    found = [np.stack([values[name].to_numpy() for name in ("given", "alone")], 1) for _, values in remembered]
    losses[places] = np.concatenate(found)
    values = rounded(-ratio(losses))
    eligible = values > -1
    if not eligible.any():
        raise BadInput(
            f"{len(places):,} rows scored, and no answer that its prompt helps with",
            "prompts that make their answers likelier to this model",
            "look at the rows and the model, or raise max_length",
        )
    known = np.isfinite(values)
    reasons = np.select([~np.isin(np.arange(len(values)), places), ~known, ~eligible],
                        ["not scored", "no answer within max_length", "the prompt does not help"], "")  # fmt: skip
    columns = {"loss_given_prompt": pa.array(rounded(losses[:, 0])), "loss_alone": pa.array(rounded(losses[:, 1]))}
    chosen = choose(pool, values, parameters.budget, eligible=eligible)
    own = pa.array([each or None for each in reasons.tolist()], pa.string())
    return publish(work, pool, values, chosen, columns, "others are harder", own)


def ratio(losses: Floats) -> Floats:
    """Divide the loss given the prompt by that of the answer alone: (n, 2) -> (n,)."""
    ratios: Floats = losses[:, 0] / np.maximum(losses[:, 1], 1e-9)
    return ratios


def score_rows(parameters: SelectIfdParameters, model: Path, rows: Pick) -> pa.Table:
    """Compute both losses of each answer, in nats per token; NaN where there is none within max_length."""
    table = rows.read()
    network, tokenizer = open_model(model)
    lines = table.to_pylist()
    given, alone = [], []
    for line in lines:
        turns = as_messages(line)
        ids, mask = encode(tokenizer, turns, line.get("tools"), 1 << 30)
        fits = len(ids) <= parameters.max_length and len(turns) > 1 and turns[-1]["role"] == "assistant"
        answer = last_stretch(ids, mask) if fits and any(mask) else []
        end = len(mask) - mask[::-1].index(1) if answer else 0
        given.append((ids, [int(end - len(answer) <= at < end) for at in range(len(ids))]))
        alone.append(([tokenizer.eos_token_id, *answer], [0] + [1] * len(answer)))
    columns = {"given": np.full(len(lines), np.nan), "alone": np.full(len(lines), np.nan)}
    for name, encoded in (("given", given), ("alone", alone)):
        scored = [at for at, (_, mask) in enumerate(encoded) if any(mask)]
        for batch in batches([len(encoded[at][0]) for at in scored], parameters.batch_size):
            places = [scored[at] for at in batch]
            found = mean_losses(network, tokenizer.pad_token_id, [encoded[at] for at in places], parameters.batch_size)
            columns[name][places] = [loss for loss, _ in found]
    return pa.table({"content_id": table["content_id"], **{name: pa.array(each) for name, each in columns.items()}})
