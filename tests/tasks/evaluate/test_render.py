import copy
import itertools
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluate.render import (
    LABEL_GAP,
    MINUS,
    NONE,
    brief,
    curves,
    diff,
    forest,
    funnel,
    number,
    percent,
    points,
    printable,
    render,
    signed,
    spread,
    ticks,
)

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\" onload='x' {{ 7*7 }} </style> \x00\x1b[31m\ud800"
VOID = {"meta", "br", "img", "link"}


def _id(i: int) -> str:
    return f"{i * 2654435761 % 2**32:08x}-5c1e-8d0b-9f3a-{i * 97 + 11:012x}"


def _fingerprint(i: int) -> str:
    return f"{i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}"


# fmt: off
def _stage(i: int, name: str, rows_in: int, out: int, *reasons: Any, **more: Any) -> dict[str, Any]:
    left = [
        {"reason": reason, "kind": kind, "rows": rows, "example": {
            "row_id": _id(i * 10 + j), "text": text, "partner": partner, "score": score, "detail": detail}}
        for j, (reason, kind, rows, text, partner, score, detail) in enumerate(reasons)
    ]
    gone = {kind: sum(r["rows"] for r in left if r["kind"] == kind) for kind in ("dropped", "failed")}
    return {
        "stage": name, "fingerprint": _fingerprint(i + 1), "class": "float" if name == "sft" else "exact",
        "rows_in": rows_in, "rows_out": out, "rows_created": 0, "rows_consumed": 0,
        "rows_dropped": gone["dropped"], "rows_failed": gone["failed"], "tables": {"rows": out},
        "reasons": left, **more,
    }


def _loss(seed: int, steps: int) -> dict[str, Any]:
    noise = [math.sin(12.9898 * (i + 1) * (seed + 1.7)) * 43758.5453 % 1 - 0.5 for i in range(steps)]
    means = [0.11 + 4.3 * math.exp(-i / (26 + 3 * seed)) for i in range(steps)]
    loss = [round(means[i] + 0.35 * noise[i] * math.exp(-i / 70), 4) for i in range(steps)]
    return {"model": f"seed {seed}", "fingerprint": _fingerprint(40 + seed),
            "steps": [10 * (i + 1) for i in range(steps)], "loss": loss}


def _model(name: str, i: int, score: float, loss: float, spread: float | None) -> dict[str, Any]:
    change = spread and {"mean": score - 0.003, "low": score - 0.003 - spread, "high": score - 0.003 + spread}
    fall = spread and {"mean": loss - 4.41, "low": loss - 4.41 - 4 * spread, "high": loss - 4.41 + 4 * spread}
    return {"name": name, "fingerprint": _fingerprint(i), "exact_match": score, "loss": loss,
            "exact_match_low": max(0, score - 0.02), "exact_match_high": min(1, score + 0.02),
            "difference": change, "loss_difference": fall}


def sample() -> dict[str, Any]:
    """A report such as the quickstart makes, with hostile texts in it."""
    long = " ".join(f"Sentence {i} goes on about nothing in particular." for i in range(30))
    french = "Ceci n'est pas une phrase anglaise. " + long
    seeds = ["seed 0", "seed 1", "seed 2"]
    turns = [("Reverse the word: lantern", "nretnal", ["the the the the", "nretnal", "nretnal"]),
             (f"Repeat exactly: {HOSTILE}", HOSTILE, ["", HOSTILE, long]),
             ("How many vowels are in “distillation”?", "5", ["a a a a a a", "5", "6"])]
    return {
        "title": "quickstart", "flow": "sft",
        "headline": [{"label": "rows kept", "value": "3,812 of 4,020"},
                     {"label": "exact match, base", "value": "0.3%"},
                     {"label": "exact match, trained", "value": "93.7%"},
                     {"label": "difference, 95% interval", "value": "+90.3 to +96.0"},
                     {"label": "trained in", "value": "2 min 14 s"}],
        "stages": [
            _stage(0, "load", 0, 4017,
                   ("unreadable line", "failed", 3, '{"prompt', None, None, "line 912"), rows_created=4017),
            _stage(1, "clean", 4017, 4001, ("empty", "dropped", 16, "\u200b \n ", None, None, None)),
            _stage(2, "filter", 4001, 3724,
                   ("too short", "dropped", 190, "ok", None, 2.0, "2 characters, wanted 8"),
                   ("mostly symbols", "dropped", 62, HOSTILE, None, 0.71, "0.71 of the text, limit 0.5"),
                   ("wrong language", "dropped", 25, french, None, 0.98, "fr")),
            _stage(3, "deduplicate", 3724, 3281,
                   ("duplicate", "dropped", 298, "Reverse the word: lantern", _id(7), 1.0, None),
                   ("near duplicate", "dropped", 145, "Reverse the word : lantern.", _id(7), 0.914, None)),
            _stage(4, "decontaminate", 3281, 3274,
                   ("in evaluation set", "dropped", 7, "Sort: copper", _id(8), 0.88, None)),
            _stage(5, "synthesize", 3274, 3812, rows_created=538),
            _stage(6, "split", 3812, 3812, tables={"train": 3412, "test": 400}),
            _stage(7, "sft", 3412, 0,
                   ("longer than the context", "dropped", 9, long, None, None, "1,204 tokens"), tables={}),
        ],
        "losses": [_loss(seed, 120) for seed in range(3)],
        "comparison": {"metric": "exact match", "rows": 300, "level": 0.95, "models": [
            _model("base", 39, 0.003, 4.41, None), _model("seed 0", 40, 0.937, 0.31, 0.028),
            _model("seed 1", 41, 0.913, 0.35, 0.032), _model("seed 2", 42, 0.02, 2.21, 0.021)]},
        "by_group": [{"group": group, "rows": 60, "scores": {
            "base": 0.0 if i else 0.0167, "seed 0": 1 - 0.05 * i, "seed 1": 0.95 - 0.13 * i, "seed 2": 0.0}}
            for i, group in enumerate(["reverse", "sort letters", "count vowels", "uppercase", "add"])],
        "generations": [{"row_id": _id(100 + i), "prompt": prompt, "reference": reference, "answers": [
            {"model": model, "text": text, "correct": text == reference}
            for model, text in zip(["base", *seeds], texts, strict=False)]}
            for i, (prompt, reference, texts) in enumerate(turns)],
        "ancestry": [{"row_id": _id(200 + i), "text": "Reverse the word: lantern → nretnal", "steps": [
            {"stage": "load", "fingerprint": _fingerprint(1), "before": None, "after": None,
             "what": f"loaded from quickstart.jsonl, line {17 + i}"},
            {"stage": "clean", "fingerprint": _fingerprint(2), "what": "edited",
             "before": "Reverse  the word:\tlantern &amp; more" + HOSTILE * i,
             "after": "Reverse the word: lantern"},
            {"stage": "deduplicate", "fingerprint": _fingerprint(4), "what": "kept; 4 equal rows dropped"},
            {"stage": "sft", "what": "trained seed 0, seed 1 and seed 2"}]} for i in range(2)],
        "provenance": {
            "dataset": {"stage": "split", "fingerprint": _fingerprint(7), "digest": _fingerprint(70) * 2},
            "models": [{"name": name, "fingerprint": _fingerprint(40 + i), "digest": _fingerprint(80 + i) * 2}
                       for i, name in enumerate(seeds)],
            "sources": [{"name": "quickstart", "rows": 4020, "licence": "CC0-1.0", "digest": "ab" * 32}],
            "packages": {"trl": "1.16.0", "torch": "2.15.0", "transformers": "5.23.1", "duckdb": "2.0.3",
                         "pyarrow": "26.0.0", "numpy": "2.4.1"}},
    }
# fmt: on


class Page(HTMLParser):
    """Collects a page's elements and insists that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def test_the_page_needs_nothing_from_outside_and_runs_nothing() -> None:
    page = Page(render(sample()))
    assert page.all("script", "link", "img", "iframe", "object", "use", "image", "base", "form") == []
    attributes = [pair for _, attributes in page.elements for pair in attributes.items()]
    assert not [name for name, _ in attributes if name.startswith("on") or name in ("src", "srcset", "xlink:href")]
    assert all((value or "").startswith("#") for name, value in attributes if name == "href")
    style = re.search(r"<style>(.*?)</style>", render(sample()), re.DOTALL)
    assert style and "url(" not in style[1] and "@import" not in style[1] and "@font-face" not in style[1]
    assert "http" not in re.sub("http-equiv", "", render(sample()))


def test_hostile_text_is_shown_not_obeyed() -> None:
    page = render(sample())
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7*7 }}" in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", page)
    page.encode("utf-8")


def test_hostile_text_in_any_string_stays_text() -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key if key in known else HOSTILE + key: poison(item) for key, item in value.items()}
        return (
            [poison(item) for item in value]
            if isinstance(value, list)
            else HOSTILE
            if isinstance(value, str)
            else value
        )

    known = set(re.findall(r'"(\w+)":', json.dumps(sample()))) - {"trl", "torch"}
    page = Page(render(poison(sample())))
    assert page.all("script", "img") == []
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_the_same_report_gives_the_same_bytes_and_is_left_alone() -> None:
    report = sample()
    before = copy.deepcopy(report)
    first = render(report)
    assert report == before
    assert render(sample()) == first
    through_json = json.loads(json.dumps(report))
    assert render(through_json) == first


@pytest.mark.parametrize("report", [{}, dict.fromkeys(sample()), {key: [] for key in sample()}])
def test_an_empty_report_is_a_page_without_sections(report: dict[str, Any]) -> None:
    page = Page(render(report))
    assert page.all("h1") and not page.all("h2", "section", "table", "svg")


@pytest.mark.parametrize("key", list(sample()))
def test_each_part_may_be_missing(key: str) -> None:
    report = sample()
    del report[key]
    Page(render(report))


def test_any_value_may_be_none_and_any_list_empty() -> None:
    def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        listed = dict(enumerate(value[:1])) if isinstance(value, list) else {}
        items = (value if isinstance(value, dict) else listed).items()
        return [at] * bool(at) + [path for key, item in items for path in paths(item, (*at, key))]

    small = sample()
    small["stages"], small["losses"] = small["stages"][3:4], small["losses"][:1]
    small["losses"][0] |= {"steps": [1, 2], "loss": [2.0, 1.0]}
    for path in paths(small):
        report = copy.deepcopy(small)
        holder = report
        for key in path[:-1]:
            holder = holder[key]
        if isinstance(holder, list):
            continue  # a list may be empty; it holds no None
        holder[path[-1]] = [] if isinstance(holder[path[-1]], list) else None
        page = render(report)
        assert page.endswith("</html>") and ">None<" not in page and " None" not in page, path


def test_the_page_is_accessible() -> None:
    page = Page(render(sample()))
    assert len(page.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all("scope" in cell for cell in page.all("th"))
    outer = [svg for svg in page.all("svg") if svg.get("preserveaspectratio") is None]
    assert outer and all(svg.get("aria-label") or svg.get("aria-hidden") for svg in outer)
    names = [element["id"] for _, element in page.elements if "id" in element]
    assert len(names) == len(set(names))
    assert {str(link["href"])[1:] for link in page.all("a")} <= set(names)


def test_every_reason_and_count_is_on_the_page() -> None:
    page = render(sample())
    for stage in sample()["stages"]:
        assert f'title="{stage["fingerprint"]}">{stage["fingerprint"][:12]}<' in page
        assert all(f"{reason['reason']} {number(reason['rows'])}" in page for reason in stage["reasons"])
    assert "4,017" in page and "CC0-1.0" in page and "✓ right" in page and "✗ wrong" in page


def test_funnel_bars_share_one_scale_and_lose_no_row() -> None:
    stages = sample()["stages"]
    bars = funnel(stages)
    for stage, bar in zip(stages, bars, strict=True):
        rows = sum(part["rows"] for part in bar["segments"])
        left = stage["rows_out"] + stage["rows_consumed"] + stage["rows_dropped"] + stage["rows_failed"]
        assert rows == max(left, stage["rows_in"] + (stage["rows_created"] if stage["rows_in"] else 0))
        assert bar["segments"][-1]["x"] + bar["segments"][-1]["width"] <= 100 + 1e-6
        assert all(part["width"] > 0 for part in bar["segments"])
    assert bars[0]["segments"][0]["kind"] == "kept"
    assert bars[3]["onward"] == pytest.approx(100 * 3281 / 4020)
    assert bars[-2]["cuts"] == [pytest.approx(100 * 3412 / 4020)]
    assert bars[-1]["segments"][0]["name"] == "used" and bars[-1]["onward"] is None
    (trained,) = funnel([{"stage": "sft", "rows_in": 9, "rows_consumed": 8, "rows_dropped": 1, "trains": True}])
    assert [(part["name"], part["rows"]) for part in trained["segments"]] == [("trained on", 8), ("dropped", 1)]


def test_reasons_that_do_not_add_up_are_completed() -> None:
    stage = _stage(1, "filter", 10, 4) | {"rows_dropped": 5, "rows_failed": 1}
    assert [(part["name"], part["rows"]) for part in funnel([stage])[0]["segments"]] == [
        ("kept", 4), ("dropped", 5), ("failed", 1)]  # fmt: skip


def test_curves_choose_a_log_scale_when_losses_span_much_and_skip_what_is_not_finite() -> None:
    wide = curves([{"model": "a", "steps": [1, 2, 3, 4], "loss": [4.0, math.nan, None, 0.1]}])
    narrow = curves([{"model": "a", "steps": [1], "loss": [4.0]}])
    assert wide and wide["log"] and wide["lines"][0]["path"].count(",") == 2
    assert narrow and not narrow["log"] and narrow["x"]
    assert curves([{"model": "a", "steps": [1], "loss": [math.inf]}]) is None


def test_forest_shows_zero_and_marks_intervals_that_cross_it() -> None:
    models = sample()["comparison"]["models"]
    plot = forest(models, "difference", 100)
    assert plot and [row["name"] for row in plot["rows"]] == ["seed 0", "seed 1", "seed 2"]
    assert all(0 < row["low"] < row["mean"] < row["high"] < 100 for row in plot["rows"])
    assert render(sample()).count('class="mean crosses"') == 1
    assert 0 < plot["zero"] < 100
    zero = next(tick for tick in plot["ticks"] if tick["text"] == "0")
    assert zero["at"] == pytest.approx(plot["zero"])
    assert forest(models[:1], "difference", 100) is None
    none = {"name": "same", "difference": {"mean": 0.0, "low": 0.0, "high": 0.0}}
    assert forest([none], "difference", 100)


@pytest.mark.parametrize(("written", "wanted"), [
    (number(4020), "4,020"), (number(0.30000001), "0.300"), (number(math.nan), NONE),
    (number(-1234567), MINUS + "1,234,567"), (percent(0.0), "0%"), (percent(0.5), "50%"),
    (percent(1), "100%"), (percent(0.9996), ">99.9%"), (percent(None), NONE), (signed(0.0), "0.00"),
    (signed(-0.001), "0.00"), (signed(0.126), "+0.13"), (points(-0.0312), MINUS + "3.1"),
    (brief("seed 0"), "seed 0"), (brief("sft lr 2e-5 warm-up 0.1 seed 3"), "sft lr … seed 3"),
    (printable({"a": ["x\x00\r\n\ud800"]}), {"a": ["x␀\n\ufffd"]}),
])  # fmt: skip
def test_numbers_and_texts(written: object, wanted: object) -> None:
    assert written == wanted


@given(st.lists(st.floats(0, 260), max_size=12))
def test_labels_keep_their_distance_and_their_order(wanted: list[float]) -> None:
    placed = spread(wanted, LABEL_GAP)
    ordered = sorted(placed)
    assert all(after - before >= LABEL_GAP - 1e-6 for before, after in itertools.pairwise(ordered))
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    assert [placed[i] for i in order] == ordered
    assert spread([10.0, 11.0, 50.0], 10) == [1.0, 11.0, 50.0]


@given(st.floats(-1e4, 1e4), st.floats(1e-6, 1e4))
def test_ticks_are_few_inside_and_even(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-6 * width - 1e-9 <= tick <= low + width + 1e-6 * width + 1e-9 for tick in found)


@given(st.text("ab ,\n", max_size=40), st.text("ab ,\n", max_size=40))
def test_a_diff_holds_both_texts(before: str, after: str) -> None:
    def side(kind: str) -> str:
        text = "".join(text for this, text in diff(before, after) if this in ("same", kind))
        return text.replace("⏎\n", "\n").replace("␣", " ")

    assert side("del") == before and side("ins") == after


def test_a_diff_of_long_texts_does_not_take_for_ever() -> None:
    long = "word " * 5000
    assert diff(long, long + "x") == [("del", long), ("ins", long + "x")]


def test_importing_the_module_stays_cheap() -> None:
    code = "import sys, tasks.evaluate.render; print('jinja2' in sys.modules, 'matplotlib' in sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
