"""Show what a selection by optimal transport rests on: its values and how sure they are, and whom it serves."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data.artifact import Artifact
from data.graph import input_of
from tasks.evaluate.texts import held, texts_of

BARS = 48
TAIL = 0.005  # share of the values on either side that the outermost bar takes in
TARGETS = 6  # target rows that are shown
LONGEST = 400  # characters of a target row

Facts = dict[str, Any]


def transport_facts(picked: Sequence[Artifact], names: Sequence[str]) -> Facts | None:
    """Tell of the flow's own selection by transport, else of the first that goes by its values; None without one."""
    each = next((at for at, one in enumerate(picked) if one.stage == "select_ot" and (at == 0 or _by_value(one))), None)
    if each is None:
        return None
    artifact = picked[each]
    table = artifact["scores"].read(["value", "deviation", "selected"])
    values, deviations = (table[name].to_numpy() for name in ("value", "deviation"))
    selected = table["selected"].to_numpy(zero_copy_only=False)
    measures = artifact.record["measures"]
    known = np.isfinite(deviations[selected])
    unsure = np.abs(values[selected][known]) < deviations[selected][known]
    return {
        "selection": names[each],
        "mode": artifact.record["key"]["parameters"]["mode"],
        "epsilon": measures["epsilon"],
        "marginal_error": measures["marginal_error"],
        "last": float(values[selected].max()),
        "unsure": round(float(unsure.sum()) / len(unsure), 4) if len(unsure) else None,
        **histogram(values, selected),
        **served(artifact),
    }


def _by_value(artifact: Artifact) -> bool:
    return bool(artifact.record["key"]["parameters"]["mode"] != "control")


def histogram(values: npt.NDArray[np.float64], selected: npt.NDArray[np.bool_]) -> Facts:
    """Count values (n,) in bars of equal width, the selected ones apart; the tails stand in the outermost bars."""
    low, high = np.quantile(values, [TAIL, 1 - TAIL]).tolist()
    step = (high - low) / BARS or 1.0
    bars = np.clip(((values - low) / step).astype(np.int64), 0, BARS - 1)
    counts = [np.bincount(bars[side], minlength=BARS).tolist() for side in (selected, ~selected)]
    return {"from": low, "step": step, "selected": counts[0], "left": counts[1]}


def served(artifact: Artifact) -> Facts:
    """Find the target rows that most selected rows lie nearest to, with their texts, and how many have any."""
    table = artifact["scores"].read(["nearest", "selected"])
    near = table["nearest"].filter(table["selected"]).combine_chunks()
    counted = Counter(near.to_pylist())
    most = sorted(counted, key=lambda row: (-counted[row], row.bytes))[:TARGETS]
    [target] = [input_of(artifact, each) for each in artifact.record["inputs"] if each["name"] == "target"]
    texts = texts_of([target] if held(target) else [], most)
    return {
        "targets_served": len(counted),
        "targets": artifact["potentials"].rows,
        "most_served": [
            {"row_id": str(row), "rows": counted[row], "text": texts.get(row, "")[:LONGEST]} for row in most
        ],
    }
