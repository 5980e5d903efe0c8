"""Render the report as one self-contained page.

The page needs nothing from outside: styles and drawings are in it, a content policy forbids scripts, and
the same dict always gives the same bytes. Drawings are SVG, written by the template in CSS variables and per
cent, so that they follow light and dark and stay readable at any width; here it is computed where things go.
"""

import difflib
import functools
import itertools
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = "templates/report.html.jinja"
HUES = 8  # colours h0 to h7 of the template, given to reasons and models in order of appearance
THINNEST = 0.4  # per cent of the drawing's width: one row of a million is still seen
CURVE_HEIGHT = 260  # CSS pixels
LABEL_GAP = 17  # CSS pixels between two labels at the ends of curves
LONGEST_LABEL = 15  # characters of a model's name in a drawing; the table has the whole
SMOOTH_FROM = 80  # points: shorter curves are drawn as they are
LONGEST_DIFF = 3000  # words: difflib takes quadratic time
NONE, MINUS = "\u2013", "\u2212"

Drawing = dict[str, Any]


def render(report: dict[str, Any]) -> str:
    """Render a report as one HTML page; every list in it may be empty, and every value missing or None."""
    report = printable(report)
    models = (report.get("comparison") or {}).get("models") or []
    groups = report.get("by_group") or []
    return _template().render(
        report=report,
        funnel=funnel(report.get("stages") or []),
        curves=curves(report.get("losses") or []),
        gain=forest(models, "difference", 100),
        loss=forest(models, "loss_difference"),
        group_models=list(dict.fromkeys(name for group in groups for name in group.get("scores") or {})),
    )


@functools.cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.finalize = lambda value: "" if value is None else value
    environment.filters |= {"n": number, "pct": percent, "signed": signed, "points": points}
    environment.filters |= {"brief": brief, "short": lambda digest: str(digest or NONE)[:12]}
    environment.tests["blank"] = lambda text: not re.search(r"[^\s\u200b-\u200f\u2060\ufeff]", text)
    environment.globals["diff"] = diff
    return environment.get_template(TEMPLATE)


def number(value: object, digits: int | None = None) -> str:
    """Write a number with thousands separators, or a dash where there is none.

    >>> number(4020), number(3.14159, 2)
    ('4,020', '3.14')
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        return NONE
    text = f"{value:,.{(0 if value == int(value) else 3) if digits is None else digits}f}"
    return text.replace("-", MINUS if text.strip("-0.,") else "")


def percent(value: object) -> str:
    """Write a share as a percentage that rounds neither something to nothing nor nearly all to all.

    >>> percent(0.0137), percent(0.00001), percent(0.99999), percent(1.0)
    ('1.4%', '<0.1%', '>99.9%', '100%')
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        return NONE
    if 0 < value < 0.001 or 0.999 < value < 1:
        return "<0.1%" if value < 0.5 else ">99.9%"
    return number(100 * value, 1).removesuffix(".0") + "%"


def signed(value: object, digits: int = 2) -> str:
    """Write a difference with its sign: `+0.50`."""
    text = number(value, digits)
    return f"+{text}" if text.strip("0.," + NONE) and not text.startswith(MINUS) else text


def points(value: object) -> str:
    """Write a difference of two shares in percentage points: 0.934 is `+93.4`."""
    return signed(100 * value, 1) if isinstance(value, int | float) else NONE


def brief(name: str) -> str:
    """Cut the middle out of a long name: names of a sweep differ at their ends."""
    half = LONGEST_LABEL // 2
    return name if len(name) <= LONGEST_LABEL else f"{name[:half]}…{name[-half:]}"


def printable(value: Any) -> Any:
    """Show control characters as pictures and what UTF-8 cannot hold as U+FFFD, in all strings of a value."""
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable(item) for item in value]
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n")
    shown = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda found: chr(0x2400 + ord(found[0])), value)
    return re.sub(r"[\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", shown)


def diff(before: str, after: str) -> list[tuple[str, str]]:
    """Compare two texts word by word: (`same`, `del` or `ins`, text) in reading order, long equal parts cut.

    >>> diff("the old cat", "the cat")
    [('same', 'the '), ('del', 'old '), ('same', 'cat')]
    """
    old, new = (re.findall(r"\s|\w+|[^\w\s]", text) for text in (before, after))
    if len(old) + len(new) > LONGEST_DIFF:
        return [("del", before), ("ins", after)]
    parts = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        gone, come = "".join(old[i:j]), "".join(new[k:m])
        if kind == "equal":
            parts.append(("same", gone if len(gone) <= 200 else f"{gone[:80]} \u22ef {gone[-80:]}"))
        else:
            parts += [(mark, _seen(text)) for mark, text in (("del", gone), ("ins", come)) if text]
    return parts


def _seen(text: str) -> str:
    # A struck-out blank would be no more than a gap.
    return text.replace(" ", "␣").replace("\n", "⏎\n").replace("\t", "⇥") if text.isspace() else text


def funnel(stages: list[Drawing]) -> list[Drawing]:
    """Lay out one bar a stage, in one scale: kept, created, used, consumed, then each reason that rows left.

    All positions are per cent of the width. `edge` is where the rows that go on end and `onward` how wide the
    next stage takes them up: None where that reads other rows than these.
    """
    parts = [_segments(stage) for stage in stages]
    scale = max((sum(part["rows"] for part in bar) for bar in parts), default=0) or 1
    hues: dict[str, int] = {}
    bars: list[Drawing] = []
    for stage, bar, after in zip(stages, parts, [*stages[1:], {}], strict=False):
        for part in bar:
            dropped = part["kind"] == "dropped"
            part["hue"] = f"h{hues.setdefault(part['name'], len(hues)) % HUES}" if dropped else part["kind"]
        _place(bar, scale)
        taken, sizes = after.get("rows_in") or 0, [rows or 0 for rows in (stage.get("tables") or {}).values()]
        whole = sum(sizes) == stage.get("rows_out")
        words = [f"{number(part['rows'])} {part['name']}" for part in bar]
        bars.append({
            "stage": stage,
            "segments": bar,
            "entered": stage.get("rows_in") or sum(part["rows"] for part in bar),
            "edge": sum(part["width"] for part in bar if part["kind"] in ("kept", "created")),
            "onward": 100 * taken / scale if 0 < taken <= (stage.get("rows_out") or 0) else None,
            "cuts": [100 * rows / scale for rows in itertools.accumulate(sizes[:-1])] if whole else [],
            "label": f"{stage.get('stage')}: {number(stage.get('rows_in') or 0)} rows in, {', '.join(words)}",
        })  # fmt: skip
    return bars


def _segments(stage: Drawing) -> list[Drawing]:
    """Split a stage's rows by what became of them."""
    keys = ("in", "out", "created", "consumed")
    entered, out, made, consumed = (stage.get(f"rows_{key}") or 0 for key in keys)
    created = min(made, out) if entered else 0  # the rows of a source are its own
    left = [("used", "trained on", consumed) if stage.get("trains") else ("consumed", "consumed", consumed)]
    for kind in ("dropped", "failed"):
        reasons = [reason for reason in stage.get("reasons") or [] if reason.get("kind") == kind]
        left += [(kind, reason.get("reason") or kind, reason.get("rows") or 0) for reason in reasons]
        unnamed = (stage.get(f"rows_{kind}") or 0) - sum(reason.get("rows") or 0 for reason in reasons)
        left.append((kind, kind, unnamed))
    used = entered - (out - created) - sum(max(rows, 0) for _, _, rows in left)
    bar = [("kept", "kept", out - created), ("created", "created", created), ("used", "used", used), *left]
    return [{"kind": kind, "name": name, "rows": rows} for kind, name, rows in bar if rows > 0]


def _place(bar: list[Drawing], scale: int) -> None:
    """Give each segment its x and width; what the thinnest gain, the widest gives."""
    gained = 0.0
    for part in bar:
        part["width"] = max(100 * part["rows"] / scale, THINNEST)
        gained += part["width"] - 100 * part["rows"] / scale
    if bar:
        widest = max(bar, key=lambda part: float(part["width"]))
        widest["width"] = max(widest["width"] - gained, THINNEST)
    for part, x in zip(bar, itertools.accumulate((part["width"] for part in bar), initial=0.0), strict=False):
        part["x"] = x


def curves(losses: list[Drawing]) -> Drawing | None:
    """Lay out one curve a model in a box of 100 by 100, logarithmic where losses span a factor of eight."""
    series = [(model.get("model") or "model", model.get("fingerprint"), _finite(model)) for model in losses]
    series = [entry for entry in series if entry[2]]
    if not series:
        return None
    steps, values = zip(*[point for _, _, line in series for point in line], strict=True)
    left, right, low, high = min(steps), max(*steps, min(steps) + 1), min(values), max(values)
    log = low > 0 and high / low >= 8
    margin = 0.04 * (high - low) or 0.5
    bottom, top = (low / 1.1, high * 1.1) if log else (low - margin, high + margin)

    def at(step: float, value: float) -> tuple[float, float]:
        rise = math.log(value / bottom) / math.log(top / bottom) if log else (value - bottom) / (top - bottom)
        return 100 * (step - left) / (right - left), 100 - 100 * rise

    def path(line: list[tuple[float, float]]) -> str:
        return " ".join("{:.2f},{:.2f}".format(*at(*point)) for point in line)

    lines = []
    for i, (model, fingerprint, line) in enumerate(series):
        lines.append(
            {"model": model, "fingerprint": fingerprint, "label": f"{brief(model)} {number(line[-1][1], 2)}",
             "hue": f"h{1 + i % (HUES - 1)}", "dash": f"d{i % 4}", "path": path(_smooth(line)),
             "raw": path(line) if len(line) >= SMOOTH_FROM else None, "first": line[0], "last": line[-1],
             "lowest": min(value for _, value in line)}
        )  # fmt: skip
    ends = spread([at(*_smooth(line)[-1])[1] * CURVE_HEIGHT / 100 for _, _, line in series], LABEL_GAP)
    return {
        "log": log,
        "height": CURVE_HEIGHT,
        "lines": [line | {"end": end} for line, end in zip(lines, ends, strict=True)],
        "label": max(len(str(line["label"])) for line in lines),
        "x": [{"at": at(tick, top)[0], "text": _plain(tick)} for tick in ticks(left, right)],
        "y": [{"at": at(left, tick)[1], "text": _plain(tick)} for tick in ticks(bottom, top, log=log)],
    }


def forest(models: list[Drawing], key: str, unit: int = 1) -> Drawing | None:
    """Lay out the paired differences `key` in per cent of the width, zero in sight, ticks times `unit`."""
    ends = ("mean", "low", "high")
    rows = [(model.get("name") or "model", model.get(key) or {}) for model in models]
    rows = [(name, row) for name, row in rows if all(row.get(end) is not None for end in ends)]
    if not rows:
        return None
    values = [0.0, *(float(row[end]) for _, row in rows for end in ends)]
    margin = 0.06 * (max(values) - min(values)) or 0.01
    low, high = min(values) - margin, max(values) + margin

    def at(value: float) -> float:
        return 100 * (value - low) / (high - low)

    marks = ticks(low * unit, high * unit, most=4)
    spots = [(name, row, {end: at(row[end]) for end in ends}) for name, row in rows]
    return {
        "zero": at(0.0),
        "rows": [{"name": name, "change": row} | spot for name, row, spot in spots],
        "ticks": [{"at": at(mark / unit), "text": _plain(mark)} for mark in marks],
    }


def ticks(low: float, high: float, most: int = 5, log: bool = False) -> list[float]:
    """Choose about `most` round values in [low, high], or 1, 2 and 5 of each decade.

    >>> ticks(0, 3.4), ticks(0.05, 5, log=True)
    ([0.0, 1.0, 2.0, 3.0], [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0])
    """
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [round(lead * 10.0**decade, 12) for decade in decades for lead in (1, 2, 5)]
        return [value for value in values if low <= value <= high]
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(size * lead for lead in (1, 2, 2.5, 5, 10) if size * lead * most >= (high - low) * 0.999999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def spread(wanted: list[float], gap: float) -> list[float]:
    """Move positions up, to smaller numbers, until none are closer than `gap`; curves meet at the bottom."""
    placed = list(wanted)
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    for above, below in reversed(list(itertools.pairwise(order))):
        placed[above] = min(placed[above], placed[below] - gap)
    return placed


def _finite(model: Drawing) -> list[tuple[float, float]]:
    pairs = zip(model.get("steps") or [], model.get("loss") or [], strict=False)
    return [(step, loss) for step, loss in pairs if loss is not None and math.isfinite(loss)]


def _smooth(line: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Take the mean over a centred window of about a thirtieth of a long curve."""
    half = max(2, len(line) // 60) if len(line) >= SMOOTH_FROM else 0
    near = [[value for _, value in line[max(0, i - half) : i + half + 1]] for i in range(len(line))]
    return [(step, sum(values) / len(values)) for (step, _), values in zip(line, near, strict=True)]


def _plain(tick: float) -> str:
    return f"{tick:,.10g}".replace("-", MINUS)
