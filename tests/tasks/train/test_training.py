"""What trainings share: low-rank matrices that are merged, and a stop where a loss breaks, for real."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from data.artifact import Artifact
from data.contracts import MESSAGES
from data.errors import BadInput
from infra.store import current_store
from tasks.train import adpa, dpo, sft
from tasks.train.checkpoints import ENOUGH, QUIET, highest, newest_checkpoint
from tasks.train.models import load_model, load_tokenizer
from tasks.train.training import LoraParameters, TrainingParameters, adapted
from tests.tasks.train.small import (
    Family,
    Trained,
    byte_tokenizer,
    contents,
    preferences,
    responses_to,
    rows_of,
    trained,
    turns,
    write_base,
)

SMALL = {"batch_size": 4, "max_length": 64, "checkpoint_every": 1, "threads": 1, "warmup": 0}


@pytest.fixture(scope="module")
def pairs(shelf: None, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return rows_of(tmp_path_factory.mktemp("rows") / "pairs", preferences(12))


@pytest.fixture(scope="module")
def talks(shelf: None, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    records = [{"messages": turns("say " + "?" * n, "x" * (n % 5) + str(n))} for n in range(12)]
    return rows_of(tmp_path_factory.mktemp("talks") / "talks", records, MESSAGES)


# ---- low-rank matrices ----


def low_rank(folder: Path, method: str, base: Path, pairs: Artifact, talks: Artifact, **changes: Any) -> Trained:
    lora = LoraParameters(rank=2, alpha=8.0)
    settings = SMALL | {"lora": lora, "learning_rate": 1e-2, "max_steps": 4} | changes
    if method == "sft":
        return trained(sft.fit, folder, sft.SftParameters(**settings), talks, base)
    return trained(dpo.fit, folder, dpo.DpoParameters(beta=0.1, **settings), pairs, base)


METHODS = pytest.mark.parametrize("method", ["sft", "dpo"])


@METHODS
def test_only_low_rank_matrices_are_trained(
    method: str, models: Family, pairs: Artifact, talks: Artifact, tmp_path: Path
) -> None:
    run = low_rank(tmp_path, method, models.student.path, pairs, talks)
    before = load_file(models.student.path / "model.safetensors")
    assert run.weights.keys() == before.keys()
    moved = {name for name, weight in run.weights.items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if "_proj" in name}
    for name in moved:
        steps = torch.linalg.svdvals((run.weights[name] - before[name]).double())
        assert steps[2] < 1e-4 * steps[0], f"{name} moved by more than two dimensions"


@METHODS
def test_the_merged_model_says_what_base_and_adapter_say(
    method: str, models: Family, pairs: Artifact, talks: Artifact, tmp_path: Path
) -> None:
    run = low_rank(tmp_path, method, models.student.path, pairs, talks)
    assert {file.name for file in (run.model / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    merged = AutoModelForCausalLM.from_pretrained(run.model).eval()
    base = AutoModelForCausalLM.from_pretrained(models.student.path).eval()
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        alone = base(ids).logits.clone()
        both = PeftModel.from_pretrained(base, run.model / "adapter").eval()(ids).logits
        torch.testing.assert_close(merged(ids).logits, both, rtol=1e-4, atol=1e-4)
        assert (both - alone).abs().max() > 0.1


@METHODS
def test_no_path_is_in_an_adapter(
    method: str, models: Family, pairs: Artifact, talks: Artifact, tmp_path: Path
) -> None:
    run = low_rank(tmp_path, method, models.student.path, pairs, talks)
    for name, content in contents(run.model).items():
        for path in (tmp_path, models.student.path):
            assert str(path).encode() not in content, name


class Stop(Exception):
    pass


@METHODS
def test_a_resumed_training_of_an_adapter_ends_in_the_same_bytes(
    method: str, models: Family, pairs: Artifact, talks: Artifact, tmp_path: Path
) -> None:
    whole = low_rank(tmp_path / "whole", method, models.student.path, pairs, talks)
    base = models.student.path
    stopped, settings = tmp_path / "stopped", SMALL | {"learning_rate": 1e-2, "max_steps": 4}

    def stop(step: int, total: int, loss: float) -> None:
        if step == 3:
            raise Stop

    lora = LoraParameters(rank=2, alpha=8.0)
    with pytest.raises(Stop):
        if method == "sft":
            trained(sft.fit, stopped, sft.SftParameters(lora=lora, **settings), talks, base, on_step=stop)
        else:
            trained(dpo.fit, stopped, dpo.DpoParameters(beta=0.1, lora=lora, **settings), pairs, base, on_step=stop)
    assert newest_checkpoint(stopped / "checkpoints") == stopped / "checkpoints" / "checkpoint-2"
    again = low_rank(stopped, method, base, pairs, talks)
    assert contents(again.model) == contents(whole.model)


def test_named_modules_alone_are_adapted(models: Family, pairs: Artifact, talks: Artifact, tmp_path: Path) -> None:
    lora = LoraParameters(rank=1, targets=("q_proj", "v_proj"))
    run = low_rank(tmp_path, "sft", models.student.path, pairs, talks, lora=lora)
    before = load_file(models.student.path / "model.safetensors")
    moved = {name.split(".")[-2] for name, weight in run.weights.items() if not torch.equal(weight, before[name])}
    assert moved == {"q_proj", "v_proj"}


def test_a_name_that_no_module_has_is_refused_with_those_that_there_are(
    models: Family, pairs: Artifact, talks: Artifact, tmp_path: Path
) -> None:
    lora = LoraParameters(targets=("query",))
    with pytest.raises(BadInput, match="query") as caught:
        low_rank(tmp_path, "dpo", models.student.path, pairs, talks, lora=lora)
    assert "q_proj" in caught.value.wanted
    assert caught.value.remedy == "correct lora.targets"


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_head_and_the_embedding_are_not_adapted(target: str, tied: bool, tmp_path: Path) -> None:
    base = write_base(tmp_path, byte_tokenizer(), tie_word_embeddings=tied)
    model = load_model(base, load_tokenizer(base), seed=0)
    with pytest.raises(BadInput, match="the embedding or the head"):
        adapted(model, TrainingParameters(lora=LoraParameters(targets=("q_proj", target))))


# ---- a loss that breaks ----


def test_a_loss_that_is_no_number_stops_the_stage_and_publishes_no_model(models: Family, pairs: Artifact) -> None:
    parameters = dpo.DpoParameters(**(SMALL | {"batch_size": 3, "learning_rate": 1e38}))
    with pytest.raises(BadInput, match="at step 2, with the rows") as caught:
        dpo.dpo(parameters, pairs, models.student)
    found = caught.value.found
    assert found.startswith(("loss = nan", "grad_norm = nan"))
    assert "the last good checkpoint is" in found and "checkpoint-1" in found
    assert "lower the learning rate" in caught.value.remedy
    named = [str(each) for each in pairs.read(["row_id"])["row_id"].to_pylist() if str(each) in found]
    assert len(named) == 3
    assert not list(current_store().artifacts("dpo"))


def test_the_rows_of_the_step_that_broke_are_written_down(models: Family, pairs: Artifact, tmp_path: Path) -> None:
    responses = responses_to(tmp_path / "said", pairs, lambda n: "z" * (n % 6) + "y")
    parameters = adpa.AdpaParameters(**(SMALL | {"batch_size": 12, "micro_batch_size": 3, "learning_rate": 1e38}))
    inputs = (pairs, responses, models.student.path, [models.teacher, models.reference])
    with pytest.raises(BadInput, match="at step 2") as caught:
        trained(adpa.fit, tmp_path / "run", parameters, *inputs)
    assert "and 4 more" in caught.value.found
    note = json.loads((tmp_path / "run" / "stopped.json").read_text())
    assert (note["step"], note["checkpoint"]) == (2, "checkpoint-1")
    assert sorted(note["rows"]) == sorted(map(str, responses.read(["row_id"])["row_id"].to_pylist()))
    assert not (tmp_path / "run" / "out" / "model.safetensors").exists()


def test_a_spike_stops_the_training_and_names_the_row(models: Family, tmp_path: Path) -> None:
    """All rows say the same but one, which comes by again after the others are learned."""
    records = [{"messages": turns(f"say {n}", "a")} for n in range(40)]
    records[17] = {"messages": turns("say 17", "%=#@!~")}
    rows = rows_of(tmp_path / "rows", records, MESSAGES)
    odd = str(rows.read(["row_id"])["row_id"].to_pylist()[17])
    settings = SMALL | {"batch_size": 1, "epochs": 4, "learning_rate": 3e-3, "checkpoint_every": 20}

    def run(name: str, spike: float | None) -> Trained:
        return trained(sft.fit, tmp_path / name, sft.SftParameters(spike=spike, **settings), rows, models.student.path)

    with pytest.raises(BadInput, match="a spike at step") as caught:
        run("watched", 10.0)
    note = json.loads((tmp_path / "watched" / "stopped.json").read_text())
    assert note["rows"] == [odd]
    assert odd in caught.value.found
    assert note["step"] > ENOUGH
    last_good = newest_checkpoint(tmp_path / "watched" / "checkpoints")
    assert last_good is not None and note["checkpoint"] == last_good.name
    assert int(last_good.name.partition("-")[2]) < note["step"], "the step that broke is in no checkpoint"
    assert not (tmp_path / "watched" / "out" / "model.safetensors").exists()
    history = run("unwatched", None).history["loss"]
    assert len(history) == 160
    assert history[note["step"] - 1] > 1


def test_what_is_usual_is_judged_by_the_median() -> None:
    assert highest([1.0] * (ENOUGH - 1), 10) == float("inf")
    assert highest([1.0] * ENOUGH, 10) == pytest.approx(1 + 10 * QUIET)
    assert highest([1.0, 3.0] * ENOUGH, 10) == pytest.approx(2 + 10 * 1.4826)
    assert highest([1.0] * ENOUGH + [1e6], 10) == pytest.approx(1 + 10 * QUIET), "one outlier moves it by nothing"
