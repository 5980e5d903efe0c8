"""What does decontaminate find, what does it drop wrongly, and what does it cost? 100,000 rows against 5,000 items.

Every kind of leak is planted 500 times, and rows that share nothing but a phrase or a frame 1,000 times. A peer, if
there is one, sees every tenth row: `STILLHOUSE_PEERS` names a Python that has datatrove, and with it spaCy and
an xxhash before 4, which it needs.
"""

import json
import os
import random
import string
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

ROWS, ITEMS, EACH, HARMLESS, RUNS = 100_000, 5_000, 500, 1_000, 3
PEERS = os.environ.get("STILLHOUSE_PEERS", "")
SHARED = ("phrase of 20 words alone", "frame of the items alone")

draw = random.Random(1)
VOCABULARY = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9))) for _ in range(20_000)]
PHRASE, FRAME = (draw.choices(VOCABULARY, k=20) for _ in range(2))


def words(count: int) -> list[str]:
    return draw.choices(VOCABULARY, k=count)


def row(prompt: Iterable[str], completion: Iterable[str], kind: str) -> dict[str, str]:
    return {"prompt": " ".join(prompt), "completion": " ".join(completion), "kind": kind}


def made_items() -> list[dict[str, Any]]:
    """Items of 60 words and an answer of 40; the frame opens one in five, the phrase stands in one in a hundred."""
    items = []
    for number in range(ITEMS):
        prompt = FRAME + words(40) if number % 5 == 0 else words(60)
        if number % 100 == 1:
            prompt[20:40] = PHRASE
        items.append({"prompt": prompt, "answer": words(40)})
    return items


def changed(text: list[str]) -> list[str]:
    """Change the tenth word, and every twentieth from there."""
    return [word if at % 20 != 9 else word + "x" for at, word in enumerate(text)]


def dressed(text: list[str]) -> list[str]:
    return [word.upper() + (",", " --", "!", "")[at % 4] for at, word in enumerate(text)]


LEAKS: dict[str, Callable[[list[str], list[str]], tuple[list[str], list[str]]]] = {
    "whole, amid other words": lambda prompt, answer: (words(20) + prompt, answer + words(20)),
    "first half of it": lambda prompt, answer: (prompt[:50] + words(20), words(40)),
    "every 20th word changed": lambda prompt, answer: (changed(prompt), changed(answer)),
    "other case and punctuation": lambda prompt, answer: (dressed(prompt), dressed(answer)),
    "prompt with another answer": lambda prompt, answer: (prompt, words(40)),
}


def made_pool(items: list[dict[str, Any]]) -> list[dict[str, str]]:
    pool = []
    for start, (kind, leak) in enumerate(LEAKS.items()):
        for each in items[start * EACH : (start + 1) * EACH]:
            pool.append(row(*leak(each["prompt"], each["answer"]), kind))
    for number in range(EACH):
        each = items[4000 + number // 25]  # 20 items, 25 times each
        pool.append(row(each["prompt"], words(40), "one prompt 25 times"))
    for kind, run in zip(SHARED, (PHRASE, FRAME), strict=True):
        pool += [row(run + words(40), words(40), kind) for _ in range(HARMLESS)]
    pool += [row(words(60), words(40), "nothing shared") for _ in range(ROWS - len(pool))]
    draw.shuffle(pool)
    return pool


def write(path: Path, rows: Iterable[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return path


@pytest.mark.benchmark
@pytest.mark.timeout(1200)
def test_recall_false_positives_and_cost_of_decontaminate(bench: Any) -> None:
    items, folder = made_items(), bench.folder
    pool = made_pool(items)
    paths = (
        write(folder / "pool.jsonl", pool),
        write(folder / "items.jsonl", (row(each["prompt"], each["answer"], "item") for each in items)),
    )
    runs = [bench.child("decontaminate_rows", *paths, store=f"store-{number}") for number in range(RUNS)]
    fallen = runs[0].facts["fallen"]
    assert all(run.facts["fallen"] == fallen for run in runs)
    assert all(fallen[kind][0] == fallen[kind][1] for kind in (*LEAKS, "one prompt 25 times"))
    assert all(fallen[kind][0] == 0 for kind in (*SHARED, "nothing shared"))

    head, theirs, costs = ["rows", "dropped"], {}, []
    if PEERS:
        some = write(folder / "some.jsonl", pool[::10])
        command = [PEERS, str(Path(__file__).with_name("children") / "decontaminate_peer.py")]
        said = subprocess.run(
            [*command, str(some), str(paths[1]), str(folder / "index")], capture_output=True, text=True, check=False
        )
        assert said.returncode == 0, said.stderr
        peer = json.loads(said.stdout.splitlines()[-1])
        theirs, head = peer["fallen"], [*head, "dropped by datatrove"]
        costs = [("datatrove, every tenth row", f"{peer['rows'] / peer['seconds']:,.0f}", f"{peer['peak']:,.0f}")]

    def line(kind: str) -> list[str]:
        both = [fallen[kind]] + ([theirs[kind]] if theirs else [])
        return [kind, f"{fallen[kind][1]:,}", *(f"{100 * gone / all_:.1f} %" for gone, all_ in both)]

    bench.table("what stands in the pool, and what fell", ("", *head), *map(line, fallen))
    rate = bench.spread([ROWS / run.facts["seconds"] for run in runs], 0)
    bench.table(
        f"{ROWS:,} rows of about 100 words against {ITEMS:,} items, {RUNS} runs: median (range)",
        ("", "rows per CPU second", "peak MB"),
        ("decontaminate", rate, bench.spread([run.peak for run in runs], 0)),
        *costs,
    )
