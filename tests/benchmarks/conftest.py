"""Measure children: CPU seconds of a fresh process each, interleaved, as a table of medians and spread."""

import json
import os
import random
import string
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHILDREN = Path(__file__).with_name("children")


@dataclass(frozen=True)
class Cost:
    """What one process cost, its children included: CPU (user and system) and wall seconds, peak memory in MB."""

    cpu: float
    wall: float
    peak: float
    said: str

    @property
    def facts(self) -> dict[str, Any]:
        """The JSON object that the child printed last."""
        facts: dict[str, Any] = json.loads(self.said.splitlines()[-1])
        return facts


@dataclass(frozen=True)
class Bench:
    """Run children in a folder of this test's own, and print what they cost."""

    folder: Path

    def run(self, *command: object, store: str = "store") -> Cost:
        """Run Python on a command line, in a fresh process; the kernel counts what it costs."""
        own = {"STILLHOUSE_STORE": str(self.folder / store), "STILLHOUSE_WORKERS": "1"}
        paths = {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(self.folder / "prefect")}
        output, errors = self.folder / "output", self.folder / "errors"
        with output.open("wb") as file, errors.open("wb") as log:
            began = time.perf_counter()
            child = subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=ROOT,
                env={**os.environ, **own, **paths},
                stdout=file,
                stderr=log,
            )
            _, status, usage = os.wait4(child.pid, 0)
            wall = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        said = output.read_text(encoding="utf-8")
        assert child.returncode == 0, (command, errors.read_text(encoding="utf-8"))
        return Cost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024, said)

    def child(self, name: str, *arguments: object, store: str = "store") -> Cost:
        """Run one of the scripts in children/."""
        return self.run(CHILDREN / f"{name}.py", *arguments, store=store)

    def rows(self, count: int = sys.maxsize, size: int = sys.maxsize) -> tuple[Path, int]:
        """Write distinct rows of about 200 characters, which `clean` leaves as they are: the JSONL file, its rows.

        It ends with `count` rows or `size` bytes, whichever comes first.
        """
        draw = random.Random(1)
        words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9))) for _ in range(5000)]
        texts = [" ".join(draw.choices(words, k=15)) for _ in range(10_000)]
        path = self.folder / "rows.jsonl"
        written = 0
        with path.open("wb") as file:
            while written < count and file.tell() < size:
                row = {"prompt": f"{written} {texts[written * 7 % 9973]}", "completion": texts[written % 9967]}
                file.write(json.dumps(row).encode() + b"\n")
                written += 1
        return path, written

    def stillhouse(self, *arguments: object) -> Cost:
        """Run the command line."""
        return self.run("-m", "flows", *arguments)

    @staticmethod
    def interleaved(runs: int, sides: Mapping[str, Callable[[], Cost]]) -> dict[str, list[Cost]]:
        """Run every side once per round, so that a busy machine burdens all alike; a first round is not counted."""
        rounds = [{name: side() for name, side in sides.items()} for _ in range(runs + 1)]
        return {name: [costs[name] for costs in rounds[1:]] for name in sides}

    @staticmethod
    def spread(values: Sequence[float], digits: int = 2) -> str:
        """Write values as their median and their range."""
        low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))
        return f"{middle} ({low} to {high})"

    @staticmethod
    def table(title: str, head: Sequence[str], *rows: Sequence[str]) -> None:
        """Print a Markdown table."""
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in (head, *rows)]
        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        print("", title, "", lines[0], rule, *lines[1:], sep="\n")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """The bench of one test."""
    return Bench(tmp_path)
