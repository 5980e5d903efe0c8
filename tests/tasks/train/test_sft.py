"""SFT on tiny real models: what is learned, what a kill costs, and which bytes come out."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTTrainer
from trl.trainer.base_trainer import _BaseTrainer

from data.errors import BadInput
from tasks.train.chat import encode, prepare_tokenizer
from tasks.train.checkpoints import newest_checkpoint
from tasks.train.models import load_model, load_tokenizer
from tasks.train.sft import SftParameters, tokenise, train, with_labels
from tasks.train.training import HISTORY
from tests.tasks.train.small import REPOSITORY, byte_tokenizer, contents, template, write_base


def options(**changes: object) -> SftParameters:
    small = {
        "batch_size": 4,
        "micro_batch_size": 2,
        "epochs": 2,
        "learning_rate": 1e-2,
        "checkpoint_every": 1,
    }
    return SftParameters(threads=1, **(small | changes))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with dropout: two epochs of its 14 rows are eight steps, the fourth with two rows."""
    return write_base(tmp_path_factory.mktemp("base"), byte_tokenizer())


@pytest.fixture(scope="module")
def rows(base: Path) -> pa.Table:
    return table_of([encode(load_tokenizer(base, template()), talk(i), None, 64) for i in range(14)])


def talk(i: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": "say " + "?" * i},
        {"role": "assistant", "content": "x" * (i % 5) + str(i)},
    ]


def table_of(encoded: list[tuple[list[int], list[int]]]) -> pa.Table:
    ids = pa.array([each[0] for each in encoded], pa.list_(pa.int32()))
    masks = pa.array([e[1] for e in encoded], pa.list_(pa.int8()))
    return pa.table({"row_id": row_ids(len(encoded)), "input_ids": ids, "assistant_masks": masks})


def row_ids(count: int) -> pa.Array:
    return pa.array([number.to_bytes(16, "big") for number in range(count)], pa.binary(16)).cast(pa.uuid())


@pytest.fixture(scope="module")
def undisturbed(base: Path, rows: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("undisturbed")
    train(base, rows, work / "model", work / "checkpoints", options())
    return work


def test_the_output_opens_and_its_weights_moved(base: Path, undisturbed: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(undisturbed / "model")
    before, after = (
        load_file(base / "model.safetensors"),
        load_file(undisturbed / "model" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    for name, weight in after.items():
        old = before[name]
        assert weight.dtype == torch.float32
        assert not torch.equal(weight[: len(old)], old), f"{name} did not move"
    tokenizer = AutoTokenizer.from_pretrained(undisturbed / "model")
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert model.config.use_cache
    assert prepare_tokenizer(tokenizer, template()) == 0
    assert tokenizer.chat_template == load_tokenizer(undisturbed / "model").chat_template == template()


def test_only_what_from_pretrained_opens_and_the_history_come_out(undisturbed: Path) -> None:
    assert sorted(contents(undisturbed / "model")) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "history.parquet",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_last_two_checkpoints_are_kept_without_the_arguments(undisturbed: Path) -> None:
    folder = undisturbed / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-7", "checkpoint-8"]
    assert newest_checkpoint(folder) == folder / "checkpoint-8"
    pickles = {Path(name).name for name in contents(folder) if not name.endswith((".json", ".jinja", ".safetensors"))}
    assert pickles == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}


def test_the_history_has_every_step(undisturbed: Path) -> None:
    history = pq.read_table(undisturbed / "model" / "history.parquet")
    assert history.schema == HISTORY
    assert history["step"].to_pylist() == list(range(1, 9))
    epochs = [2 / 7, 4 / 7, 6 / 7, 1, 9 / 7, 11 / 7, 13 / 7, 2]  # of seven micro batches each
    assert history["epoch"].to_pylist() == pytest.approx(epochs)
    assert min(history["gradient_norm"].to_pylist()) > 0
    loss = history["loss"].to_pylist()
    assert loss[-1] < loss[0] - 1  # about ln 259 = 5.56 nats at the start


class Stop(Exception):
    pass


def stopping_at(last: int):  # noqa: ANN201
    def on_step(step: int, total: int, loss: float) -> None:
        if step == last:
            raise Stop

    return on_step


@pytest.mark.parametrize(
    ("every", "stopped", "resumed_from"),
    [
        pytest.param(1, 1, None, id="before any checkpoint"),
        pytest.param(1, 3, 2, id="in the first epoch"),
        pytest.param(1, 5, 4, id="between the epochs"),
        pytest.param(3, 6, 3, id="steps after the checkpoint are repeated"),
        pytest.param(1, 8, 7, id="in the second epoch"),
    ],
)
def test_a_resumed_training_ends_in_the_same_bytes(
    every: int,
    stopped: int,
    resumed_from: int | None,
    base: Path,
    rows: pa.Table,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    model, checkpoints, settings = (
        tmp_path / "model",
        tmp_path / "checkpoints",
        options(checkpoint_every=every),
    )
    with pytest.raises(Stop):
        train(base, rows, model, checkpoints, settings, stopping_at(stopped))
    newest = newest_checkpoint(checkpoints)
    assert newest == (resumed_from and checkpoints / f"checkpoint-{resumed_from}")
    steps: list[int] = []
    measures = train(base, rows, model, checkpoints, settings, lambda step, total, loss: steps.append(step))
    assert steps == list(range((resumed_from or 0) + 1, 9))
    assert contents(model) == contents(undisturbed / "model")
    assert measures["tokens_assistant"] == 2 * sum(map(sum, rows["assistant_masks"].to_pylist()))
    assert measures["tokens"] == 2 * sum(map(len, rows["input_ids"].to_pylist()))


def test_a_finished_training_is_only_written_again(base: Path, rows: pa.Table, tmp_path: Path) -> None:
    model, checkpoints, settings = tmp_path / "model", tmp_path / "checkpoints", options(max_steps=2)
    first = train(base, rows, model, checkpoints, settings)
    before = contents(model)
    shutil.rmtree(model)
    assert train(base, rows, model, checkpoints, settings, stopping_at(3)) == first
    assert contents(model) == before


KILLED = """
import sys
from pathlib import Path
import pyarrow.parquet as pq
from tasks.train.sft import SftParameters, train
base, work = map(Path, sys.argv[1:3])
settings = SftParameters.model_validate_json(sys.argv[3])
train(base, pq.read_table(work / "rows.parquet"), work / "model", work / "checkpoints", settings)
"""


def test_a_kill_while_a_checkpoint_is_written_leaves_no_half_checkpoint(
    base: Path, rows: pa.Table, undisturbed: Path, tmp_path: Path
) -> None:
    pq.write_table(rows, tmp_path / "rows.parquet")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, base, tmp_path, options().model_dump_json()],
        cwd=REPOSITORY,
        env=os.environ | {"STILLHOUSE_FAILPOINT": "checkpoint:3"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    checkpoints = tmp_path / "checkpoints"
    assert (checkpoints / ".partial-checkpoint-3" / "checkpoint-3" / "trainer_state.json").exists()
    assert newest_checkpoint(checkpoints) == checkpoints / "checkpoint-2"
    train(base, rows, tmp_path / "model", checkpoints, options())
    assert contents(tmp_path / "model") == contents(undisturbed / "model")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-7", "checkpoint-8"]


def test_two_folders_give_the_same_bytes_and_no_path_in_them(
    base: Path, rows: pa.Table, undisturbed: Path, tmp_path: Path
) -> None:
    elsewhere = shutil.copytree(base, tmp_path / "some" / "where")
    train(elsewhere, rows, tmp_path / "out", tmp_path / "checkpoints", options())
    assert contents(tmp_path / "out") == contents(undisturbed / "model")
    for name, content in contents(tmp_path / "out").items():
        for path in (tmp_path, base, undisturbed, REPOSITORY):
            assert str(path).encode() not in content, f"{name} names {path}"


def test_another_seed_gives_another_model(base: Path, rows: pa.Table, undisturbed: Path, tmp_path: Path) -> None:
    train(base, rows, tmp_path / "model", tmp_path / "checkpoints", options(seed=1, max_steps=2))
    losses = [pq.read_table(work / "model" / "history.parquet")["loss"][0] for work in (tmp_path, undisturbed)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_the_loss_is_in_nats_per_assistant_token(micro_batch: int | None, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", byte_tokenizer(**{"pad_token": "<|pad|>"}), attention_dropout=0.0)
    tokenizer = load_tokenizer(base, template())
    encoded = [encode(tokenizer, talk(i), None, 64) for i in range(12)]
    settings = options(batch_size=12, micro_batch_size=micro_batch, max_steps=1)
    measures = train(base, table_of(encoded), tmp_path / "model", tmp_path / "checkpoints", settings)

    model, nats, tokens = load_model(base, tokenizer, seed=0).eval(), 0.0, 0
    for ids, mask in encoded:
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for place in range(1, len(ids)):
            if mask[place]:
                nats -= float(log_p[place - 1, ids[place]])
                tokens += 1
    assert measures["loss"] == measures["loss_tail"] == pytest.approx(nats / tokens, rel=1e-5)
    assert (measures["steps"], measures["tokens_assistant"]) == (1, tokens)


def test_the_end_of_a_turn_is_trained_where_the_base_pads_with_it(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(**dict.fromkeys(["eos_token", "pad_token"], "<|im_end|>"))
    base = write_base(tmp_path / "base", tokenizer, tie_word_embeddings=False)
    encoded = [encode(load_tokenizer(base, template()), talk(i), None, 64) for i in range(4)]
    train(base, table_of(encoded), tmp_path / "model", tmp_path / "checkpoints", options(warmup=0))
    row, name = tokenizer.convert_tokens_to_ids("<|im_end|>"), "model.embed_tokens.weight"
    before, after = (load_file(folder / "model.safetensors")[name][row] for folder in (base, tmp_path / "model"))
    assert not torch.equal(before, after)


def test_bf16_is_autocast_only(base: Path, rows: pa.Table, undisturbed: Path, tmp_path: Path) -> None:
    settings = options(precision="bf16", gradient_checkpointing=True, max_steps=2, learning_rate=1e-6)
    train(base, rows, tmp_path / "model", tmp_path / "checkpoints", settings)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "model"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert after[name].dtype == torch.float32
    # a step of 1e-6 is below the spacing of bf16 around these weights: bf16 master weights would stand still
    assert not torch.equal(after[name], before[name])
    losses = [pq.read_table(work / "model" / "history.parquet")["loss"][0].as_py() for work in (tmp_path, undisturbed)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_a_loss_that_is_no_number_ends_the_training_before_its_checkpoint(
    base: Path, rows: pa.Table, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="at step 2") as caught:
        train(base, rows, tmp_path / "model", tmp_path / "checkpoints", options(learning_rate=1e38, warmup=0))
    assert "lower the learning rate" in caught.value.remedy
    assert newest_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "checkpoint-1"
    assert not (tmp_path / "model").exists()


def test_rows_cut_down_to_nothing_are_dropped_with_the_reason(base: Path) -> None:
    ids = [bytes([n]) * 16 for n in range(3)]
    asked = ["short", "long " * 20, "short"]
    rows = pa.table(
        {"row_id": pa.array(ids, pa.uuid()), "prompt": asked, "completion": ["yes", "no", "a long answer " * 20]}
    )
    tokens, dropped, cut = tokenise(rows, load_tokenizer(base), 64)
    assert [each.bytes for each in dropped["row_id"].to_pylist()] == [ids[1]]
    assert dropped["reason"].to_pylist() == ["nothing to learn within max_length"]
    assert (len(tokens), cut) == (2, 2)
    assert max(map(len, tokens["input_ids"].to_pylist())) == 64


def test_labels_stand_on_the_mask_alone_in_slices_too() -> None:
    encoded = [([5, 6, 7], [0, 1, 1]), ([1, 2], [0, 1]), ([3, 4, 5, 6], [0, 0, 1, 0])]
    whole = pa.concat_tables([table_of(encoded[:1]), table_of(encoded[1:])])
    assert with_labels(whole)["labels"].to_pylist() == [[-100, 6, 7], [-100, 2], [-100, -100, 5, -100]]
    assert with_labels(whole.slice(1)).to_pydict() == {
        "input_ids": [[1, 2], [3, 4, 5, 6]],
        "labels": [[-100, 2], [-100, -100, 5, -100]],
        "rows": [0, 1],
    }


@pytest.mark.parametrize(
    ("encoded", "found"),
    [
        ([], "no rows"),
        ([([1, 2], [0, 1]), ([1, 2], [0])], "1 rows, the first of them row 1, with a mask of another length"),
        (
            [([1, 2], [0, 1]), ([1, 2], [1, 0]), ([], [])],
            "2 rows, the first of them row 1, with no assistant token",
        ),
    ],
)
def test_rows_that_cannot_teach_are_refused(encoded: list[tuple[list[int], list[int]]], found: str) -> None:
    with pytest.raises(BadInput, match=found):
        with_labels(table_of(encoded))


def test_a_base_that_is_not_there_is_refused(rows: pa.Table, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no config\.json"):
        train(tmp_path, rows, tmp_path / "model", tmp_path / "checkpoints", options())


def test_a_micro_batch_divides_the_batch() -> None:
    with pytest.raises(ValidationError, match="batch_size is 4, micro_batch_size 3; wanted a divisor"):
        options(micro_batch_size=3)


def test_the_options_have_a_form() -> None:
    fields = SftParameters.model_json_schema()["properties"]
    assert all(field.get("description") for field in fields.values())
    json.dumps(fields)


def test_trl_still_has_what_we_turn_off() -> None:
    assert {"_send_telemetry", "create_model_card"} <= vars(_BaseTrainer).keys()
    assert "_save_checkpoint" in vars(SFTTrainer)


@pytest.mark.parametrize(("count", "batch"), [(14, 4), (7, 2), (16, 4), (3, 2)])
def test_a_number_of_steps_for_an_epoch_sets_the_batch(count: int, batch: int) -> None:
    fitted = options(steps_per_epoch=4, epochs=1).fitted(count)
    assert (fitted.batch_size, fitted.max_steps) == (batch, 4)
    assert options(steps_per_epoch=4, epochs=2.5).fitted(count).max_steps == 10
    assert options().fitted(count) == options()


def test_trainings_on_more_and_on_fewer_rows_take_the_same_steps(base: Path, rows: pa.Table, tmp_path: Path) -> None:
    for count in (14, 5):
        work = tmp_path / str(count)
        fitted = options(steps_per_epoch=3, epochs=1)
        assert train(base, rows.slice(0, count), work / "model", work / "checkpoints", fitted)["steps"] == 3
