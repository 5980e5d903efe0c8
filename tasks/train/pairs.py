"""Training on pairs of conversations, over TRL's DPOTrainer: what DPO, ORPO, DCKD and ADPA have in common.

A pair is a chosen conversation and a second one: the rejected one, or, for ADPA, the student's own response. A batch of
n pairs has 2n sequences, the chosen ones first. Logits are made at response positions alone, and all of a method that
is its own is a function of what stands there: `Objective`.

Each position has a weight, and on each side the weights of one optimizer step add up to 1. So a loss that is a weighted
sum over positions does not depend on how the step was cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data.contracts import ID, PREFERENCE, contract_of, dropped_rows
from data.errors import BadInput
from tasks.train.chat import Message, as_messages, encode, teaches
from tasks.train.checkpoints import OnStep, StageTrainer
from tasks.train.heads import Head, head_of
from tasks.train.models import load_model, load_tokenizer
from tasks.train.training import TrainingParameters, adapted, arguments, finish, settle

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

SIDES = ("chosen", "second")
IDS, MASK = pa.list_(pa.int32()), pa.list_(pa.int8())
PAIRS = pa.schema(
    [("row_id", ID), ("chosen_ids", IDS), ("chosen_mask", MASK), ("second_ids", IDS), ("second_mask", MASK)]
)


class PairParameters(TrainingParameters):
    """Say how to train on pairs; a row is a pair, and `batch_size` counts pairs."""

    weight_by: Literal["token", "sequence"] = Field(
        default="token",
        description="token: every response token of a step weighs the same; sequence: every response does (the paper)",
    )
    chunk: int | None = Field(
        default=None,
        ge=1,
        title="Chunk",
        description="response positions whose logits are in memory at once, computed twice; None: all, once",
    )


@dataclass(frozen=True)
class Batch:
    """What an objective sees of n pairs: k response positions, those of the chosen sides first."""

    head: Head
    hidden: Tensor  # (k, width) states that predict a response token
    labels: Tensor  # (k,) those tokens
    sequences: Tensor  # (k,) which of the 2n sequences
    weights: Tensor  # (k,) those of a side add up to 1 over the micro-batches of a step
    chosen: int  # how many of the positions are on the chosen side
    inputs: dict[str, Tensor]  # input_ids, attention_mask (2n, length), learned (2n, length - 1): for teachers at hand
    pairs: Tensor  # (n,) places of the pairs in the training data
    share: float  # of the step's pairs: n / pairs of the step
    chunk: int | None

    def score(
        self, function: Callable[..., Tensor], *tensors: Tensor, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """Apply a function of logits, labels and further tensors, all with one line for each position.

        Args:
            function: (logits (c, vocabulary), labels (c,), *tensors) -> (c,) or (terms, c).
            tensors: one line for each position from `start` to `stop`.
            start: first position.
            stop: the position after the last; None: all.

        Returns:
            What the function returns, of all positions.
        """
        lines = (self.labels[start:stop], *tensors)
        hidden = self.hidden[start:stop]
        if self.chunk is None or len(hidden) <= self.chunk:
            return function(self.head(hidden), *lines)
        from tasks.train.chunks import score_in_chunks

        return score_in_chunks(function, self.head, self.chunk, hidden, *lines)

    def by_sequence(self, values: Tensor) -> Tensor:
        """Sum positions' values (k,) over each of the 2n sequences."""
        return values.new_zeros(2 * len(self.pairs)).index_add(0, self.sequences, values)


class Talk(NamedTuple):
    """A conversation that ends with an answer."""

    turns: list[Message]
    tools: str | None
    whole: bool = True  # False: the answer was cut off at a limit of tokens, and its end is none


# batch -> the loss (a scalar) and numbers to log, each this micro-batch's part of the step's
Objective = Callable[[Batch], "tuple[Tensor, dict[str, Tensor]]"]


def train_pairs(
    base: Path,
    pairs: pa.Table,
    objective: Callable[[Any], Objective],
    columns: Sequence[str],
    output: Path,
    checkpoints: Path,
    parameters: PairParameters,
    on_step: OnStep | None = None,
) -> dict[str, float]:
    """Train the model in the folder `base` on encoded pairs (`PAIRS`), as `sft.train` does on conversations.

    Args:
        base: a model's folder.
        pairs: with the tokenizer of `base`.
        objective: the model, before its first step -> what to do with a batch.
        columns: names of the numbers that the objective logs, in the history's order.
        output: gets the model, the tokenizer and `history.parquet`.
        checkpoints: a folder of this training alone; called again after a kill, it goes on from the newest.
        parameters: how to train.
        on_step: hears of every step.

    Returns:
        The measures of `training.measures`, with the columns' means over the last tenth of the steps.

    Raises:
        BadInput: no model in `base`, no pairs, or a loss that is not finite or spikes.
    """
    parameters = parameters.fitted(len(pairs))
    settle(parameters.threads)
    tokenizer = load_tokenizer(base)
    model = adapted(load_model(base, tokenizer, parameters.seed), parameters)
    checkpoints.mkdir(parents=True, exist_ok=True)
    trainer = pair_trainer(model, tokenizer, pairs, objective(model), checkpoints, parameters)
    trainer.watch(pairs["row_id"], parameters.spike, on_step)
    trainer.train_or_restore(checkpoints)
    return finish(trainer, tokenizer, output, *columns)


def encode_preferences(
    rows: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[pa.Table, pa.Table]:
    """Encode rows of the preference contract: `PAIRS` with the rejected side second, and the dropped ledger.

    Raises:
        BadInput: the rows are no preferences.
    """
    want_preferences(rows.schema)
    talks = talks_of(rows)
    return encode_pairs(rows["row_id"], talks["chosen"], talks["rejected"], tokenizer, max_length)


def want_preferences(schema: pa.Schema) -> None:
    """Refuse rows of another contract.

    Raises:
        BadInput: the rows are no preferences.
    """
    found = contract_of(schema)
    if found != PREFERENCE:
        raise BadInput(
            f"rows of the contract {found.name}",
            "preferences: prompt, chosen, rejected",
            "name the pairs, not other rows",
        )


def talks_of(rows: pa.Table) -> dict[str, list[Talk]]:
    """Read the conversations of rows: {side: one for each row}.

    Preferences have the sides chosen and rejected, all other rows with an answer one side, response.
    """
    lines = rows.to_pylist()
    if contract_of(rows.schema) == PREFERENCE:
        return {
            side: [
                Talk(as_messages({"prompt": each["prompt"], "completion": each[side]}), each.get("tools"))
                for each in lines
            ]
            for side in ("chosen", "rejected")
        }
    return {
        "response": [
            Talk(as_messages(each), each.get("tools"), each.get("finish_reason") != "length") for each in lines
        ]
    }


def encode_pairs(
    row_ids: pa.ChunkedArray,
    chosen: list[Talk],
    second: list[Talk],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> tuple[pa.Table, pa.Table]:
    """Encode pairs of conversations, each cut at its end.

    Args:
        row_ids: uuids (n,) of the rows that the pairs are.
        chosen: messages, tools and whether the last turn is whole (n,).
        second: the same of the other side.
        tokenizer: the student's.
        max_length: tokens.

    Returns:
        `PAIRS`, and the dropped ledger with the rows of which a side has nothing left to learn.
    """
    sides = [[encode_talk(tokenizer, talk, max_length) for talk in side] for side in (chosen, second)]
    useful = pa.array([all(teaches(mask) for _, mask in pair) for pair in zip(*sides, strict=True)], pa.bool_())
    columns = {
        f"{name}_{what}": pa.array([each[at] for each in side], pa.list_(kind)).filter(useful)
        for name, side in zip(SIDES, sides, strict=True)
        for at, (what, kind) in enumerate((("ids", pa.int32()), ("mask", pa.int8())))
    }
    useless = row_ids.filter(pc.invert(useful))
    dropped = dropped_rows(useless, "nothing to learn within max_length", float(max_length))
    return pa.table({"row_id": row_ids.filter(useful), **columns}), dropped


def encode_talk(tokenizer: PreTrainedTokenizerBase, talk: Talk, max_length: int) -> tuple[list[int], list[int]]:
    """Encode one conversation as (ids, mask); what follows an answer that was cut off in the midst is not learned."""
    ids, mask = encode(tokenizer, talk.turns, talk.tools, max_length)
    if not talk.whole:
        end = max((at for at, bit in enumerate(mask) if bit and ids[at] == tokenizer.eos_token_id), default=len(ids))
        mask = [bit if at < end else 0 for at, bit in enumerate(mask)]
    return ids, mask


def pair_trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pairs: pa.Table,
    objective: Objective,
    checkpoints: Path,
    parameters: PairParameters,
) -> StageTrainer:
    """Make the trainer of encoded pairs (`PAIRS`) for an objective.

    Raises:
        BadInput: no pairs.
    """
    if not len(pairs):
        raise BadInput("no pairs to train on", "at least one", "look at what the steps before have dropped")
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Trainer(StageTrainer, DPOTrainer):  # type: ignore[misc]
        """Score response positions alone by the objective, weighted over the whole step."""

        loss_is_scaled_for_ga = True  # weights add up to 1 over the micro-batches of a step

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            """Take the pairs as they are: encoded, with the masks of their templates."""
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            """Leave the reference to the objective."""
            return dataset

        def get_batch_samples(self, *arguments: Any) -> Any:
            batches, items = super().get_batch_samples(*arguments)
            counts = [batch["completion_mask"][:, 1:].sum(1) for batch in batches]
            weigh(batches, counts, parameters.weight_by)
            self.step_numbers = {
                "tokens": sum(int(batch["attention_mask"].sum()) for batch in batches),
                "tokens_assistant": sum(int(each.sum()) for each in counts),
            }
            return batches, items

        def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
            with self.accelerator.autocast():
                loss, numbers = objective(batch_of(model, inputs, parameters.chunk))
            for name, value in numbers.items():
                self.step_numbers[name] = self.step_numbers.get(name, 0.0) + float(value.detach())
            return loss

    trainer = Trainer(
        model=model,
        args=arguments(DPOConfig, model, checkpoints, parameters, precompute_ref_log_probs=True),
        data_collator=partial(collate, tokenizer.pad_token_id),
        train_dataset=Dataset(pairs.set_column(0, "rows", pa.array(np.arange(len(pairs))))),
        processing_class=tokenizer,
    )
    if "ref" in getattr(trainer.model, "peft_config", ()):
        trainer.model.delete_adapter("ref")  # TRL's copy of the adapter, for a reference that nobody asks here
    for module in trainer.model.modules():
        if getattr(module, "attention_dropout", 0):
            module.attention_dropout = 0.0  # TRL takes out the modules that drop, and forgets attention's number
    return trainer


def collate(pad: int, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad n pairs into 2n sequences: `input_ids`, `attention_mask`, `completion_mask` (2n, length), `pairs` (n,)."""
    import torch

    both = [(each[f"{side}_ids"], each[f"{side}_mask"]) for side in SIDES for each in examples]
    width = max(len(ids) for ids, _ in both)
    places = torch.tensor([each["rows"] for each in examples])
    return {
        "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in both]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in both]),
        "completion_mask": torch.tensor([mask + [0] * (width - len(mask)) for _, mask in both]),
        "pairs": places,
        "rows": places,
    }


def weigh(batches: list[dict[str, Any]], counts: list[Tensor], by: Literal["token", "sequence"]) -> None:
    """Put into the batches of one step the weight of a position in each sequence (2n,), and their share of the pairs.

    Args:
        batches: as `collate` returns them; they get `weights` and `share`.
        counts: response tokens of each sequence (2n,), batch by batch; none is 0.
        by: whether tokens or sequences weigh the same.
    """
    import torch

    pairs = sum(len(batch["pairs"]) for batch in batches)
    sides = [torch.stack(each.chunk(2)).double() for each in counts]  # (2, n)
    tokens = torch.stack([each.sum(1) for each in sides]).sum(0)  # (2,)
    for batch, side in zip(batches, sides, strict=True):
        weights = 1 / tokens[:, None].expand_as(side) if by == "token" else 1 / (side * pairs)
        batch["weights"] = weights.flatten().float()
        batch["share"] = torch.tensor(len(batch["pairs"]) / pairs)


def batch_of(model: Any, inputs: dict[str, Tensor], chunk: int | None) -> Batch:
    """Run the decoder over a batch and keep the states that predict response tokens."""
    import torch

    ids, attention = inputs["input_ids"], inputs["attention_mask"]
    hidden = model.get_decoder()(ids, attention_mask=attention, use_cache=False).last_hidden_state
    learned = inputs["completion_mask"][:, 1:].bool()
    sequences = torch.arange(len(ids), device=ids.device)[:, None].expand_as(learned)[learned]
    return Batch(
        head=head_of(model),
        hidden=hidden[:, :-1][learned],
        labels=ids[:, 1:][learned],
        sequences=sequences,
        weights=inputs["weights"][sequences],
        chosen=int((sequences < len(ids) // 2).sum()),
        inputs={"input_ids": ids, "attention_mask": attention, "learned": learned},
        pairs=inputs["pairs"],
        share=float(inputs["share"]),
        chunk=chunk,
    )
