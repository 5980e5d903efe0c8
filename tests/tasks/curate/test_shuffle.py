"""The control: the same prompts, the same completions, and no row that keeps its own."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.artifact import Artifact
from data.contracts import PROMPT_COMPLETION
from data.errors import BadInput
from data.ids import content_ids
from tasks.curate.shuffle import ShuffleParameters, next_in_cycle, shuffle

Loaded = Callable[..., Artifact]
ROWS = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(50)]


@given(st.integers(2, 200), st.integers(0, 2**63))
def test_the_cycle_goes_through_every_row_once(rows: int, seed: int) -> None:
    after = next_in_cycle(rows, seed)
    at, seen = 0, set()
    while at not in seen:
        seen.add(at)
        at = int(after[at])
    assert (at, len(seen)) == (0, rows)


def test_every_row_has_anothers_completion_and_both_as_parents(loaded: Loaded) -> None:
    before = loaded(ROWS)
    after = shuffle(ShuffleParameters(), before)
    old, new = before.read(), after.read()
    prompts, completions = (new[name].to_pylist() for name in ("prompt", "completion"))
    assert prompts == old["prompt"].to_pylist()
    assert Counter(completions) == Counter(old["completion"].to_pylist())
    assert not any(prompt[1:] == completion[1:] for prompt, completion in zip(prompts, completions, strict=True))
    assert new["content_id"].combine_chunks().equals(content_ids(new, PROMPT_COMPLETION))

    ids = old["row_id"].to_pylist()
    parents: dict[object, set[object]] = {}
    for edge in after["edges"].read().to_pylist():
        parents.setdefault(edge["child"], set()).add(edge["parent"])
    for child, prompt, completion in zip(new["row_id"].to_pylist(), prompts, completions, strict=True):
        assert parents.pop(child) == {ids[int(prompt[1:])], ids[int(completion[1:])]}
    assert not parents
    measures = after.record["measures"]
    assert (measures["rows_created"], measures["rows_consumed"]) == (50, 50)
    assert not set(ids) & set(new["row_id"].to_pylist())


def test_another_seed_is_another_shuffle_and_the_same_seed_the_same(loaded: Loaded) -> None:
    before = loaded(ROWS)
    shuffles = [shuffle(ShuffleParameters(seed=seed), before) for seed in (0, 1)]
    assert shuffles[0].digest != shuffles[1].digest
    assert np.array_equal(next_in_cycle(50, 3), next_in_cycle(50, 3))


def test_other_columns_stay_with_the_prompt(loaded: Loaded) -> None:
    before = loaded([{**row, "task": f"t{n}"} for n, row in enumerate(ROWS)], keep=["task"])
    after = shuffle(ShuffleParameters(), before).read(["prompt", "task"]).to_pylist()
    assert after == [{"prompt": f"p{n}", "task": f"t{n}"} for n in range(50)]


@pytest.mark.parametrize("turns", [False, True])
def test_half_of_the_pairs_change_sides_and_each_is_a_new_row(loaded: Loaded, turns: bool) -> None:
    def said(text: str) -> object:
        return [{"role": "assistant", "content": text}] if turns else text

    prompts = [[{"role": "user", "content": f"p{n}"}] if turns else f"p{n}" for n in range(41)]
    pairs = [{"prompt": p, "chosen": said(f"c{n}"), "rejected": said(f"r{n}")} for n, p in enumerate(prompts)]
    before = loaded(pairs, layout="preference")
    after = shuffle(ShuffleParameters(), before)
    old, new = before.read().to_pylist(), after.read().to_pylist()
    sides = [(row["chosen"], row["rejected"]) for row in old]
    found = [(row["chosen"], row["rejected"]) for row in new]
    changed = [now == (rejected, chosen) for now, (chosen, rejected) in zip(found, sides, strict=True)]
    assert sum(changed) == 20 and all(
        now == was for now, was, done in zip(found, sides, changed, strict=True) if not done
    )
    parents = {edge["child"]: edge["parent"] for edge in after["edges"].read().to_pylist()}
    assert [parents[row["row_id"]] for row in new] == [row["row_id"] for row in old]
    assert shuffle(ShuffleParameters(seed=1), before).digest != after.digest


def test_one_row_and_other_contracts_are_refused(loaded: Loaded) -> None:
    with pytest.raises(BadInput, match="1 rows with"):
        shuffle(ShuffleParameters(), loaded(ROWS[:1]))
    with pytest.raises(BadInput, match="two or more rows of prompt and completion"):
        shuffle(ShuffleParameters(), loaded([{"text": "t"}] * 3, layout="unlabelled"))
