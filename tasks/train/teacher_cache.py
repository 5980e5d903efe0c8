"""Run teachers over responses once, and keep what a student's training wants of them.

    cache.json              form, precision, and what the ids mean
    encoded.parquet         row_id, side, ids, mask, place of the first response position, number of positions
    exact   teacher.npy, reference.npy                (positions, width) final hidden states
            teacher_head.safetensors, reference_head.safetensors
    shared  difference.npy, shift.npy                 (positions, width) teacher less reference; (positions,) nats
            teacher_head.safetensors
    compact bounds.npy, tokens.npy                    (positions + 1,) where a position's tokens stand
            teacher.npy, reference.npy, tails.npy     log-probabilities of the tokens, fp16; of the tails (positions,
            models)

Specification and published code: Gao et al. 2025 (ADPA) keep the teacher's 50 likeliest tokens, 816 bytes a token in
Arrow for each teacher, and give a token that the reference has not among its 50 the smallest of the teacher's
probabilities. Here the exact forms have all tokens, since a hidden state and one head say the same as 49,000 numbers;
and the compact form has true log-probabilities of both models for the likeliest tokens of either, and the mass of the
rest.

Positions are those whose state predicts a response token, its end of turn included. States are kept as the head of the
model takes them: fp32, or bf16 where the pass was in bf16. Rows of like length are run together, in fixed shapes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from data.contracts import ID
from data.errors import BadInput
from data.ids import table_digest
from infra.devices import torch_device
from infra.shards import Tables, read_shard
from infra.stage import Measures, Parameters, Reference, References, stage
from infra.work import Slice, Work
from tasks.train.cached import About
from tasks.train.chat import teaches
from tasks.train.compatible import check_one_origin, check_same_tokens, tokens_digest
from tasks.train.heads import Head, head_of
from tasks.train.losses import log_tail
from tasks.train.pairs import encode_talk, talks_of
from tasks.train.passes import POSITIONS, Encoded, batches, marked_states, open_model, padded
from tasks.train.teachers import NAMES, differences, share

if TYPE_CHECKING:
    from torch import Tensor


ROWS_AT_ONCE = 256  # rows of a shard: sorted by length within it; 80 MB of states for SmolLM2 at 100 positions a row


class TeacherCacheParameters(Parameters):
    """What to keep of a teacher."""

    form: Literal["exact", "compact"] = Field(
        "exact",
        description="exact: final hidden states, all tokens; compact: the likeliest tokens and the mass of the rest.",
    )
    top: int = Field(32, ge=1, description="Likeliest tokens of each model that the compact form keeps.")
    max_length: int = Field(
        1024, ge=2, description="Longest conversation, in tokens; what is longer is cut at its end."
    )
    batch_size: int = Field(
        2, ge=1, description="Conversations in one pass of a model; short batches are filled up. A GPU wants more."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Weights and arithmetic of the models; states are kept in it."
    )


@stage("float")
def teacher_cache(
    work: Work, parameters: TeacherCacheParameters, rows: Reference, teacher: Reference, references: References
) -> Measures:
    """Keep what a teacher says at the response positions of rows; with the reference that it began as, advantages.

    Rows are preferences (both sides are run), or prompts with one response. A side that max_length cuts down to nothing
    has no line in `encoded`.

    Raises:
        BadInput: models with other tokens than each other's, or of different origin; more than one reference; no row
            with a response left.
    """
    models = [teacher, *references]
    if len(models) > 2:
        raise BadInput(f"{len(references)} references", "none, or the model that the teacher began as", "name one")
    check_same_tokens(**{name: each.path for name, each in zip(NAMES, models, strict=False)})
    for reference in references:
        check_one_origin(teacher, reference)
    heads = [open_head(each.path, parameters.precision) for each in models]
    form = form_of(parameters, heads)
    passed = partial(run_rows, parameters, form, [each.path for each in models])
    gpus = 1 if torch_device() == "cuda" else 0
    shards = work.map(passed, work.slices(rows, ROWS_AT_ONCE), "lines", gpus, draft=True)
    encoded = placed(read_shard(shard, "encoded") for shard in shards)
    positions = int(np.sum(encoded["positions"].to_numpy()))
    if not positions:
        raise BadInput(
            f"{rows.rows} rows, none with a response within {parameters.max_length} tokens",
            "at least one",
            "raise max_length, or look at the rows",
        )
    work.write_single(encoded, "encoded")
    write_lines(work.out, shards)
    names = [name for name, _ in zip(NAMES, models, strict=False)]
    kept = [] if form == "compact" else names[:1] if form == "shared" else names
    for name, head in zip(kept, heads, strict=False):
        head.save(work.out / f"{name}_head.safetensors")
    about = About(
        form, parameters.precision, kept, bool(references), tokens_digest(teacher.path), table_digest([encoded])
    )
    (work.out / "cache.json").write_text(json.dumps(about._asdict(), indent=1, sort_keys=True) + "\n")
    size = sum(file.stat().st_size for file in work.out.glob("*.npy"))
    return {
        "positions": float(positions),
        "sides_cut_to_nothing": float(sum(read_shard(shard, "cut").num_rows for shard in shards)),
        "bytes_per_position": size / positions,
    }


def open_head(model: Path, precision: str) -> Head:
    """Take the head out of a model, without the rows that pad its vocabulary: they are no tokens."""
    opened, tokenizer = open_model(model, precision)
    return head_of(opened).cut(len(tokenizer))


def form_of(parameters: TeacherCacheParameters, heads: list[Head]) -> Literal["exact", "shared", "compact"]:
    """Choose the form: shared where both models have one head without a cap, so that advantages are linear."""
    if parameters.form == "compact":
        return "compact"
    return "shared" if share(heads) else "exact"


def placed(shards: Iterable[pa.Table]) -> pa.Table:
    """Put the shards' encoded sides together, each with the place of its first position."""
    table = pa.concat_tables(shards).combine_chunks()
    positions = table["positions"].to_numpy()
    return table.append_column("place", pa.array(np.cumsum(positions) - positions))


def run_rows(parameters: TeacherCacheParameters, form: str, models: list[Path], rows: Slice) -> Tables:
    """Encode a shard of rows and run the models over it.

    Returns:
        encoded: row_id, side, ids, mask, positions. cut: row_id and side of those with nothing left. lines: one line
        for each position, in that order, with the form's columns.
    """
    table = rows.read()
    opened = [open_model(each, parameters.precision) for each in models]
    tokenizer = opened[0][1]
    ids = table["row_id"].to_pylist()
    sides = [(row, side, talk) for side, talks in talks_of(table).items() for row, talk in zip(ids, talks, strict=True)]
    encoded = [encode_talk(tokenizer, talk, parameters.max_length) for _, _, talk in sides]
    useful = [teaches(mask) for _, mask in encoded]
    kept = [(row, side, *each) for (row, side, _), each, good in zip(sides, encoded, useful, strict=True) if good]
    cut = [(row, side) for (row, side, _), good in zip(sides, useful, strict=True) if not good]
    counts = np.array([sum(mask[1:]) for *_, mask in kept], np.int64)
    states = states_of(
        parameters, [model for model, _ in opened], tokenizer.pad_token_id, [each[2:] for each in kept], counts
    )
    heads = [open_head(each, parameters.precision) for each in models]
    columns: list[Any] = list(zip(*kept, strict=True)) or [[], [], [], []]
    return {
        "encoded": pa.table(
            {
                "row_id": pa.array([each.bytes for each in columns[0]], pa.binary(16)).cast(ID),
                "side": pa.array(columns[1], pa.string()),
                "ids": pa.array(columns[2], pa.list_(pa.int32())),
                "mask": pa.array(columns[3], pa.list_(pa.int8())),
                "positions": counts,
            }
        ),
        "cut": pa.table(
            {
                "row_id": pa.array([row.bytes for row, _ in cut], pa.binary(16)).cast(ID),
                "side": pa.array([side for _, side in cut], pa.string()),
            }
        ),
        "lines": compact_lines(parameters, states, heads) if form == "compact" else dense_lines(form, states, heads),
    }


def dense_lines(form: str, states: list[Tensor], heads: list[Head]) -> pa.Table:
    """Make lines of final states: the states, or their difference and that of the log-normalisers."""
    if form == "exact":
        return pa.table({name: _fixed(each) for name, each in zip(NAMES, states, strict=False)})
    difference, shift = differences(heads[0], *states)
    return pa.table({"difference": _fixed(difference), "shift": shift.numpy()})


def compact_lines(parameters: TeacherCacheParameters, states: list[Tensor], heads: list[Head]) -> pa.Table:
    """Make lines of final states: the union of the models' likeliest tokens, log-probabilities, and log-tails."""
    import torch

    names = NAMES[: len(states)]
    made: dict[str, list[Tensor]] = {name: [] for name in ("width", "tokens", "tails", *names)}
    for parts in zip(*(torch.split(each, POSITIONS) for each in states), strict=True):
        logs = [head(part).float().log_softmax(-1) for head, part in zip(heads, parts, strict=True)]
        tops = [each.topk(min(parameters.top, each.shape[1])).indices for each in logs]
        tokens = torch.cat(tops, 1).sort(1).values  # ascending, so that a token of both is met twice in a row
        first = torch.ones_like(tokens, dtype=torch.bool)
        first[:, 1:] = tokens[:, 1:] != tokens[:, :-1]
        cells = [each.gather(1, tokens).masked_fill(~first, -float("inf")) for each in logs]
        made["width"].append(first.sum(1))
        made["tokens"].append(tokens[first])
        made["tails"].append(torch.stack([log_tail(each.double()) for each in cells], 1).float())
        for name, each in zip(names, cells, strict=True):
            made[name].append(each[first].half())
    whole = {name: torch.cat(each) if each else torch.zeros(0) for name, each in made.items()}
    bounds = pa.array(np.concatenate([[0], whole["width"].cumsum(0).numpy()]), pa.int32())
    small = np.uint16 if heads[0].weight.shape[0] <= 1 << 16 else np.uint32
    flat = {"tokens": whole["tokens"].numpy().astype(small), **{name: whole[name].numpy() for name in names}}
    lists = {name: pa.ListArray.from_arrays(bounds, pa.array(values)) for name, values in flat.items()}
    return pa.table({**lists, "tails": _fixed(whole["tails"])})


def states_of(
    parameters: TeacherCacheParameters, models: list[Any], pad: int, rows: Encoded, counts: npt.NDArray[np.int64]
) -> list[Tensor]:
    """Run models over encoded rows, in fixed shapes: their final states at response positions (positions, width)."""
    import torch

    widths = [model.config.get_text_config().hidden_size for model in models]
    states = [
        torch.zeros(int(counts.sum()), width, dtype=model.dtype) for model, width in zip(models, widths, strict=True)
    ]
    starts = np.cumsum(counts) - counts
    for batch in batches([len(ids) for ids, _ in rows], parameters.batch_size):
        inputs = padded([rows[at] for at in batch], parameters.batch_size, pad, models[0].device)
        places = np.concatenate([np.arange(starts[at], starts[at] + counts[at]) for at in batch])
        for model, kept in zip(models, states, strict=True):
            kept[places] = marked_states(model, *inputs)[: len(places)].to(kept.dtype).cpu()
    return states


def write_lines(out: Path, shards: list[Path]) -> None:
    """Write each column of the shards' lines into one flat array, which training maps into memory.

    Lists of many lengths become their values, one after the other, and `bounds`: line i has those from bounds[i] to
    bounds[i + 1].
    """
    for name in pq.read_schema(shards[0] / "lines.parquet").names:
        widths = [_column(shard, name).value_lengths() for shard in shards] if name in ("tokens",) else []
        if widths:
            np.save(out / "bounds.npy", np.concatenate([[0], np.concatenate(widths).cumsum()]))
        lengths = [len(_values(_column(shard, name))) for shard in shards]
        file, at = None, 0
        for shard, length in zip(shards, lengths, strict=True):
            values = _values(_column(shard, name))
            if file is None:
                shape = (sum(lengths), *values.shape[1:])
                file = np.lib.format.open_memmap(out / f"{name}.npy", "w+", values.dtype, shape)
            file[at : at + length] = values
            at += length


def _column(shard: Path, name: str) -> pa.Array:
    return pq.read_table(shard / "lines.parquet", columns=[name])[name].combine_chunks()


def _values(column: pa.Array) -> npt.NDArray[Any]:
    nested = pa.types.is_nested(column.type)
    flat: npt.NDArray[Any] = (column.flatten() if nested else column).to_numpy()
    return flat.reshape(len(column), -1) if pa.types.is_fixed_size_list(column.type) else flat


def _fixed(values: Tensor) -> pa.FixedSizeListArray:
    """Wrap (lines, width) values, bf16 by its bits."""
    import torch

    bits = values.view(torch.int16) if values.dtype == torch.bfloat16 else values
    return pa.FixedSizeListArray.from_arrays(pa.array(bits.numpy().ravel()), values.shape[1])
