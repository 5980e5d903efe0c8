"""Passes of a language model over encoded rows, in fixed shapes: losses, and greedy answers.

A row's numbers do not depend on the rows beside it: lengths are padded to multiples of 32 tokens, batches are filled up
to a constant size, and the vocabulary is projected for a constant number of positions at a time.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infra.devices import torch_device
from tasks.train.heads import head_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUCKET = 32  # tokens
POSITIONS = 256  # whose logits are in memory at once: 50 MB for a vocabulary of 49,000 in fp32


@lru_cache(maxsize=2)  # a teacher and its reference
def open_model(folder: Path, precision: str = "fp32") -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Open a model of the store for asking, once per process, on the device that the settings name.

    With the precision bf16 its weights are, and it computes, in bf16: half the memory, 2 to 4 times as fast.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype_of(precision), use_safetensors=True, local_files_only=True
    )
    model = model.to(torch_device()).eval().requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def dtype_of(precision: str) -> "torch.dtype":
    """Translate a precision (fp32 or bf16) for torch."""
    import torch

    return torch.bfloat16 if precision == "bf16" else torch.float32


def bucket(length: int) -> int:
    """Round a length up to a multiple of BUCKET."""
    return -(-length // BUCKET) * BUCKET


def batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Group rows of like length: lists of at most `size` places, whose lengths round up to one."""
    groups: dict[int, list[int]] = {}
    for at, length in enumerate(lengths):
        groups.setdefault(bucket(length), []).append(at)
    return [each[start : start + size] for _, each in sorted(groups.items()) for start in range(0, len(each), size)]


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: list[list[int]],
    batch_size: int,
    max_new_tokens: int,
) -> list[str]:
    """Answer encoded prompts greedily, in one batch of constant size: a short one is filled with its last prompt."""
    import torch

    width = bucket(max(map(len, prompts)))
    filled = prompts + [prompts[-1]] * (batch_size - len(prompts))
    padded = torch.tensor(
        [[tokenizer.pad_token_id] * (width - len(each)) + each for each in filled], device=model.device
    )
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in filled], device=model.device)
    with torch.inference_mode():
        out = model.generate(padded, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False)
    return [tokenizer.decode(each[width:], skip_special_tokens=True) for each in out[: len(prompts)].cpu()]


def mean_losses(
    model: "PreTrainedModel", pad: int, rows: list[tuple[list[int], list[int]]], batch_size: int
) -> list[tuple[float, int]]:
    """Score (ids, mask) rows, in one batch: mean nats per masked token, and the number of those tokens."""
    import torch

    width = bucket(max(len(ids) for ids, _ in rows))
    filled = rows + [rows[-1]] * (batch_size - len(rows))
    ids = torch.tensor([each + [pad] * (width - len(each)) for each, _ in filled], device=model.device)
    seen = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each, _ in filled], device=model.device)
    learned = torch.tensor([mask[1:] + [0] * (width - len(mask)) for _, mask in filled], device=model.device).bool()
    with torch.inference_mode():
        hidden = model.get_decoder()(ids, attention_mask=seen, use_cache=False).last_hidden_state
        nats = position_losses(model, hidden[:, :-1][learned], ids[:, 1:][learned])
    counts = learned.sum(1).tolist()
    sums = [float(each.double().sum()) for each in torch.split(nats, counts)]
    return [(total / max(count, 1), count) for total, count in zip(sums, counts, strict=True)][: len(rows)]


def total_log_probabilities(
    model: "PreTrainedModel", pad: int, rows: list[tuple[list[int], list[int]]], batch_size: int, precision: str
) -> npt.NDArray[np.float64]:
    """Sum the log-probabilities of what each (ids, mask) row marks: nats (n,); precision is fp32 or bf16 (autocast)."""
    import torch

    totals = np.zeros(len(rows))
    with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
        for batch in batches([len(ids) for ids, _ in rows], batch_size):
            losses = mean_losses(model, pad, [rows[at] for at in batch], batch_size)
            totals[batch] = [-mean * count for mean, count in losses]
    return totals


def position_losses(model: "PreTrainedModel", hidden: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    """Score each position's label by its hidden state (k, d): nats (k,)."""
    import torch

    head = head_of(model)
    nats = []
    for start in range(0, len(labels), POSITIONS):
        # filled up with the last position, so that the matrix product has one shape
        at = torch.arange(start, start + POSITIONS, device=labels.device).clamp(max=len(labels) - 1)
        logits = head(hidden[at]).float()
        nats.append(torch.nn.functional.cross_entropy(logits, labels[at], reduction="none"))
    return torch.cat(nats)[: len(labels)] if nats else labels.new_zeros(0).float()
