"""Passes of a language model over encoded rows, in fixed shapes: losses, and answers.

A row's numbers do not depend on the rows beside it: lengths are padded to multiples of 32 tokens, batches are filled up
to a constant size, and the vocabulary is projected for a constant number of positions at a time.
"""

from collections.abc import Callable, Sequence
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

Encoded = list[tuple[list[int], list[int]]]  # of each row its ids, and a mask that is 1 on what is learned or scored

BUCKET = 32  # tokens
POSITIONS = 256  # whose logits are in memory at once: 50 MB for a vocabulary of 49,000 in fp32


@lru_cache(maxsize=2)  # a teacher and its reference
def open_model(folder: Path, precision: str = "fp32") -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Open a model of the store for asking, once per process, on the device that the settings name.

    With the precision bf16 its weights are, and it computes, in bf16: half the memory, 2 to 4 times as fast.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="bfloat16" if precision == "bf16" else "float32", use_safetensors=True, local_files_only=True
    )
    model = model.to(torch_device()).eval().requires_grad_(False)
    return model, open_tokenizer(folder)


@lru_cache(maxsize=2)
def open_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Open a tokenizer of the store, once per process."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer


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
    """Answer encoded prompts greedily, in one batch of constant size: their texts."""
    answers = generate_ids(model, tokenizer, prompts, batch_size, max_new_tokens)
    return [tokenizer.decode(each, skip_special_tokens=True) for each in answers]


def generate_ids(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: list[list[int]],
    batch_size: int,
    max_new_tokens: int,
    shift: "Callable[[torch.Tensor, int], torch.Tensor] | None" = None,
) -> list[list[int]]:
    """Answer encoded prompts in one batch of constant size: a short one is filled with its last prompt.

    Prompts are padded to a multiple of 32 tokens above their length. So each has a padding token, and attention takes
    the same kernel whatever the lengths are: without any it would leave out its mask.

    Args:
        model: on its device.
        tokenizer: its own.
        prompts: token ids, at most `batch_size` lists.
        batch_size: rows of the batch.
        max_new_tokens: longest answer, the end of turn counted.
        shift: (logits (batch_size, vocabulary) in fp32, number of the new token) -> scores, whose largest is taken;
            lines beyond the prompts repeat the last one. None: the logits, which is greedy.

    Returns:
        The new token ids of each, up to and with the first that ends a text (`ends_of`).
    """
    import torch

    width = prompt_width(max(map(len, prompts)))
    filled = prompts + [prompts[-1]] * (batch_size - len(prompts))
    padded = torch.tensor(
        [[tokenizer.pad_token_id] * (width - len(each)) + each for each in filled], device=model.device
    )
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in filled], device=model.device)
    ends = ends_of(model, tokenizer)

    def scored(seen: "torch.Tensor", logits: "torch.Tensor") -> "torch.Tensor":
        return logits if shift is None else shift(logits, seen.shape[1] - width)

    with torch.inference_mode():
        out = model.generate(
            padded,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,  # a model's own settings would bend its distribution
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
            logits_processor=[scored],
        )
    return [_ended(each, ends) for each in out[: len(prompts), width:].tolist()]


def prompt_width(length: int) -> int:
    """Round a prompt's length up to a multiple of BUCKET that leaves room for a padding token."""
    return bucket(length + 1)


def ends_of(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """List the tokens that end a text: those of the model's generation config, and the tokenizer's."""
    own = model.generation_config.eos_token_id
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id}
    return sorted(each for each in ends if each is not None)


def _ended(ids: list[int], ends: list[int]) -> list[int]:
    """Cut what follows the first end: padding, where other rows of the batch went on."""
    return ids[: next((at + 1 for at, token in enumerate(ids) if token in ends), len(ids))]


def padded(
    rows: Encoded, batch_size: int, pad: int, device: "torch.device"
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Put rows into one batch of constant size: a short one is filled with its last row, lengths are rounded up.

    Returns:
        Ids and attention mask (batch_size, length), and which states predict a marked token (batch_size, length - 1).
    """
    import torch

    width = bucket(max(len(ids) for ids, _ in rows))
    filled = rows + [rows[-1]] * (batch_size - len(rows))
    ids = torch.tensor([each + [pad] * (width - len(each)) for each, _ in filled], device=device)
    seen = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each, _ in filled], device=device)
    marked = torch.tensor([mask[1:] + [0] * (width - len(mask)) for _, mask in filled], device=device).bool()
    return ids, seen, marked


def marked_states(
    model: "PreTrainedModel", ids: "torch.Tensor", seen: "torch.Tensor", marked: "torch.Tensor"
) -> "torch.Tensor":
    """Run the decoder over what `padded` returns: what the head takes where a marked token is predicted (k, width)."""
    import torch

    with torch.inference_mode():
        hidden = model.get_decoder()(ids, attention_mask=seen, use_cache=False).last_hidden_state
        states: torch.Tensor = hidden[:, :-1][marked]
        return states


def mean_losses(model: "PreTrainedModel", pad: int, rows: Encoded, batch_size: int) -> list[tuple[float, int]]:
    """Score rows, in one batch: mean nats per marked token, and the number of those tokens."""
    import torch

    ids, seen, marked = padded(rows, batch_size, pad, model.device)
    with torch.inference_mode():
        nats = position_losses(model, marked_states(model, ids, seen, marked), ids[:, 1:][marked])
    counts = marked.sum(1).tolist()
    sums = [float(each.double().sum()) for each in torch.split(nats, counts)]
    return [(total / max(count, 1), count) for total, count in zip(sums, counts, strict=True)][: len(rows)]


def total_log_probabilities(
    model: "PreTrainedModel", pad: int, rows: Encoded, batch_size: int, precision: str
) -> npt.NDArray[np.float64]:
    """Sum the log-probabilities of what each row marks: nats (n,); precision is fp32 or bf16 (autocast)."""
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
