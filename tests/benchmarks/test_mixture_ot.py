"""Does mixture_ot find a planted mixture, and what does it cost?"""

from typing import Any

import pytest


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_planted_mixtures(bench: Any) -> None:
    rows = []
    for sources in (2, 10):
        cost = bench.child("mixture_ot", sources, 1000)
        facts = cost.facts
        rows.append((
            f"{sources} sources, pilots of 1,000, target of 2,000", f"{cost.cpu:.1f}", f"{facts['seconds']:.1f}",
            f"{cost.peak:,.0f}", str(facts["steps"]), f"{facts['gap']:.1e}", f"{facts['error']:.4f}",
        ))  # fmt: skip
        assert facts["error"] <= 0.03
    columns = (
        "problem",
        "CPU s, whole process",
        "CPU s, search",
        "peak MB",
        "steps",
        "gap",
        "largest error of a share",
    )
    bench.table("mixture_ot; with two sources the planted shares are 30 and 70 %", columns, *rows)
