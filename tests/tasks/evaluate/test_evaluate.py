"""Scores of a tiny model: the loss that a hand computes, the answers that a pattern finds, row by row."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from data.artifact import Artifact
from data.errors import BadInput
from data.ids import lowest
from infra.settings import use_settings
from infra.shards import stop_ray
from infra.stage import Measures, Parameters, stage
from infra.store import current_store
from infra.work import Work
from tasks.curate.load import LoadParameters, load
from tasks.evaluate.evaluate import EvaluateParameters, evaluate, extract, open_model
from tasks.train.chat import prepare_tokenizer, template_text
from tasks.train.models import write_model
from tasks.train.scratch import ScratchParameters, character_tokenizer, random_llama

SMALL = EvaluateParameters(batch_size=4, max_length=64, max_new_tokens=4)
TALKATIVE = EvaluateParameters(batch_size=2, max_length=4000, max_new_tokens=4)
ROWS = [
    {"prompt": f"upper: {word}", "completion": word.upper(), "task": "upper"}
    for word in ("a", "bcd", "efg", "hi", "jklmno")
]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}]
CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
TALK = [
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": None, "tool_calls": CALL},
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "four"},
]


class ReadyParameters(Parameters):
    """Which template the model speaks."""

    template: str


@stage("float")
def ready(work: Work, parameters: ReadyParameters) -> Measures:
    """A model of random weights, written where it stands."""
    shape = ScratchParameters(layers=1, width=16, heads=2, feed_forward=16)
    tokenizer = character_tokenizer(shape)
    prepare_tokenizer(tokenizer, template_text(parameters.template, tokenizer))
    write_model(random_llama(shape, len(tokenizer)), tokenizer, work.out)
    return {}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    with use_settings(store=tmp_path / "store", workers=1, device="cpu") as options:
        current_store().prepare()
        yield options.store


@pytest.fixture
def model(store: Path) -> Artifact:
    return ready(ReadyParameters(template="plain"))


@pytest.fixture
def talker(store: Path) -> Artifact:
    return ready(ReadyParameters(template="chatml"))


def loaded(folder: Path, rows: list[dict[str, Any]], layout: str = "prompt-completion", **source: Any) -> Artifact:
    path = folder / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"path": str(path), "licence": "CC0-1.0", "layout": layout, **source}
    return load(LoadParameters.model_validate({"sources": [given]}))


def scores(artifact: Artifact) -> dict[str, dict[str, Any]]:
    return {line["prompt"]: line for line in artifact["scores"].read().to_pylist()}


def nats(network: PreTrainedModel, ids: list[int], learned: set[int]) -> float:
    """Mean -log p of the tokens at some places, one row alone, without padding."""
    with torch.inference_mode():
        logits = network(torch.tensor([ids])).logits[0].double()
    return -sum(float(logits[at - 1].log_softmax(0)[ids[at]]) for at in learned) / len(learned)


def test_the_loss_is_that_of_the_answer_and_its_end_alone(model: Artifact, tmp_path: Path) -> None:
    made = evaluate(SMALL, loaded(tmp_path, ROWS), model)
    network, tokenizer = open_model(model.path)
    found = scores(made)
    assert list(found) == [row["prompt"] for row in ROWS]
    for row in ROWS:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, tokenize=False
        )
        before = tokenizer.encode(asked, add_special_tokens=False)
        answer = [*tokenizer.encode(row["completion"], add_special_tokens=False), tokenizer.eos_token_id]
        line = found[row["prompt"]]
        places = set(range(len(before), len(before) + len(answer)))
        assert line["loss"] == pytest.approx(nats(network, before + answer, places), rel=1e-5)
        assert line["tokens"] == len(answer) == len(row["completion"]) + 1
        assert line["reference"] == row["completion"]
    total = sum(line["loss"] * line["tokens"] for line in found.values())
    measures = made.record["measures"]
    assert measures["loss"] == pytest.approx(total / sum(line["tokens"] for line in found.values()))
    assert (measures["rows_asked"], measures["rows_not_asked"]) == (5, 0)
    assert measures["rows_in"] == 0  # the rows are a reference: not used up


def test_answers_are_the_likeliest_tokens_one_by_one(model: Artifact, tmp_path: Path) -> None:
    found = scores(evaluate(SMALL, loaded(tmp_path, ROWS), model))
    network, tokenizer = open_model(model.path)
    for row in ROWS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        start = len(ids)
        for _ in range(SMALL.max_new_tokens):
            with torch.inference_mode():
                ids = [*ids, int(network(torch.tensor([ids])).logits[0, -1].argmax())]
            if ids[-1] == tokenizer.eos_token_id:
                break
        assert found[row["prompt"]]["answer"] == tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_a_rows_scores_do_not_depend_on_who_is_asked_with_it(model: Artifact, tmp_path: Path) -> None:
    together = scores(evaluate(SMALL, loaded(tmp_path, ROWS), model))
    for row in ROWS:
        alone = scores(evaluate(SMALL, loaded(tmp_path, [row]), model))[row["prompt"]]
        assert alone == together[row["prompt"]] | {"loss": pytest.approx(together[row["prompt"]]["loss"], rel=1e-5)}


@pytest.mark.heavy
def test_a_rows_scores_do_not_depend_on_the_number_of_workers(model: Artifact, tmp_path: Path) -> None:
    rows = loaded(tmp_path, ROWS)
    here = evaluate(SMALL, rows, model)
    base = ready(ReadyParameters(template="plain"))
    try:
        with use_settings(store=tmp_path / "other", workers=2, ray_min_seconds=0.0):
            current_store().prepare()
            there = evaluate(SMALL, rows, base)
            import ray

            assert ray.is_initialized()
    finally:
        stop_ray()
    assert there.path != here.path
    assert there.fingerprint == here.fingerprint
    assert there["scores"].digest == here["scores"].digest


def test_some_rows_are_those_of_the_lowest_ids(model: Artifact, tmp_path: Path) -> None:
    rows = loaded(tmp_path, ROWS)
    ids = rows.read(["row_id"])["row_id"].to_pylist()
    made = evaluate(SMALL.model_copy(update={"rows": 2}), rows, model)
    asked = [line["row_id"] for line in made["scores"].read().to_pylist()]
    assert set(asked) == set(sorted(ids, key=lambda each: each.bytes)[:2])
    assert asked == [each for each in ids if each in asked]
    assert lowest(rows.read(["row_id"])["row_id"], None).tolist() == [0, 1, 2, 3, 4]


def test_rows_that_are_too_long_are_not_asked_and_counted(model: Artifact, tmp_path: Path) -> None:
    long = [{"prompt": "x" * 70, "completion": "y"}, {"prompt": "x", "completion": "y" * 70}]
    made = evaluate(SMALL, loaded(tmp_path, [*ROWS, *long]), model)
    assert list(scores(made)) == [row["prompt"] for row in ROWS]
    measures = made.record["measures"]
    assert (measures["rows_asked"], measures["rows_not_asked"]) == (5, 2)
    with pytest.raises(BadInput, match="2 held-out rows, none with a question and an answer within 64 tokens"):
        evaluate(SMALL, loaded(tmp_path, long), model)


def test_scores_carry_their_group_and_a_column_that_is_not_there_is_refused(model: Artifact, tmp_path: Path) -> None:
    rows = loaded(tmp_path, ROWS, keep=["task"])
    made = scores(evaluate(SMALL.model_copy(update={"group_column": "task"}), rows, model))
    assert {line["group"] for line in made.values()} == {"upper"}
    with pytest.raises(BadInput, match=r"no column 'tsak'; the rows have row_id, .* licence, task"):
        evaluate(SMALL.model_copy(update={"group_column": "tsak"}), rows, model)


def test_conversations_with_tools_are_asked_as_they_were_learned(talker: Artifact, tmp_path: Path) -> None:
    rows = [{"messages": TALK, "tools": TOOLS}]
    (line,) = scores(evaluate(TALKATIVE, loaded(tmp_path, rows, "messages"), talker)).values()
    network, tokenizer = open_model(talker.path)
    text = tokenizer.apply_chat_template(TALK, tools=TOOLS, tokenize=False)
    encoded = tokenizer.apply_chat_template(TALK, tools=TOOLS, return_dict=True, return_assistant_tokens_mask=True)
    learned = {at for at, bit in enumerate(encoded["assistant_masks"]) if bit}
    assert "adds" in text
    assert line["loss"] == pytest.approx(nats(network, encoded["input_ids"], learned), rel=1e-5)
    assert (line["prompt"], line["reference"]) == ("4", "four")

    without = [{"messages": TALK}]
    (other,) = scores(evaluate(TALKATIVE, loaded(tmp_path, without, "messages"), talker)).values()
    assert other["loss"] != line["loss"]


def test_a_call_can_be_the_answer(talker: Artifact, tmp_path: Path) -> None:
    (line,) = scores(evaluate(TALKATIVE, loaded(tmp_path, [{"messages": TALK[:2]}], "messages"), talker)).values()
    assert line["prompt"] == "2 + 2?"
    assert '"name": "add"' in line["reference"]
    assert "<|im_end|>" not in line["reference"]


def test_conversations_without_a_question_and_an_answer_are_not_asked(talker: Artifact, tmp_path: Path) -> None:
    rows = [{"messages": each} for each in (TALK[:1], TALK[3:], TALK)]
    made = evaluate(TALKATIVE, loaded(tmp_path, rows, "messages"), talker)
    assert list(scores(made)) == ["4"]
    assert made.record["measures"]["rows_not_asked"] == 2


@pytest.mark.parametrize(
    ("pattern", "ignored", "text", "answer"),
    [
        (r"(?s)^\s*(.*?)\s*\Z", "", "  a\nb \n", "a\nb"),
        (r"(?s)^\s*(.*?)\s*\Z", "", "", ""),
        (r"####\s*(-?[\d,.]+)", ",.", "so 3\n#### 1,234.", "1234"),
        (r"####\s*(-?[\d,.]+)", ",.", "#### 1\n#### -2", "-2"),
        (r"####\s*(-?[\d,.]+)", ",.", "no answer", None),
        (r"a(b)?", "", "a", ""),
    ],
)
def test_the_answer_is_the_first_group_of_the_last_match(
    pattern: str, ignored: str, text: str, answer: str | None
) -> None:
    assert extract(EvaluateParameters(answer_pattern=pattern, ignore_characters=ignored), text) == answer


def test_a_text_without_an_answer_is_wrong_even_if_the_reference_has_none(model: Artifact, tmp_path: Path) -> None:
    asked = SMALL.model_copy(update={"answer_pattern": "never(x)"})
    made = evaluate(asked, loaded(tmp_path, ROWS), model)
    assert made.record["measures"]["exact_match"] == 0


def test_an_answer_that_equals_the_reference_is_right(model: Artifact, tmp_path: Path) -> None:
    said = scores(evaluate(SMALL, loaded(tmp_path, ROWS), model))
    rows = [{"prompt": prompt, "completion": line["answer"]} for prompt, line in said.items()]
    made = evaluate(SMALL, loaded(tmp_path, [*rows[:3], *ROWS[3:]]), model)
    assert [line["correct"] for line in made["scores"].read().to_pylist()] == [True, True, True, False, False]
    assert made.record["measures"]["exact_match"] == pytest.approx(0.6)


@pytest.mark.parametrize(("pattern", "wrong"), [("a(", "no regular expression"), ("abc", "without a group")])
def test_a_pattern_that_finds_nothing_is_refused(pattern: str, wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        EvaluateParameters(answer_pattern=pattern)
