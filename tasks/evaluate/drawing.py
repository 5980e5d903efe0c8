"""Compute where the marks of the report's drawings go; the template writes them as SVG.

Positions are per cent of a drawing's width or height, so that it stays readable at any size; colours are the
template's.
"""

import itertools
import math
from typing import Any

from tasks.evaluate.formats import MINUS, brief, number

HUES = 8  # colours h0 to h7 of the template, given to reasons and models in order of appearance
THINNEST = 0.4  # per cent of the drawing's width: one row of a million is still seen
CURVE_HEIGHT = 260  # CSS pixels
LABEL_GAP = 17  # CSS pixels between two labels at the ends of curves
SMOOTH_FROM = 80  # points: shorter curves are drawn as they are

Drawing = dict[str, Any]


def funnel(stages: list[Drawing]) -> list[Drawing]:
    """Lay out one bar a stage, in one scale: kept, created, used, consumed, then each reason that rows left.

    A stage without rows (it embeds them, or makes a model) has no bar. `edge` is where the rows that go on end and
    `onward` how wide the next stage takes them up: None where that reads other rows than these.
    """
    stages = [
        stage for stage in stages if any(stage.get(f"rows_{each}") for each in ("in", "out", "created", "failed"))
    ]
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
        "x": [{"at": at(tick, top)[0], "text": plain(tick)} for tick in ticks(left, right)],
        "y": [{"at": at(left, tick)[1], "text": plain(tick)} for tick in ticks(bottom, top, log=log)],
    }


def forest(models: list[Drawing], key: str, unit: int = 1, unseen: float | None = None) -> Drawing | None:
    """Lay out the paired differences `key` in per cent of the width, zero in sight, ticks times `unit`.

    `unseen` is the size up to which a difference could not have been told from none; a band about zero shows it.
    """
    ends = ("mean", "low", "high")
    rows = [(model.get("name") or "model", model.get(key) or {}) for model in models]
    rows = [(name, row) for name, row in rows if all(row.get(end) is not None for end in ends)]
    if not rows:
        return None
    band = unseen or 0.0
    values = [-band, 0.0, band, *(float(row[end]) for _, row in rows for end in ends)]
    margin = 0.06 * (max(values) - min(values)) or 0.01
    low, high = min(values) - margin, max(values) + margin

    def at(value: float) -> float:
        return 100 * (value - low) / (high - low)

    marks = ticks(low * unit, high * unit, most=4)
    spots = [(name, row, {end: at(row[end]) for end in ends}) for name, row in rows]
    return {
        "zero": at(0.0),
        "band": {"x": at(-band), "width": at(band) - at(-band)} if band else None,
        "rows": [{"name": name, "change": row} | spot for name, row, spot in spots],
        "ticks": [{"at": at(mark / unit), "text": plain(mark)} for mark in marks],
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


def plain(tick: float) -> str:
    """Write a tick with as few digits as it has."""
    return f"{tick:,.10g}".replace("-", MINUS)
