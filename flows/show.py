"""Write what the command line prints for a person: runs, plans, tables, histories."""

import datetime
import json
import sys
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from infra.progress import console, say
from infra.stage import Step

BALANCE = ("rows_in", "rows_out", "rows_created", "rows_consumed", "rows_dropped", "rows_failed")
_MARKS = {
    "cached": "[green]=[/green]",
    "done": "[green]✓[/green]",
    "to run": "[yellow]→[/yellow]",
    "depends": "[dim]…[/dim]",
}


def print_json(value: Any) -> None:
    """Print one JSON value on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return str(value) if isinstance(value, uuid.UUID) else repr(value)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], as_json: bool) -> None:
    """Print a table on standard output: aligned for a person, a list of objects as JSON."""
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text("" if value is None else _cell(value)) for value in row))
    # Not on a terminal, nothing is cut to a width that nobody has.
    wide = None if sys.stdout.isatty() else 10_000
    Console(width=wide).print(table, soft_wrap=wide is not None)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value.isoformat(" ", "seconds") if isinstance(value, datetime.datetime) else str(value)


def tell_step(step: Step) -> None:
    """Say on standard error what became of one stage."""
    from rich.markup import escape

    measures = step.record.get("measures", {})
    rows = ""
    if step.record.get("trains"):
        rows = f"trained on {int(measures['rows_consumed']):,} rows"
    elif measures.get("rows_in") or measures.get("rows_out"):
        rows = f"{int(measures['rows_in']):,} -> {int(measures['rows_out']):,} rows"
    leaving = [
        f"{int(measures[f'rows_{what}']):,} {what}" for what in ("dropped", "failed") if measures.get(f"rows_{what}")
    ]
    rows += f" ({', '.join(leaving)})" if leaving else ""
    told = f"cached {step.fingerprint[:12]}" if step.state == "cached" and step.fingerprint else f"{step.seconds:.1f} s"
    why = f"  [dim]{escape('; '.join(step.why[:3]))}[/dim]" if step.why else ""
    say(f"{_MARKS[step.state]} {step.stage:<20} {rows:<34} {told}{why}")


def step_facts(step: Step) -> dict[str, Any]:
    """Put a step into the form that `run --json` promises."""
    measures = step.record.get("measures", {})
    return {
        "stage": step.stage,
        "fingerprint": step.fingerprint,
        "path": str(step.artifact.path),
        "cached": step.state == "cached",
        **{name: int(measures.get(name, 0)) for name in BALANCE},
        "seconds": round(step.seconds, 3),
    }


def print_plan(steps: list[Step], as_json: bool) -> None:
    """Print a plan: what is cached, what is to run and why, what depends on it."""
    if as_json:
        print_json([{"stage": s.stage, "state": s.state, "fingerprint": s.fingerprint, "why": s.why} for s in steps])
        return
    from rich.markup import escape

    out = console().__class__(highlight=False)
    for step in steps:
        out.print(
            f"{_MARKS[step.state]} {step.stage:<20} {step.state:<8} [dim]{(step.fingerprint or '')[:12]}[/dim]",
            soft_wrap=True,
        )
        for reason in step.why:
            out.print(f"      {escape(reason)}", soft_wrap=True)


def last_text(events: list[Any], row: Any) -> list[str]:
    """Write a row's content as it was last seen, one line per column."""
    from data.artifact import Artifact
    from data.contracts import contract_of
    from infra.store import current_store

    for last in reversed([event for event in events if event.output]):
        table = Artifact(
            last.stage, last.fingerprint, current_store().folder(last.stage, last.fingerprint), last.output
        )
        line = table.find(row) or {}
        shown = [*contract_of(table.schema).columns, "source", "licence"]
        return [f"{name}: {str(line[name])[:300]}" for name in shown if line.get(name) is not None]
    return []


def near(path: Path) -> str:
    """Write a path from here, if it is below here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
