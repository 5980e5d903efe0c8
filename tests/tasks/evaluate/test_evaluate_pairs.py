"""Implicit rewards on held-out pairs: what a plain forward says, and the laws of a margin."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.artifact import Artifact
from data.contracts import GENERATION
from data.errors import BadInput
from infra.settings import use_settings
from infra.shards import stop_ray
from infra.store import current_store
from tasks.evaluate.evaluate_pairs import EvaluatePairsParameters, evaluate_pairs
from tests.tasks.train.small import (
    ChangedParameters,
    Family,
    GivenParameters,
    answer,
    byte_tokenizer,
    changed,
    given,
    preferences,
    rows_of,
    turns,
    write_base,
)

pytestmark = pytest.mark.usefixtures("shelf")

FEW = EvaluatePairsParameters(batch_size=4, max_length=128, draws=500)
NUMBERS = ("chosen", "rejected", "chosen_base", "rejected_base", "kl")


@pytest.fixture(scope="module")
def rows(shelf: None, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return rows_of(tmp_path_factory.mktemp("rows") / "pairs", preferences(14))


@pytest.fixture(scope="module")
def scored(rows: Artifact, models: Family) -> Artifact:
    return evaluate_pairs(FEW, rows, models.teacher, models.reference)


def lines(artifact: Artifact) -> dict[str, dict[str, Any]]:
    """The lines of `pairs`, by the row's id."""
    return {str(line.pop("row_id")): line for line in artifact["pairs"].read().to_pylist()}


@cache
def opened(folder: Path) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()


def logs_of(model: Artifact, turned: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (k, vocabulary) where an answer is predicted, and its tokens (k,): one row, alone."""
    tokenizer, network = opened(model.path)
    asked = tokenizer.apply_chat_template(turned[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
    said = tokenizer.encode(turned[-1]["content"], add_special_tokens=False)
    ids = [*asked, *said, tokenizer.eos_token_id]
    with torch.inference_mode():
        logs = network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return logs[len(asked) - 1 : -1], torch.tensor(ids[len(asked) :])


def test_sums_are_those_of_a_plain_forward(rows: Artifact, models: Family, scored: Artifact) -> None:
    found = lines(scored)
    assert list(found) == [str(each) for each in rows.read()["row_id"].to_pylist()]
    for row in rows.read().to_pylist():
        line = found[str(row["row_id"])]
        for side in ("chosen", "rejected"):
            model, tokens = logs_of(models.teacher, row["prompt"] + row[side])
            base, _ = logs_of(models.reference, row["prompt"] + row[side])
            assert line[f"{side}_tokens"] == len(tokens) == len(row[side][0]["content"]) + 1
            assert line[side] == pytest.approx(float(model.gather(1, tokens[:, None]).sum()), rel=1e-5)
            assert line[f"{side}_base"] == pytest.approx(float(base.gather(1, tokens[:, None]).sum()), rel=1e-5)
            if side == "chosen":
                divergence = (model.exp() * (model - base)).sum(1).mean()
                assert line["kl"] == pytest.approx(float(divergence), rel=1e-4)
    assert all(line["kl"] > 0 for line in found.values())


def test_measures_are_those_of_the_table(scored: Artifact) -> None:
    found = list(lines(scored).values())
    margins = [x["chosen"] - x["chosen_base"] - x["rejected"] + x["rejected_base"] for x in found]
    measures = scored.record["measures"]
    assert (measures["pairs"], measures["pairs_not_asked"]) == (14, 0)
    assert measures["margin"] == pytest.approx(np.mean(margins))
    assert measures["accuracy"] == pytest.approx(np.mean([each > 0 for each in margins]))
    assert measures["kl"] == pytest.approx(np.mean([each["kl"] for each in found]))
    assert measures["likelihood_accuracy"] == pytest.approx(np.mean([x["chosen"] > x["rejected"] for x in found]))
    each = [x["chosen"] / x["chosen_tokens"] > x["rejected"] / x["rejected_tokens"] for x in found]
    assert measures["likelihood_accuracy_per_token"] == pytest.approx(np.mean(each))
    for name in ("accuracy", "margin", "kl"):
        assert measures[f"{name}_low"] <= measures[name] <= measures[f"{name}_high"]
    assert measures["margin_low"] < measures["margin_high"]
    assert measures["rows_in"] == 0  # the pairs are a reference: not used up


def test_a_model_over_itself_has_no_rewards(rows: Artifact, models: Family) -> None:
    same = evaluate_pairs(FEW, rows, models.student, models.student)
    measures = same.record["measures"]
    assert [measures[f"accuracy{end}"] for end in ("", "_low", "_high")] == [0.5, 0.5, 0.5]
    assert [measures[f"{name}{end}"] for name in ("margin", "kl") for end in ("", "_low", "_high")] == [0.0] * 6
    assert 0 < measures["likelihood_accuracy"] < 1  # which it has without any training


def test_swapped_sides_turn_margins_around(models: Family, scored: Artifact, tmp_path: Path) -> None:
    given_pairs = [each | {"mark": n} for n, each in enumerate(preferences(14))]
    swapped = [each | {"chosen": each["rejected"], "rejected": each["chosen"]} for each in given_pairs]
    other = evaluate_pairs(FEW, rows_of(tmp_path / "swapped", swapped), models.teacher, models.reference)
    for one, two in zip(lines(scored).values(), lines(other).values(), strict=True):
        assert (one["chosen"], one["rejected_base"]) == (two["rejected"], two["chosen_base"])
    mine, others = scored.record["measures"], other.record["measures"]
    assert others["margin"] == pytest.approx(-mine["margin"])
    for name in ("accuracy", "likelihood_accuracy", "likelihood_accuracy_per_token", "shorter_accuracy"):
        assert others[name] == pytest.approx(1 - mine[name])


def test_baselines_of_length_count_by_hand(models: Family, tmp_path: Path) -> None:
    sizes = [(1, 3), (2, 3), (5, 2), (4, 4)]  # bytes, and with them tokens, of chosen and rejected
    pairs = [
        {"prompt": turns(f"q{n}"), "chosen": answer("c" * one), "rejected": answer("r" * other)}
        for n, (one, other) in enumerate(sizes)
    ]
    measures = evaluate_pairs(FEW, rows_of(tmp_path / "sizes", pairs), models.teacher, models.reference).record[
        "measures"
    ]
    assert (measures["shorter_accuracy"], measures["longer_accuracy"]) == (2.5 / 4, 1.5 / 4)


def test_a_pair_has_the_same_bits_alone_and_among_others(models: Family, scored: Artifact, tmp_path: Path) -> None:
    together = lines(scored)
    for n in (0, 5, 13):
        alone = evaluate_pairs(
            FEW, rows_of(tmp_path / str(n), preferences(14)[n : n + 1]), models.teacher, models.reference
        )
        [(row, line)] = lines(alone).items()
        assert together[row] == line


def test_a_pair_has_the_same_numbers_in_batches_of_another_size(
    rows: Artifact, models: Family, scored: Artifact
) -> None:
    others = lines(evaluate_pairs(FEW.model_copy(update={"batch_size": 3}), rows, models.teacher, models.reference))
    for row, line in lines(scored).items():
        assert others[row] == line | {name: pytest.approx(line[name], rel=1e-4, abs=1e-6) for name in NUMBERS}


@pytest.mark.heavy
def test_pairs_do_not_depend_on_the_number_of_workers(models: Family, tmp_path: Path) -> None:
    many = rows_of(tmp_path / "many", preferences(150))
    here = evaluate_pairs(FEW, many, models.teacher, models.reference)
    try:
        with use_settings(store=tmp_path / "other", workers=2, ray_min_seconds=0.0, device="cpu"):
            current_store().prepare()
            there = evaluate_pairs(FEW, many, models.teacher, models.reference)
            import ray

            assert ray.is_initialized()
    finally:
        stop_ray()
    assert there.path != here.path
    assert there.fingerprint == here.fingerprint
    assert there["pairs"].digest == here["pairs"].digest


def test_weights_in_bf16_say_about_the_same(rows: Artifact, models: Family, scored: Artifact) -> None:
    half = lines(evaluate_pairs(FEW.model_copy(update={"precision": "bf16"}), rows, models.teacher, models.reference))
    for row, line in lines(scored).items():
        assert half[row]["chosen"] != line["chosen"]
        assert half[row]["chosen"] == pytest.approx(line["chosen"], rel=0.05)


def test_pairs_that_are_too_long_are_not_asked_and_counted(models: Family, tmp_path: Path) -> None:
    long = {"prompt": turns("q"), "chosen": answer("x" * 200), "rejected": answer("y")}
    other = {"prompt": turns("q"), "chosen": answer("y"), "rejected": answer("x" * 200)}
    mixed = rows_of(tmp_path / "mixed", [*preferences(3), long, other])
    made = evaluate_pairs(FEW, mixed, models.teacher, models.reference)
    assert list(lines(made)) == [str(each) for each in mixed.read()["row_id"].to_pylist()[:3]]
    assert (made.record["measures"]["pairs"], made.record["measures"]["pairs_not_asked"]) == (3, 2)
    with pytest.raises(BadInput, match="2 held-out pairs, none with two answers within 128 tokens"):
        evaluate_pairs(FEW, rows_of(tmp_path / "long", [long, other]), models.teacher, models.reference)


def test_some_pairs_are_those_of_the_lowest_ids(rows: Artifact, models: Family, scored: Artifact) -> None:
    made = evaluate_pairs(FEW.model_copy(update={"rows": 5}), rows, models.teacher, models.reference)
    wanted = sorted(lines(scored))[:5]
    assert sorted(lines(made)) == wanted
    assert all(lines(made)[row] == lines(scored)[row] for row in wanted)


def test_rows_and_models_that_do_not_fit_are_refused(rows: Artifact, models: Family, tmp_path: Path) -> None:
    said = [{"prompt": turns("q"), "completion": "a", "finish_reason": "stop"}]
    with pytest.raises(BadInput, match="rows of the contract generation"):
        evaluate_pairs(FEW, rows_of(tmp_path / "said", said, GENERATION), models.teacher, models.reference)
    speaks_otherwise = byte_tokenizer()
    speaks_otherwise.add_tokens(["yes"])
    stranger = given(GivenParameters(path=str(write_base(tmp_path / "stranger", speaks_otherwise))))
    with pytest.raises(BadInput, match="model and base with different tokens"):
        evaluate_pairs(FEW, rows, models.teacher, stranger)


def test_a_padded_vocabulary_changes_nothing(rows: Artifact, models: Family, tmp_path: Path) -> None:
    """Rows of the head that are no token have no probability."""
    padded = Path(write_base(tmp_path / "padded", byte_tokenizer(), seed=1, hidden_size=48, vocab_size=320))
    base = given(GivenParameters(path=str(padded)))
    model = changed(ChangedParameters(seed=2), base)
    found = evaluate_pairs(FEW, rows, model, base)
    tokenizer, network = opened(model.path)
    known = len(tokenizer)
    assert network.get_output_embeddings().weight.shape[0] == 320 > known
    row = rows.read().to_pylist()[0]
    logs, tokens = logs_of(model, row["prompt"] + row["chosen"])
    wanted = logs[:, :known].log_softmax(-1).gather(1, tokens[:, None]).sum()
    assert lines(found)[str(row["row_id"])]["chosen"] == pytest.approx(float(wanted), rel=1e-5)
