"""Compute where the marks of the drawings of a selection go: its map, its values, and the sources that it is made of.

A map has one scale for both directions, since distance is what it shows: its positions are hundredths of its width.
Elsewhere positions are per cent.
"""

from itertools import accumulate
from typing import Any

from tasks.evaluate.drawing import HUES, THINNEST, plain, ticks

SQUAREST, FLATTEST = 62.0, 40.0  # height of a map, if its width is 100
EDGE = 3.0  # free space around the marks of a map
THIN = 500  # rows of the pool on a small map
CROSS, SMALL_CROSS = 0.7, 1.3  # half the width of a target row's cross
SOURCES = HUES - 1  # that have a colour of their own

Drawing = dict[str, Any]
Point = tuple[float, float]


# ---- the map ---------------------------------------------------------------------------------------------


def maps(drawn: Drawing) -> Drawing | None:
    """Lay out a map of pool and target for each selection: the first large, its marks with texts, the others small.

    What has no text is one path of dots, each a line of no length with round ends.
    """
    selections = [each for each in drawn.get("selections") or [] if each.get("points")]
    pool = [(spot[0], spot[1]) for spot in drawn.get("pool") or []]
    aims = [spot for spot in drawn.get("target") or [] if _whole(spot)]
    marks = [[spot for spot in each["points"] if _whole(spot)] for each in selections]
    every = [*pool, *((spot["x"], spot["y"]) for spots in [aims, *marks] for spot in spots)]
    if not selections or not every:
        return None
    height, at = _scaled(every)

    def spots(listed: list[Drawing]) -> list[Point]:
        return [at((spot["x"], spot["y"])) for spot in listed]

    target, first = spots(aims), spots(marks[0])
    placed = [at(point) for point in pool]
    return {
        "name": selections[0].get("name"),
        "rows": selections[0].get("rows"),
        "height": f"{height:.1f}",
        "pool": dots(placed),
        "target": _titled(map(_cross, target), aims),
        "selected": _titled((dots([point]) for point in first), marks[0]),
        "thin": dots(placed[:THIN]),
        "crosses": "".join(_cross(point, SMALL_CROSS) for point in target),
        "small": [
            {"name": each.get("name"), "rows": each.get("rows"), "dots": dots(spots(listed))}
            for each, listed in zip(selections[1:], marks[1:], strict=True)
        ],
    }


def _whole(spot: Drawing) -> bool:
    return spot.get("x") is not None and spot.get("y") is not None


def _scaled(points: list[Point]) -> tuple[float, Any]:
    """Find the height of a map of these points, and the function that places one on it; up is up."""
    xs, ys = zip(*points, strict=True)
    wide, tall = max(xs) - min(xs), max(ys) - min(ys)
    inner = 100 - 2 * EDGE
    height = min(max(tall / wide * inner if wide else 0.0, FLATTEST - 2 * EDGE), SQUAREST - 2 * EDGE)
    scale = min(inner / wide if wide else inner, height / tall if tall else inner)
    left, top = 50 - scale * (max(xs) + min(xs)) / 2, EDGE + height / 2 + scale * (max(ys) + min(ys)) / 2
    return height + 2 * EDGE, lambda point: (left + scale * point[0], top - scale * point[1])


def dots(points: list[Point]) -> str:
    """Write points as one path."""
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)


def _cross(point: Point, arm: float = CROSS) -> str:
    x, y = point
    wide = f"{2 * arm:g}"
    return f"M{x - arm:.1f} {y - arm:.1f}l{wide} {wide}m-{wide} 0l{wide}-{wide}"


def _titled(paths: Any, spots: list[Drawing]) -> list[Drawing]:
    return [{"path": path, "text": spot.get("text")} for path, spot in zip(paths, spots, strict=True)]


# ---- values ----------------------------------------------------------------------------------------------


def bars(values: Drawing) -> Drawing | None:
    """Lay out a histogram of values, in per cent: selected rows stand below the others in each bar."""
    chosen, left = values.get("selected") or [], values.get("left") or []
    if not chosen or len(chosen) != len(left) or values.get("from") is None or not values.get("step"):
        return None
    highest = max(map(sum, zip(chosen, left, strict=True))) or 1
    start = float(values["from"])
    end = start + float(values["step"]) * len(chosen)

    def at(value: float) -> float:
        return min(max(100 * (value - start) / (end - start), 0.0), 100.0)  # what is beyond stands at the edge

    last = values.get("last")
    return {
        "bars": [
            {
                "x": 100 * n / len(chosen),
                "width": 100 / len(chosen),
                "selected": 100 * a / highest,
                "left": 100 * b / highest,
            }
            for n, (a, b) in enumerate(zip(chosen, left, strict=True))
        ],
        "last": None if last is None else at(last),
        "ticks": [{"at": at(tick), "text": plain(tick)} for tick in ticks(start, end)],
        "highest": highest,
    }


# ---- sources ---------------------------------------------------------------------------------------------


def stacks(pool: Drawing, selections: list[Drawing]) -> Drawing | None:
    """Lay out the shares of the sources, one bar for the pool and one for each selection; few sources have a colour."""
    sources = pool.get("sources") or {}
    if not sources or not selections:
        return None
    named = sorted(sources, key=lambda name: (-(sources[name] or 0), name))[:SOURCES]
    hues = {name: f"h{n}" for n, name in enumerate(named)}
    rows = [{"name": "the pool", "sources": sources}, *selections]
    lines = [{"name": row.get("name"), "parts": _shares(row.get("sources") or {}, hues)} for row in rows]
    legend = [{"name": name, "hue": hue} for name, hue in hues.items()]
    more = len(sources) - len(named)
    return {"legend": [*legend, *([{"name": f"{more} more", "hue": "used"}] if more else [])], "lines": lines}


def _shares(sources: Drawing, hues: dict[str, str]) -> list[Drawing]:
    total = sum(rows or 0 for rows in sources.values()) or 1
    parts = [{"name": name, "hue": hue, "rows": sources.get(name) or 0} for name, hue in hues.items()]
    rest = sum(rows or 0 for name, rows in sources.items() if name not in hues)
    parts = [part for part in [*parts, {"name": "other sources", "hue": "used", "rows": rest}] if part["rows"]]
    widths = [100 * int(part["rows"]) / total for part in parts]
    starts = accumulate(widths, initial=0.0)
    return [
        part | {"x": x, "width": max(width, THINNEST), "share": width / 100}
        for part, width, x in zip(parts, widths, starts, strict=False)
    ]


def shifts(mixture: Drawing) -> list[Drawing]:
    """Lay out each source's share of the pool and of the mixture, in one scale."""
    lines = [line for line in mixture.get("sources") or [] if line.get("pool") is not None]
    widest = max((max(line["pool"], line.get("mixture") or 0) for line in lines), default=0) or 1
    return [
        line | {"wide": {key: 100 * (line.get(key) or 0) / widest for key in ("pool", "mixture")}} for line in lines
    ]
