"""Responses of a tiny model: greedy as transformers has it, drawn as the model says, each paid for once."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.artifact import Artifact
from data.contracts import GENERATION, contract_of
from data.errors import BadInput
from data.ids import content_ids
from infra.settings import use_settings
from infra.shards import one_thread, stop_ray
from infra.stage import Measures, Parameters, stage
from infra.work import Work
from tasks.curate.respond import RespondParameters, respond
from tasks.train.adpa import encode_responses
from tasks.train.chat import encode_prompt, prepare_tokenizer, template_text
from tasks.train.models import write_model
from tasks.train.passes import open_model, open_tokenizer
from tasks.train.sampling import gumbel, sampled
from tasks.train.scratch import ScratchParameters, character_tokenizer, random_llama

Loaded = Callable[..., Artifact]
Line = dict[str, Any]

PAIRS: Line = {"layout": "preference"}
TALKS: Line = {"layout": "messages"}
CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}]


class TalkerParameters(Parameters):
    """Which weights."""

    seed: int = 0
    spread: float = 0.6
    penalty: float = 1.0


@stage("float")
def talker(work: Work, parameters: TalkerParameters) -> Measures:
    """A model of random weights that says many things; some of its responses end by themselves."""
    shape = ScratchParameters(
        layers=2, width=16, heads=2, feed_forward=32, context=1024, spread=parameters.spread, seed=parameters.seed
    )
    tokenizer = character_tokenizer(shape)
    prepare_tokenizer(tokenizer, template_text("chatml", tokenizer))
    model = random_llama(shape, len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.repetition_penalty = parameters.penalty
    write_model(model, tokenizer, work.out)
    return {}


def options(**more: Any) -> RespondParameters:
    return RespondParameters(**({"max_new_tokens": 24, "max_length": 400, "batch_size": 8} | more))


def lines(count: int) -> list[Line]:
    """Prompts of 30 to 70 tokens, each another."""
    return [{"prompt": f"{n}" + "abcdefg"[n % 7] * (n * 7 % 41), "completion": "yes"} for n in range(count)]


def said(made: Artifact) -> dict[tuple[str, int], tuple[str, str, int]]:
    """What was said to each prompt: {(its last turn, sample): (completion, finish_reason, tokens)}."""
    rows = made.read().to_pylist()
    return {
        (row["prompt"][-1]["content"], row.get("sample", 0)): (row["completion"], row["finish_reason"], row["tokens"])
        for row in rows
    }


def elsewhere(store: Path, name: str) -> Any:
    """Work in another store, which remembers nothing."""
    return use_settings(store=store.with_name(name))


def segments(store: Path) -> int:
    """Count the chunks that were computed."""
    return len(list(store.glob(".memo/respond-*/*.arrow")))


def remembered(store: Path) -> int:
    """Count the responses that were computed."""
    count = 0
    for path in store.glob(".memo/respond-*/*.arrow"):
        with pa.memory_map(str(path)) as source:
            count += pa.ipc.open_file(source).read_all().num_rows
    return count


# ---- greedy ----


def alone(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: str) -> list[int]:
    """Answer one prompt by transformers' own `generate`, without padding."""
    ids = torch.tensor([encode_prompt(tokenizer, [{"role": "user", "content": asked}], None)])
    with one_thread():
        out = network.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, repetition_penalty=1.0
        )
    found: list[int] = out[0, ids.shape[1] :].tolist()
    return found


@pytest.mark.parametrize("penalty", [1.0, 1.8])
def test_greedy_responses_are_those_of_transformers(loaded: Loaded, penalty: float) -> None:
    model = talker(TalkerParameters(penalty=penalty))
    rows = loaded(lines(24))
    made = said(respond(options(), rows, model))
    network, tokenizer = open_model(model.path)
    assert network.generation_config.repetition_penalty == penalty
    reasons = Counter(reason for _, reason, _ in made.values())
    assert min(reasons["stop"], reasons["length"]) >= 3
    for (asked, _), (completion, reason, tokens) in made.items():
        out = alone(network, tokenizer, asked)
        assert completion == tokenizer.decode(out, skip_special_tokens=True)
        assert tokens == len(out) and reason == ("stop" if out[-1] == tokenizer.eos_token_id else "length")


@pytest.mark.parametrize("drawn", [{}, {"temperature": 0.8, "samples": 2}])
def test_a_response_depends_on_its_prompt_alone(loaded: Loaded, store: Path, drawn: Line) -> None:
    model = talker(TalkerParameters())
    whole = said(respond(options(**drawn), loaded(lines(40)), model))
    assert len({completion for completion, _, _ in whole.values()}) > 30
    for number, change in enumerate(({}, {"batch_size": 1}, {"batch_size": 32})):
        with elsewhere(store, f"other-{number}"):
            part = loaded(lines(40)[::-3], f"part-{number}")
            made = said(respond(options(**drawn, **change), part, model))
            assert remembered(store.with_name(f"other-{number}")) == len(made) == 14 * drawn.get("samples", 1)
        assert made.items() <= whole.items()


@pytest.mark.heavy
def test_ray_gives_the_same_bytes(loaded: Loaded, store: Path) -> None:
    model, rows, drawn = talker(TalkerParameters()), loaded(lines(30)), options(temperature=1.0, samples=2)
    here = respond(drawn, rows, model)
    with use_settings(store=store.with_name("ray"), workers=2, ray_min_seconds=0):
        there = respond(drawn, rows, model)
    stop_ray()
    assert there.path != here.path and there.digest == here.digest


def test_a_prompt_that_fills_its_width_is_answered_as_alone(loaded: Loaded) -> None:
    model = talker(TalkerParameters())
    tokenizer = open_tokenizer(model.path)
    template = len(encode_prompt(tokenizer, [{"role": "user", "content": ""}], None))
    texts = ["a" * (length - template) for length in (62, 63, 64, 65)]
    made = said(respond(options(), loaded([{"prompt": each, "completion": "b"} for each in texts]), model))
    network, _ = open_model(model.path)
    for each in texts:
        assert made[each, 0][0] == tokenizer.decode(alone(network, tokenizer, each), skip_special_tokens=True)


def test_bf16_answers_too(loaded: Loaded) -> None:
    model, rows = talker(TalkerParameters()), loaded(lines(10))
    rough = said(respond(options(precision="bf16"), rows, model))
    assert rough.keys() == said(respond(options(), rows, model)).keys()
    assert all(tokens for _, _, tokens in rough.values())


# ---- drawn ----


def chi_square(counts: "np.ndarray[Any, Any]", expected: "np.ndarray[Any, Any]") -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_draws_follow_the_tempered_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0, 0.5, -5.0, 1.5])
    keys = [n.to_bytes(16, "little") for n in range(20_000)]
    for temperature, position in ((1.0, 0), (0.5, 3)):
        scores = sampled(temperature, keys, len(keys))(logits.repeat(len(keys), 1), position)
        counts = np.bincount(scores.argmax(1).numpy(), minlength=8)
        expected = (logits / temperature).softmax(0).double().numpy() * len(keys)
        large = expected > 5
        # 24.3 is exceeded once in 1000 sets of draws with 7 degrees of freedom; these draws are always the same
        assert chi_square(counts[large], expected[large]) < 24.3
        assert counts[~large].sum() < 15


def test_noise_is_gumbel_and_another_one_for_each_key_and_token() -> None:
    one, other = (n.to_bytes(16, "little") for n in (1, 2))
    noise = gumbel(one, 0, 100_000)
    assert abs(noise.mean() - np.euler_gamma) < 0.02 and abs(noise.std() - np.pi / 6**0.5) < 0.02
    assert np.array_equal(noise[:50], gumbel(one, 0, 50))
    for unlike in (gumbel(one, 1, 100_000), gumbel(other, 0, 100_000)):
        assert abs(np.corrcoef(noise, unlike)[0, 1]) < 0.02


def test_a_copy_that_fills_the_batch_has_its_originals_noise() -> None:
    scores = sampled(1.0, [b"a" * 16, b"b" * 16], 4)(torch.zeros(4, 9), 0)
    assert torch.equal(scores[1], scores[2]) and torch.equal(scores[1], scores[3])
    assert not torch.equal(scores[0], scores[1])


def test_samples_of_a_model_follow_its_distribution(loaded: Loaded) -> None:
    model = talker(TalkerParameters(spread=0.3))
    many = options(temperature=0.7, samples=2000, max_new_tokens=1, batch_size=250)
    made = respond(many, loaded([{"prompt": "say a", "completion": "b"}]), model).read()
    network, tokenizer = open_model(model.path)
    ids = torch.tensor([encode_prompt(tokenizer, [{"role": "user", "content": "say a"}], None)])
    with torch.inference_mode():
        probabilities = (network(ids).logits[0, -1] / 0.7).softmax(0).double().tolist()
    expected: Counter[str] = Counter()
    for token, probability in enumerate(probabilities):
        expected[tokenizer.decode([token], skip_special_tokens=True)] += 2000 * probability  # type: ignore[assignment]
    counts = Counter(made["completion"].to_pylist())
    common = [text for text in expected if expected[text] >= 5]
    rare = sum(expected.values()) - sum(expected[text] for text in common)
    seen = np.array([counts[text] for text in common] + [2000 - sum(counts[text] for text in common)])
    wanted = np.array([expected[text] for text in common] + [rare])
    freedom = len(wanted) - 1
    # mean and deviation of chi-square: freedom, sqrt(2 freedom); the bound is four deviations up
    assert freedom >= 10 and chi_square(seen, wanted) < freedom + 4 * (2 * freedom) ** 0.5
    assert made["sample"].to_pylist() == list(range(2000))


def test_the_same_prompt_with_the_same_seed_gets_the_same_response(loaded: Loaded, store: Path) -> None:
    model = talker(TalkerParameters())
    rows = loaded([*lines(6), {"prompt": "0", "completion": "another answer"}])
    drawn = respond(options(temperature=1.0), rows, model)
    first, *_, last = drawn.read().to_pylist()
    assert first["completion"] == last["completion"] and first["row_id"] != last["row_id"]
    assert first["content_id"] == last["content_id"] and remembered(store) == 6
    other = said(respond(options(temperature=1.0, seed=1), rows, model))
    assert sum(each[0] == said(drawn)[key][0] for key, each in other.items()) <= 1
    several = said(respond(options(temperature=1.0, samples=3), rows, model))
    assert {key: each for key, each in several.items() if key[1] == 0} == said(drawn)
    assert len({each[0] for each in several.values()}) > 12


# ---- rows of every kind ----


def test_a_response_is_a_new_row_that_knows_its_prompt(loaded: Loaded) -> None:
    rows = loaded(lines(9))
    made = respond(options(temperature=1.0, samples=2), rows, talker(TalkerParameters()))
    table, asked = made.read(), rows.read()
    assert contract_of(table.schema) == GENERATION
    assert table["prompt_id"].to_pylist() == [each for each in asked["row_id"].to_pylist() for _ in range(2)]
    assert table["sample"].to_pylist() == [0, 1] * 9
    assert set(table["source"].to_pylist()) == {"made"} and set(table["licence"].to_pylist()) == {"CC0-1.0"}
    assert table["content_id"].combine_chunks().equals(content_ids(table, GENERATION))
    edges = pq.read_table(made.path / "edges.parquet").to_pylist()
    parents = dict(zip(table["row_id"].to_pylist(), table["prompt_id"].to_pylist(), strict=True))
    assert {edge["child"]: edge["parent"] for edge in edges} == parents and len(edges) == 18
    measures = made.record["measures"]
    assert (measures["rows_in"], measures["rows_consumed"], measures["rows_created"]) == (9, 9, 18)
    assert measures["tokens"] == sum(table["tokens"].to_pylist())
    assert measures["share_ended"] == table["finish_reason"].to_pylist().count("stop") / 18


def test_preferences_are_answered_as_adpa_wants_them(loaded: Loaded) -> None:
    def turn(role: str, content: str) -> list[Line]:
        return [{"role": role, "content": content}]

    records = [
        {"prompt": turn("user", f"ask {n}"), "chosen": turn("assistant", "yes"), "rejected": turn("assistant", "no")}
        for n in range(24)
    ]
    rows, model = loaded(records, **PAIRS), talker(TalkerParameters())
    made = respond(options(), rows, model).read()
    assert "sample" not in made.column_names
    tokenizer = open_tokenizer(model.path)
    pairs, dropped = encode_responses(rows.read(), made, tokenizer, 400)
    learned = dict(zip(pairs["row_id"].to_pylist(), pairs["second_mask"].to_pylist(), strict=True))
    taught = {row["row_id"]: sum(learned.get(row["row_id"], [])) for row in made.to_pylist()}
    whole = [row for row in made.to_pylist() if row["finish_reason"] == "stop"]
    assert whole and all(taught[row["row_id"]] >= 1 for row in whole)
    for row in made.to_pylist():  # what was said, and an end where there was one
        assert taught[row["row_id"]] == len(row["completion"]) + (row["finish_reason"] == "stop")
    assert sum(map(len, dropped)) == 2 * sum(not each for each in taught.values())


def test_conversations_are_answered_without_their_last_answer(loaded: Loaded) -> None:
    user, reply = {"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "four"}
    called = {"role": "assistant", "content": None, "tool_calls": CALL}
    tool = {"role": "tool", "content": "4"}
    records = [
        {"messages": [user, reply], "tools": None},
        {"messages": [user], "tools": None},
        {"messages": [user, called, tool, reply], "tools": TOOLS},
        {"messages": [reply], "tools": None},
        {"messages": [user, reply, reply], "tools": None},
    ]
    rows = loaded(records, **TALKS)
    made = respond(options(max_length=900), rows, talker(TalkerParameters()))
    asked = [[turn["role"] for turn in row["prompt"]] for row in made.read().to_pylist()]
    assert asked == [["user"], ["user"], ["user", "assistant", "tool"]]
    completions = made.read()["completion"].to_pylist()
    assert completions[0] == completions[1]
    assert [tools is None for tools in made.read()["tools"].to_pylist()] == [True, True, False]
    dropped = pq.read_table(made.path / "dropped.parquet").to_pylist()
    assert [each["reason"] for each in dropped] == ["no turn to answer"] * 2
    places = [rows.read()["row_id"].to_pylist().index(each["row_id"]) for each in dropped]
    assert sorted(places) == [3, 4]


def test_texts_are_prompts_of_a_user(loaded: Loaded) -> None:
    model = talker(TalkerParameters())
    texts = respond(options(), loaded([{"text": "say a"}], layout="unlabelled"), model)
    pairs = respond(options(), loaded([{"prompt": "say a", "completion": "b"}], "other"), model)
    assert texts.read()["content_id"].to_pylist() == pairs.read()["content_id"].to_pylist()


def test_a_prompt_that_cannot_be_rendered_fails_and_is_kept_on_record(loaded: Loaded, store: Path) -> None:
    user = {"role": "user", "content": "2 + 2"}
    rows = loaded([{"messages": [user], "tools": None}, {"messages": [user], "tools": "[{"}], **TALKS)
    made = respond(options(), rows, talker(TalkerParameters()))
    [failed] = pq.read_table(made.path / "failed.parquet").to_pylist()
    assert failed["row_id"] == rows.read()["row_id"][1].as_py() and "JSON" in failed["error"]
    assert made.rows == 1 and made.record["measures"]["rows_failed"] == 1


# ---- limits ----


def test_longer_prompts_are_dropped_with_their_length(loaded: Loaded) -> None:
    rows = loaded([{"prompt": "a" * count, "completion": "b"} for count in (1, 50, 90)])
    model = talker(TalkerParameters())
    lengths = [
        len(encode_prompt(open_tokenizer(model.path), [{"role": "user", "content": "a" * count}], None))
        for count in (1, 50, 90)
    ]
    made = respond(options(max_length=lengths[1]), rows, model)
    [dropped] = pq.read_table(made.path / "dropped.parquet").to_pylist()
    assert dropped["row_id"] == rows.read()["row_id"][2].as_py()
    assert (dropped["reason"], dropped["score"]) == ("prompt longer than max_length", lengths[2])
    assert made.rows == 2
    with pytest.raises(BadInput, match="none with a prompt of at most 8 tokens"):
        respond(options(max_length=8), rows, model)


def test_a_response_within_the_limit_is_the_beginning_of_a_longer_one(loaded: Loaded) -> None:
    rows, model = loaded(lines(20)), talker(TalkerParameters())
    short, long = (said(respond(options(max_new_tokens=count), rows, model)) for count in (5, 24))
    assert any(reason == "length" for _, reason, _ in short.values())
    for key, (completion, reason, tokens) in short.items():
        assert long[key][0].startswith(completion) and tokens <= 5
        assert (reason == "stop") == (long[key][2] <= 5 and long[key][1] == "stop")


def test_what_does_not_fit_into_the_model_is_refused(loaded: Loaded) -> None:
    with pytest.raises(BadInput, match="for a model that reads 1,024"):
        respond(options(max_length=1001), loaded(lines(2)), talker(TalkerParameters()))


def test_several_greedy_samples_are_refused() -> None:
    with pytest.raises(ValidationError, match="at temperature 0 are one"):
        options(samples=2)


# ---- the memo ----


def test_a_second_run_makes_no_passes(loaded: Loaded, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, rows = talker(TalkerParameters()), loaded(lines(20))
    made = respond(options(), rows, model)
    digest, computed = made.digest, segments(store)
    shutil.rmtree(made.path)
    (model.path / "model.safetensors").unlink()  # a pass would have to open it
    open_model.cache_clear()
    assert respond(options(), rows, model).digest == digest and segments(store) == computed
    turned = respond(options(), loaded(lines(20)[::-1], "turned"), model)
    assert said(turned) == said(respond(options(), rows, model)) and segments(store) == computed
    with pytest.raises(OSError, match="safetensors"):
        respond(options(), loaded(lines(21), "more"), model)
    assert "20 of 21 rows are remembered" in capsys.readouterr().err


def test_only_new_prompts_are_computed(loaded: Loaded, store: Path) -> None:
    model = talker(TalkerParameters())
    respond(options(), loaded(lines(20)), model)
    assert remembered(store) == 20
    respond(options(), loaded(lines(23), "more"), model)
    assert remembered(store) == 23
    same = loaded([line | {"completion": "no"} for line in lines(23)], "other answers")
    assert respond(options(), same, model).rows == 23 and remembered(store) == 23


def test_another_model_is_asked_anew(loaded: Loaded, store: Path) -> None:
    rows = loaded(lines(12))
    one, other = (said(respond(options(), rows, talker(TalkerParameters(seed=seed)))) for seed in (0, 1))
    assert remembered(store) == 24
    assert all(one[key] != other[key] for key in one)
