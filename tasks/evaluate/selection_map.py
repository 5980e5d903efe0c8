"""Draw up a map of a pool, what was selected from it, and the target: two principal components of their vectors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data.artifact import Artifact
from data.fingerprint import seed_for
from data.graph import input_of
from data.ids import lots, sortable
from tasks.curate.vectors import vectors_of
from tasks.evaluate.plane import plane_of
from tasks.evaluate.texts import held, inputs_of, texts_of

POOL, SELECTED, TARGET = 1500, 400, 300  # rows at the most that are drawn
MAPS = 8  # selections at the most that have a map
TITLE = 70  # characters of a row that its mark tells

Facts = dict[str, Any]


def map_of(picked: Sequence[Artifact], names: Sequence[str], pool: Artifact, own: bool, seed: int) -> Facts | None:
    """Put pool, target and selections on one plane; None where no selector has read embeddings of the pool.

    Rows are sampled by lots of their ids. The plane is that of pool and target; a selection lies where it lies.

    Args:
        picked: the selections; where several differ by seed alone, the first of them has a map.
        names: what they are called.
        pool: the rows that they were selected from.
        own: whether the first of them is the flow's own; else the first that has read the target comes first.
        seed: chooses other samples.
    """
    embeddings, wanted = _named(picked, "embeddings"), _named(picked, "target_embeddings")
    if embeddings is None:
        return None
    shown = _first_seeds(picked)
    if not own:
        shown.sort(key=lambda at: _named(picked[at : at + 1], "target_embeddings") is None)
    shown = shown[:MAPS]
    samples = [sample_ids(pool, POOL, seed), *(sample_ids(picked[at], SELECTED, seed) for at in shown)]
    whole = pa.concat_arrays(samples)  # a selected row may be in the sample of the pool too
    _, first, back = np.unique(sortable(whole), return_index=True, return_inverse=True)
    found = vectors_of(embeddings, whole.take(pa.array(first)))[back]
    aims = sample_ids(wanted["embeddings"], TARGET, seed) if wanted else samples[0][:0]
    vectors = np.concatenate([found, vectors_of(wanted, aims)]) if wanted and len(aims) else found
    fitted = np.zeros(len(vectors), np.bool_)
    fitted[: len(samples[0])] = fitted[len(found) :] = True
    plane = plane_of(vectors, fitted)
    ends = np.cumsum([0, *map(len, samples)])
    spots = [plane.points[start:stop].tolist() for start, stop in zip(ends, [*ends[1:], len(vectors)], strict=True)]
    return {
        "share": plane.share,
        "pool": spots[0],
        "target": _marks(spots[-1], aims, inputs_of(wanted, "reference") if wanted else []),
        "selections": [
            {"name": names[at], "rows": picked[at].rows, "points": _marks(spots[1 + n], samples[1 + n], [picked[at]])}
            for n, at in enumerate(shown)
        ],
    }


def _named(picked: Sequence[Artifact], name: str) -> Artifact | None:
    """Find what the first selector that has such an input read there, if the store still has it."""
    inputs = ((each, one) for each in picked for one in each.record["inputs"] if one["name"] == name)
    found = (input_of(each, one) for each, one in inputs)
    return next((each for each in found if held(each)), None)


def _first_seeds(picked: Sequence[Artifact]) -> list[int]:
    seen: dict[str, int] = {}
    for at, each in enumerate(picked):
        parameters = {key: value for key, value in each.record["key"]["parameters"].items() if key != "seed"}
        seen.setdefault(f"{each.stage} {parameters}", at)
    return list(seen.values())


def sample_ids(table: Artifact, most: int, seed: int) -> pa.Array:
    """Draw rows of a table by lots of their ids: at most so many ids, in the order of their lots."""
    ids = pa.concat_arrays([chunk for batch in table.batches(["row_id"]) for chunk in batch["row_id"].chunks])
    return ids.take(pa.array(np.argsort(lots(ids, seed_for("map", seed)), kind="stable")[:most]))


def _marks(points: list[list[float]], ids: pa.Array, tables: list[Artifact]) -> list[Facts]:
    texts = texts_of(tables, ids.to_pylist())
    lines = [" ".join(texts.get(each, "").split()) for each in ids.to_pylist()]
    return [
        {"x": x, "y": y, "text": line if len(line) <= TITLE else f"{line[:TITLE]}…"}
        for (x, y), line in zip(points, lines, strict=True)
    ]
