"""What a person sees while a run goes on: lines and bars on standard error."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console

BAR_AFTER = 2.0
LINE_EVERY = 15.0


class Advance(Protocol):
    """Report that `done` of `total` (or of an unknown number) is finished, with a word about it."""

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Report progress."""


@cache
def console() -> "Console":
    """The console on standard error; standard output belongs to results."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print one line for a person; markup is rich's."""
    console().print(text, soft_wrap=True)


@contextmanager
def progress(what: str) -> Iterator[Advance]:
    """Show how far a long step is: a bar after two seconds on a terminal, elsewhere a line every 15 seconds."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    bar: Any = None
    task: Any = None
    began = last = time.monotonic()

    def advance(done: int, total: int | None = None, note: str = "") -> None:
        nonlocal bar, task, last
        now = time.monotonic()
        if not sys.stderr.isatty():
            if now - last >= LINE_EVERY:
                last = now
                say(f"  {what}: {done:,}{f' of {total:,}' if total else ''} {note}")
            return
        if bar is None and now - began >= BAR_AFTER:
            columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
            bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console(), transient=True)
            task = bar.add_task(what, total=total, note=note)
            bar.start()
        if bar is not None:
            bar.update(task, completed=done, total=total, note=note)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()
