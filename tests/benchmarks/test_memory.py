"""How much memory does load take for a file of 1 GB? Goal: under 1.5 GB at its peak."""

import shutil
from typing import Any

import pytest

BYTES = 1_000_000_000
RUNS = 3


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_peak_memory_of_load(bench: Any) -> None:
    source, rows = bench.rows(size=BYTES)
    costs = []
    for number in range(RUNS):
        costs.append(bench.child("load", source, store=f"store-{number}"))
        assert costs[-1].facts["rows"] == rows
        shutil.rmtree(bench.folder / f"store-{number}")
    source.unlink()
    bench.table(
        f"load of {BYTES / 1e9:.0f} GB of JSONL, {rows:,} rows, {RUNS} runs: median (range)",
        ("peak MB", "CPU s", "rows per CPU second"),
        (
            bench.spread([each.peak for each in costs], 0),
            bench.spread([each.cpu for each in costs], 1),
            bench.spread([rows / each.cpu for each in costs], 0),
        ),
    )
