"""Train the same student in several ways, in turns: CPU seconds of each optimizer step but the first.

align_step.py STEPS ROWS STUDENT WAY…: a WAY is sft, adpa=CACHE, dckd=CACHE, divergence=MODEL (DCKD without its SFT
term, the teacher in memory) or gkd=MODEL (TRL's trainer). All rows are one batch, so that every step of every way has
the same tokens with the same padding. A step is all that a trainer does from one log to the next: batch, passes,
optimizer, log. The trainers stand in threads of which one runs at a time, a step each in turn, so that what else the
machine does burdens all alike. Each way holds its model and its optimizer: two ways of SmolLM2 135M need some 10 GB.
"""

import ctypes
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from data.artifact import Artifact
from infra.store import current_store
from tasks.train import adpa, dckd, sft
from tasks.train.models import load_model, load_tokenizer
from tasks.train.pairs import Objective, encode_preferences, encode_talk, talks_of, train_pairs
from tasks.train.passes import open_model
from tasks.train.teachers import teacher_of
from tasks.train.training import arguments, settle

SIDES = {"chosen": "chosen", "second": "rejected"}


class Enough(Exception):
    """Leave a training after its last step, before anything is written."""


class Turns:
    """Let one thread after the other take a step, and note the CPU seconds of each."""

    def __init__(self, names: list[str], steps: int) -> None:
        self.names, self.steps = names, steps
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self.gates = {name: threading.Semaphore(0) for name in names}
        self.began = 0.0

    def start(self, name: str) -> None:
        self.gates[name].acquire()
        self.began = time.process_time()

    def end(self, name: str) -> None:
        self.seconds[name].append(time.process_time() - self.began)
        self.gates[self.names[(self.names.index(name) + 1) % len(self.names)]].release()

    def step(self, name: str) -> None:
        """End a step and wait for the next turn."""
        self.end(name)
        if len(self.seconds[name]) > self.steps:
            raise Enough
        self.start(name)


def common(rows: int, steps: int) -> dict[str, Any]:
    return {"threads": 1, "batch_size": rows, "epochs": steps + 2, "warmup": 0.0, "learning_rate": 1e-6, "spike": None}


def supervised(rows: Artifact, student: Path, folder: Path, steps: int, step: Callable[..., None]) -> None:
    """Take chosen and rejected answers as rows of SFT."""
    tokenizer = load_tokenizer(student)
    encoded = [encode_talk(tokenizer, talk, 1024) for side in talks_of(rows.read()).values() for talk in side]
    ids = pa.array([each for each, _ in encoded], pa.list_(pa.int32()))
    masks = pa.array([each for _, each in encoded], pa.list_(pa.int8()))
    row_ids = pa.array([number.to_bytes(16, "big") for number in range(len(ids))], pa.binary(16)).cast(pa.uuid())
    tokens = pa.table({"row_id": row_ids, "input_ids": ids, "assistant_masks": masks})
    counts["ours"] = [sum(map(len, ids.to_pylist())), sum(map(sum, masks.to_pylist()))]
    sft.train(
        student, tokens, folder / "out", folder / "checkpoints", sft.SftParameters(**common(len(ids), steps)), step
    )


def paired(
    way: str, rows: Artifact, student: Path, teacher: Artifact, folder: Path, steps: int, step: Callable[..., None]
) -> None:
    """Train by ADPA, the rejected answers being the student's responses, or by DCKD."""
    pairs, _ = encode_preferences(rows.read(), load_tokenizer(student), 1024)
    own = common(len(pairs), steps)
    counts["ours"] = [
        sum(sum(map(len, pairs[f"{side}_ids"].to_pylist())) for side in SIDES),
        sum(sum(map(sum, pairs[f"{side}_mask"].to_pylist())) for side in SIDES),
    ]

    def prepared(model: Any) -> Objective:
        if way == "adpa":
            made = teacher_of([teacher], pairs, {"second": "rejected"}, model, student, "fp32", advantage=True)
            return adpa.objective(adpa.AdpaParameters(**own), made)
        made = teacher_of([teacher], pairs, SIDES, model, student, "fp32", advantage=False)
        alone = {"sft_weight": 0.0, "chosen_weight": 1.0, "rejected_weight": 1.0} if way == "divergence" else {}
        return dckd.objective(dckd.DckdParameters(**own | alone), made)

    train_pairs(student, pairs, prepared, (), folder / "out", folder / "checkpoints", dckd.DckdParameters(**own), step)


def generalised(
    rows: Artifact, student: Path, teacher: Path, folder: Path, steps: int, step: Callable[..., None]
) -> None:
    """Train by TRL's GKDTrainer on the same conversations; beta 0 is KL(teacher || student), lmbda 0 samples nothing.

    Its model, teacher, optimizer and schedule are those of our own trainings.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    class Step(TrainerCallback):  # type: ignore[misc]
        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                step()

    settle(1)
    tokenizer = load_tokenizer(student)
    model = load_model(student, tokenizer, 0)
    talks = [{"messages": talk.turns} for side in talks_of(rows.read()).values() for talk in side]
    parameters = sft.SftParameters(**common(len(talks), steps))
    config = arguments(GKDConfig, model, folder / "checkpoints", parameters, lmbda=0.0, beta=0.0)
    trainer = GKDTrainer(
        model=model, teacher_model=open_model(teacher)[0], args=config, train_dataset=Dataset.from_list(talks),
        processing_class=tokenizer, callbacks=[Step()],
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    counts["gkd"] = [int(batch["attention_mask"].sum()), int((batch["labels"] != -100).sum())]
    trainer.train()


counts: dict[str, list[int]] = {}  # tokens of a step, and those that are learned


def main(steps: int, rows: Artifact, student: Path, ways: dict[str, str]) -> None:
    ctypes.CDLL(None).mallopt(-8, 1)  # one arena: each thread's own would keep what it has freed from the others
    turns = Turns(list(ways), steps)
    broken: list[BaseException] = []

    def run(name: str) -> None:
        way, step = name.split(":")[0], lambda *_: turns.step(name)
        teacher = current_store().resolve(ways[name]) if ways[name] else rows
        turns.start(name)
        with TemporaryDirectory() as folder:
            own = (Path(folder), steps, step)
            try:
                if way == "sft":
                    supervised(rows, student, *own)
                elif way == "gkd":
                    generalised(rows, student, teacher.path, *own)
                else:
                    paired(way, rows, student, teacher, *own)
            except Enough:
                return
            except BaseException as error:  # whatever it is, the other threads would wait for ever
                broken.append(error)
                turns.end(name)
                raise

    threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in ways]
    for each in threads:
        each.start()
    turns.gates[turns.names[0]].release()
    for each in threads:
        while each.is_alive() and not broken:
            each.join(1)
    if broken:
        raise broken[0]
    print(json.dumps({"seconds": {name: each[1:] for name, each in turns.seconds.items()}, "tokens": counts}))


if __name__ == "__main__":
    (
        steps,
        *names,
    ) = sys.argv[1:4]
    rows, student = map(current_store().resolve, names)
    main(int(steps), rows, student.path, {way.split("=")[0]: way.partition("=")[2] for way in sys.argv[4:]})
