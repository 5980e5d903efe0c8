"""Teachers of a student in training: out of a cache that was paid once, or at hand in memory.

A teacher gives each response position some tensors, its *lines*, and knows what to make of them and of the student's
logits: a divergence (DCKD) or an advantage (ADPA). Both come with the student's mass on the tokens that the teacher
speaks of: 1 but for the compact cache.

    form      lines of a position
    exact     hidden states of teacher and reference; their heads make logits of them
    shared    where both have one head: the difference of these states, in which advantages are linear, and of the
              log-normalisers
    compact   the union of both models' likeliest tokens, with log-probabilities of both, and of both tails
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from data.artifact import Artifact
from data.errors import BadInput
from tasks.train.cached import Places, check_cache, located, read_about, reader
from tasks.train.compatible import check_one_origin, check_same_tokens
from tasks.train.heads import Head, head_of, load_head
from tasks.train.losses import advantage_at, advantages, coarse_advantage_at, coarse_kl_at, coverage, kl_at
from tasks.train.models import load_tokenizer
from tasks.train.pairs import SIDES, Batch
from tasks.train.passes import POSITIONS, open_model

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("teacher", "reference")

Clip = tuple[float, float] | None
Sides = Sequence[str]  # of SIDES, in their order
Score = Callable[..., "Tensor"]  # (the student's logits (c, vocabulary), its labels (c,), *lines) -> (2, c)


@dataclass(frozen=True)
class Teacher:
    """Say where a teacher's lines come from, and what to make of them."""

    lines: Callable[[Batch, Sides], tuple[Tensor, ...]]  # of the positions on these sides of a batch
    divergence: Score  # nats and coverage
    advantage: Score


def teacher_of(
    teachers: list[Artifact],
    pairs: pa.Table,
    sides: Mapping[str, str],
    student: Any,
    base: Path,
    precision: str,
    *,
    advantage: bool,
    reference: bool = True,
    clip: Clip = None,
) -> Teacher:
    """Open what a stage was given as teachers: one cache, or models.

    Args:
        teachers: a `teacher_cache`; or the teacher, and for advantages its reference.
        pairs: `PAIRS` of the training.
        sides: {side of the pairs: side in a cache} for those that are asked for.
        student: the model in training.
        base: the folder that it came from.
        precision: fp32 or bf16, of models in memory.
        advantage: advantages are wanted, and not divergences.
        reference: advantages are over a reference.
        clip: bounds of advantages.

    Raises:
        BadInput: there is no such teacher among them, or its tokens or rows are not those of the student.
    """
    if not teachers:
        raise BadInput("no teacher", "a teacher_cache, or models", "name one")
    vocabulary = len(load_tokenizer(base))
    device = str(student.device)
    if (teachers[0].path / "cache.json").is_file():
        about = read_about(teachers[0].path)
        check_cache(about, base, advantage=advantage, reference=reference)
        places, counts = located(teachers[0], pairs, sides)
        return cached(teachers[0].path, places, counts, vocabulary, clip, device)
    wanted = NAMES if advantage and reference else NAMES[:1]
    if len(teachers) != len(wanted):
        raise BadInput(
            f"{len(teachers)} models as teachers",
            f"{' and '.join(wanted)}, in this order",
            "name these, or a teacher_cache",
        )
    check_same_tokens(student=base, **{name: each.path for name, each in zip(wanted, teachers, strict=True)})
    if len(teachers) == 2:
        check_one_origin(*teachers)
    models = [open_model(each.path, precision)[0].to(device) for each in teachers]
    return at_hand(models[0], models[1] if len(models) == 2 else None, vocabulary, clip)


def at_hand(teacher: Any, reference: Any | None, vocabulary: int, clip: Clip) -> Teacher:
    """Ask models in memory, batch by batch.

    Args:
        teacher: a causal language model, with the student's tokens.
        reference: the one that it began as; None: a divergence is all that is wanted.
        vocabulary: tokens that all models share.
        clip: bounds for advantages.
    """
    models = [teacher.eval()] if reference is None else [teacher.eval(), reference.eval()]

    def lines(batch: Batch, sides: Sides) -> tuple[Tensor, ...]:
        import torch

        asked = _sequences(batch, sides)
        ids, attention, learned = (batch.inputs[name][asked] for name in ("input_ids", "attention_mask", "learned"))
        with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
            states = (each.get_decoder()(ids, attention_mask=attention, use_cache=False) for each in models)
            return tuple(each.last_hidden_state[:, :-1][learned] for each in states)

    heads = [head_of(each).cut(vocabulary) for each in models]
    if share(heads):
        return _shared(lambda *asked: differences(heads[0], *lines(*asked)), heads[0], vocabulary, clip)
    return _exact(lines, heads, vocabulary, clip)


def share(heads: Sequence[Head]) -> bool:
    """Say whether a teacher and its reference have one head without a cap, so that an advantage is linear in states."""
    return len(heads) == 2 and heads[0].cap is None and heads[0].equals(heads[1])


def differences(head: Head, taught: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Make the lines of the shared form of a teacher's and its reference's states (k, width): (k, width), nats (k,)."""
    import torch

    norms = [
        torch.cat([head(part).float().logsumexp(-1) for part in torch.split(states, POSITIONS)])
        for states in (taught, before)
    ]
    return (taught.float() - before.float()).to(taught.dtype), norms[1] - norms[0]


def cached(folder: Path, places: Places, counts: Places, vocabulary: int, clip: Clip, device: str) -> Teacher:
    """Read a cache, memory-mapped.

    Args:
        folder: what `teacher_cache` published.
        places: (pairs, 2) place of each side's first position in the cache; of no use for a side that it has not.
        counts: (pairs, 2) response positions of each side.
        vocabulary: tokens that all models share.
        clip: bounds for advantages.
        device: where the student is.
    """
    about = read_about(folder)
    read = reader(folder, about, device)

    def lines(batch: Batch, sides: Sides) -> tuple[Tensor, ...]:
        pairs = batch.pairs.cpu().numpy()
        firsts, lengths = (each[pairs].T.ravel()[_sequences(batch, sides)] for each in (places, counts))
        ends = lengths.cumsum()
        return read(np.arange(ends[-1]) + np.repeat(firsts - (ends - lengths), lengths))

    if about.form == "compact":
        return _compact(lines, vocabulary, clip)
    heads = [load_head(folder / f"{name}_head.safetensors", device).cut(vocabulary) for name in about.heads]
    return (
        _shared(lines, heads[0], vocabulary, clip) if about.form == "shared" else _exact(lines, heads, vocabulary, clip)
    )


def _sequences(batch: Batch, sides: Sides) -> slice:
    n = len(batch.pairs)
    return slice(n * SIDES.index(sides[0]), n * (SIDES.index(sides[-1]) + 1))


# ---- what to make of lines ----


def _exact(lines: Any, heads: list[Head], vocabulary: int, clip: Clip) -> Teacher:
    """Lines: hidden states of the teacher, and of the reference."""

    def divergence(student: Tensor, _: Tensor, taught: Tensor, *__: Tensor) -> Tensor:
        return _covered(kl_at(student[:, :vocabulary], heads[0](taught)))

    def advantage(student: Tensor, _: Tensor, taught: Tensor, *before: Tensor) -> Tensor:
        logits = heads[0](taught)
        each = advantages(logits, heads[1](*before), clip) if before else _clipped(logits.float().log_softmax(-1), clip)
        return _covered(advantage_at(student[:, :vocabulary], each))

    return Teacher(lines, divergence, advantage)


def _shared(lines: Any, head: Head, vocabulary: int, clip: Clip) -> Teacher:
    """Lines: the states' difference, and the log-normaliser of the reference less that of the teacher."""
    linear = Head(head.weight, None, head.factor)  # the bias is in both, and cancels

    def advantage(student: Tensor, _: Tensor, difference: Tensor, shift: Tensor) -> Tensor:
        each = _clipped(linear(difference).float() + shift[:, None], clip)
        return _covered(advantage_at(student[:, :vocabulary], each))

    return Teacher(lines, _no_divergence, advantage)


def _compact(lines: Any, vocabulary: int, clip: Clip) -> Teacher:
    """Lines: tokens, the teacher's log-probabilities and tail, and the reference's."""

    def divergence(student: Tensor, _: Tensor, ids: Tensor, log_q: Tensor, tail_q: Tensor, *__: Tensor) -> Tensor:
        import torch

        student = student[:, :vocabulary]
        return torch.stack([coarse_kl_at(student, ids, log_q, tail_q), coverage(student, ids)])

    def advantage(student: Tensor, _: Tensor, ids: Tensor, *both: Tensor) -> Tensor:
        import torch

        log_q, tail_q, *reference = both
        log_r, tail_r = reference or (0, 0)
        cells, tail = _clipped(log_q - log_r, clip), _clipped(tail_q - tail_r, clip)
        student = student[:, :vocabulary]
        return torch.stack([coarse_advantage_at(student, ids, cells, tail), coverage(student, ids)])

    return Teacher(lines, divergence, advantage)


def _clipped(values: Tensor, clip: Clip) -> Tensor:
    return values if clip is None else values.clamp(*clip)


def _no_divergence(*_: Tensor) -> Tensor:
    raise AssertionError("a cache of differences was asked for a divergence; `check_cache` refuses it before")


def _covered(nats: Tensor) -> Tensor:
    import torch

    return torch.stack([nats, torch.ones_like(nats)])
