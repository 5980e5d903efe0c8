"""Keep checkpoints complete or absent: what every training method shares.

The pickles of a checkpoint (optimizer, schedule and random state, which
transformers loads with weights_only=True) stay in the checkpoints folder and never reach a model folder.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import BadInput
from infra.failpoint import failpoint

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object  # a mixin: importing transformers takes seconds, and a plan needs none of it

OnStep = Callable[[int, int, float], None]  # step (from 1), steps in all, loss

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
    is not finite ends the training; nothing is sent anywhere.
    """

    on_step: OnStep | None = None

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
        broken = [name for name in ("loss", "grad_norm") if not math.isfinite(logs.get(name, 0.0))]
        if broken:
            raise BadInput(
                f"{broken[0]} = {logs[broken[0]]} at step {self.state.global_step}",
                "finite numbers: from here on the weights would hold none",
                "lower the learning rate, lengthen the warmup, or train with precision fp32",
            )
        super().log(logs, start_time)
        if "loss" in logs and self.on_step is not None:
            self.on_step(self.state.global_step, self.state.max_steps, logs["loss"])

    def train_or_restore(self, checkpoints: Path) -> None:
        """Train to the last step from the newest checkpoint, from the start where there is none.

        After it, `state.log_history` has the whole history and `model` the final weights.
        """
        from transformers import TrainerState

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
