"""Render the report as one self-contained page.

The page needs nothing from outside: styles and drawings are in it, a content policy forbids scripts, and
the same dict always gives the same bytes. Drawings are SVG, written by the templates in CSS variables, so that
they follow light and dark and stay readable at any width; where things go in them is computed beforehand.
"""

import difflib
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.evaluate.drawing import curves, forest, funnel
from tasks.evaluate.formats import NONE, brief, figure, number, percent, points, printable, signed
from tasks.evaluate.selection_drawing import bars, maps, shifts, stacks

if TYPE_CHECKING:
    from jinja2 import Template

PAGE = "templates/report.html.jinja"
# Named here, the parts are in the key of every report: a change of one makes it anew.
PARTS = (
    "templates/macros.html.jinja",
    "templates/style.html.jinja",
    "templates/rows.html.jinja",
    "templates/thresholds.html.jinja",
    "templates/selection.html.jinja",
    "templates/arms.html.jinja",
    "templates/alignment.html.jinja",
    "templates/models.html.jinja",
    "templates/origin.html.jinja",
)
LONGEST_DIFF = 3000  # words: difflib takes quadratic time
LONGEST_SAME = 200  # characters of an equal part that a comparison shows whole
ALIKE = 0.5  # share of words in common from which two texts are compared word by word

Facts = dict[str, Any]


def render(report: Facts) -> str:
    """Render a report as one HTML page; every list in it may be empty, and every value missing or None."""
    report = printable(report)
    models = (report.get("comparison") or {}).get("models") or []
    groups = report.get("by_group") or []
    selection = report.get("selection") or {}
    selections = selection.get("selections") or []
    return _template().render(
        report=report,
        funnel=funnel(report.get("stages") or []),
        curves=curves(report.get("losses") or []),
        gain=forest(models, "difference", 100),
        loss=forest(models, "loss_difference"),
        arms=[_arms(told) for told in report.get("arms") or []],
        group_models=list(dict.fromkeys(name for group in groups for name in group.get("scores") or {})),
        maps=maps(selection.get("map") or {}),
        stacks=stacks(selection.get("pool") or {}, selections),
        bars=bars(selection.get("transport") or {}),
        shifts=shifts(selection.get("mixture") or {}),
    )


def _arms(told: Facts) -> Facts:
    """Put to a comparison of arms its drawing and its words: losses in nats, shares in points."""
    shown = [arm for arm in told.get("arms") or [] if arm.get("name") != told.get("base")]
    of = {"loss": ("loss", "nats per token", "lower is better", 1)}
    share = (str(told.get("metric") or "").replace("_", " "), "percentage points", "higher is better", 100)
    what, unit, better, scale = of.get(told.get("metric") or "loss", share)
    least = told.get("detectable")
    drawn = forest(shown, "difference", scale, unseen=None if least is None else scale * least)
    return told | {"what": what, "unit": unit, "better": better, "scale": scale, "forest": drawn}


@functools.cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.finalize = lambda value: "" if value is None else value
    environment.filters |= {"n": number, "pct": percent, "signed": signed, "points": points, "figure": figure}
    environment.filters |= {"brief": brief, "short": lambda digest: str(digest or NONE)[:12]}
    environment.tests["blank"] = lambda text: not re.search(r"[^\s\u200b-\u200f\u2060\ufeff]", text)
    environment.globals |= {"diff": diff, "beside": beside}
    return environment.get_template(PAGE)


def diff(before: str, after: str) -> list[tuple[str, str]]:
    """Compare two texts word by word: (`same`, `del` or `ins`, text) in reading order, long equal parts cut.

    >>> diff("the old cat", "the cat")
    [('same', 'the '), ('del', 'old '), ('same', 'cat')]
    """
    old, new = _words(before), _words(after)
    if len(old) + len(new) > LONGEST_DIFF:
        return [("del", before), ("ins", after)]
    whole = _diff(difflib.SequenceMatcher(None, old, new, autojunk=False), old, new)
    return [(kind, text if kind == "same" else _seen(text)) for kind, text in whole]


def beside(left: str, right: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]] | None:
    """Compare two texts that stand beside each other: what differs on each side; None where little is the same.

    >>> beside("the old cat", "the cat")
    ([('same', 'the '), ('del', 'old '), ('same', 'cat')], [('same', 'the '), ('same', 'cat')])
    """
    old, new = _words(left), _words(right)
    if len(old) + len(new) > LONGEST_DIFF:
        return None
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    words = sum(not each.isspace() for each in [*old, *new])
    alike = [old[at + n] for at, _, size in matcher.get_matching_blocks() for n in range(size)]
    if 2 * sum(not each.isspace() for each in alike) < ALIKE * words:
        return None
    whole = _diff(matcher, old, new)
    return [part for part in whole if part[0] != "ins"], [part for part in whole if part[0] != "del"]


def _words(text: str) -> list[str]:
    return re.findall(r"\s|\w+|[^\w\s]", text)


def _diff(matcher: difflib.SequenceMatcher[str], old: list[str], new: list[str]) -> list[tuple[str, str]]:
    parts = []
    for kind, i, j, k, m in matcher.get_opcodes():
        gone, come = "".join(old[i:j]), "".join(new[k:m])
        if kind == "equal":
            parts.append(("same", gone if len(gone) <= LONGEST_SAME else f"{gone[:80]} \u22ef {gone[-80:]}"))
        else:
            parts += [(mark, text) for mark, text in (("del", gone), ("ins", come)) if text]
    return parts


def _seen(text: str) -> str:
    # A struck-out blank would be no more than a gap.
    return text.replace(" ", "␣").replace("\n", "⏎\n").replace("\t", "⇥") if text.isspace() else text
