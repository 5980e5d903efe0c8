"""What each command of the command line does: options -> exit code.

Imports wait until a command needs them, so that help answers at once.
"""

import argparse
import sys
from typing import Any

from data.errors import BadInput


def run(options: argparse.Namespace) -> int:
    """Run a recipe."""
    from flows.recipe import find_recipe
    from flows.show import near, print_json, step_facts, tell_step
    from infra.flow import run as run_flow
    from infra.settings import settings, use_settings
    from infra.store import current_store

    recipe = find_recipe(options.recipe)
    parameters = recipe.parameters(options.set)
    current_store().prepare()
    with use_settings(accept_failed=options.accept_failed or settings().accept_failed):
        done, built = run_flow(recipe.flow, parameters, recipe.name, tell_step)
    report_file = built.report.path / "report.html" if built.report else None
    paths = {
        "dataset": built.dataset and built.dataset.path,
        "model": built.model and built.model.path,
        "report": report_file,
    }
    if options.json:
        facts: dict[str, Any] = {
            "run": done.identity,
            **{name: str(path) if path else None for name, path in paths.items()},
        }
        print_json({**facts, "tagged": done.tagged, "stages": [step_facts(step) for step in done.steps]})
        return 0
    for name, path in paths.items():
        if path:
            sys.stdout.write(f"{name:<8} {near(path)}\n")
    if done.tagged:
        sys.stdout.write(f"tagged   {done.tagged}\n")
    return 0


def plan(options: argparse.Namespace) -> int:
    """Say what a run would do."""
    from flows.recipe import find_recipe
    from flows.show import print_plan
    from infra.flow import plan as plan_flow
    from infra.settings import settings, use_settings

    recipe = find_recipe(options.recipe)
    with use_settings(accept_failed=options.accept_failed or settings().accept_failed):
        print_plan(plan_flow(recipe.flow, recipe.parameters(options.set)), options.json)
    return 0


def recipes(options: argparse.Namespace) -> int:
    """List the shipped recipes, print one, or print the JSON Schema of its parameters."""
    from flows.recipe import find_recipe, shipped_recipes
    from flows.show import print_json, print_table

    if options.recipe is None:
        listed = [(each.name, each.flow_name, " ".join(each.about.split())) for each in shipped_recipes()]
        print_table(("recipe", "flow", "about"), listed, options.json)
        return 0
    recipe = find_recipe(options.recipe)
    if options.schema:
        print_json(recipe.flow.parameters.model_json_schema())
    elif options.json:
        print_json({"recipe": recipe.name, "flow": recipe.flow_name, "about": recipe.about, "path": str(recipe.path)})
    else:
        sys.stdout.write(recipe.path.read_text(encoding="utf-8"))
    return 0


def show(options: argparse.Namespace) -> int:
    """Show an artifact's record."""
    from flows.show import near, print_json, print_table
    from infra.store import current_store

    artifact = current_store().resolve(options.artifact)
    if options.json:
        print_json({**artifact.record, "path": str(artifact.path)})
        return 0
    record = artifact.record
    sys.stdout.write(f"{artifact.stage} {artifact.fingerprint}\n{near(artifact.path)}\n\n")
    made_of = [
        (each["name"], each["kind"], each["stage"], each["fingerprint"][:12], each["output"] or "")
        for each in record["inputs"]
    ]
    print_table(("made of", "read as", "stage", "fingerprint", "output"), made_of, False)
    holds = [
        (name, each.get("contract") or "", each.get("rows"), each["digest"][:12])
        for name, each in record["outputs"].items()
    ]
    sys.stdout.write("\n")
    print_table(("holds", "contract", "rows", "digest"), holds, False)
    sys.stdout.write("\n")
    print_table(
        ("measure", "value"),
        [(name, float(value)) for name, value in sorted(record["measures"].items())],
        False,
    )
    sys.stdout.write("\n")
    print_table(
        ("parameter", "value"),
        [(name, str(value)[:100]) for name, value in record["key"]["parameters"].items()],
        False,
    )
    return 0


def why(options: argparse.Namespace) -> int:
    """Say what happened to a row."""
    from data.lineage import history, latest_run
    from flows.show import last_text, print_json, print_table

    with open_ledger() as connection:
        row = _one_row(connection, options.row)
        events = history(connection, row, latest_run(connection, row))
    if options.json:
        names = ("stage", "fingerprint", "what", "detail", "partner")
        print_json({"row": str(row), "history": [{name: getattr(event, name) for name in names} for event in events]})
        return 0
    sys.stdout.write(f"row {row}\n")
    for text in last_text(events, row):
        sys.stdout.write(f"  {text}\n")
    sys.stdout.write("\n")
    print_table(
        ("stage", "fingerprint", "what", ""),
        [(e.stage, e.fingerprint[:12], e.what, e.detail) for e in events],
        False,
    )
    return 0


def trace(options: argparse.Namespace) -> int:
    """Show ancestors: of an artifact its artifacts and sources, of a row its parents up to the files."""
    from data.lineage import find_rows, history, latest_run, parents, upstream
    from flows.show import print_json, print_table
    from infra.store import current_store

    with open_ledger() as connection:
        rows = find_rows(connection, options.name)
        if len(rows) == 1:
            found, level = [], [(0, rows[0])]
            while level:
                depth, row = level.pop()
                events = history(connection, row, latest_run(connection, row))
                first = next((e for e in events if e.what in ("loaded", "created")), None)
                found.append(
                    (
                        depth,
                        str(row),
                        first.stage if first else "",
                        f"{first.what} {first.detail}" if first else "",
                    )
                )
                level += [(depth + 1, parent) for parent in parents(connection, row)]
            if options.json:
                print_json([dict(zip(("depth", "row", "stage", "origin"), each, strict=True)) for each in found])
            else:
                print_table(
                    ("row", "stage", "origin"),
                    [("  " * depth + row, stage, what) for depth, row, stage, what in found],
                    False,
                )
            return 0
        artifact = current_store().resolve(options.name)
        walked = upstream(connection, artifact.fingerprint)
        sources = connection.execute(
            "SELECT source, licence, count(*) FROM source_rows(?) GROUP BY ALL ORDER BY ALL",
            [artifact.fingerprint],
        ).fetchall()
    if options.json:
        names = ("depth", "stage", "fingerprint", "role")
        print_json({
            "ancestors": [dict(zip(names, each, strict=True)) for each in walked],
            "source_rows": [dict(zip(("source", "licence", "rows"), each, strict=True)) for each in sources],
        })  # fmt: skip
        return 0
    print_table(
        ("stage", "fingerprint", "as"),
        [("  " * depth + stage, name[:12], role) for depth, stage, name, role in walked],
        False,
    )
    if sources:
        sys.stdout.write("\n")
        print_table(("source", "licence", "rows it was trained on"), sources, False)
    return 0


def sql(options: argparse.Namespace) -> int:
    """Ask the ledger."""
    import duckdb

    from flows.show import print_table

    wanted = "one SQL statement over the views of docs/lineage.md"
    with open_ledger() as connection:
        try:
            asked = connection.execute(options.query)
            if asked is None:
                raise BadInput("a query without a statement", wanted, "write one, for example: FROM artifact")
            columns = [column[0] for column in asked.description or []]
            print_table(columns, asked.fetchall(), options.json)
        except duckdb.Error as error:
            raise BadInput(str(error), wanted, "correct the query") from None
    return 0


def report(options: argparse.Namespace) -> int:
    """Name the report of a run."""
    import json

    from flows.show import near, print_json
    from infra.store import current_store

    store = current_store()
    runs = [each for each in store.runs() if each["report"] and options.run in (None, each["run"])]
    if not runs:
        raise BadInput(
            f"no run{f' {options.run}' if options.run else ''} with a report",
            "a run that ended with one",
            "run `stillhouse sql 'FROM run'` to list the runs",
        )
    folder = store.folder(*runs[-1]["report"].split("/"))
    if options.json:
        print_json(json.loads((folder / "report.json").read_bytes()))
    else:
        sys.stdout.write(f"{near(folder / 'report.html')}\n")
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Check this machine and the store; exit with 1 if something is wrong."""
    from flows.show import print_table
    from infra.doctor import examine

    findings = examine(deep=options.deep)
    print_table(
        ("check", "state", "found"),
        [(f.check, "ok" if f.fine else "WRONG", f.found) for f in findings],
        options.json,
    )
    return 0 if all(finding.fine for finding in findings) else 1


def open_ledger() -> Any:
    """Open the ledger of the store that the settings name.

    Raises:
        BadInput: there is no store.
    """
    from data.ledger import ledger
    from infra.store import current_store

    store = current_store()
    if not store.root.is_dir():
        raise BadInput(
            f"no store at {store.root}",
            "the folder of a store",
            "run a recipe first, or name a store with --store",
        )
    return ledger(store.root)


def _one_row(connection: Any, name: str) -> Any:
    from data.lineage import find_rows

    rows = find_rows(connection, name)
    if len(rows) != 1:
        found = (
            f"{len(rows)} rows for {name!r}: {', '.join(str(row) for row in rows[:5])}" if rows else f"no row {name!r}"
        )
        raise BadInput(
            found,
            "a row id, its first 6 or more digits, or FILE:LINE",
            "run `stillhouse sql 'FROM row LIMIT 10'` to see some",
        )
    return rows[0]
