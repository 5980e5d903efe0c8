"""What do ids, lineage and a store cost? 100,000 rows through load, clean and publish, against a plain read and write.

Goal: at most 0.8 CPU seconds more. Both sides are whole processes, from the start of Python to its end; a second
difference leaves out what a process pays once, whatever the rows: its start, its imports and its end.
"""

from itertools import count
from typing import Any

import pytest

ROWS = 100_000
RUNS = 7
STARTING = ("start and imports", "pandas, which pyarrow imports")


@pytest.mark.benchmark
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_overhead_of_load_clean_and_publish(bench: Any, kind: str) -> None:
    source, _ = bench.rows(ROWS)
    target = bench.folder / "plain.parquet"
    if kind == "parquet":
        bench.child("plain", source, source.with_suffix(".parquet"))
        source = source.with_suffix(".parquet")
    stores = count()
    costs = bench.interleaved(
        RUNS,
        {
            "nothing": lambda: bench.run("-c", "import pyarrow.json, pyarrow.parquet"),
            "plain": lambda: bench.child("plain", source, target),
            "stages": lambda: bench.child("spine", source, store=f"store-{next(stores)}"),
        },
    )
    same = bench.child("same", target, costs["stages"][-1].facts["path"]).facts
    assert same == {"rows": ROWS, "same": True}

    parts = [each.facts["seconds"] for each in costs["stages"]]
    whole = [stages.cpu - plain.cpu for stages, plain in zip(costs["stages"], costs["plain"], strict=True)]
    own = [sum(seconds for part, seconds in each.items() if part not in STARTING) for each in parts]
    plain = [plain.cpu - nothing.cpu for plain, nothing in zip(costs["plain"], costs["nothing"], strict=True)]
    bench.table(
        f"{ROWS:,} rows from {kind}, {RUNS} interleaved runs: median (range)",
        ("", "CPU s", "peak MB"),
        *(
            (
                name,
                bench.spread([each.cpu for each in costs[side]]),
                bench.spread([each.peak for each in costs[side]], 0),
            )
            for name, side in (
                ("start Python and import pyarrow", "nothing"),
                ("plain read and write, whole process", "plain"),
                ("load, clean and publish, whole process", "stages"),
            )
        ),
        ("more, whole processes", bench.spread(whole), ""),
        ("more, start and imports apart", bench.spread([a - b for a, b in zip(own, plain, strict=True)]), ""),
        *((f"- {part}", bench.spread([each[part] for each in parts]), "") for part in parts[0]),
    )
