"""A teacher_cache as training reads it: what it says of itself, where a row is in it, and its lines, memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.artifact import Artifact
from data.errors import BadInput
from tasks.train.compatible import tokens_digest
from tasks.train.pairs import SIDES

if TYPE_CHECKING:
    from torch import Tensor

Places = npt.NDArray[np.int64]
Reader = Callable[[Places], "tuple[Tensor, ...]"]  # places of positions -> their lines


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


def reader(folder: Path, about: About, device: str) -> Reader:
    """Open the lines of a cache, of whatever form."""
    return _compact_reader(folder, device) if about.form == "compact" else _dense_reader(folder, about, device)


def _dense_reader(folder: Path, about: About, device: str) -> Reader:
    names = ["difference", "shift"] if about.form == "shared" else about.heads
    files = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names]

    def read(places: Places) -> tuple[Tensor, ...]:
        import torch

        tensors = (torch.from_numpy(file[places]).to(device) for file in files)
        return tuple(each.view(torch.bfloat16) if each.dtype == torch.int16 else each for each in tensors)

    return read


def _compact_reader(folder: Path, device: str) -> Reader:
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
