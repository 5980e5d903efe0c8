"""Show the shares that a mixture gives to its sources, beside those that they have in the pool."""

from collections.abc import Sequence
from typing import Any

from data.artifact import Artifact

Facts = dict[str, Any]


def mixture_facts(picked: Sequence[Artifact], names: Sequence[str]) -> Facts | None:
    """Tell of the first mixture among some selections; None without one."""
    at = next((at for at, each in enumerate(picked) if each.stage == "mixture_ot"), None)
    if at is None:
        return None
    measures = picked[at].record["measures"]
    lines = picked[at]["mixture"].read().sort_by([("pool_share", "descending"), ("source", "ascending")]).to_pylist()
    taken = sum(line["selected_units"] for line in lines) or 1
    return {
        "selection": names[at],
        **{name: measures[name] for name in ("cost", "pool_cost", "gap", "steps")},
        "sources": [
            {
                "source": line["source"],
                "rows": line["rows"],
                "pool": line["pool_share"],
                "mixture": line["share"],
                "selected": line["selected_units"] / taken,
            }
            for line in lines
        ],
    }
