"""What several models say at the response positions of the same encoded rows, over the whole vocabulary.

Each model runs by itself and leaves its final states at these positions; their heads make logits of a constant number
of positions at a time. So memory is bounded whatever the vocabulary, no more models are open than `open_model` keeps,
and a row's numbers do not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.train.heads import Head, head_of
from tasks.train.losses import advantage_at, advantages
from tasks.train.passes import POSITIONS, Encoded, batches, marked_states, open_model, padded

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float64]

UNLIMITED = 1 << 30  # tokens: rows are encoded whole, and then measured


class Heard(NamedTuple):
    """One model at k response positions."""

    head: Head
    states: Tensor  # (k, width)


def positions_of(rows: Encoded) -> list[int]:
    """Count the response positions of each row: those whose state predicts a masked token."""
    return [sum(mask[1:]) for _, mask in rows]


def hear(folder: Path, precision: str, rows: Encoded, batch_size: int) -> Heard:
    """Run the model in a folder over encoded rows, in fixed shapes: its states, row after row, and its head.

    The head is cut to the tokens that the tokenizer knows: vocabularies are padded to different sizes.
    """
    import torch

    model, tokenizer = open_model(folder, precision)
    states: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch in batches([len(ids) for ids, _ in rows], batch_size):
        ids, seen, marked = padded([rows[at] for at in batch], batch_size, tokenizer.pad_token_id, model.device)
        parts = torch.split(marked_states(model, ids, seen, marked).cpu(), marked.sum(1).tolist())
        for at, part in zip(batch, parts, strict=False):
            states[at] = part
    return Heard(head_of(model).cut(len(tokenizer)), torch.cat(states))


def score(function: Callable[..., Tensor], heard: Sequence[Heard], rows: Encoded) -> list[Floats]:
    """Apply a function at every response position and return its terms row by row: (terms, positions of the row) each.

    Args:
        function: (labels (c,), logits (c, vocabulary) of each model) -> nats (terms, c).
        heard: what `hear` returned of each model, for these rows.
        rows: at least one, each with a response position.
    """
    import torch

    labels = torch.tensor([token for ids, mask in rows for token, bit in zip(ids[1:], mask[1:], strict=True) if bit])
    device = heard[0].head.weight.device
    terms = []
    for start in range(0, len(labels), POSITIONS):
        # filled up with the last position, so that the matrix product has one shape
        at = torch.arange(start, start + POSITIONS).clamp(max=len(labels) - 1)
        with torch.inference_mode():
            logits = [head(states[at].to(device)).float() for head, states in heard]
            terms.append(function(labels[at].to(device), *logits).double().cpu())
    whole = torch.cat(terms, dim=1)[:, : len(labels)].numpy()
    return np.split(whole, np.cumsum(positions_of(rows))[:-1], axis=1)


def expected_ratio(model: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """Compute E_model[log above - log below] at each position: logits (k, vocabulary), nats (k,).

    With the model itself above, this is KL(model || below), and exactly 0 where both are equal. With a teacher above
    and its reference below it is the teacher's advantage: KL(model || below) - KL(model || above).
    """
    return -advantage_at(model, advantages(above, below))
