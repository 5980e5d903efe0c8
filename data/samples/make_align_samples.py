"""Write align-sft.jsonl, align-pairs.jsonl and quickstart-pairs.jsonl: quickstart's tasks, with planted preferences.

`python data/samples/make_align_samples.py` rewrites the files byte for byte; README.md beside it states the counts.

The planted preference is the case of letters, so that no length explains it: both answers are equally long.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from data.samples.make_samples import TASKS, Row, as_line, below, fresh, shuffled

SEED = 20261124
ALIGN_TASKS = tuple(task for task in TASKS if task != "next")  # a number has no case
SFT_ROWS = 4_000
WRONG_CASE_SHARE = 0.6  # of the answers in align-sft.jsonl: what a model learns there is what it must unlearn
PAIRS = 1_000
WRONG_ANSWER_SHARE = 0.25  # of the rejected answers in align-pairs.jsonl: a letter in the wrong place
CAPITAL_TASKS = ("reverse", "head", "tail", "sort")  # upper has capitals already
CAPITAL_PAIRS = 600


def main() -> None:
    """Write the three files beside this script."""
    rng = Random(SEED)  # noqa: S311 - sample data, no secret
    seen: set[str] = set()
    files = {
        "align-sft": sft_rows(rng, seen),
        "align-pairs": pairs(rng, seen),
        "quickstart-pairs": capital_pairs(rng, quickstart_prompts(seen)),
    }
    for name, rows in files.items():
        path = Path(__file__).with_name(f"{name}.jsonl")
        path.write_text("".join(as_line(row) + "\n" for row in rows), encoding="utf-8", newline="\n")


def sft_rows(rng: Random, seen: set[str]) -> list[Row]:
    """Make rows with right answers, most of them in the wrong case."""
    rows = [fresh(rng, ALIGN_TASKS[i % len(ALIGN_TASKS)], seen) for i in range(SFT_ROWS)]
    wrong = int(WRONG_CASE_SHARE * SFT_ROWS)
    styled = [_swapped(row) | {"style": "wrong"} for row in rows[:wrong]] + [
        row | {"style": "right"} for row in rows[wrong:]
    ]
    return shuffled(rng, styled)


def pairs(rng: Random, seen: set[str]) -> list[Row]:
    """Make preferences: the right answer, over itself in the wrong case or over a wrong answer."""

    def made() -> Iterator[Row]:
        for i in range(PAIRS):
            row = fresh(rng, ALIGN_TASKS[i % len(ALIGN_TASKS)], seen)
            right = row["completion"]
            rejected = _mistaken(rng, right) if i < WRONG_ANSWER_SHARE * PAIRS else right.swapcase()
            planted = "wrong case" if rejected == right.swapcase() else "wrong answer"
            yield _pair(row, right, rejected) | {"planted": planted}

    return shuffled(rng, list(made()))


def capital_pairs(rng: Random, seen: set[str]) -> list[Row]:
    """Make preferences of right answers in capitals over the same in small letters."""
    rows = [fresh(rng, CAPITAL_TASKS[i % len(CAPITAL_TASKS)], seen) for i in range(CAPITAL_PAIRS)]
    return shuffled(rng, [_pair(row, row["completion"].upper(), row["completion"]) for row in rows])


def quickstart_prompts(seen: set[str]) -> set[str]:
    """Collect the prompts of quickstart.jsonl and those already drawn: new ones are none of them."""
    text = Path(__file__).with_name("quickstart.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
    return seen | {line["prompt"] for line in lines}


def _swapped(row: Row) -> Row:
    return row | {"completion": row["completion"].swapcase()}


def _pair(row: Row, chosen: str, rejected: str) -> Row:
    return {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected, "task": row["task"]}


def _mistaken(rng: Random, answer: str) -> str:
    """Move a letter of an answer to another place; an answer of one letter again and again gets the wrong case."""
    if len(set(answer)) == 1:
        return answer.swapcase()
    while True:
        place, goal = below(rng, len(answer)), below(rng, len(answer))
        letters = list(answer)
        letters.insert(goal, letters.pop(place))
        if letters != list(answer):
            return "".join(letters)


if __name__ == "__main__":
    main()
