"""How soon do the commands answer that make nothing? Goal: `--help` in under a second on an idle machine."""

from typing import Any

import pytest

RUNS = 7


@pytest.mark.benchmark
@pytest.mark.timeout(900)
def test_commands_that_make_nothing(bench: Any) -> None:
    source, _ = bench.rows(1_000)
    folder = bench.child("load", source).facts["path"]
    commands = {
        "--help": ("--help",),
        "recipes": ("recipes",),
        "show": ("show", folder),
        "sql": ("sql", "SELECT count(*) AS rows FROM row", "--json"),
    }
    costs = bench.interleaved(
        RUNS, {name: lambda words=words: bench.stillhouse(*words) for name, words in commands.items()}
    )
    for name, words in (("--help", "usage: stillhouse"), ("recipes", "quickstart"), ("show", "load "), ("sql", "1000")):
        assert all(words in each.said for each in costs[name]), costs[name][0].said
    bench.table(
        f"Commands that make nothing, {RUNS} interleaved runs: median (range)",
        ("stillhouse …", "CPU s", "wall s"),
        *(
            (name, bench.spread([c.cpu for c in each]), bench.spread([c.wall for c in each]))
            for name, each in costs.items()
        ),
    )
