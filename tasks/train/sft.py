"""Supervised fine-tuning on TRL's SFTTrainer: learn what the assistant says, and nothing else.

The loss is the mean negative log-likelihood, in nats, of the assistant's tokens of one optimizer step (not
the mean of its rows' means): a long answer weighs more than a short one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data.artifact import Artifact
from data.contracts import dropped_rows
from data.errors import BadInput
from infra.child import run_in_child
from infra.stage import Measures, Reference, Rows, stage
from infra.work import Work
from tasks.train.chat import as_messages, encode, teaches
from tasks.train.checkpoints import OnStep, StageTrainer
from tasks.train.heads import head_of
from tasks.train.models import load_model, load_tokenizer
from tasks.train.training import IGNORED, TrainingParameters, adapted, arguments, finish, settle

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class SftParameters(TrainingParameters):
    """Say how to fine-tune."""

    method: Literal["sft"] = Field(default="sft", description="name of the method, where there is a choice")


@stage("float", trains=True)
def sft(work: Work, parameters: SftParameters, rows: Rows, base: Reference) -> Measures:
    """Fine-tune the base on the rows; rows that are cut down to nothing to learn are dropped.

    The artifact's folder is what `from_pretrained` opens; `history` has the loss of every step.

    Raises:
        BadInput: no rows are left, or the loss is not finite.
    """
    what = f"sft, seed {parameters.seed}"
    measures: Measures = run_in_child(fit, work, parameters, rows, base.path, folder=work.folder, what=what)
    return measures


def fit(work: Work, parameters: SftParameters, rows: Artifact, base: Path, on_step: OnStep) -> Measures:
    """Tokenise the rows, drop those with nothing to learn, and train: what the child process runs."""
    tokens, dropped, cut = tokenise(rows.read(), load_tokenizer(base), parameters.max_length)
    work.ledger("dropped", [dropped])
    return train(base, tokens, work.out, work.folder / "checkpoints", parameters, on_step) | {"rows_cut": float(cut)}


def tokenise(rows: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[pa.Table, pa.Table, int]:
    """Tokenise conversations: (row_id, input_ids and assistant_masks; the dropped ledger; number of rows cut)."""
    encoded = [encode(tokenizer, as_messages(row), row.get("tools"), max_length + 1) for row in rows.to_pylist()]
    cut = sum(len(ids) > max_length for ids, _ in encoded)
    encoded = [(ids[:max_length], mask[:max_length]) for ids, mask in encoded]
    useful = pa.array([teaches(mask) for _, mask in encoded], pa.bool_())
    kept = [each for each, good in zip(encoded, useful.to_pylist(), strict=True) if good]
    tokens = {
        "row_id": rows["row_id"].filter(useful),
        "input_ids": pa.array([ids for ids, _ in kept], pa.list_(pa.int32())),
        "assistant_masks": pa.array([mask for _, mask in kept], pa.list_(pa.int8())),
    }
    useless = rows["row_id"].filter(pc.invert(useful))
    return pa.table(tokens), dropped_rows(useless, "nothing to learn within max_length", float(max_length)), cut


def train(
    base: Path,
    rows: pa.Table,
    output: Path,
    checkpoints: Path,
    parameters: SftParameters,
    on_step: OnStep | None = None,
) -> dict[str, float]:
    """Fine-tune the model in the folder `base` and write what comes out, with its history, to `output`.

    `rows` has `row_id` (uuid), `input_ids` (lists of int32) and `assistant_masks` (lists of int8, 1 on what is
    learned), as `chat.encode` returns them for the tokenizer of `base`, prepared with its own template. `checkpoints`
    is a folder of this training alone: called again after a kill, it goes on from the newest and ends in the same
    bytes. `output` gets model, tokenizer and `history.parquet` (`training.HISTORY`, one row a step; loss in nats per
    assistant token, the gradient's norm before clipping, tokens = the step's assistant tokens).

    Meant for a process of its own: it sets torch's thread count and seeds, and turns progress bars off. One
    GPU is used where there is one; TRL refuses several, so make one visible.

    Returns the measures of `training.measures`.

    Raises:
        BadInput: no model in `base`, no rows, a mask of another length than its ids, a row with nothing to
            learn, or a loss that is not finite or spikes.
    """
    labelled = with_labels(rows)
    parameters = parameters.fitted(len(rows))
    settle(parameters.threads)
    tokenizer = load_tokenizer(base)
    model = adapted(load_model(base, tokenizer, parameters.seed), parameters)
    trainer = _trainer(model, tokenizer, labelled, checkpoints, parameters)
    _check_first_batch(trainer, rows, parameters)
    trainer.watch(rows["row_id"], parameters.spike, on_step)
    trainer.train_or_restore(checkpoints)
    return finish(trainer, tokenizer, output)


def with_labels(rows: pa.Table) -> pa.Table:
    """Return input_ids, labels and rows: labels are the ids where the mask is 1, else -100; rows are places, from 0.

    SFTTrainer takes such a table as it is; from a mask it would build the same labels row by row in Python.

    Raises:
        BadInput: no rows, a mask of another length than its ids, or a row with nothing to learn.
    """
    if not rows.num_rows:
        raise BadInput("no rows to train on", "at least one", "look at what the steps before have dropped")
    ids, masks = (rows[name].combine_chunks() for name in ("input_ids", "assistant_masks"))
    lengths = pc.list_value_length(ids).to_numpy()
    _refuse_where(pc.list_value_length(masks).to_numpy() != lengths, "a mask of another length than its ids")
    learned = masks.flatten().to_numpy() == 1
    ends = np.cumsum(lengths)
    predicted = learned.copy()
    predicted[(ends - lengths)[lengths > 0]] = False  # nothing comes before a row's first token to predict it
    row = np.repeat(np.arange(len(lengths)), lengths)
    lessons = np.bincount(row, weights=predicted, minlength=len(lengths))
    _refuse_where(lessons == 0, "no assistant token to learn")
    labels = np.where(learned, ids.flatten().to_numpy(), IGNORED).astype(np.int32)
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    places = pa.array(np.arange(len(lengths)))
    return pa.table({"input_ids": ids, "labels": pa.ListArray.from_arrays(offsets, pa.array(labels)), "rows": places})


def _refuse_where(wrong: np.ndarray, what: str) -> None:
    if wrong.any():
        raise BadInput(
            f"{int(wrong.sum())} rows, the first of them row {int(wrong.argmax())}, with {what}",
            "a mask as long as the ids, with at least one 1 after its first place",
            "drop the rows of which chat.teaches says no, with that reason",
        )


def _trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    labelled: pa.Table,
    checkpoints: Path,
    parameters: SftParameters,
) -> Any:
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    class Collator(DataCollatorForLanguageModeling):  # type: ignore[misc]
        """Say which rows a batch is made of."""

        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = super().torch_call(examples)
            return batch | {"rows": torch.tensor([each["rows"] for each in examples])}

    class Trainer(StageTrainer, SFTTrainer):  # type: ignore[misc]
        """Score what is learned alone on a CPU; log the tokens of each step, as TRL's count is lost by a resume."""

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if inputs["input_ids"].device.type == "cpu":
                with self.accelerator.autocast():
                    return loss_on_cpu(model, **inputs) / num_items_in_batch
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        def get_batch_samples(self, *arguments: Any) -> Any:
            batches, items = super().get_batch_samples(*arguments)
            self.step_numbers = {
                "tokens": sum(int(batch["attention_mask"].sum()) for batch in batches),
                "tokens_assistant": sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches),
            }
            return batches, items

    return Trainer(
        model=model,
        args=arguments(SFTConfig, model, checkpoints, parameters, packing=False),
        data_collator=Collator(tokenizer.pad_token_id),
        train_dataset=Dataset(labelled),
        processing_class=tokenizer,
    )


def loss_on_cpu(model: Any, input_ids: Any, attention_mask: Any, labels: Any) -> Any:
    """Sum the negative log-likelihoods (nats, scalar) of the labels that are not -100; all of shape (batch, length).

    The vocabulary is projected at those positions alone. TRL's kernel does so on a GPU; on a CPU it scores every
    position, tile by tile in fp32, which took half of a step of SmolLM2 135M.
    """
    from torch.nn.functional import cross_entropy

    hidden = model.get_decoder()(input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    learned = labels[:, 1:] != IGNORED
    logits = head_of(model)(hidden[:, :-1][learned])
    return cross_entropy(logits.float(), labels[:, 1:][learned], reduction="sum")


def _check_first_batch(trainer: Any, rows: pa.Table, parameters: SftParameters) -> None:
    """Assert that TRL's collator leaves labels on the assistant's tokens and nowhere else."""
    some = rows.slice(0, parameters.micro_batch_size or parameters.batch_size).to_pylist()
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(len(some))])
    width = batch["labels"].shape[1]
    for row, labels in zip(some, batch["labels"].tolist(), strict=True):
        both = zip(row["input_ids"], row["assistant_masks"], strict=True)
        learned = [token if bit else IGNORED for token, bit in both]
        if labels != learned + [IGNORED] * (width - len(learned)):
            raise RuntimeError("TRL's collator changed the labels: found others than the assistant's tokens")
