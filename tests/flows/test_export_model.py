"""An exported model: plain transformers opens it and answers as the store's does; what its card says, and what not."""

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from data.artifact import Artifact
from data.errors import BadInput
from data.fingerprint import file_digest
from flows.__main__ import main
from infra.export import export
from infra.model_facts import is_model
from infra.settings import use_settings
from infra.stage import Measures, Parameters, Reference, stage
from infra.store import Store, current_store
from infra.work import Work
from tasks.curate.load import LoadParameters, load
from tasks.curate.split import SplitParameters, split
from tasks.evaluate.evaluate import EvaluateParameters, evaluate
from tasks.train.chat import encode_prompt
from tasks.train.dckd import DckdParameters, dckd
from tasks.train.passes import generate, open_model
from tasks.train.pretrained import PretrainedParameters, pretrained
from tasks.train.scratch import ScratchParameters, scratch
from tasks.train.sft import SftParameters, sft
from tasks.train.training import LoraParameters

PRIVATE = "jane-doe-private"
PROMPTS = [f"{a}+{b}" for a in range(4) for b in range(3)]
RUN = "20260101T000000-a"


class Made(NamedTuple):
    """What the store holds."""

    store: Store
    rows: Artifact
    start: Artifact  # drawn
    teacher: Artifact  # all weights trained, and evaluated
    student: Artifact  # LoRA, taught by the teacher
    scores: Artifact


def source(folder: Path, name: str, numbers: range, licence: str) -> dict[str, str]:
    rows = [
        {"prompt": f"{a}+{b}", "chosen": "abcdef"[a] * 3, "rejected": "fedcba"[a]} for a in numbers for b in range(6)
    ]
    path = folder / PRIVATE / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(path), "licence": licence, "layout": "preference"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Two sources; a tiny model that learnt them, its evaluation, and a student of it with LoRA."""
    folder = tmp_path_factory.mktemp("made")
    with use_settings(store=folder / "store", workers=1):
        sources = [source(folder, "low", range(4), "CC-BY-4.0"), source(folder, "high", range(4, 6), "Proprietary 1")]
        rows = split(SplitParameters(test_share=0.1), load(LoadParameters.model_validate({"sources": sources})))
        start = scratch(ScratchParameters(width=32, heads=2, feed_forward=64))
        some = SftParameters(max_steps=100, batch_size=16, learning_rate=1e-2, threads=1, seed=7, max_length=48)
        teacher = sft(some, rows["train"], start)
        scores = evaluate(EvaluateParameters(max_new_tokens=4), rows["test"], teacher)
        few = {"lora": LoraParameters(rank=8), "max_steps": 40, "batch_size": 16, "threads": 1, "max_length": 48}
        taught = DckdParameters.model_validate(few | {"learning_rate": 3e-2})
        student = dckd(taught, rows["train"], start, [teacher])
        yield Made(current_store(), rows, start, teacher, student, scores)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table_under(folder: Path, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading of the card, its own head left out."""
    text = (folder / "README.md").read_text(encoding="utf-8").partition(f"{heading}\n")[2]
    lines = re.search(r"(?:^\|.*\n)+", text, re.M)
    assert lines
    return [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in lines[0].splitlines()[2:]]


def facts(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "stillhouse.json").read_bytes())
    return read


PLAIN = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
told = {}
for folder in sys.argv[2:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    told[folder] = []
    for prompt in json.loads(sys.argv[1]):
        turns = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**ids, max_new_tokens=16)[0, ids["input_ids"].shape[1]:]
        told[folder].append([tokenizer.decode(made, skip_special_tokens=True), tokenizer.decode(made[-1:])])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def answers(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[str]]]:
    """What exported models answer transformers alone, in a process without Stillhouse: text, last token."""
    folders = {name: tmp_path_factory.mktemp("exported") / name for name in ("teacher", "student")}
    export(made.store, made.teacher, folders["teacher"])
    export(made.store, made.student, folders["student"])
    command = [sys.executable, "-I", "-c", PLAIN, json.dumps(PROMPTS), *map(str, folders.values())]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return {name: told[str(folder)] for name, folder in folders.items()}


def own_answers(model: Artifact) -> list[str]:
    network, tokenizer = open_model(model.path)
    turns = ([{"role": "user", "content": prompt}] for prompt in PROMPTS)
    return generate(network, tokenizer, [encode_prompt(tokenizer, each, None) for each in turns], len(PROMPTS), 16)


# ---- what transformers reads ----


def test_plain_transformers_answers_as_the_store_does_and_stops(
    made: Made, answers: dict[str, list[list[str]]]
) -> None:
    for name, model in (("teacher", made.teacher), ("student", made.student)):
        told = [answer for answer, _ in answers[name]]
        assert told == own_answers(model)
        assert len(set(told)) > 2
    assert {last for _, last in answers["teacher"]} == {"<|end|>"}


def test_lora_is_merged_and_its_matrices_lie_beside(made: Made, tmp_path: Path) -> None:
    from peft import PeftModel

    export(made.store, made.student, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out" / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    base, _ = open_model(made.start.path)
    merged = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").merge_and_unload().state_dict()
    for name, weights in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(merged[name], weights)
    open_model.cache_clear()  # peft has put its matrices into that base


def test_all_files_are_there_and_none_is_a_pickle(made: Made, tmp_path: Path) -> None:
    files = export(made.store, made.start, tmp_path / "out")
    assert [file.name for file in files] == [
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "stillhouse.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    for each in facts(tmp_path / "out")["files"]:
        file = tmp_path / "out" / each["path"]
        assert (file.stat().st_size, file_digest(file)) == (each["bytes"], each["sha256"])
    assert len(facts(tmp_path / "out")["files"]) == len(files) - 2


def test_the_same_artifact_and_store_give_the_same_bytes(made: Made, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export(made.store, made.student, tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


class Nothing(Parameters):
    """No parameters."""


@stage("float")
def forget_the_end(work: Work, parameters: Nothing, model: Reference) -> Measures:
    """Publish a model whose settings of generation know no end, with a file that is a pickle beside it."""
    shutil.copytree(model.path, work.out, dirs_exist_ok=True)
    for name in ("record.json", "run.json"):
        (work.out / name).unlink()
    file = work.out / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"eos_token_id": 5, "top_k": 7}))
    (work.out / "training_args.bin").write_bytes(b"\x80\x04.")
    return {}


def test_generation_ends_with_the_turn_and_keeps_what_else_is_said_of_it(made: Made, tmp_path: Path) -> None:
    with use_settings(store=made.store.root, workers=1):
        endless = forget_the_end(Nothing(), made.start)
    export(made.store, endless, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_bytes())
    assert settings["eos_token_id"] == [2, 5]
    assert settings["top_k"] == 7
    assert not (tmp_path / "out" / "training_args.bin").exists()
    assert [each["what"] for each in facts(tmp_path / "out")["chain"]] == [
        "drew the first weights",
        "made it of the model above",
    ]


# ---- the card ----


def test_the_header_is_what_the_hub_reads(made: Made, tmp_path: Path) -> None:
    export(made.store, made.student, tmp_path / "out")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.to_dict() == {
        "license": "other",
        "license_name": "CC-BY-4.0, Proprietary 1",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["stillhouse", "scratch", "dckd"],
    }
    export(made.store, made.start, tmp_path / "start")
    assert ModelCard.load(tmp_path / "start" / "README.md").data.to_dict()["license"] == "unknown"


def test_the_card_tells_the_chain_the_teacher_and_the_rows(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export(made.store, made.student, folder)
    count = made.rows["train"].rows
    chain = table_under(folder, "## How it was made")
    assert [line[0] for line in chain] == ["scratch", "dckd"]
    assert chain[0][2] == "drew the first weights"
    assert chain[1][2:5] == ["trained low-rank matrices of rank 8, and merged them", str(count), "40"]
    told = yaml.safe_load((folder / "README.md").read_text().partition("Their parameters:")[2].split("```")[1][5:])
    assert told[f"dckd/{made.student.fingerprint[:12]}"]["lora"]["rank"] == 8
    beside = table_under(folder, "beside rows and its own weights:")
    assert beside == [["sft", made.teacher.fingerprint[:12], str(count), made.teacher.record["output_digest"]]]
    names = made.rows["train"].read(["source"])["source"].to_pylist()
    kept = [str(names.count(name)) for name in ("high", "low")]
    digests = [file_digest(made.store.root.parent / PRIVATE / f"{name}.jsonl") for name in ("high", "low")]
    assert table_under(folder, "## Data") == [
        ["high", "Proprietary 1", "12", kept[0], kept[0], digests[0]],
        ["low", "CC-BY-4.0", "24", kept[1], kept[1], digests[1]],
    ]
    assert [line[0] for line in table_under(folder, "What happened to the rows:")] == ["load", "split"]
    assert [line[1] for line in table_under(folder, "## Licences")] == ["Proprietary 1", "CC-BY-4.0"]
    assert {each["stage"] for each in facts(folder)["lineage"]} == {"load", "split", "scratch", "sft", "dckd"}
    assert facts(folder)["lineage"][-1] == made.student.record
    assert "no evaluation of this model" in (folder / "README.md").read_text()


def test_evaluations_in_the_store_are_the_metrics(made: Made, tmp_path: Path) -> None:
    export(made.store, made.teacher, tmp_path / "out")
    [each] = facts(tmp_path / "out")["evaluations"]
    assert (each["fingerprint"], each["read_as"]) == (made.scores.fingerprint, ["model"])
    measures = {name: value for name, value in made.scores.record["measures"].items() if name in each["measures"]}
    assert each["measures"] == measures
    assert set(measures) == {"exact_match", "loss", "rows_asked", "rows_not_asked"}
    told = {line[4]: line[5] for line in table_under(tmp_path / "out", "## Metrics")}
    assert told == {name: f"{value:.6g}" for name, value in measures.items()}
    assert f"| split/{made.rows.fingerprint[:12]}:test |" in (tmp_path / "out" / "README.md").read_text()


def test_the_recipe_of_the_run_that_made_it_is_on_the_card(made: Made, tmp_path: Path) -> None:
    """A run's record as `run` writes it; the run's name stands in the artifact's run.json."""
    store = Store(Path(shutil.copytree(made.store.root, tmp_path / "store")))
    parameters = {"pretrained": {"model": str(tmp_path / "models" / "tiny")}, "teacher": {"api_key": "sk-123"}}
    store.write_run(RUN, {"run": RUN, "recipe": "sums", "flow": "align", "parameters": parameters})
    model = store.resolve(made.teacher.fingerprint)
    held = json.loads((model.path / "run.json").read_bytes())
    (model.path / "run.json").write_text(json.dumps(held | {"run": RUN}))
    export(store, model, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\n# sums (sft)\n" in card
    recipe = yaml.safe_load(card.partition("## Recipe\n")[2].partition("```yaml\n")[2].partition("```")[0])
    assert recipe == {"flow": "align", "parameters": {"pretrained": {"model": "tiny"}, "teacher": {}}}


def test_a_model_from_outside_is_named_by_digests_and_nothing_of_the_machine(made: Made, tmp_path: Path) -> None:
    export(made.store, made.start, tmp_path / PRIVATE / "base")
    with use_settings(store=made.store.root, workers=1):
        settled = pretrained(PretrainedParameters(model=str(tmp_path / PRIVATE / "base"), chat_template="chatml"))
    export(made.store, settled, tmp_path / "settled")
    digest = file_digest(made.start.path / "model.safetensors")
    [line] = table_under(tmp_path / "settled", "## Licences")
    assert line == [
        f"the base model from files (model.safetensors {digest[:12]}…)",
        "not recorded: see where it comes from",
    ]
    assert "generation ends with `<|im_end|>`" in (tmp_path / "settled" / "README.md").read_text()
    assert facts(tmp_path / "settled")["bases"][0]["files"]["model.safetensors"] == digest
    export(made.store, made.student, tmp_path / "student")
    names = {str(tmp_path), str(made.store.root), str(Path.home()), PRIVATE, socket.gethostname()}
    private = re.compile("|".join([*map(re.escape, names), rf"\b{re.escape(getpass.getuser())}\b"]))
    for folder in ("settled", "student"):
        for name in ("README.md", "stillhouse.json"):
            assert not private.search((tmp_path / folder / name).read_text()), name


# ---- what is refused ----


def test_what_is_neither_dataset_nor_model_is_refused(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert is_model(made.teacher)
    for name in (made.scores.fingerprint, f"{made.teacher.fingerprint}:history"):
        assert main(["export", name, str(tmp_path / "out"), "--store", str(made.store.root)]) == 2
        said = capsys.readouterr().err
        assert "which is no model and holds no rows of a dataset" in said
        assert "wanted: a dataset: tables of rows; or a model" in said
    assert not list(tmp_path.iterdir())


def test_a_model_whose_files_changed_is_refused(made: Made, tmp_path: Path) -> None:
    store = Store(Path(shutil.copytree(made.store.root, tmp_path / "store")))
    model = store.resolve(made.start.fingerprint)
    file = model.path / "model.safetensors"
    held = file.read_bytes()
    file.unlink()
    for rest in (held[:-1] + bytes([held[-1] ^ 1]), None):
        if rest:
            file.write_bytes(rest)
        else:
            file.unlink()
        with pytest.raises(BadInput, match=r"model\.safetensors is not what was published"):
            export(store, model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_the_command_lists_its_files(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "deep" / "out"
    command = ["export", made.student.fingerprint[:10], str(folder), "--store", str(made.store.root), "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(folder)
    assert sorted(told["files"]) == sorted(contents(folder))
    assert "adapter/adapter_model.safetensors" in told["files"]
    assert main(command) == 2  # it is there now
