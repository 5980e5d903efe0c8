"""What does a step of ADPA or DCKD cost that has its teachers in a cache, against a step of SFT on the same tokens?

Goal: at most 1.35 times for ADPA where teacher and reference share their head, 1.6 times where they do not, and the
same for DCKD. Chosen answers and responses are all rows of SFT. The first 8 layers of SmolLM2 135M are measured, where
the head is half of the work of a response token: what a method adds, it adds there.
"""

from statistics import median
from typing import Any

import pytest

NAMES = {
    "adpa:shared": "ADPA, a shared head",
    "adpa:apart": "ADPA, two heads",
    "dckd": "DCKD, both sides",
}

GOALS = {"adpa:shared": 1.35, "adpa:apart": 1.6, "dckd": 1.6}


@pytest.mark.benchmark
@pytest.mark.timeout(7200)
def test_cost_of_a_step(bench: Any) -> None:
    layers, steps = 8, 4
    names = bench.child("align_made", "even", 4, layers).facts
    caches = {"adpa:shared": "shared", "adpa:apart": "apart", "dckd": "alone"}
    rows, medians, base = [], {}, []
    for way, cache in caches.items():
        ways = ("sft", f"{way}={names[cache]}")  # two at a time: all four of SmolLM2 135M took 20 GB
        facts = bench.child("align_step", steps, names["rows"], names[f"student-{layers}"], *ways).facts
        seconds, (tokens, learned) = facts["seconds"], facts["tokens"]["ours"]
        ratios = [own / other for own, other in zip(seconds[way], seconds["sft"], strict=True)]
        medians[way], base = median(ratios), base + seconds["sft"]
        rows.append((NAMES[way], bench.spread(seconds[way]), bench.spread(ratios)))
    rows.insert(0, ("SFT", bench.spread(base), ""))
    title = f"{layers} layers, {tokens:,} tokens of which {learned:,} are learned, {steps} steps beside SFT's, in turns"
    bench.table(f"{title}: median (range)", ("", "CPU s a step", "times SFT"), *rows)
    assert all(medians[way] <= goal for way, goal in GOALS.items()), medians
