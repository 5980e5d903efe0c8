"""How long rows are, as a model reads them: their prompts, their answers, and what a limit leaves of both."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.shards import Tables
from infra.work import Slice
from tasks.train.chat import teaches
from tasks.train.models import load_tokenizer
from tasks.train.pairs import encode_talk, talks_of

Counts = npt.NDArray[np.int64]

WHOLE = 1 << 30  # tokens: no limit


class Lengths(NamedTuple):
    """Tokens of rows, as the student reads them; sides in columns (rows, sides)."""

    sides: list[str]
    prompt: Counts  # (rows,) before the first token that is learned
    tokens: Counts  # of the whole conversation
    answer: Counts  # that are learned
    positions: Counts  # that are learned within max_length


def measure_rows(max_length: int, student: Path, rows: Slice) -> Tables:
    """Count a shard's tokens: `prompt`, and of each side `SIDE_tokens`, `SIDE_answer`, `SIDE_positions`."""
    tokenizer = load_tokenizer(student)
    sides = talks_of(rows.read())
    encoded = {side: [encode_talk(tokenizer, talk, WHOLE) for talk in talks] for side, talks in sides.items()}
    columns: dict[str, list[int]] = {}
    prompts = [[mask.index(1) if 1 in mask else len(mask) for _, mask in each] for each in encoded.values()]
    columns["prompt"] = [max(each) for each in zip(*prompts, strict=True)]
    for side, each in encoded.items():
        columns[f"{side}_tokens"] = [len(ids) for ids, _ in each]
        columns[f"{side}_answer"] = [sum(mask) for _, mask in each]
        columns[f"{side}_positions"] = [sum(mask[1:max_length]) if teaches(mask) else 0 for _, mask in each]
    return {"lengths": pa.table({name: pa.array(values, pa.int64()) for name, values in columns.items()})}


def lengths_of(table: pa.Table) -> Lengths:
    """Read what `measure_rows` counted."""
    sides = [name.removesuffix("_tokens") for name in table.column_names if name.endswith("_tokens")]
    tokens, answer, positions = (
        np.stack([table[f"{side}_{what}"].to_numpy() for side in sides], axis=1)
        for what in ("tokens", "answer", "positions")
    )
    return Lengths(sides, table["prompt"].to_numpy(), tokens, answer, positions)


def lost(lengths: Lengths) -> npt.NDArray[np.bool_]:
    """Say which rows have a side with nothing left to learn (rows,)."""
    nothing: npt.NDArray[np.bool_] = (lengths.positions == 0).any(1)
    return nothing


def too_long(lengths: Lengths, max_length: int) -> npt.NDArray[np.bool_]:
    """Say which sides are longer than max_length (rows, sides)."""
    return lengths.tokens > max_length
