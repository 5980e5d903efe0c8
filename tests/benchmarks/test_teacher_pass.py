"""What does a pass of a teacher cost, and what does it leave, against the published code's way?

Goal: at least three times the tokens per CPU second of batches of two padded rows with a softmax over the vocabulary at
every position. The published code keeps 816 bytes a response token in Arrow, and 1,560 in JSON lines, for each teacher.
Both ways have the same precision. Lengths are those of real preferences: what padding costs is part of the question.
"""

from typing import Any

import pytest

NAMES = {"ours": "teacher_cache, exact form", "published": "the published way"}


@pytest.mark.benchmark
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("precision", "rounds"), [("bf16", 2), ("fp32", 1)])
def test_cost_of_a_teacher_pass(bench: Any, precision: str, rounds: int) -> None:
    names = bench.child("align_made", "natural", 64).facts
    facts = bench.child("align_teacher", rounds, precision, names["rows"], names["teacher"]).facts
    tokens, positions = facts["tokens"], facts["positions"]
    published, rows = facts["seconds"]["published"], []
    for way, seconds in facts["seconds"].items():
        ratios = [other / own for own, other in zip(seconds, published, strict=True)]
        speeds = [tokens / own for own in seconds]
        rows.append((NAMES[way], bench.spread(seconds, 1), bench.spread(speeds, 0), bench.spread(ratios)))
    title = (
        f"{precision}, {tokens:,} tokens of which {positions:,} are learned, {rounds} rounds in turns: median (range)"
    )
    heads = ("", "CPU s", "tokens per CPU second", "times the published way")
    bench.table(title, heads, *rows)
    print(f"\nJSON lines of the published way here: {facts['json_bytes']:,.0f} bytes a response token")


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_bytes_of_a_cache(bench: Any) -> None:
    names = bench.child("align_made", "natural", 16).facts
    facts = bench.child("align_bytes", *(names[each] for each in ("rows", "teacher", "base"))).facts
    rows = [(name, f"{one:,.0f}", f"{both:,.0f}") for name, (one, both) in facts.items()]
    rows += [("published, Arrow", "816", "1,632"), ("published, JSON lines", "1,560", "3,120")]
    bench.table("bytes a response token", ("", "teacher alone", "teacher and reference"), *rows)
