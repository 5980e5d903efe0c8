"""What every training has in common: optimizer and schedule, LoRA, quiet and repeatable runs, a history of steps."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from data.errors import BadInput
from data.fingerprint import NOT_IN_KEY
from infra.devices import torch_device
from infra.settings import settings
from infra.stage import Parameters
from tasks.train.checkpoints import StageTrainer
from tasks.train.models import write_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

Arguments = TypeVar("Arguments", bound="TrainingArguments")

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
ADAPTER = "adapter"  # the folder of LoRA's own weights, beside the model into which they are merged


class LoraParameters(Parameters):
    """Say which low-rank matrices are trained in place of the weights (Hu et al. 2021)."""

    rank: int = Field(default=16, ge=1, description="rank of the matrices")
    alpha: float = Field(default=32.0, gt=0, description="their product is scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout before the first matrix")
    targets: tuple[str, ...] = Field(
        default=(), description="modules to adapt, by the end of their names; none: all linear ones but the head"
    )


class TrainingParameters(Parameters):
    """Say how to train: how long, in which batches, with which optimizer and precision."""

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
    lora: LoraParameters | None = Field(
        default=None, title="LoRA", description="train low-rank matrices alone, and merge them; None: all weights"
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="seed of row order, dropout and new weights")
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
    spike: float | None = Field(
        default=10.0,
        gt=0,
        title="Spike",
        description="stop where a loss is so many robust deviations (0.1 nats at least) above the last 50; None: never",
    )

    def with_seed(self, seed: int) -> Self:
        """Return the same parameters with another seed: a sweep is a list of these."""
        return self.model_copy(update={"seed": seed})

    def fitted(self, rows: int) -> Self:
        """Return the same parameters with the batch size and steps that `steps_per_epoch` asks for so many rows."""
        if self.steps_per_epoch is None:
            return self
        micro = self.micro_batch_size or 1
        batch = -(-rows // (self.steps_per_epoch * micro)) * micro
        steps = self.max_steps or round(self.steps_per_epoch * self.epochs)
        return self.model_copy(update={"batch_size": batch, "max_steps": max(steps, 1)})

    @model_validator(mode="after")
    def _whole_accumulation(self) -> Self:
        if self.batch_size % (self.micro_batch_size or 1):
            raise ValueError(
                f"batch_size is {self.batch_size}, micro_batch_size {self.micro_batch_size}; wanted a divisor"
            )
        return self


def settle(threads: int | None) -> None:
    """Make this process quiet and its results repeatable."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads or settings().threads)
    logging.disable_progress_bar()
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(transformers|trl|peft)\."
    )  # not the user's to mend
    if torch_device() == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
        torch.use_deterministic_algorithms(True, warn_only=True)


def adapted(model: PreTrainedModel, parameters: TrainingParameters) -> Any:
    """Return the model with low-rank matrices to train, or as it is where the parameters want none.

    Raises:
        BadInput: the model has no modules of the names that are wanted, or its embedding or head is among them.
    """
    if parameters.lora is None:
        return model
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import set_seed

    lora = parameters.lora
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    set_seed(parameters.seed)
    found = sorted({name.rpartition(".")[2] for name, _ in model.named_modules() if name})
    try:
        made = get_peft_model(model, config)
    except ValueError as error:
        raise BadInput(str(error), f"names of modules: {', '.join(found)}", "correct lora.targets") from error
    if any(isinstance(each, BaseTunerLayer) for each in (made.get_input_embeddings(), made.get_output_embeddings())):
        # losses use the head's own weight, which a tied embedding shares: matrices beside it would not be seen
        raise BadInput(
            f"lora.targets {', '.join(lora.targets)}, with the embedding or the head among them",
            "modules between the two",
            "leave these two out, or train all weights",
        )
    return made


def arguments(
    config: type[Arguments], model: Any, checkpoints: Path, parameters: TrainingParameters, **more: Any
) -> Arguments:
    """Fill a trainer's own configuration; `more` is what only that trainer knows."""
    micro_batch = parameters.micro_batch_size or parameters.batch_size
    gpu = torch_device() == "cuda"
    filled: Arguments = config(
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
        # A loss logged over several steps would forget those before a resume.
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        save_strategy="steps",
        save_steps=parameters.checkpoint_every,
        save_total_limit=None,  # StageTrainer removes the old ones
        remove_unused_columns=False,  # a batch says which rows are in it
        **more,
    )
    return filled


def finish(trainer: StageTrainer, tokenizer: PreTrainedTokenizerBase, output: Path, *columns: str) -> dict[str, float]:
    """Write the trained model and the history of its steps, with further columns, and sum the history up.

    LoRA's matrices are merged into the weights; alone they are in the folder `adapter`.
    """
    model = trainer.model
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(output / ADAPTER, selected_adapters=["default"])
        _forget_base(output / ADAPTER)
        model = model.merge_and_unload()
    write_model(model, tokenizer, output)
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    write_history(steps, output / "history.parquet", *columns)
    return measures(steps, *columns)


def _forget_base(adapter: Path) -> None:
    """Leave out of an adapter's configuration where its base lay, so that equal adapters have equal bytes."""
    (adapter / "README.md").unlink(missing_ok=True)
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_bytes()) | {"base_model_name_or_path": None}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_history(steps: list[dict[str, float]], path: Path, *columns: str) -> None:
    """Write the loss history (`HISTORY` and further columns, float64), one row for each step, in their order."""
    named = {"gradient_norm": "grad_norm", "tokens": "tokens_assistant"}
    schema = HISTORY
    for column in columns:
        schema = schema.append(pa.field(column, pa.float64()))
    values = {name: [entry[named.get(name, name)] for entry in steps] for name in schema.names}
    pq.write_table(pa.table(values, schema=schema), path, compression="zstd")


def measures(steps: list[dict[str, float]], *columns: str) -> dict[str, float]:
    """Sum up a history as trainings return it.

    Returns `steps`, `tokens` and `tokens_assistant` (over all steps: a row counts in every epoch), `loss` (of the last
    step), and the means over the last tenth of the steps (one step of a history of less than ten) of the loss,
    `loss_tail`, and of the further columns, under their own names.
    """
    tail = steps[-max(1, len(steps) // 10) :]
    return {
        "steps": float(len(steps)),
        "tokens": float(sum(entry["tokens"] for entry in steps)),
        "tokens_assistant": float(sum(entry["tokens_assistant"] for entry in steps)),
        "loss": float(steps[-1]["loss"]),
        "loss_tail": float(np.mean([entry["loss"] for entry in tail])),
        **{name: float(np.mean([entry[name] for entry in tail])) for name in columns},
    }
