"""Set the selections from one pool beside each other: how large they are, what they are made of, and what they share.

How alike two selections are is their Jaccard index, rows in both over rows in either. Two selections that are drawn at
random, k of n rows each, share k²/n on average; their index is then near (k/n) / (2 - k/n), whatever the selectors.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from data.artifact import Artifact
from data.graph import input_of
from data.ids import sortable
from tasks.evaluate.mixture_facts import mixture_facts
from tasks.evaluate.selection_map import map_of
from tasks.evaluate.texts import held
from tasks.evaluate.transport_facts import transport_facts

Facts = dict[str, Any]


def is_selection(artifact: Artifact) -> bool:
    """Say whether an artifact is a selector's, by what all of them publish (tasks/curate/selection.py)."""
    return "scores" in artifact.record["outputs"] and "selected_units" in artifact.record["measures"]


def picked_from(made: Sequence[Artifact], others: Sequence[Artifact]) -> list[Artifact]:
    """List a flow's selections, each once: the one that its dataset went through first, then the others."""
    own = [each for each in made if is_selection(each)][-1:]
    return list({each.fingerprint: each for each in [*own, *filter(is_selection, others)]}.values())


def selection_facts(picked: Sequence[Artifact], own: bool, arms: dict[str, str], seed: int) -> Facts | None:
    """Tell of selections from one pool; None where there is none.

    Args:
        picked: what the selectors published.
        own: whether the flow's dataset went through the first of them.
        arms: what a comparison calls those that trained a model, by the digest of their rows.
        seed: chooses other rows for the map.
    """
    if not picked:
        return None
    pool = input_of(picked[0], next(each for each in picked[0].record["inputs"] if each["kind"] == "rows"))
    names = names_of(picked, arms)
    known = held(pool)
    return {
        "pool": {"rows": _pool_rows(picked[0]), "sources": _sources(pool) if known else {}},
        "selections": [one_selection(each, name) for each, name in zip(picked, names, strict=True)],
        "overlap": overlap(picked),
        "map": map_of(picked, names, pool, own, seed) if known else None,
        "transport": transport_facts(picked, names),
        "mixture": mixture_facts(picked, names),
    }


def one_selection(artifact: Artifact, name: str) -> Facts:
    """Count what a selector took."""
    record = artifact.record
    parameters = record["key"]["parameters"]
    size = artifact.rows / max(_pool_rows(artifact), 1)
    return {
        "name": name,
        "stage": artifact.stage,
        "fingerprint": artifact.fingerprint,
        "rows": artifact.rows,
        "units": int(record["measures"]["selected_units"]),
        "unit": parameters["unit"],
        "budget": parameters["budget"],
        "chance": size / (2 - size),
        "sources": _sources(artifact),
    }


def _pool_rows(artifact: Artifact) -> int:
    """Count the rows that were selected from: each has a score."""
    return artifact["scores"].rows


def _sources(rows: Artifact) -> dict[str, int]:
    """Count rows by source, the largest first."""
    counted = pc.value_counts(rows.read(["source"])["source"]).to_pylist()
    counted.sort(key=lambda each: (-each["counts"], str(each["values"])))
    return {str(each["values"]): each["counts"] for each in counted}


def overlap(picked: Sequence[Artifact]) -> list[list[float]]:
    """Compute the Jaccard index of each pair of selections: a square, 1 on the diagonal."""
    ids = [np.sort(sortable(each.read(["row_id"])["row_id"].combine_chunks())) for each in picked]
    square = [[1.0] * len(ids) for _ in ids]
    for i, left in enumerate(ids):
        for j, right in enumerate(ids[:i]):
            both = len(np.intersect1d(left, right, assume_unique=True))
            square[i][j] = square[j][i] = round(both / max(len(left) + len(right) - both, 1), 4)
    return square


# ---- names -----------------------------------------------------------------------------------------------


def names_of(picked: Sequence[Artifact], arms: dict[str, str]) -> list[str]:
    """Name selections by their arm, else by their method; those that would share a name by what sets them apart."""
    parameters = [dict(each.record["key"]["parameters"]) for each in picked]
    methods = [str(each.pop("method", one.stage)) for each, one in zip(parameters, picked, strict=True)]
    names = [arms.get(one.digest, method) for one, method in zip(picked, methods, strict=True)]
    for name, count in Counter(names).items():
        alike = [at for at, each in enumerate(names) if each == name]
        apart = {key for at in alike for key in parameters[at] if len({str(parameters[i].get(key)) for i in alike}) > 1}
        for number, at in enumerate(alike if count > 1 else [], 1):
            told = [f"{key} {parameters[at][key]}" for key in parameters[at] if key in apart]
            names[at] = ", ".join([name, *told]) if told else f"{name} {number}"
    return names


def arms_of(comparison: Artifact) -> dict[str, str]:
    """Name the arm whose models were trained on each selection, by the digest of its rows; the records tell."""
    record = comparison.record
    arms = [arm["name"] for arm in record["key"]["parameters"]["arms"] for _ in range(arm["seeds"])]
    scores = [input_of(comparison, each) for each in record["inputs"] if each["name"] == "trained"]
    found: dict[str, str] = {}
    for arm, score in zip(arms, scores, strict=True):
        models = _inputs(score, "model")
        for rows in (each for model in models for each in _records(model) if each["kind"] == "rows"):
            found.setdefault(rows["digest"], arm)
    return found


def _inputs(artifact: Artifact, name: str) -> list[Artifact]:
    return [input_of(artifact, each) for each in _records(artifact) if each["name"] == name]


def _records(artifact: Artifact) -> list[Facts]:
    return artifact.record["inputs"] if held(artifact) else []
