"""A model's own responses: how far it went from its base, and a teacher's advantage in both of its readings."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.artifact import Artifact
from data.contracts import GENERATION
from data.errors import BadInput
from infra.settings import use_settings
from infra.shards import stop_ray
from infra.store import current_store
from tasks.evaluate.evaluate_responses import EvaluateResponsesParameters, evaluate_responses
from tests.tasks.train.small import (
    Family,
    GivenParameters,
    byte_tokenizer,
    given,
    preferences,
    rows_of,
    turns,
    write_base,
)

pytestmark = pytest.mark.usefixtures("shelf")

FEW = EvaluateResponsesParameters(batch_size=4, max_length=128, draws=500)


def said(count: int = 10) -> list[dict[str, Any]]:
    """Responses of different lengths, of which every third was cut off."""
    return [
        {
            "prompt": turns("say " + "?" * (n % 7)),
            "completion": "ab" * (1 + n % 9) + str(n),
            "finish_reason": "length" if n % 3 == 2 else "stop",
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def rows(shelf: None, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return rows_of(tmp_path_factory.mktemp("rows") / "said", said(), GENERATION)


@pytest.fixture(scope="module")
def scored(rows: Artifact, models: Family) -> Artifact:
    return evaluate_responses(FEW, rows, models.student, models.reference, [models.teacher, models.reference])


def lines(artifact: Artifact) -> dict[str, dict[str, Any]]:
    """The lines of `responses`, by the row's id."""
    return {str(line.pop("row_id")): line for line in artifact["responses"].read().to_pylist()}


@cache
def opened(folder: Path) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()


def logs_of(model: Artifact, row: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (k, vocabulary) where a response is predicted, and its tokens (k,): one row, alone."""
    tokenizer, network = opened(model.path)
    asked = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
    answered = tokenizer.encode(row["completion"], add_special_tokens=False)
    if row["finish_reason"] == "stop":
        answered = [*answered, tokenizer.eos_token_id]
    with torch.inference_mode():
        logs = network(torch.tensor([[*asked, *answered]])).logits[0].double().log_softmax(-1)
    return logs[len(asked) - 1 : -1], torch.tensor(answered)


def test_divergence_and_advantage_are_those_of_plain_forwards(rows: Artifact, models: Family, scored: Artifact) -> None:
    found = lines(scored)
    assert list(found) == [str(each) for each in rows.read()["row_id"].to_pylist()]
    for row in rows.read().to_pylist():
        line = found[str(row["row_id"])]
        (p, tokens), (q, _), (r, _) = (
            logs_of(each, row) for each in (models.student, models.teacher, models.reference)
        )
        assert line["tokens"] == len(tokens)
        assert line["finished"] is (row["finish_reason"] == "stop")
        assert line["kl"] == pytest.approx(float((p.exp() * (p - r)).sum(1).mean()), rel=1e-4)
        assert line["advantage"] == pytest.approx(float((p.exp() * (q - r)).sum(1).mean()), rel=1e-3, abs=1e-6)
        taken = (q - r).gather(1, tokens[:, None])
        assert line["taken"] == pytest.approx(float(taken.mean()), rel=1e-3, abs=1e-6)


def test_the_ratios_of_tokens_add_up_to_that_of_the_response(rows: Artifact, models: Family, scored: Artifact) -> None:
    for row in rows.read().to_pylist():
        line = lines(scored)[str(row["row_id"])]
        (q, tokens), (r, _) = (logs_of(each, row) for each in (models.teacher, models.reference))
        whole = [float(each.gather(1, tokens[:, None]).sum()) for each in (q, r)]
        assert line["taken"] * line["tokens"] == pytest.approx(whole[0] - whole[1], rel=1e-3, abs=1e-5)


def test_an_advantage_is_a_difference_of_divergences(rows: Artifact, models: Family, scored: Artifact) -> None:
    """-advantage = KL(model || teacher) - KL(model || reference)."""
    to_reference = lines(scored)
    to_teacher = lines(evaluate_responses(FEW, rows, models.student, models.teacher, []))
    for row, line in to_reference.items():
        assert -line["advantage"] == pytest.approx(to_teacher[row]["kl"] - line["kl"], abs=1e-5)
    assert any(abs(line["advantage"]) > 1e-3 for line in to_reference.values())


def test_a_teacher_has_an_advantage_where_it_speaks_itself(rows: Artifact, models: Family) -> None:
    """Of the teacher's own distribution the advantage is its divergence from the reference, and never negative."""
    own = evaluate_responses(FEW, rows, models.teacher, models.reference, [models.teacher, models.reference])
    for line in lines(own).values():
        assert line["advantage"] == line["kl"] > 0


def test_measures_are_those_of_the_table(scored: Artifact) -> None:
    found, measures = list(lines(scored).values()), scored.record["measures"]
    assert (measures["responses"], measures["responses_not_asked"]) == (10, 0)
    assert measures["finished"] == pytest.approx(0.7)
    assert measures["tokens"] == pytest.approx(np.mean([each["tokens"] for each in found]))
    for name in ("kl", "advantage", "taken"):
        assert measures[name] == pytest.approx(np.mean([each[name] for each in found]))
    for name in ("kl", "advantage"):
        assert measures[f"{name}_low"] < measures[name] < measures[f"{name}_high"]
    assert measures["rows_in"] == 0  # the responses are a reference: not used up


def test_without_teachers_there_is_no_advantage_and_a_model_is_not_far_from_itself(
    rows: Artifact, models: Family
) -> None:
    made = evaluate_responses(FEW, rows, models.student, models.student, [])
    assert {(line["advantage"], line["taken"], line["kl"]) for line in lines(made).values()} == {(None, None, 0.0)}
    measures = made.record["measures"]
    assert (measures["kl"], measures["kl_low"], measures["kl_high"]) == (0, 0, 0)
    assert "advantage" not in measures
    assert "taken" not in measures


def test_teachers_that_are_one_have_no_advantage(rows: Artifact, models: Family) -> None:
    made = evaluate_responses(FEW, rows, models.student, models.student, [models.teacher, models.teacher])
    assert {(line["advantage"], line["taken"]) for line in lines(made).values()} == {(0.0, 0.0)}


def test_a_response_has_the_same_bits_alone_and_among_others(models: Family, scored: Artifact, tmp_path: Path) -> None:
    together = lines(scored)
    for n in (0, 4, 9):
        one = rows_of(tmp_path / str(n), said()[n : n + 1], GENERATION)
        alone = evaluate_responses(FEW, one, models.student, models.reference, [models.teacher, models.reference])
        [(row, line)] = lines(alone).items()
        assert together[row] == line


def test_a_response_has_the_same_numbers_in_batches_of_another_size(
    rows: Artifact, models: Family, scored: Artifact
) -> None:
    seven = FEW.model_copy(update={"batch_size": 7})
    others = lines(
        evaluate_responses(seven, rows, models.student, models.reference, [models.teacher, models.reference])
    )
    for row, line in lines(scored).items():
        numbers = {name: pytest.approx(line[name], rel=1e-3, abs=1e-5) for name in ("kl", "advantage", "taken")}
        assert others[row] == line | numbers


@pytest.mark.heavy
def test_responses_do_not_depend_on_the_number_of_workers(models: Family, tmp_path: Path) -> None:
    many, teachers = rows_of(tmp_path / "many", said(150), GENERATION), [models.teacher, models.reference]
    here = evaluate_responses(FEW, many, models.student, models.reference, teachers)
    try:
        with use_settings(store=tmp_path / "other", workers=2, ray_min_seconds=0.0, device="cpu"):
            current_store().prepare()
            there = evaluate_responses(FEW, many, models.student, models.reference, teachers)
            import ray

            assert ray.is_initialized()
    finally:
        stop_ray()
    assert there.path != here.path
    assert there.fingerprint == here.fingerprint
    assert there["responses"].digest == here["responses"].digest


def test_samples_of_one_prompt_count_as_one_draw(models: Family, tmp_path: Path) -> None:
    """Four samples of each of five prompts tell less than twenty prompts."""
    ids = rows_of(tmp_path / "prompts", preferences(5)).read()["row_id"].to_pylist()
    twenty = [each | {"prompt": turns("say")} for each in said(20)]
    grouped = [each | {"prompt_id": ids[n // 4]} for n, each in enumerate(twenty)]
    together = evaluate_responses(
        FEW, rows_of(tmp_path / "grouped", grouped, GENERATION), models.student, models.reference, []
    )
    apart = evaluate_responses(
        FEW, rows_of(tmp_path / "apart", twenty, GENERATION), models.student, models.reference, []
    )
    assert lines(together).keys() == lines(apart).keys()
    assert together.record["measures"]["kl"] == apart.record["measures"]["kl"]
    assert together.record["measures"]["kl_low"] != apart.record["measures"]["kl_low"]


def test_responses_that_are_too_long_or_empty_are_not_scored_and_counted(models: Family, tmp_path: Path) -> None:
    nothing = {"prompt": turns("q"), "completion": "", "finish_reason": "length"}
    long = {"prompt": turns("q"), "completion": "x" * 200, "finish_reason": "stop"}
    end_alone = {"prompt": turns("q"), "completion": "", "finish_reason": "stop"}
    mixed = rows_of(tmp_path / "mixed", [*said(3), nothing, long, end_alone], GENERATION)
    made = evaluate_responses(FEW, mixed, models.student, models.reference, [])
    ids = [str(each) for each in mixed.read()["row_id"].to_pylist()]
    assert list(lines(made)) == [*ids[:3], ids[5]]
    assert lines(made)[ids[5]]["tokens"] == 1
    assert (made.record["measures"]["responses"], made.record["measures"]["responses_not_asked"]) == (4, 2)
    with pytest.raises(BadInput, match="2 responses, none with a token and within 128 tokens"):
        evaluate_responses(
            FEW, rows_of(tmp_path / "none", [nothing, long], GENERATION), models.student, models.reference, []
        )


def test_some_responses_are_those_of_the_lowest_ids(rows: Artifact, models: Family, scored: Artifact) -> None:
    made = evaluate_responses(FEW.model_copy(update={"rows": 4}), rows, models.student, models.reference, [])
    assert sorted(lines(made)) == sorted(lines(scored))[:4]


def test_what_does_not_fit_is_refused(rows: Artifact, models: Family, tmp_path: Path) -> None:
    pairs = rows_of(tmp_path / "pairs", preferences(3))
    with pytest.raises(BadInput, match="rows of the contract preference"):
        evaluate_responses(FEW, pairs, models.student, models.reference, [])
    with pytest.raises(BadInput, match="1 models as teachers"):
        evaluate_responses(FEW, rows, models.student, models.reference, [models.teacher])
    with pytest.raises(BadInput, match="of different origin"):
        evaluate_responses(FEW, rows, models.student, models.reference, [models.teacher, models.student])
    other = byte_tokenizer()
    other.add_tokens(["ab"])
    stranger = given(GivenParameters(path=str(write_base(tmp_path / "stranger", other))))
    with pytest.raises(BadInput, match="model and base with different tokens"):
        evaluate_responses(FEW, rows, models.student, stranger, [])


def test_the_table_has_its_columns_with_and_without_teachers(rows: Artifact, models: Family, scored: Artifact) -> None:
    without = evaluate_responses(FEW, rows, models.student, models.student, [])
    assert scored["responses"].schema == without["responses"].schema
    assert scored["responses"].schema.names == ["row_id", "tokens", "finished", "kl", "advantage", "taken"]
    assert scored["responses"].schema.field("advantage").type == pa.float64()
