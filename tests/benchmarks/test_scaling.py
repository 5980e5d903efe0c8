"""What does each stage of curation cost at 1,000, 10,000 and 100,000 rows? None should be worse than n log n.

Writes docs/_static/cost.svg, which docs/benchmarks.md shows.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

SIZES = (1_000, 10_000, 100_000)
TARGET, ITEMS = 500, 1_000  # the same at every size: what grows is the pool
DRAWING = Path(__file__).resolve().parents[2] / "docs" / "_static" / "cost.svg"


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_cost_against_size(bench: Any) -> None:
    file, _ = bench.rows(count=max(SIZES) + TARGET + ITEMS)
    lines = file.read_text().splitlines(keepends=True)
    cuts = {"target": lines[:TARGET], "items": lines[TARGET : TARGET + ITEMS], "pool": lines[TARGET + ITEMS :]}
    for name, part in cuts.items():
        (bench.folder / f"{name}.jsonl").write_text("".join(part))
    costs = [bench.child("stages", size, bench.folder, store=f"store-{size}") for size in SIZES]
    seconds = {stage: [cost.facts["seconds"][stage] for cost in costs] for stage in costs[0].facts["seconds"]}
    rows = [
        (stage, *(f"{value:.2f}" for value in values), f"{exponent(values[-2:]):.2f}")
        for stage, values in sorted(seconds.items(), key=lambda each: -each[1][-1])
    ]
    columns = ("stage", *(f"{size:,} rows, CPU s" for size in SIZES), "exponent from 10,000 on")
    peaks = ", ".join(f"{cost.peak:,.0f}" for cost in costs)
    bench.table(f"cost of each stage; peak of the whole process {peaks} MB", columns, *rows)
    DRAWING.write_text(draw(seconds), encoding="utf-8")
    # n log n from 10,000 to 100,000 is an exponent of 1.10; the rest is for caches and a busy machine
    assert all(exponent(values[-2:]) < 1.3 for values in seconds.values() if values[-1] > 0.5)


def exponent(seconds: Sequence[float]) -> float:
    """By which power of the rows the cost grows, from one size to the next."""
    return math.log10(seconds[1] / max(seconds[0], 1e-3))


def draw(seconds: dict[str, list[float]]) -> str:
    """Draw cost against rows, both logarithmic, with n log n beside it."""
    width, height, left, bottom = 720, 440, 60, 40
    low, high = 1e-2, 10 ** math.ceil(math.log10(max(max(values) for values in seconds.values())))

    def at(rows: float, value: float) -> tuple[float, float]:
        x = left + (width - left - 190) * math.log10(rows / SIZES[0]) / math.log10(SIZES[-1] / SIZES[0])
        y = (height - bottom) * (1 - math.log10(max(value, low) / low) / math.log10(high / low)) + 10
        return round(x, 1), round(y, 1)

    def line(values: Sequence[float], style: str) -> str:
        points = " ".join("{},{}".format(*at(*each)) for each in zip(SIZES, values, strict=True))
        return f'<polyline points="{points}" fill="none" {style}/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 20}" font-family="sans-serif" '
        'font-size="12" fill="#777"><title>CPU seconds of each stage against rows</title>'
    ]
    power = low
    while power <= high * 1.01:
        x, y = at(SIZES[0], power)
        parts.append(f'<line x1="{x}" x2="{width - 190}" y1="{y}" y2="{y}" stroke="#ccc" stroke-width="0.5"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{power:g} s</text>')
        power *= 10
    for size in SIZES:
        x, y = at(size, low)
        parts.append(f'<text x="{x}" y="{y + 20}" text-anchor="middle">{size:,} rows</text>')
    slope = [size * math.log(size) * 3e-6 for size in SIZES]
    parts.append(line(slope, 'stroke="#999" stroke-width="1.5" stroke-dasharray="5 4"'))
    ends = sorted([(at(SIZES[-1], values[-1])[1], name) for name, values in seconds.items()])
    ends.append((at(SIZES[-1], slope[-1])[1], "n log n"))
    placed = 0.0
    colours = ["#4a7196", "#b4632a", "#5f8246", "#83589a", "#2b827d", "#a3283f", "#937c17", "#6a6f86"]
    for number, (y, name) in enumerate(sorted(ends)):
        colour = "#777" if name == "n log n" else colours[number % len(colours)]
        placed = max(y, placed + 14)
        if name in seconds:
            parts.append(line(seconds[name], f'stroke="{colour}" stroke-width="1.5"'))
        x, _ = at(SIZES[-1], 1)
        parts.append(f'<text x="{x + 8}" y="{placed + 4}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
