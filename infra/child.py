"""The training child process: preloaded, watched, and ended with its whole group.

A child is forked from a server that has the heavy imports done once, so that several trainings of a run pay them
once. It ends when its parent ends, however the parent ends, and holds a lock on the work folder while it lives, so
that a run that takes over a dead run's folder never has a second writer in it.
"""

import fcntl
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from data.errors import BadInput
from infra.progress import progress
from infra.settings import Settings, settings, use_settings

PRELOAD = ["torch", "transformers", "trl", "datasets"]


class ChildFailed(Exception):
    """The child process failed or died; the message holds its traceback or its signal."""


def run_in_child(function: Callable[..., Any], *args: Any, folder: Path, what: str) -> Any:
    """Run `function(*args, on_step=…)` in a child process and return its result.

    `on_step(done, total, loss)` feeds a progress bar here. The function and its arguments are pickled.

    Args:
        function: a module's top-level function.
        args: its positional arguments.
        folder: the work folder that the child locks while it lives.
        what: the bar's label.

    Raises:
        BadInput: as raised by the function.
        ChildFailed: the function raised anything else, or the process died.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads collapse on a busy machine
    os.environ.setdefault("TQDM_DISABLE", "1")  # the bar is ours, in the parent
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, settings(), folder, function, args), daemon=False)
    process.start()
    theirs.close()
    try:
        with progress(what) as advance:
            while True:
                try:
                    kind, value = ours.recv()
                except EOFError:
                    process.join()
                    code = process.exitcode or 0
                    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
                    raise ChildFailed(
                        f"the process of {what} ended {how}; run again to go on from its last checkpoint"
                    ) from None
                if kind == "step":
                    done, total, loss = value
                    advance(done, total, f"loss {loss:.3f}")
                elif kind == "done":
                    return value
                elif kind == "bad input":
                    raise BadInput(*value)
                else:
                    raise ChildFailed(f"{what} failed:\n{value}")
    finally:
        _end(process)


def _end(process: Any) -> None:
    """End the child's whole group, if it is still there."""
    process.join(timeout=5 if sys.exc_info()[0] is None else 0)
    if process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
        process.join()


def _child(
    pipe: Connection, options: Settings, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.setsid()
    os.dup2(2, 1)  # standard output belongs to the parent's result
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with (folder / "child.lock").open("w") as lock, use_settings(**options.model_dump()):
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            result = function(*args, on_step=lambda *step: pipe.send(("step", step)))
            pipe.send(("done", result))
        except BadInput as error:
            pipe.send(("bad input", (error.found, error.wanted, error.remedy)))
        except BaseException:
            pipe.send(("error", traceback.format_exc()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - this runs in a child only
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)
