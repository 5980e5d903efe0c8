"""Pairs: what of them is learned, and that padding, micro-batches and chunks change nothing of a step."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from data.artifact import Artifact
from data.contracts import GENERATION, MESSAGES, PREFERENCE, PROMPT_COMPLETION
from tasks.train import adpa, dckd, dpo, orpo, sft
from tasks.train.chat import last_stretch
from tasks.train.models import load_tokenizer
from tasks.train.pairs import batch_of, collate, encode_preferences, encode_talk, talks_of, weigh
from tasks.train.training import IGNORED
from tests.tasks.train.small import (
    Family,
    Record,
    Trained,
    alike,
    answer,
    farthest,
    preferences,
    table_of,
    trained,
    turns,
)

# ---- one step, however it is cut ----

SMALL = {"batch_size": 4, "max_length": 64, "learning_rate": 1e-3, "checkpoint_every": 100, "threads": 1, "warmup": 0}
METHODS = {
    "dpo": lambda **more: (dpo.fit, dpo.DpoParameters(beta=0.1, sft_weight=0.5, **SMALL, **more)),
    "orpo": lambda **more: (orpo.fit, orpo.OrpoParameters(odds_weight=0.5, **SMALL, **more)),
    "dckd": lambda **more: (dckd.fit, dckd.DckdParameters(chosen_weight=0.5, **SMALL, **more)),
    "adpa": lambda **more: (adpa.fit, adpa.AdpaParameters(**SMALL, **more)),
}


def run(folder: Path, method: str, models: Family, rows: Artifact, responses: Artifact, **more: Any) -> Trained:
    fit, parameters = METHODS[method](epochs=1, **more)
    student = models.student.path
    inputs = {
        "dckd": (rows, student, [models.teacher]),
        "adpa": (rows, responses, student, [models.teacher, models.reference]),
    }
    return trained(fit, folder, parameters, *inputs.get(method, (rows, student)))


@pytest.mark.parametrize("weight_by", ["token", "sequence"])
@pytest.mark.parametrize("method", list(METHODS))
def test_micro_batches_and_chunks_change_nothing(
    method: str, weight_by: str, models: Family, rows: Artifact, responses: Artifact, tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", method, models, rows, responses, weight_by=weight_by)
    for cut in ({"micro_batch_size": 1}, {"micro_batch_size": 2}, {"micro_batch_size": 4, "chunk": 5}):
        other = run(tmp_path / repr(cut), method, models, rows, responses, weight_by=weight_by, **cut)
        for name, values in whole.history.items():
            if name == "epoch":
                continue
            # of pairs that the base judges alike, rounding decides: those of the first step
            assert alike(values[name == "accuracy" :], other.history[name][name == "accuracy" :], 1e-4), (cut, name)
        assert farthest(whole, other) < 5e-5, cut  # weights move by up to 1e-3 a step


def test_weights_by_token_and_by_sequence_are_not_the_same(
    models: Family, rows: Artifact, responses: Artifact, tmp_path: Path
) -> None:
    losses = [
        run(tmp_path / by, "dckd", models, rows, responses, weight_by=by).history["loss"]
        for by in ("token", "sequence")
    ]
    assert not alike(*losses, 1e-4)


@pytest.mark.parametrize("by", ["token", "sequence"])
def test_weights_of_each_side_add_up_to_one_over_a_step(by: str) -> None:
    counts = [torch.tensor([3, 1, 2, 9]), torch.tensor([4, 5])]  # two pairs, then one: the chosen sides first
    batches = [{"pairs": torch.tensor([0, 1])}, {"pairs": torch.tensor([2])}]
    weigh(batches, counts, by)
    totals = torch.zeros(2)
    for batch, count in zip(batches, counts, strict=True):
        totals += (batch["weights"] * count).view(2, -1).sum(1)
    assert alike(totals.tolist(), [1, 1])
    assert [float(batch["share"]) for batch in batches] == pytest.approx([2 / 3, 1 / 3])
    first = 1 / 8 if by == "token" else 1 / (3 * 3)
    assert float(batches[0]["weights"][0]) == pytest.approx(first)


# ---- padding ----


def test_more_padding_changes_no_state_and_is_never_a_position(models: Family, rows: Artifact) -> None:
    tokenizer = load_tokenizer(models.student.path)
    pairs, _ = encode_preferences(rows.read(), tokenizer, 64)
    examples = [each | {"rows": at} for at, each in enumerate(pairs.to_pylist()[:3])]
    model = sft.load_model(models.student.path, tokenizer, seed=0).eval()
    seen = []
    for extra in (0, 7):
        inputs = collate(tokenizer.pad_token_id, examples)
        for name, filler in (("input_ids", tokenizer.pad_token_id), ("attention_mask", 0), ("completion_mask", 0)):
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, extra), value=filler)
        weigh([inputs], [inputs["completion_mask"][:, 1:].sum(1)], "token")
        with torch.no_grad():
            seen.append(batch_of(model, inputs, None))
    assert torch.equal(seen[0].labels, seen[1].labels)
    assert torch.equal(seen[0].sequences, seen[1].sequences)
    assert torch.equal(seen[0].weights, seen[1].weights)
    torch.testing.assert_close(seen[0].hidden, seen[1].hidden, rtol=1e-5, atol=1e-6)
    said = [each[f"{side}_ids"] for side in ("chosen", "second") for each in examples]
    masks = [each[f"{side}_mask"] for side in ("chosen", "second") for each in examples]
    learned = [
        token for ids, mask in zip(said, masks, strict=True) for token, bit in zip(ids, mask, strict=True) if bit
    ]
    assert seen[0].labels.tolist() == learned
    assert seen[0].chosen == sum(map(sum, masks[:3]))


# ---- masks ----

CALL = json.dumps([{"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}])
SPOKEN = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call><|im_end|>'
TOOLS = json.dumps([{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}])


def called(content: str | None = None) -> Record:
    return {"role": "assistant", "content": content, "tool_calls": CALL}


def learned_parts(tokenizer: Any, ids: list[int], mask: list[int]) -> list[str]:
    """Decode each stretch of what is learned."""
    parts: list[list[int]] = []
    for at, (token, bit) in enumerate(zip(ids, mask, strict=True)):
        if bit and (at == 0 or not mask[at - 1]):
            parts.append([])
        if bit:
            parts[-1].append(token)
    return [tokenizer.decode(part) for part in parts]


def test_of_a_pair_a_tool_call_and_its_end_are_learned_and_nothing_else(models: Family) -> None:
    tokenizer = load_tokenizer(models.student.path)
    asked = [*turns("add 1 and 2", "let me see", "go on")]
    table = table_of(
        [{"prompt": asked, "chosen": [called()], "rejected": answer("I cannot"), "tools": TOOLS}], PREFERENCE
    )
    pairs, dropped = encode_preferences(table, tokenizer, 1024)
    [pair] = pairs.to_pylist()
    assert not len(dropped)
    assert learned_parts(tokenizer, pair["chosen_ids"], pair["chosen_mask"]) == [SPOKEN]
    assert learned_parts(tokenizer, pair["second_ids"], pair["second_mask"]) == ["I cannot<|im_end|>"]
    for side in ("chosen", "second"):
        assert "<tools>" in tokenizer.decode(pair[f"{side}_ids"]), "the tools are read"
        assert tokenizer.eos_token_id in last_stretch(pair[f"{side}_ids"], pair[f"{side}_mask"])


def test_of_a_conversation_with_tools_each_turn_of_the_assistant_is_learned_in_sft(models: Family) -> None:
    tokenizer = load_tokenizer(models.student.path)
    talk = [
        *turns("add 1 and 2"),
        called("Gladly."),
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ]
    table = table_of([{"messages": talk, "tools": TOOLS}], MESSAGES)
    tokens, dropped, _ = sft.tokenise(table, tokenizer, 1024)
    [row] = tokens.to_pylist()
    assert not len(dropped)
    parts = learned_parts(tokenizer, row["input_ids"], row["assistant_masks"])
    assert parts == ["Gladly.\n" + SPOKEN, "It is 3.<|im_end|>"]
    [labels] = sft.with_labels(tokens)["labels"].to_pylist()
    assert [each for each in labels if each != IGNORED] == [
        token for token, bit in zip(row["input_ids"], row["assistant_masks"], strict=True) if bit
    ]


def test_of_a_chosen_side_of_several_turns_each_of_the_assistants_is_learned(models: Family) -> None:
    tokenizer = load_tokenizer(models.student.path)
    chosen = [called(), {"role": "tool", "content": "3"}, {"role": "assistant", "content": "3"}]
    table = table_of([{"prompt": turns("1 + 2"), "chosen": chosen, "rejected": answer("4")}])
    [pair] = encode_preferences(table, tokenizer, 1024)[0].to_pylist()
    assert learned_parts(tokenizer, pair["chosen_ids"], pair["chosen_mask"]) == [SPOKEN, "3<|im_end|>"]


@pytest.mark.parametrize(("finish", "learned"), [("stop", "cut of<|im_end|>"), ("length", "cut of")])
def test_a_response_that_hit_its_limit_has_no_end_to_learn(models: Family, finish: str, learned: str) -> None:
    tokenizer = load_tokenizer(models.student.path)
    said = [{"prompt": turns("say"), "completion": "cut of", "finish_reason": finish}]
    [talk] = talks_of(table_of(said, GENERATION))["response"]
    assert learned_parts(tokenizer, *encode_talk(tokenizer, talk, 64)) == [learned]


def test_sides_of_rows() -> None:
    assert list(talks_of(table_of(preferences(2)))) == ["chosen", "rejected"]
    assert list(talks_of(table_of([{"prompt": "a", "completion": "b"}], PROMPT_COMPLETION))) == ["response"]


def test_a_pair_is_dropped_where_either_side_has_nothing_left(models: Family) -> None:
    tokenizer = load_tokenizer(models.student.path)
    long = turns("long " * 20)
    records = preferences(3)
    records[1] = records[1] | {"prompt": long}
    pairs, dropped = encode_preferences(table_of(records), tokenizer, 64)
    ids = table_of(records)["row_id"].to_pylist()
    assert pairs["row_id"].to_pylist() == [ids[0], ids[2]]
    assert dropped["row_id"].to_pylist() == [ids[1]]
    assert dropped["score"].to_pylist() == [64.0]
    assert isinstance(pairs["row_id"].type, pa.UuidType)
