"""Write quickstart.jsonl: six verifiable tasks on made-up words and numbers, with planted dirt.

`python data/samples/make_samples.py` rewrites the file byte for byte; README.md beside it states the counts.
Every draw comes from `Random.random`, the one method whose sequence Python promises to keep across versions.
"""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TypeVar

Item = TypeVar("Item")
Row = dict[str, str]

SEED = 20261123
CONSONANTS = "bcdfghjklmnpqrstvwxz"
VOWELS = "aeiouy"
ACCENTED = "éöñ"
ACCENTED_SHARE = 0.12  # of the words of the tasks below: enough for a model to learn three rare letters
ACCENTED_TASKS = ("reverse", "upper", "head", "tail")  # not sort: accented letters have no one order
TASKS: dict[str, tuple[int, Callable[[str], str]]] = {  # name -> (clean rows, answer)
    "reverse": (1100, lambda word: word[::-1]),
    "upper": (1000, str.upper),
    "head": (500, lambda word: word[:2]),  # two letters: one would be guessed too often
    "tail": (500, lambda word: word[-2:]),
    "sort": (1600, lambda word: "".join(sorted(word))),
    "next": (700, lambda number: str(int(number) + 1)),
}
DIRT = {"duplicate": 90, "decomposed": 30, "control": 24, "empty": 24, "long": 8}
CONTROLS = ("\u0000", "\u0007", "\u001b")
BROKEN = ('{"prompt": "reverse: talom", "comple', "undefined", "42")


def main() -> None:
    """Write quickstart.jsonl beside this script."""
    rng = Random(SEED)  # noqa: S311 - sample data, no secret
    path = Path(__file__).with_name("quickstart.jsonl")
    path.write_text("\n".join(lines(rng)) + "\n", encoding="utf-8", newline="\n")


def lines(rng: Random) -> list[str]:
    """Make all lines of the file: clean rows shuffled, then each dirty line put at a random place."""
    seen: set[str] = set()
    clean = [fresh(rng, task, seen) for task, (count, _) in TASKS.items() for _ in range(count)]
    clean = shuffled(rng, clean)
    made = [as_line(row) for row in clean]
    for line in shuffled(rng, [*map(as_line, dirt(rng, clean, seen)), *BROKEN]):
        made.insert(below(rng, len(made) + 1), line)
    return made


def dirt(rng: Random, clean: list[Row], seen: set[str]) -> list[Row]:
    """Make the dirty rows that still are JSON objects, `DIRT` of each kind; no two copy one clean row."""
    accented = [row for row in clean if not row["prompt"].isascii()]
    plain = [row for row in clean if row["prompt"].isascii()]
    tasks = list(TASKS)
    return [
        *shuffled(rng, plain)[: DIRT["duplicate"]],
        *[decomposed(row) for row in shuffled(rng, accented)[: DIRT["decomposed"]]],
        *[control(rng, fresh(rng, tasks[i % 6], seen), CONTROLS[i % 3]) for i in range(DIRT["control"])],
        *[fresh(rng, tasks[i % 6], seen) | {"completion": ""} for i in range(DIRT["empty"])],
        *[long(rng, ("reverse", "upper")[i % 2]) for i in range(DIRT["long"])],
    ]


def fresh(rng: Random, task: str, seen: set[str]) -> Row:
    """Draw a right row of `task` whose prompt is not in `seen`, and add it there."""
    while True:
        row = answered(task, subject(rng, task))
        if row["prompt"] not in seen:
            seen.add(row["prompt"])
            return row


def answered(task: str, text: str) -> Row:
    """Make the row of `task` on `text` with its right answer."""
    return {"prompt": f"{task}: {text}", "completion": TASKS[task][1](text), "task": task}


def subject(rng: Random, task: str) -> str:
    """Draw a number from 0 to 999 for `next`, a word of 3 to 5 letters for the other tasks."""
    if task == "next":
        return str(below(rng, 1000))
    return word(rng, 3 + below(rng, 3), task in ACCENTED_TASKS)


def word(rng: Random, length: int, accents: bool) -> str:
    """Draw a made-up word of `length` letters, consonants and vowels in turn."""
    start = below(rng, 2)
    letters = [pick(rng, (CONSONANTS, VOWELS)[(start + i) % 2]) for i in range(length)]
    if accents and rng.random() < ACCENTED_SHARE:
        place = below(rng, length)
        letters[place] = pick(rng, ACCENTED)
    return "".join(letters)


def decomposed(row: Row) -> Row:
    """Write the accents of a row as letter + combining mark: equal to the row only after NFC."""
    return {key: unicodedata.normalize("NFD", value) for key, value in row.items()}


def control(rng: Random, row: Row, character: str) -> Row:
    """Put a control character into the prompt or, as often, into the completion."""
    key = ("prompt", "completion")[below(rng, 2)]
    place = below(rng, len(row[key]) + 1)
    return row | {key: row[key][:place] + character + row[key][place:]}


def long(rng: Random, task: str) -> Row:
    """Make a right row of `task` on a word of 1,500 to 2,499 letters: 3,000 to 5,000 characters in all."""
    return answered(task, word(rng, 1500 + below(rng, 1000), accents=False))


def as_line(row: Row) -> str:
    """Write a row as JSON in ASCII, so that é and e + combining acute look different."""
    return json.dumps(row, ensure_ascii=True)


def below(rng: Random, end: int) -> int:
    """Draw a whole number from 0 to end - 1."""
    return int(rng.random() * end)


def pick(rng: Random, items: str) -> str:
    """Draw one of `items`."""
    return items[below(rng, len(items))]


def shuffled(rng: Random, items: list[Item]) -> list[Item]:
    """Copy `items` in a random order (Fisher-Yates)."""
    copy = list(items)
    for i in range(len(copy) - 1, 0, -1):
        j = below(rng, i + 1)
        copy[i], copy[j] = copy[j], copy[i]
    return copy


if __name__ == "__main__":
    main()
