"""Is DCKD as fast as TRL's GKDTrainer, both with a teacher in memory, on the same conversations?

Goal: at least as fast. The loss is KL(teacher || student) in both: beta 0 in TRL, which samples nothing at lmbda 0;
DCKD without its SFT term, both sides weighted 1. The teacher has 30 layers, the student its first 8.
"""

from typing import Any

import pytest


@pytest.mark.benchmark
@pytest.mark.timeout(7200)
def test_cost_of_a_divergence(bench: Any) -> None:
    names = bench.child("align_made", "even", 4, 8).facts
    ways = [f"{way}={names['teacher']}" for way in ("divergence", "gkd")]
    facts = bench.child("align_step", 3, names["rows"], names["student-8"], *ways).facts
    ours, theirs = (facts["seconds"][way] for way in ("divergence", "gkd"))
    ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
    (tokens, learned), (their_tokens, their_learned) = facts["tokens"]["ours"], facts["tokens"]["gkd"]
    bench.table(
        f"{tokens:,} tokens, 3 steps in turns: median (range)",
        ("", "CPU s a step", "times GKDTrainer", "learned tokens"),
        ("DCKD without its SFT term", bench.spread(ours), bench.spread(ratios), f"{learned:,}"),
        ("GKDTrainer", bench.spread(theirs), "", f"{their_learned:,}"),
    )
    assert tokens == their_tokens
