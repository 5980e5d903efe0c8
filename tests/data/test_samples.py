"""The samples of preferences are what their page says, and their script makes them byte for byte."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
FILES = ("align-sft", "align-pairs", "quickstart-pairs")


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_script_makes_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("make_samples.py", "make_align_samples.py", "quickstart.jsonl"):
        (tmp_path / name).write_bytes((SAMPLES / name).read_bytes())
    script = tmp_path / "make_align_samples.py"
    subprocess.run([sys.executable, str(script)], check=True, cwd=SAMPLES.parents[1])
    for name in FILES:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (SAMPLES / f"{name}.jsonl").read_bytes()


def test_counts_are_those_of_the_page() -> None:
    page = (SAMPLES / "README.md").read_text(encoding="utf-8")
    rows = {name: read(name) for name in FILES}
    for name, count in (("align-sft", 4000), ("align-pairs", 1000), ("quickstart-pairs", 600)):
        assert len(rows[name]) == count and f"| `{name}.jsonl` | {count:,} |" in page
    assert Counter(row["style"] for row in rows["align-sft"]) == {"wrong": 2400, "right": 1600}
    assert Counter(row["planted"] for row in rows["align-pairs"]) == {"wrong case": 750, "wrong answer": 250}


def test_length_tells_nothing_and_no_prompt_stands_twice() -> None:
    pairs = read("align-pairs") + read("quickstart-pairs")
    assert all(len(row["chosen"]) == len(row["rejected"]) and row["chosen"] != row["rejected"] for row in pairs)
    prompts = [row["prompt"] for name in FILES for row in read(name)]
    assert len(set(prompts)) == len(prompts)
    other = (SAMPLES / "quickstart.jsonl").read_text(encoding="utf-8")
    assert not [row for row in read("quickstart-pairs") if json.dumps(row["prompt"]) in other]
