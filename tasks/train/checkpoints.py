"""What every trainer here adds to TRL's: checkpoints that are complete or absent, and a stop where training breaks.

The pickles of a checkpoint (optimizer, schedule and random state, which
transformers loads with weights_only=True) stay in the checkpoints folder and never reach a model folder.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from data.errors import BadInput
from infra.failpoint import failpoint

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object  # a mixin: importing transformers takes seconds, and a plan needs none of it

OnStep = Callable[[int, int, float], None]  # step (from 1), steps in all, loss

BEFORE = 50  # steps whose losses say what is usual
ENOUGH = 20  # steps before which nothing is called a spike
QUIET = 0.1  # nats: losses that hardly differ do not make a small rise a spike
NAMED = 8  # rows of a batch named in a message; all are in stopped.json
KEPT = 2  # the newest, and the one before it in case the newest turns out unreadable
_COMPLETE = re.compile(r"checkpoint-\d+")
_PARTIAL = ".partial-"


def newest_checkpoint(checkpoints: Path) -> Path | None:
    """Find the complete checkpoint with the highest step, or None where there is none."""
    return next(iter(_complete(checkpoints)), None)


def remove_partial(checkpoints: Path) -> None:
    """Remove what a killed training had half written or half removed."""
    for folder in checkpoints.glob(f"{_PARTIAL}*"):
        shutil.rmtree(folder)


def _complete(checkpoints: Path) -> list[Path]:
    """List the complete checkpoints, newest first."""
    complete = [path for path in checkpoints.glob("checkpoint-*") if _COMPLETE.fullmatch(path.name)]
    return sorted(complete, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint by way of another name, so that a kill half way leaves no half checkpoint."""
    doomed = checkpoint.with_name(_PARTIAL + checkpoint.name)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


class StageTrainer(Trainer):  # type: ignore[misc]
    """Add to a TRL trainer what every training here wants: mix it in before the trainer.

    Checkpoints appear by rename and the last `KEPT` stay; `on_step` hears of every logged step; a loss that
    is not finite, or far above those before, ends the training and names the rows; nothing is sent anywhere.
    Batches hold `rows`, the places of their rows in the training data (int64).
    """

    on_step: OnStep | None = None
    spike: float | None = None  # as in TrainingParameters
    row_ids: Sequence[str] = ()  # of the training data, in its order
    step_rows: Sequence[int] = ()  # places of the rows of the step at hand
    step_numbers: dict[str, float] = {}  # noqa: RUF012 - set anew for each step: what a method wants logged of it

    def watch(self, row_ids: pa.ChunkedArray, spike: float | None, on_step: OnStep | None) -> None:
        """Settle what a stage wants to hear of, after the trainer is made."""
        from transformers import PrinterCallback

        self.remove_callback(PrinterCallback)  # it comes with disable_tqdm and prints every step
        self.row_ids = [str(each) for each in row_ids.to_pylist()]
        self.spike, self.on_step = spike, on_step

    def get_batch_samples(self, *arguments: Any) -> Any:
        """Note which rows are in the batches of a step, and take the note out of them."""
        batches, items = super().get_batch_samples(*arguments)
        self.step_rows = [row for batch in batches for row in batch.pop("rows").tolist()]
        return batches, items

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        checkpoints, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        partial = checkpoints / (_PARTIAL + name)
        partial.mkdir(parents=True)
        self.args.output_dir = str(partial)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = str(checkpoints)
        (partial / name / "training_args.bin").unlink()  # a pickle of the arguments, which nothing reads
        failpoint("checkpoint")
        (partial / name).rename(checkpoints / name)
        partial.rmdir()
        for old in _complete(checkpoints)[KEPT:]:
            _remove(old)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Check a step's numbers before they, or a checkpoint made of them, are kept, and report them."""
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                self._stop(f"{name} = {logs[name]}", "finite numbers: from here on the weights would hold none")
        if "loss" in logs and self.spike is not None:
            usual = [entry["loss"] for entry in self.state.log_history if "loss" in entry][-BEFORE:]
            limit = highest(usual, self.spike)
            if logs["loss"] > limit:
                what = f"loss = {logs['loss']:.3f}, a spike"
                self._stop(what, f"at most {limit:.3f}, judged by the last {len(usual)} steps (parameter spike)")
        super().log(logs | self.step_numbers if "loss" in logs else logs, start_time)
        if "loss" in logs and self.on_step is not None:
            self.on_step(self.state.global_step, self.state.max_steps, logs["loss"])

    def _stop(self, found: str, wanted: str) -> None:
        """End the training with what is known of the step: its number, its rows, and where it could be taken up."""
        step, checkpoints = self.state.global_step, Path(self.args.output_dir)
        rows = [self.row_ids[row] for row in self.step_rows]
        good = newest_checkpoint(checkpoints)
        note = checkpoints.parent / "stopped.json"
        note.write_text(json.dumps({"step": step, "found": found, "rows": rows, "checkpoint": good and good.name}))
        more = f" and {len(rows) - NAMED} more (all are in {note})" if len(rows) > NAMED else ""
        raise BadInput(
            f"{found} at step {step}, with the rows {', '.join(rows[:NAMED])}{more}; "
            f"the last good checkpoint is {good or 'none yet'}",
            wanted,
            "look at these rows (stillhouse why ROW), lower the learning rate, lengthen the warmup, or train in fp32",
        )

    def train_or_restore(self, checkpoints: Path) -> None:
        """Train to the last step from the newest checkpoint, from the start where there is none.

        After it, `state.log_history` has the whole history and `model` the final weights.
        """
        from transformers import TrainerState

        remove_partial(checkpoints)
        newest = newest_checkpoint(checkpoints)
        if newest is None:
            self.train()
            return
        state = TrainerState.load_from_json(str(newest / "trainer_state.json"))
        if state.global_step < state.max_steps:
            self.train(resume_from_checkpoint=str(newest))
            return
        # transformers 5.23 would take one step too many from a final checkpoint in the midst of an epoch.
        self._load_from_checkpoint(str(newest))
        self.state = state

    def _send_telemetry(self) -> None:
        """Send nothing: TRL would tell its makers about every trainer made."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no README.md: TRL would write one beside every checkpoint."""


def highest(losses: Sequence[float], spike: float) -> float:
    """Say up to where a loss is usual after these: `spike` robust deviations above their median, in nats.

    A robust deviation is 1.4826 times the median distance from the median, at least `QUIET`; without enough losses
    there is no limit.
    """
    if len(losses) < ENOUGH:
        return math.inf
    median = float(np.median(losses))
    deviation = 1.4826 * float(np.median(np.abs(np.asarray(losses) - median)))
    return median + spike * max(deviation, QUIET)
