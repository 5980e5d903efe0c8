"""Findings of checks, in words: good; a note, which is worth a look; or bad, which ends a run."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from data.errors import BadInput
from infra.progress import say

Verdict = Literal["good", "note", "bad"]


class Finding(NamedTuple):
    """What one check found."""

    check: str
    verdict: Verdict
    found: str
    wanted: str
    remedy: str


def told(check: str, good: str, function: Callable[[], None]) -> Finding:
    """Make a finding of a check that raises."""
    try:
        function()
    except BadInput as error:
        return Finding(check, "bad", error.found, error.wanted, error.remedy)
    return Finding(check, "good", good, good, "nothing")


def tell_notes(findings: list[Finding]) -> None:
    """Print what is worth a look."""
    from rich.markup import escape

    for each in findings:
        if each.verdict == "note":
            say(escape(f"  preflight, {each.check}: {each.found}; {each.remedy}"))


def refuse_bad(findings: list[Finding]) -> None:
    """Raise what is bad, all of it.

    Raises:
        BadInput: something is.
    """
    bad = [each for each in findings if each.verdict == "bad"]
    if not bad:
        return
    if len(bad) == 1:
        raise BadInput(f"{bad[0].check}: {bad[0].found}", bad[0].wanted, bad[0].remedy)
    found, wanted, remedy = (
        "".join(f"\n  {number}. {line}" for number, line in enumerate(lines, 1))
        for lines in zip(*((f"{each.check}: {each.found}", each.wanted, each.remedy) for each in bad), strict=True)
    )
    raise BadInput(f"{len(bad)} things that are bad{found}", wanted, remedy)
