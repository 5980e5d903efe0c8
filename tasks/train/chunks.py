"""Score positions so many at a time: their logits are never all in memory, forward or backward.

The backward pass makes the logits of a chunk again, and adds what they say of the head into one gradient. torch's
checkpointing of each chunk makes a gradient of the whole head for each, 113 MB for SmolLM2 135M: with it 256 positions
in chunks of 64 took more memory than all 256 at once, and 2.9 times the CPU seconds. This module imports torch, so
import it where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tasks.train.heads import Head


def score_in_chunks(function: Callable[..., Tensor], head: Head, chunk: int, hidden: Tensor, *lines: Tensor) -> Tensor:
    """Apply a function to the logits of positions, `chunk` at a time.

    Args:
        function: (logits (c, vocabulary), *lines) -> (c,) or (terms, c), each position by itself.
        head: makes logits; its weight and bias get gradients if they want some.
        chunk: positions.
        hidden: states (k, width); they get gradients.
        lines: tensors with one line for each position; they get none.

    Returns:
        What the function returns, of all positions: (k,) or (terms, k).
    """
    apply: Callable[..., Tensor] = _Chunks.apply
    return apply(function, head, chunk, hidden, head.weight, head.bias, *lines)


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        function: Callable[..., Tensor],
        head: Head,
        chunk: int,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *lines: Tensor,
    ) -> Tensor:
        kind = hidden.device.type
        ctx.function, ctx.head, ctx.chunk = function, head, chunk
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.save_for_backward(hidden, weight, bias, *lines)
        low = _low(head, ctx.autocast)
        parts = zip(*(torch.split(each, chunk) for each in (hidden, *lines)), strict=True)
        return torch.cat([function(low(part), *rest) for part, *rest in parts], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        hidden, weight, bias, *lines = ctx.saved_tensors
        low = _low(Head(weight, bias, ctx.head.factor, ctx.head.cap), ctx.autocast)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[3:6]
        by_hidden = torch.empty_like(hidden) if wants_hidden else None
        by_weight = torch.zeros_like(weight) if wants_weight else None
        by_bias = torch.zeros_like(bias) if wants_bias else None
        for start in range(0, len(hidden), ctx.chunk):
            at = slice(start, start + ctx.chunk)
            by_linear = _by_linear(ctx, low, hidden[at], [each[at] for each in lines], gradient[..., at])
            if by_hidden is not None:
                by_hidden[at] = by_linear @ low.weight
            if by_weight is not None and by_weight.dtype == by_linear.dtype:
                by_weight.addmm_(by_linear.T, hidden[at].to(by_linear.dtype))
            elif by_weight is not None:
                by_weight += by_linear.T @ hidden[at].to(by_linear.dtype)
            if by_bias is not None:
                by_bias += by_linear.sum(0)
        return None, None, None, by_hidden, by_weight, by_bias, *(None for _ in lines)


def _by_linear(ctx: Any, low: Head, hidden: Tensor, lines: list[Tensor], gradient: Tensor) -> Tensor:
    """Differentiate one chunk by what the head's matrix product makes (c, vocabulary)."""
    kind, dtype, enabled = ctx.autocast
    with torch.enable_grad(), torch.autocast(kind, dtype, enabled):
        linear = low.linear(hidden).detach().requires_grad_()
        scored = ctx.function(low.shaped(linear), *lines)
    return torch.autograd.grad(scored, linear, gradient)[0]


def _low(head: Head, autocast: tuple[str, torch.dtype, bool]) -> Head:
    """Cast a head once to what autocast would cast it to for every chunk."""
    _, dtype, enabled = autocast
    if not enabled or head.weight.dtype == dtype:
        return Head(head.weight.detach(), head.bias, head.factor, head.cap)
    bias = None if head.bias is None else head.bias.to(dtype)
    return Head(head.weight.detach().to(dtype), bias, head.factor, head.cap)
