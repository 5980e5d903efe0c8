"""Near-duplicates among 100,000 short documents: what do they cost, and which pairs are found?

Goal: fewer CPU seconds than text-dedup and datasketch at the same shingles, permutations and threshold; at least .99 of
the pairs found from a Jaccard similarity of t + .1 on, .95 of those from t to t + .1, a precision of .99 against pairs
of t - .1, and under 2 GB.

STILLHOUSE_PEERS names a Python that has text-dedup and datasketch; without it they are not measured.
"""

import json
import os
import random
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, combinations, count
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from data.artifact import Artifact

CHILDREN = Path(__file__).with_name("children")
SHINGLE, PERMUTATIONS, THRESHOLD = 5, 128, 0.8
SETTINGS = (SHINGLE, PERMUTATIONS, THRESHOLD)
RUNS = 3
PEERS = os.environ.get("STILLHOUSE_PEERS")
PLANTED = (0.7, 0.8, 0.85, 0.9, 0.95)  # the similarity of planted pairs: t - .1, t, t + .05, t + .1, t + .15
VOCABULARY = 30_000

Pair = tuple[int, int]


@dataclass(frozen=True)
class Texts:
    """Documents, and the Jaccard similarity of the pairs that have a shingle in common."""

    texts: list[str]
    pairs: dict[Pair, float]

    def write(self, path: Path) -> Path:
        with path.open("w") as file:
            for text in self.texts:
                file.write(json.dumps({"prompt": text, "completion": ""}) + "\n")
        return path


def shingles(text: str) -> set[str]:
    words = text.split(" ")
    return {" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))}


def likeness(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


class Words:
    """Draw words by their rank in a language: the n-th with a weight of 1 / (n + 10) (Zipf, Mandelbrot)."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        letters = "etaoinshrdlucmfwypvbgkjqxz"
        self.words = [
            "".join(self.random.choices(letters, range(26, 0, -1), k=self.random.randint(2, 9)))
            for _ in range(VOCABULARY)
        ]
        self.weights = list(accumulate(1 / (rank + 10) for rank in range(VOCABULARY)))

    def draw(self, size: int) -> list[str]:
        places = (self.random.random() * self.weights[-1] for _ in range(size))
        return [self.words[bisect_left(self.weights, place)] for place in places]

    def document(self) -> list[str]:
        return self.draw(self.random.randint(60, 100))

    def like(self, words: list[str], similarity: float) -> list[str]:
        """Replace a run of words, so that the similarity is at least this one, and just so."""
        size = len(words) - SHINGLE + 1
        broken = int(size * (1 - similarity) / (1 + similarity) + 1e-9)
        inside = broken >= SHINGLE and self.random.random() < 0.5
        run = broken - SHINGLE + 1 if inside else broken
        start = self.random.randint(SHINGLE - 1, len(words) - run - SHINGLE + 1) if inside else len(words) - run
        return [*words[:start], *self.draw(run), *words[start + run :]]


def planted(rows: int, seed: int = 1) -> Texts:
    """Make documents of which a fifth are one half of a planted pair; nothing else is alike."""
    words = Words(seed)
    texts, pairs = [], []
    for number in range(rows // 10):
        first = words.document()
        pairs.append((len(texts), len(texts) + 1))
        texts += [" ".join(first), " ".join(words.like(first, PLANTED[number % len(PLANTED)]))]
    texts += [" ".join(words.document()) for _ in range(rows - len(texts))]
    order = words.random.sample(range(rows), rows)
    places = {old: new for new, old in enumerate(order)}
    mixed = [texts[old] for old in order]
    return Texts(mixed, {(places[a], places[b]): likeness(texts[a], texts[b]) for a, b in pairs})


def spread(rows: int, seed: int = 2) -> Texts:
    """Make pairs of every similarity from .6 to 1, and compare each document with each that has a shingle of it."""
    words = Words(seed)
    texts = []
    for _ in range(rows // 2):
        first = words.document()
        texts += [" ".join(first), " ".join(words.like(first, words.random.uniform(0.6, 1)))]
    words.random.shuffle(texts)
    holders = defaultdict(list)
    for number, text in enumerate(texts):
        for each in shingles(text):
            holders[each].append(number)
    common = Counter(pair for each in holders.values() for pair in combinations(each, 2))
    sizes = [len(shingles(text)) for text in texts]
    return Texts(texts, {(a, b): both / (sizes[a] + sizes[b] - both) for (a, b), both in common.items()})


class Tools:
    """Run each tool on the same documents, in fresh processes, and say which documents it kept."""

    def __init__(self, bench: Any, documents: Texts) -> None:
        self.bench, self.runs = bench, count()
        self.source, self.arrow, self.output = (bench.folder / name for name in ("texts.jsonl", "arrow", "text-dedup"))
        documents.write(self.source)
        self.loaded = Path(bench.child("load", self.source, store="loaded").facts["path"])
        rows = Artifact("load", "", self.loaded).read(["row_id"])["row_id"].to_pylist()
        self.numbers = {row: number for number, row in enumerate(rows)}
        self.sides = {"Stillhouse, the stage": self.stage, "Stillhouse, its functions alone": self.functions}
        self.starts = {"Stillhouse, the stage": self.start, "Stillhouse, its functions alone": self.start}
        if PEERS:
            self.sides |= {"datasketch": self.datasketch, "text-dedup": self.text_dedup}
            self.starts |= {
                name: partial(self.peer, "-c", f"import {module}")
                for name, module in (("datasketch", "datasketch"), ("text-dedup", "text_dedup.minhash"))
            }
            self.peer(CHILDREN / "deduplicate_text_dedup.py", "make", self.source, self.arrow)

    def start(self) -> Any:
        return self.bench.run("-c", "import tasks.curate.deduplicate")

    def stage(self) -> Any:
        return self.bench.child("deduplicate_stage", self.loaded, *SETTINGS, store=f"made-{next(self.runs)}")

    def functions(self) -> Any:
        return self.bench.child("deduplicate_pure", self.source, *SETTINGS)

    def peer(self, *arguments: object) -> Any:
        return self.bench.child("deduplicate_peer", PEERS, *arguments)

    def datasketch(self) -> Any:
        return self.peer(CHILDREN / "deduplicate_datasketch.py", self.source, *SETTINGS)

    def text_dedup(self) -> Any:
        """Run its command line, with its faster hash, in one process: more cost more CPU seconds, not fewer."""
        given = {
            "path": self.arrow, "output": self.output, "cache_dir": self.bench.folder / "cache", "column": "text",
            "ngram": SHINGLE, "num_perm": PERMUTATIONS, "threshold": THRESHOLD,
            "hash_func": "xxh3", "hash_bits": 32, "num_proc": 1,
        }  # fmt: skip
        flags = [part for name, value in given.items() for part in (f"--{name}", value)]
        return self.peer("-m", "text_dedup.minhash", "--local", *flags)

    def kept(self, name: str, cost: Any) -> set[int]:
        """Read which documents a run kept, by their numbers."""
        if name == "Stillhouse, the stage":
            made = Artifact("deduplicate", "", Path(cost.facts["path"]))
            return {self.numbers[row] for row in made.read(["row_id"])["row_id"].to_pylist()}
        if name == "text-dedup":
            cost = self.peer(CHILDREN / "deduplicate_text_dedup.py", "list", self.output)
        return set(cost.facts["kept"])


def caught(documents: Texts, kept: set[int], low: float, high: float) -> tuple[int, int]:
    """Count the pairs of a similarity from low to below high: (those that are not both kept, all)."""
    inside = [pair for pair, value in documents.pairs.items() if low <= value < high]
    return sum(not (a in kept and b in kept) for a, b in inside), len(inside)


def share(part: tuple[int, int]) -> str:
    return f"{part[0] / part[1]:.4f} ({part[0]:,} of {part[1]:,})" if part[1] else "none"


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rows", [10_000, 100_000])
def test_cost_of_near_duplicates(bench: Any, rows: int) -> None:
    documents = planted(rows)
    tools = Tools(bench, documents)
    starts = bench.interleaved(RUNS, tools.starts)
    costs = bench.interleaved(RUNS, tools.sides)
    lines, scores = [], []
    for name, own in costs.items():
        kept = tools.kept(name, own[-1])
        alone = [cost.cpu - median(each.cpu for each in starts[name]) for cost in own]
        lines.append(
            (
                name,
                bench.spread([cost.cpu for cost in own]),
                bench.spread(alone),
                bench.spread([c.peak for c in own], 0),
            )
        )
        right, wrong = caught(documents, kept, THRESHOLD, 2), caught(documents, kept, 0, THRESHOLD)
        scores.append((name, f"{len(kept):,}", share(right), share(wrong), share((right[0], right[0] + wrong[0]))))
    words = sum(len(text.split(" ")) for text in documents.texts) / rows
    setting = f"word {SHINGLE}-grams, {PERMUTATIONS} permutations, threshold {THRESHOLD}"
    heads = ("", "CPU s", "CPU s, start and imports apart", "peak MB")
    bench.table(f"{rows:,} documents of {words:.0f} words, {setting}, {RUNS} runs: median (range)", heads, *lines)
    heads = ("", "kept", "planted pairs of J >= t found", "of J = t - .1 dropped", "precision")
    bench.table(
        "What they found (text-dedup and datasketch choose their own bands, and verify nothing)", heads, *scores
    )
    if not PEERS:
        print("\ntext-dedup and datasketch: not installed (STILLHOUSE_PEERS names no Python)")
    assert scores[0][1] == scores[1][1]


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_recall_of_near_duplicates(bench: Any) -> None:
    documents = spread(5000)
    tools = Tools(bench, documents)
    lines = []
    for name, side in tools.sides.items():
        kept = tools.kept(name, side())
        bounds = ((0, 0.7), (0.7, THRESHOLD), (THRESHOLD, THRESHOLD + 0.1), (THRESHOLD + 0.1, 2))
        lines.append((name, *(share(caught(documents, kept, *each)) for each in bounds)))
    heads = ("pairs not both kept", "J < t - .1", "t - .1 to t", "t to t + .1", "from t + .1")
    bench.table("5,000 documents, every pair with a shingle in common compared by brute force", heads, *lines)
    assert len(documents.pairs) >= 2500
