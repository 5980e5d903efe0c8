"""The command line: `stillhouse COMMAND …`.

Exit codes: 0 done, 1 failed, 2 wrong usage or bad input. Results go to standard output, everything else to
standard error.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data.errors import BadInput
from flows import commands, datasets

ARTIFACT = "a path in the store, the first digits of a fingerprint, or a tag"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        if options.store is None:
            return command(options)
        from infra.settings import use_settings

        with use_settings(store=Path(options.store)):
            return command(options)
    except BadInput as error:
        if options.debug:
            raise
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; what is done stays done\n")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that closing standard output does not fail again
        return 1
    except Exception as error:
        if options.debug:
            raise
        sys.stderr.write(f"{type(error).__name__}: {error}\n(--debug shows where)\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stillhouse",
        description="From raw text to a curated dataset and a small aligned model, with the origin of every row.",
    )
    subcommands = parser.add_subparsers(metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--store", metavar="DIR", help="the store (default: STILLHOUSE_STORE, else .store)")
    common.add_argument("--json", action="store_true", help="print JSON on standard output")
    common.add_argument("--debug", action="store_true", help="show tracebacks")

    def add(name: str, command: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        sub = subcommands.add_parser(name, help=about, description=about, parents=[common])
        sub.set_defaults(command=command)
        return sub

    for name, command, about in (
        ("run", commands.run, "run a recipe"),
        ("plan", commands.plan, "say what a run would do, and why"),
    ):
        sub = add(name, command, about)
        sub.add_argument("recipe", help="a shipped recipe's name, or a path ending in .yaml")
        sub.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change a parameter")
        sub.add_argument(
            "--accept-failed", action="store_true", help="publish without the rows that still fail for now"
        )
    sub = add("recipes", commands.recipes, "list the shipped recipes, or show one")
    sub.add_argument("recipe", nargs="?", help="show this one")
    sub.add_argument("--schema", action="store_true", help="its parameters as a JSON Schema")
    sub = add("show", commands.show, "show an artifact: what it is, and what it was made of")
    sub.add_argument("artifact", help=ARTIFACT)
    sub = add("why", commands.why, "say what happened to a row, stage by stage, and why")
    sub.add_argument("row", help="a row id or its first digits, or FILE:LINE")
    sub = add("trace", commands.trace, "show the ancestors of a row or an artifact")
    sub.add_argument("name", metavar="ROW|ARTIFACT", help="as for why and show")
    sub = add("diff", datasets.diff, "say which rows two datasets do not share, and why")
    sub.add_argument("a", help=ARTIFACT)
    sub.add_argument("b", help="as for A")
    sub.add_argument("--rows", type=_count, metavar="N", help="list up to N rows of each group (with --json: 20)")
    sub = add("tag", datasets.tag, "name an artifact, in versions that never change, or list the tags")
    sub.add_argument("artifact", nargs="?", help=ARTIFACT)
    sub.add_argument("name", nargs="?", help="the name; it gets the next version")
    sub.add_argument("--because", default="", metavar="TEXT", help="a note that is kept with the version")
    sub = add("export", datasets.export, "write a dataset or a model for others: a folder with a card")
    sub.add_argument("artifact", help=ARTIFACT)
    sub.add_argument("destination", metavar="dest", help="a new folder")
    sub = add("verify", datasets.verify, "make an artifact again from its sources, and compare")
    sub.add_argument("artifact", help=ARTIFACT)
    sub.add_argument("--replay", action="store_true", help="take results of models for single rows from the memo")
    sub.add_argument(
        "--source", action="append", default=[], metavar="NAME=PATH", help="where a source lies now, if it was moved"
    )
    sub = add("sql", commands.sql, "ask the ledger in SQL (DuckDB)")
    sub.add_argument("query", help="for example: FROM artifact")
    sub = add("report", commands.report, "name the report of a run")
    sub.add_argument("run", nargs="?", help="a run's name (default: the last with a report)")
    sub = add("doctor", commands.doctor, "check this machine and the store")
    sub.add_argument("--deep", action="store_true", help="read every byte of the store again")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, where a number from 0 is wanted")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
