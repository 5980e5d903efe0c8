"""The commands that name, hand on, compare and verify datasets and models: options -> exit code.

Imports wait until a command needs them, so that help answers at once.
"""

import argparse
import datetime
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import BadInput
from flows.commands import open_ledger

if TYPE_CHECKING:
    from infra.verify import Verdict


def tag(options: argparse.Namespace) -> int:
    """Name an artifact, or list the tags."""
    from data.tags import read_tags
    from flows.show import print_json, print_table
    from infra.store import current_store

    store = current_store()
    if options.artifact is None:
        listed = [(each, store.find(each.stage, each.fingerprint) is not None) for each in read_tags(store.root)]
        if options.json:
            print_json([{**each._asdict(), "made": _when(each.made), "there": there} for each, there in listed])
            return 0
        columns = ("tag", "stage", "fingerprint", "table", "made", "artifact", "note")
        lines = [
            (str(t), t.stage, t.fingerprint[:12], t.output, _when(t.made), "there" if there else "GONE", t.note)
            for t, there in listed
        ]
        print_table(columns, lines, False)
        return 0
    if options.name is None:
        wanted = "an artifact and a name for it, or neither, which lists the tags"
        raise BadInput(f"tag {options.artifact}, without a name", wanted, "add the name")
    made = store.tag(store.resolve(options.artifact), options.name, options.because)
    if options.json:
        print_json({"tag": str(made), **made._asdict(), "made": _when(made.made)})
    else:
        sys.stdout.write(f"{made}\n")
    return 0


def export(options: argparse.Namespace) -> int:
    """Write a dataset or a model into a folder that Hugging Face's `datasets` or transformers reads."""
    from flows.show import near, print_json
    from infra.export import export as export_artifact
    from infra.store import current_store

    store = current_store()
    files = export_artifact(store, store.resolve(options.artifact), Path(options.destination))
    if options.json:
        folder = Path(options.destination).absolute()
        print_json({"folder": str(folder), "files": [str(file.relative_to(folder)) for file in files]})
    else:
        sys.stdout.write("".join(f"{near(file)}\n" for file in files))
    return 0


def diff(options: argparse.Namespace) -> int:
    """Compare two datasets, row by row, and say why they differ."""
    from data.diff import GROUP, ROW
    from data.diff import diff as compare
    from flows.show import print_json, print_table
    from infra.store import current_store

    store = current_store()
    a, b = store.resolve(options.a), store.resolve(options.b)
    shown = options.rows if options.rows is not None else 20 if options.json else 0
    with open_ledger() as connection:
        groups, rows = compare(connection, a, b, shown)
    if options.json:
        names = {
            side: {"stage": each.stage, "fingerprint": each.fingerprint, "output": each.output}
            for side, each in (("a", a), ("b", b))
        }
        print_json({**names, "counts": groups, "rows": rows})
        return 0
    sys.stdout.write(f"A  {a}\nB  {b}\n\n")
    for columns, lines in (((*GROUP, "rows"), groups), ((*GROUP[:2], *ROW), rows)):
        if lines:
            print_table(columns, [[each[name] for name in columns] for each in lines], False)
            sys.stdout.write("\n")
    return 0


def verify(options: argparse.Namespace) -> int:
    """Make an artifact again from its sources and compare; exit with 1 if something differs."""
    from flows.show import print_json, print_table
    from flows.stages import find_stage
    from infra.flow import stop_in_order
    from infra.progress import say
    from infra.shards import stop_ray
    from infra.store import current_store
    from infra.verify import FINE, prepare
    from infra.verify import verify as make_again

    artifact = current_store().resolve(options.artifact)
    builds = prepare(artifact, find_stage, dict(map(_place, options.source)))
    taken = sum(build.seconds for build in builds)
    say(f"making {len(builds)} artifacts again in a temporary store; that took {taken:,.1f} s when they were published")
    if models := [str(build.artifact) for build in builds if build.stage.trains]:
        say(f"among them are models, which are trained again: {', '.join(models)}")
    stop_in_order()
    try:
        verdicts = make_again(builds, replay=options.replay, tell=_tell)
    finally:
        stop_ray()
    fine = all(verdict.state in FINE for verdict in verdicts)
    if options.json:
        print_json({"artifact": f"{artifact.stage}/{artifact.fingerprint}", "fine": fine,
                    "stages": [_facts(verdict) for verdict in verdicts]})  # fmt: skip
        return 0 if fine else 1
    lines = [(v.artifact.stage, v.artifact.fingerprint[:12], v.state, v.bytes, _found(v)) for v in verdicts]
    print_table(("stage", "fingerprint", "rebuilt", "bytes", "found"), lines, False)
    return 0 if fine else 1


def _place(given: str) -> tuple[str, str]:
    name, equals, path = given.partition("=")
    if not (name and equals and path):
        raise BadInput(f"--source {given}", "--source NAME=PATH", "name the source and the place where it lies now")
    return name, path


def _tell(verdict: "Verdict") -> None:
    from rich.markup import escape

    from infra.progress import say

    found = f"  {escape(_found(verdict))}" if _found(verdict) else ""
    say(f"  {verdict.artifact.stage:<20} {verdict.state}, {verdict.seconds:.1f} s[dim]{found}[/dim]")


def _found(verdict: "Verdict") -> str:
    """Say in one line what was found."""
    findings = [
        f"{each.table}: {each.what}"
        + (f", in {', '.join(each.columns)}" if each.columns else "")
        + (f", the first {', '.join(each.row_ids)}" if each.row_ids else "")
        for each in verdict.findings
    ]
    return "; ".join([*verdict.faults, *findings, *verdict.changed])


def _facts(verdict: "Verdict") -> dict[str, Any]:
    return {
        "stage": verdict.artifact.stage,
        "fingerprint": verdict.artifact.fingerprint,
        "state": verdict.state,
        "bytes": verdict.bytes,
        "faults": verdict.faults,
        "changed": verdict.changed,
        "tables": [each._asdict() for each in verdict.findings],
        "seconds": round(verdict.seconds, 3),
    }


def _when(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).replace(tzinfo=None, microsecond=0)
