"""Supervised fine-tuning on TRL's SFTTrainer: learn what the assistant says, and nothing else.

The loss is the mean negative log-likelihood, in nats, of the assistant's tokens of one optimizer step (not
the mean of its rows' means): a long answer weighs more than a short one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from data.artifact import Artifact
from data.contracts import dropped_rows
from data.errors import BadInput
from data.fingerprint import NOT_IN_KEY
from infra.child import run_in_child
from infra.devices import torch_device
from infra.settings import settings
from infra.stage import Measures, Parameters, Reference, Rows, stage
from infra.work import Work
from tasks.train.chat import as_messages, encode, teaches
from tasks.train.checkpoints import OnStep, StageTrainer, remove_partial
from tasks.train.models import load_model, load_tokenizer, write_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig

IGNORED = -100  # the label that torch's and TRL's losses skip
HISTORY = pa.schema(
    [
        ("step", pa.int64()),
        ("loss", pa.float64()),
        ("learning_rate", pa.float64()),
        ("gradient_norm", pa.float64()),
        ("epoch", pa.float64()),
        ("tokens", pa.int64()),
    ]
)


class SftParameters(Parameters):
    """Say how to fine-tune."""

    max_length: int = Field(
        default=1024, ge=2, description="longest conversation in tokens; what is longer is cut at its end"
    )
    epochs: float = Field(default=1.0, gt=0, description="passes over the rows; max_steps, if given, overrides it")
    max_steps: int | None = Field(
        default=None, ge=1, title="Max Steps", description="optimizer steps; None: as many as `epochs` takes"
    )
    batch_size: int = Field(default=32, ge=1, description="rows per optimizer step")
    steps_per_epoch: int | None = Field(
        default=None,
        ge=1,
        title="Steps Per Epoch",
        description="optimizer steps in one pass over the rows, however many there are, in place of batch_size",
    )
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        title="Micro Batch Size",
        description="rows in memory at once, a divisor of batch_size; None: all of batch_size",
    )
    learning_rate: float = Field(default=2e-5, gt=0, description="peak learning rate of AdamW (TRL's default)")
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = Field(
        default="cosine", description="how the learning rate goes on after the warmup"
    )
    warmup: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of the steps in which the rate rises; the first has rate 0 if above 0",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay of AdamW; biases, norms: none")
    adam_beta2: float = Field(default=0.999, gt=0, lt=1, description="decay of AdamW's second moment")
    max_gradient_norm: float = Field(default=1.0, gt=0, description="L2 norm at which the gradient is clipped")
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="seed of row order, dropout and new embeddings")
    threads: int | None = Field(
        default=None, ge=1, title="Threads", description="CPU threads; None: as STILLHOUSE_THREADS says (all cores)"
    )
    checkpoint_every: Annotated[int, NOT_IN_KEY] = Field(
        default=100, ge=1, description="optimizer steps between checkpoints; the result does not depend on it"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16: autocast of the passes; weights and optimizer stay fp32"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations twice to keep fewer: about 20 % slower"
    )

    def with_seed(self, seed: int) -> SftParameters:
        """Return the same parameters with another seed: a sweep is a list of these."""
        return self.model_copy(update={"seed": seed})

    def fitted(self, rows: int) -> SftParameters:
        """Return the same parameters with the batch size and steps that `steps_per_epoch` asks for so many rows."""
        if self.steps_per_epoch is None:
            return self
        micro = self.micro_batch_size or 1
        batch = -(-rows // (self.steps_per_epoch * micro)) * micro
        steps = self.max_steps or round(self.steps_per_epoch * self.epochs)
        return self.model_copy(update={"batch_size": batch, "max_steps": max(steps, 1)})

    @model_validator(mode="after")
    def _whole_accumulation(self) -> SftParameters:
        if self.batch_size % (self.micro_batch_size or 1):
            raise ValueError(
                f"batch_size is {self.batch_size}, micro_batch_size {self.micro_batch_size}; wanted a divisor"
            )
        return self


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
    """Tokenise conversations: (input_ids and assistant_masks, the dropped ledger, number of rows that were cut)."""
    encoded = [encode(tokenizer, as_messages(row), row.get("tools"), max_length + 1) for row in rows.to_pylist()]
    cut = sum(len(ids) > max_length for ids, _ in encoded)
    encoded = [(ids[:max_length], mask[:max_length]) for ids, mask in encoded]
    useful = [teaches(mask) for _, mask in encoded]
    kept = [each for each, good in zip(encoded, useful, strict=True) if good]
    useless = rows["row_id"].filter(pa.array([not good for good in useful], pa.bool_()))
    tokens = {
        "input_ids": pa.array([ids for ids, _ in kept], pa.list_(pa.int32())),
        "assistant_masks": pa.array([mask for _, mask in kept], pa.list_(pa.int8())),
    }
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

    `rows` has `input_ids` (lists of int32) and `assistant_masks` (lists of int8, 1 on what is learned), as
    `chat.encode` returns them for the tokenizer of `base`, prepared with its own template. `checkpoints` is
    a folder of this training alone: called again after a kill, it goes on from the newest and ends in the
    same bytes. `output` gets model, tokenizer and `history.parquet` (`HISTORY`, one row a step; loss in nats
    per assistant token, the gradient's norm before clipping, tokens = the step's assistant tokens).

    Meant for a process of its own: it sets torch's thread count and seeds, and turns progress bars off. One
    GPU is used where there is one; TRL refuses several, so make one visible.

    Returns `steps`, `tokens` and `tokens_assistant` (over all steps: a row counts in every epoch), `loss` (of
    the last step) and `loss_tail` (mean over the last tenth of the steps), both in nats per assistant token.

    Raises:
        BadInput: no model in `base`, no rows, a mask of another length than its ids, a row with nothing to
            learn, or a loss that is not finite.
    """
    labelled = with_labels(rows)
    parameters = parameters.fitted(len(rows))
    _settle(parameters.threads or settings().threads)
    tokenizer = load_tokenizer(base)
    model = load_model(base, tokenizer, parameters.seed)
    trainer = _trainer(model, tokenizer, labelled, _arguments(model, checkpoints, parameters))
    _check_first_batch(trainer, rows, parameters)
    trainer.on_step = on_step
    remove_partial(checkpoints)
    trainer.train_or_restore(checkpoints)

    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    write_model(trainer.model, tokenizer, output)
    write_history(steps, output / "history.parquet")
    return measures(steps)


def with_labels(rows: pa.Table) -> pa.Table:
    """Return input_ids and labels: labels are the ids where the mask is 1 and -100 elsewhere.

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
    return pa.table({"input_ids": ids, "labels": pa.ListArray.from_arrays(offsets, pa.array(labels))})


def _refuse_where(wrong: np.ndarray, what: str) -> None:
    if wrong.any():
        raise BadInput(
            f"{int(wrong.sum())} rows, the first of them row {int(wrong.argmax())}, with {what}",
            "a mask as long as the ids, with at least one 1 after its first place",
            "drop the rows of which chat.teaches says no, with that reason",
        )


def _settle(threads: int) -> None:
    """Make this process quiet and its results repeatable."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    if torch_device() == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
        torch.use_deterministic_algorithms(True, warn_only=True)


def _trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    labelled: pa.Table,
    arguments: SFTConfig,
) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTTrainer

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
            self.step_tokens = {
                "tokens": sum(int(batch["attention_mask"].sum()) for batch in batches),
                "tokens_assistant": sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches),
            }
            return batches, items

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log(logs | self.step_tokens if "loss" in logs else logs, start_time)

    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset(labelled),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)  # it comes with disable_tqdm and prints every step
    return trainer


def loss_on_cpu(model: PreTrainedModel, input_ids: Any, attention_mask: Any, labels: Any) -> Any:
    """Sum the negative log-likelihoods (nats, scalar) of the labels that are not -100; all of shape (batch, length).

    The vocabulary is projected at those positions alone. TRL's kernel does so on a GPU; on a CPU it scores every
    position, tile by tile in fp32, which took half of a step of SmolLM2 135M.
    """
    from torch.nn.functional import cross_entropy

    hidden = model.get_decoder()(input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    learned = labels[:, 1:] != IGNORED
    logits = model.get_output_embeddings()(hidden[:, :-1][learned])
    return cross_entropy(logits.float(), labels[:, 1:][learned], reduction="sum")


def _arguments(model: PreTrainedModel, checkpoints: Path, parameters: SftParameters) -> SFTConfig:
    from trl import SFTConfig

    micro_batch = parameters.micro_batch_size or parameters.batch_size
    gpu = torch_device() == "cuda"
    return SFTConfig(
        output_dir=str(checkpoints),
        num_train_epochs=parameters.epochs,
        max_steps=parameters.max_steps or -1,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=parameters.batch_size // micro_batch,
        learning_rate=parameters.learning_rate,
        lr_scheduler_type=parameters.schedule,
        warmup_steps=parameters.warmup,  # below 1 it is a share of the steps
        weight_decay=parameters.weight_decay,
        adam_beta2=parameters.adam_beta2,
        max_grad_norm=parameters.max_gradient_norm,
        optim="adamw_torch_fused",  # 0.15 s a step against 0.5 s unfused for 135M parameters on two cores
        seed=parameters.seed,
        use_cpu=not gpu,
        bf16=parameters.precision == "bf16",
        activation_checkpointing=parameters.gradient_checkpointing,
        dataloader_pin_memory=gpu,
        use_cache=model.config.use_cache,  # it would be written to config.json as False; training uses none
        max_length=None,  # the rows come truncated
        packing=False,
        # A loss logged over several steps would forget those before a resume.
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        save_strategy="steps",
        save_steps=parameters.checkpoint_every,
        save_total_limit=None,  # StageTrainer removes the old ones
    )


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


def write_history(steps: list[dict[str, float]], path: Path) -> None:
    """Write the loss history (`HISTORY`), one row for each optimizer step, in their order."""
    named = {"gradient_norm": "grad_norm", "tokens": "tokens_assistant"}
    columns = {name: [entry[named.get(name, name)] for entry in steps] for name in HISTORY.names}
    pq.write_table(pa.table(columns, schema=HISTORY), path, compression="zstd")


def measures(steps: list[dict[str, float]]) -> dict[str, float]:
    """Sum up a history as `train` returns it; a history of less than ten steps has a tail of one."""
    tail = steps[-max(1, len(steps) // 10) :]
    return {
        "steps": float(len(steps)),
        "tokens": float(sum(entry["tokens"] for entry in steps)),
        "tokens_assistant": float(sum(entry["tokens_assistant"] for entry in steps)),
        "loss": float(steps[-1]["loss"]),
        "loss_tail": float(np.mean([entry["loss"] for entry in tail])),
    }
