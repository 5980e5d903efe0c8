"""What does selection by transport cost, and are its potentials those of converged entropic transport?"""

from typing import Any

import pytest


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_cost_of_selection(bench: Any) -> None:
    rows = []
    for pool, target, dimensions in ((20_000, 2_000, 384), (100_000, 2_000, 384), (1_000_000, 10_000, 256)):
        store = f"store-{pool}"
        names = bench.child("points", pool, target, dimensions, store=store).facts
        cost = bench.child("select_ot", pool // 20, 4, *names, store=store)
        rows.append((
            f"{pool:,} x {target:,}, {dimensions} dimensions", f"{cost.cpu:.1f}", f"{cost.facts['stage']:.1f}",
            f"{cost.wall:.1f}", f"{cost.peak:,.0f}", f"{cost.facts['marginal_error']:.3g}",
        ))  # fmt: skip
    columns = ("pool x target", "CPU s, whole process", "CPU s, stage", "wall s", "peak MB", "marginal error")
    bench.table(
        "select_ot, 4 parts of the target solved apart; one run each, a fresh process, one worker", columns, *rows
    )


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_potentials_against_pot(bench: Any) -> None:
    names = bench.child("points", 4_000, 3_999, 256).facts
    cost = bench.child("select_ot", 400, 4, *names)
    facts = bench.child("referee", cost.facts["path"], names[1], names[3]).facts
    bench.table(
        "select_ot against POT's converged Sinkhorn at the same temperature, 4,000 x 3,999, 256 dimensions",
        ("rank correlation", "best tenth in common", "select_ot, CPU s", "POT, CPU s", "its L1 marginal error"),
        (f"{facts['rho']:.5f}", f"{facts['top']:.3f}", f"{cost.facts['stage']:.1f}", f"{facts['seconds']:.1f}",
         f"{facts['error']:.1e}"),
    )  # fmt: skip
    assert facts["rho"] >= 0.98
