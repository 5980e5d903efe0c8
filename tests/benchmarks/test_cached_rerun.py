"""How soon does a run answer that has nothing to do? Goal: under 4 s wall, with no Prefect, Ray or torch imported."""

import json
from typing import Any

import pytest

RUNS = 7
STEPS = ("--set", "sft.max_steps=2", "--set", "evaluate.max_new_tokens=1")  # the same stages, with little to do


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_a_run_with_nothing_to_do(bench: Any) -> None:
    command = ("run", "quickstart", *STEPS, "--json")
    first = bench.stillhouse(*command)
    made = json.loads(first.said)["stages"]
    costs = bench.interleaved(RUNS, {"plan": lambda: bench.stillhouse("plan", *command[1:]),
                                     "again": lambda: bench.child("again", *command)})  # fmt: skip
    for each in costs["again"]:
        facts, _, imported = each.said.rpartition("\nimported:")
        again = json.loads(facts)["stages"]
        assert [stage["fingerprint"] for stage in again] == [stage["fingerprint"] for stage in made]
        assert all(stage["cached"] for stage in again)
        assert not {"prefect", "ray", "torch"} & set(imported.split())
    bench.table(
        f"quickstart ({len(made)} stages) with nothing to do, {RUNS} interleaved runs: median (range)",
        ("", "CPU s", "wall s"),
        ("first run, with 2 steps of training", bench.spread([first.cpu]), bench.spread([first.wall])),
        *(
            (f"`{name}`", bench.spread([c.cpu for c in each]), bench.spread([c.wall for c in each]))
            for name, each in costs.items()
        ),
    )
    heavy = costs["again"][-1].said.rpartition("imported:")[2].split()
    print("heavy libraries imported:", ", ".join(heavy) or "none")
