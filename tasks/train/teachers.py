"""Teachers of a student in training: out of a cache that was paid once, or at hand in memory.

A teacher gives each response position some tensors, its *lines*, and knows what to make of them and of the student's
logits: a divergence (DCKD) or an advantage (ADPA). Both come with the student's mass on the tokens that the teacher
speaks of: 1 but for the compact cache.

    form      lines of a position
    exact     hidden states of teacher and reference; their heads make logits of them
    shared    the difference of these states and of the log-normalisers, where both have one head: the advantage is
    linear
    compact   the union of both models' likeliest tokens, with log-probabilities of both, and of both tails
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.artifact import Artifact
from data.errors import BadInput
from tasks.train.compatible import check_one_origin, check_same_tokens, tokens_digest
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
Places = npt.NDArray[np.int64]


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


def check_cache(about: About, base: Path, *, advantage: bool, reference: bool) -> None:
    """Refuse a cache of other tokens than the student's, or of another kind than is asked for.

    Raises:
        BadInput: it is no such cache.
    """
    if about.tokens != tokens_digest(base):
        raise BadInput(
            "a teacher_cache whose teacher turns messages into other ids than the student",
            "one tokenizer and one chat template",
            "take models of one family, prepared with one template, and make the cache again",
        )
    if advantage and about.reference != reference:
        raise BadInput(
            f"a teacher_cache with{'' if about.reference else 'out'} a reference",
            f"one with{'' if reference else 'out'} it",
            "make the cache with teacher and reference, or say without_reference for the ablation",
        )
    if not advantage and about.form == "shared":
        raise BadInput(
            "a teacher_cache that holds differences of teacher and reference",
            "one of the teacher alone, for a divergence",
            "make a cache without a reference",
        )


def located(cache: Artifact, pairs: pa.Table, sides: Mapping[str, str]) -> tuple[Places, Places]:
    """Find pairs in a cache: places (pairs, 2) of their sides' first positions, and numbers of positions (pairs, 2).

    Raises:
        BadInput: a side is not in the cache, or was cut or encoded in another way.
    """
    encoded = cache["encoded"].read()
    keys = zip(encoded["row_id"].to_pylist(), encoded["side"].to_pylist(), strict=True)
    lines = {key: at for at, key in enumerate(keys)}
    ids, masks, place, positions = (encoded[name] for name in ("ids", "mask", "place", "positions"))
    places, counts = np.zeros((len(pairs), 2), np.int64), np.zeros((len(pairs), 2), np.int64)
    for side, name in sides.items():
        at = [lines.get((row, name), -1) for row in pairs["row_id"].to_pylist()]
        missing = [row for row, line in zip(pairs["row_id"].to_pylist(), at, strict=True) if line < 0]
        if missing:
            raise BadInput(
                f"{len(missing)} of {len(pairs)} rows whose {name} is not in the teacher_cache, the first {missing[0]}",
                "a cache of the rows that are trained on",
                "make the cache of the same artifact, with the same max_length",
            )
        taken = pa.array(at, pa.int64())
        if ids.take(taken) != pairs[f"{side}_ids"] or masks.take(taken) != pairs[f"{side}_mask"]:
            raise BadInput(
                f"a teacher_cache in which a {name} has other ids than in training",
                "the same ids for teacher and student",
                "give both the same max_length",
            )
        column = SIDES.index(side)
        places[:, column], counts[:, column] = place.take(taken).to_numpy(), positions.take(taken).to_numpy()
    return places, counts


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
    read = _compact_reader(folder, device) if about.form == "compact" else _dense_reader(folder, about, device)

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


# ---- the files of a cache ----


class About(NamedTuple):
    """What `cache.json` says of a cache."""

    form: Literal["exact", "shared", "compact"]
    precision: Literal["fp32", "bf16"]
    heads: list[str]  # teacher, or teacher and reference
    reference: bool  # whether it can give advantages
    tokens: str  # digest of what the ids mean (`compatible.tokens_digest`)
    encoded: str  # digest of the table of that name


def read_about(folder: Path) -> About:
    """Read what a cache says of itself."""
    return About(**json.loads((folder / "cache.json").read_bytes()))


def _dense_reader(folder: Path, about: About, device: str) -> Callable[[Places], tuple[Tensor, ...]]:
    names = ["difference", "shift"] if about.form == "shared" else about.heads
    files = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names]

    def read(places: Places) -> tuple[Tensor, ...]:
        import torch

        tensors = (torch.from_numpy(file[places]).to(device) for file in files)
        return tuple(each.view(torch.bfloat16) if each.dtype == torch.int16 else each for each in tensors)

    return read


def _compact_reader(folder: Path, device: str) -> Callable[[Places], tuple[Tensor, ...]]:
    bounds, tokens, tails, *logs = (
        np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in ("bounds", "tokens", "tails", "teacher", "reference")
        if (folder / f"{name}.npy").exists()
    )

    def read(places: Places) -> tuple[Tensor, ...]:
        import torch

        firsts, widths = bounds[places], bounds[places + 1] - bounds[places]
        column = np.arange(widths.max(initial=0))
        filled = column < widths[:, None]
        at = (firsts[:, None] + column)[filled]
        ids = np.full(filled.shape, -1, np.int64)
        ids[filled] = tokens[at]
        made = [torch.from_numpy(ids)]
        for number, each in enumerate(logs):
            cells = np.zeros(filled.shape, np.float32)
            cells[filled] = each[at]
            made += [torch.from_numpy(cells), torch.from_numpy(tails[places, number])]
        return tuple(each.to(device) for each in made)

    return read
