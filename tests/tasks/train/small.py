"""Small real things for the tests of trainings: models of one family, pairs and responses, each of them an artifact."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.artifact import Artifact
from data.contracts import GENERATION, ID, PREFERENCE, Contract
from data.fingerprint import file_digest
from data.ids import content_ids, row_ids
from infra.memo import Memo
from infra.stage import Measures, Parameters, Reference, stage
from infra.work import Work
from tasks.train.chat import template_text
from tasks.train.models import load_model, load_tokenizer, write_model

Record = dict[str, Any]

REPOSITORY = Path(__file__).parents[3]

# ---- models ----


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytes_, **({"eos_token": "<|endoftext|>"} | special))


def template() -> str:
    return template_text("chatml", byte_tokenizer())


def write_base(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 0, **config: object) -> Path:
    """Write a small Llama as the stage `pretrained` does; attention drops by 0.2 unless the configuration says else."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    filled = {
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": True,
        "attention_dropout": 0.2,
        "initializer_range": 0.1,
    }
    raw = folder / "raw"
    LlamaForCausalLM(LlamaConfig(**(shape | ids | filled | config))).save_pretrained(raw)
    tokenizer.save_pretrained(raw)
    prepared = load_tokenizer(raw, template())
    write_model(load_model(raw, prepared, seed=seed), prepared, folder / "base")
    return folder / "base"


# ---- artifacts ----


class GivenParameters(Parameters):
    """Which folder to publish as it is."""

    path: str


@stage("exact", source=True, reads=lambda parameters: _digests(Path(parameters.path)))
def given(work: Work, parameters: GivenParameters) -> Measures:
    """Publish the files of a folder: rows, or a model."""
    for file in Path(parameters.path).iterdir():
        (work.out / file.name).write_bytes(file.read_bytes())
    return {}


def _digests(folder: Path) -> dict[str, str]:
    return {file.name: file_digest(file) for file in folder.iterdir()}


class ChangedParameters(Parameters):
    """By how much to change weights, in place of a training."""

    seed: int = 0
    by: float = 0.1
    head: bool = False


@stage("exact")
def changed(work: Work, parameters: ChangedParameters, base: Reference) -> Measures:
    """Publish a model with other weights, the head's among them if wanted, made of a base."""
    for file in base.path.iterdir():
        if file.name not in ("record.json", "run.json"):
            (work.out / file.name).write_bytes(file.read_bytes())
    weights = load_file(work.out / "model.safetensors")
    draw = torch.Generator().manual_seed(parameters.seed)
    for name, weight in sorted(weights.items()):
        if parameters.head or not any(part in name for part in ("embed", "lm_head")):
            weight += parameters.by * torch.randn(weight.shape, generator=draw)
    save_file(weights, work.out / "model.safetensors", {"format": "pt"})
    return {}


class Family(NamedTuple):
    """Models with one tokenizer; teacher and reference are wider than the student and have one head."""

    student: Artifact
    reference: Artifact
    teacher: Artifact
    other: Artifact  # a teacher with a head of its own, of the same reference


def family(folder: Path, **student: Any) -> Family:
    tokenizer = byte_tokenizer()
    reference = given(GivenParameters(path=str(write_base(folder / "wide", tokenizer, seed=1, hidden_size=48))))
    return Family(
        given(GivenParameters(path=str(write_base(folder / "small", tokenizer, **student)))),
        reference,
        changed(ChangedParameters(seed=2), reference),
        changed(ChangedParameters(seed=3, head=True), reference),
    )


def turns(*contents: str) -> list[Record]:
    """Make turns of a user and an assistant, in turn."""
    return [{"role": ("user", "assistant")[at % 2], "content": each} for at, each in enumerate(contents)]


def answer(content: str) -> list[Record]:
    return [{"role": "assistant", "content": content}]


def preferences(count: int = 12) -> list[Record]:
    """Pairs of different lengths on both sides."""
    return [
        {
            "prompt": turns("say " + "?" * (n % 7)),
            "chosen": answer("x" * (n % 5) + f"yes{n}"),
            "rejected": answer("no" * (1 + n % 3)),
        }
        for n in range(count)
    ]


def table_of(records: Sequence[Record], contract: Contract = PREFERENCE) -> pa.Table:
    """Make rows of a contract, with what further columns the records have."""
    columns = {
        field.name: pa.array([each.get(field.name) for each in records], field.type) for field in contract.schema
    }
    table = pa.table(columns)
    contents = content_ids(table, contract)
    ids = {"row_id": row_ids("made", contents, {}), "content_id": contents}
    more = {
        name: [each[name] for each in records] for name in records[0] if name not in columns and name != "prompt_id"
    }
    if "prompt_id" in records[0]:
        more["prompt_id"] = pa.array([each["prompt_id"].bytes for each in records], pa.binary(16)).cast(ID)
    said = {"source": ["made"] * len(table), "licence": ["CC0-1.0"] * len(table)}
    return pa.table(ids | columns | said | more)


def rows_of(folder: Path, records: Sequence[Record], contract: Contract = PREFERENCE) -> Artifact:
    """Publish records as rows."""
    folder.mkdir(parents=True)
    pq.write_table(table_of(records, contract), folder / "rows-00000.parquet")
    return given(GivenParameters(path=str(folder)))


def responses_to(folder: Path, rows: Artifact, said: Callable[[int], str], finish: str = "stop") -> Artifact:
    """Publish a response to each row's prompt, as `respond` does."""
    table = rows.read()
    records = [
        {"prompt": prompt, "completion": said(at), "finish_reason": finish, "prompt_id": row}
        for at, (row, prompt) in enumerate(zip(table["row_id"].to_pylist(), table["prompt"].to_pylist(), strict=True))
    ]
    return rows_of(folder, records, GENERATION)


# ---- trainings ----


class Trained(NamedTuple):
    """What a training's `fit` left in its work folder."""

    folder: Path
    measures: Measures

    @property
    def model(self) -> Path:
        return self.folder / "out"

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        weights: dict[str, torch.Tensor] = load_file(self.model / "model.safetensors")
        return weights

    @property
    def history(self) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = pq.read_table(self.model / "history.parquet").to_pydict()
        return columns

    @property
    def dropped(self) -> dict[str, str]:
        """The reason of each dropped row, by its id."""
        file = self.model / "dropped.parquet"
        table = pq.read_table(file).to_pylist() if file.exists() else []
        return {str(each["row_id"]): each["reason"] for each in table}


def quiet(step: int, total: int, loss: float) -> None:
    """Hear of a step and say nothing."""


def trained(fit: Any, folder: Path, parameters: Any, *inputs: Any, on_step: Any = quiet) -> Trained:
    """Run what a stage's child process runs, in this process."""
    work = Work(folder, Memo(folder / "memo"))
    work.begin()
    return Trained(folder, fit(work, parameters, *inputs, on_step=on_step))


KILLED = """
import pickle, sys
from pathlib import Path
from infra.settings import use_settings
from tests.tasks.train.small import trained
fit, folder, parameters, inputs = pickle.loads(Path(sys.argv[1]).read_bytes())
with use_settings(device="cpu", threads=1, workers=1):
    trained(fit, folder, parameters, *inputs)
"""


def killed_at_checkpoint(number: int, fit: Any, folder: Path, parameters: Any, *inputs: Any) -> int:
    """Train in a process that is killed while it writes its checkpoint of this number; return its exit status."""
    folder.mkdir(parents=True)
    (folder / "call").write_bytes(pickle.dumps((fit, folder, parameters, inputs)))
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(folder / "call")],
        cwd=REPOSITORY,
        env=os.environ | {"STILLHOUSE_FAILPOINT": f"checkpoint:{number}"},
        check=False,
    ).returncode


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def farthest(one: Trained, other: Trained) -> float:
    """Find the largest difference between two trainings' weights."""
    mine, others = one.weights, other.weights
    assert mine.keys() == others.keys()
    return max(float((mine[name] - others[name]).abs().max()) for name in mine)


def alike(one: Sequence[float], other: Sequence[float], tolerance: float = 1e-5) -> bool:
    return bool(np.allclose(one, other, rtol=tolerance, atol=tolerance))
