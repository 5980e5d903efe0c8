"""Ask a model the held-out rows: loss on the reference answers, and exact match of greedy ones.

The verifier is stated: `answer_pattern` takes the answer out of a text (its first group, of the last match),
`ignore_characters` are removed, and what is left must equal the reference's. A text without a match has no answer and
is wrong.
"""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from data.artifact import Artifact
from data.contracts import ID
from data.errors import BadInput
from data.ids import lowest
from infra.devices import torch_device
from infra.shards import Tables, read_shard
from infra.stage import Measures, Parameters, Reference, stage
from infra.work import Work
from tasks.train.chat import as_messages, encode, encode_prompt, last_stretch
from tasks.train.passes import generate, mean_losses, open_model

SCORES = pa.schema(
    [
        ("row_id", ID), ("group", pa.string()), ("prompt", pa.string()), ("reference", pa.string()),
        ("answer", pa.string()), ("correct", pa.bool_()), ("loss", pa.float64()), ("tokens", pa.int64()),
    ]
)  # fmt: skip


class EvaluateParameters(Parameters):
    """How to ask and what counts as right."""

    rows: int | None = Field(
        None, ge=1, title="Rows", description="Rows to ask, those of the lowest row ids; none asks all."
    )
    max_new_tokens: int = Field(64, ge=0, description="Longest answer, in tokens; 0: no answers, the loss alone.")
    max_length: int = Field(
        1024,
        ge=8,
        description="Longest prompt with its reference answer, in tokens; longer rows are not asked.",
    )
    batch_size: int = Field(32, ge=1, description="Rows in one pass of the model.")
    answer_pattern: str = Field(
        r"(?s)^\s*(.*?)\s*\Z",
        description="Regular expression; the first group of its last match is the answer.",
    )
    ignore_characters: str = Field("", description="Characters removed from answers before they are compared.")
    group_column: str = Field("", description="Column by which scores are broken down; default: not at all.")

    @field_validator("answer_pattern")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        if groups < 1:
            raise ValueError("a pattern without a group; put (…) around the answer")
        return pattern


@stage("float")
def evaluate(work: Work, parameters: EvaluateParameters, rows: Reference, model: Reference) -> Measures:
    """Score one model on held-out rows; output `scores`, one line per row that was asked.

    Raises:
        BadInput: no row is left to ask, or the rows have no such group column.
    """
    if parameters.group_column and parameters.group_column not in rows.schema.names:
        raise BadInput(f"no column {parameters.group_column!r}; the rows have {', '.join(rows.schema.names)}",
                       "a column to group by", "keep it when the rows are loaded, or correct group_column")  # fmt: skip
    asked = lowest(rows.read(["row_id"])["row_id"], parameters.rows).tolist()
    batches = [asked[start : start + parameters.batch_size] for start in range(0, len(asked), parameters.batch_size)]
    gpus = 1 if torch_device() == "cuda" else 0
    shards = work.map(partial(score_rows, parameters, rows, model.path), batches, "scores", gpus)
    scores = pa.concat_tables([SCORES.empty_table(), *(read_shard(shard, "scores") for shard in shards)])
    if not len(scores):
        found = f"{rows.rows} held-out rows, none with a question and an answer within {parameters.max_length} tokens"
        raise BadInput(found, "at least one row to ask", "hold out more rows or raise max_length")
    work.write_single(scores, "scores")
    answered = parameters.max_new_tokens > 0
    loss, tokens = (scores[name].to_numpy() for name in ("loss", "tokens"))
    return {
        "rows_asked": float(len(scores)),
        "rows_not_asked": float(len(asked) - len(scores)),
        "loss": float(np.average(loss, weights=tokens)),
        **({"exact_match": float(pc.mean(scores["correct"].cast(pa.float64())).as_py())} if answered else {}),
    }


def score_rows(parameters: EvaluateParameters, rows: Artifact, model: Path, positions: list[int]) -> Tables:
    """Score one batch of rows; rows that are too long, or without a question and an answer, are left out."""
    table = rows.slice(positions[0], positions[-1] + 1).take([position - positions[0] for position in positions])
    network, tokenizer = open_model(model)
    lines = table.to_pylist()
    turns = [as_messages(line) for line in lines]
    encoded = [encode(tokenizer, each, line.get("tools"), 1 << 30) for each, line in zip(turns, lines, strict=True)]
    fits = [
        at
        for at, (ids, _) in enumerate(encoded)
        if len(ids) <= parameters.max_length and len(turns[at]) > 1 and turns[at][-1]["role"] == "assistant"
    ]
    if not fits:
        return {"scores": SCORES.empty_table()}
    prompts = [encode_prompt(tokenizer, turns[at][:-1], lines[at].get("tools")) for at in fits]
    answers: list[str | None] = [None] * len(prompts)
    if parameters.max_new_tokens:
        answers = [*generate(network, tokenizer, prompts, parameters.batch_size, parameters.max_new_tokens)]
    losses = mean_losses(network, tokenizer.pad_token_id, [encoded[at] for at in fits], parameters.batch_size)
    scores = []
    for at, answer, (loss, tokens) in zip(fits, answers, losses, strict=True):
        reference = turns[at][-1]["content"]
        if reference is None:  # a call of tools: what the template makes of it
            reference = tokenizer.decode(last_stretch(*encoded[at]), skip_special_tokens=True)
        right = None if answer is None else extract(parameters, answer)
        scores.append(
            {
                "row_id": lines[at]["row_id"],
                "group": lines[at][parameters.group_column] if parameters.group_column else None,
                "prompt": turns[at][-2]["content"] or "",
                "reference": reference,
                "answer": answer,
                "correct": None if answer is None else right is not None and right == extract(parameters, reference),
                "loss": loss,
                "tokens": tokens,
            }
        )
    return {"scores": pa.Table.from_pylist(scores, schema=SCORES)}


def extract(parameters: EvaluateParameters, text: str) -> str | None:
    """Take the answer out of a text; None if the pattern does not occur."""
    matches = list(re.finditer(parameters.answer_pattern, text))
    if not matches:
        return None
    answer = matches[-1][1] or ""
    return "".join(each for each in answer if each not in parameters.ignore_characters)
