import copy
import itertools
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.fingerprint import code_digests
from tasks.evaluate.formats import number
from tasks.evaluate.render import PAGE, PARTS, beside, diff, render
from tests.tasks.evaluate.samples import HOSTILE, sample

VOID = {"meta", "br", "img", "link", "wbr"}


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


@given(st.text("ab ,\n", max_size=40), st.text("ab ,\n", max_size=40))
def test_a_diff_holds_both_texts(before: str, after: str) -> None:
    def side(kind: str) -> str:
        text = "".join(text for this, text in diff(before, after) if this in ("same", kind))
        return text.replace("⏎\n", "\n").replace("␣", " ")

    assert side("del") == before and side("ins") == after


def test_a_diff_of_long_texts_does_not_take_for_ever() -> None:
    long = "word " * 5000
    assert diff(long, long + "x") == [("del", long), ("ins", long + "x")]


@given(st.text("ab ,\n", max_size=40), st.text("ab ,\n", max_size=40))
def test_texts_beside_each_other_are_whole(left: str, right: str) -> None:
    compared = beside(left, right)
    if compared:
        assert "".join(text for _, text in compared[0]) == left
        assert "".join(text for _, text in compared[1]) == right
        same = [[text for kind, text in side if kind == "same"] for side in compared]
        assert same[0] == same[1]


def test_texts_with_little_in_common_are_not_compared_word_by_word() -> None:
    assert beside("one two three four", "five six seven eight nine") is None
    assert beside("word " * 5000, "word " * 5000) is None
    assert beside("the old cat sat", "the new cat sat")


def test_every_part_of_the_page_is_in_the_key_of_a_report() -> None:
    folder = Path(__file__).parents[3] / "tasks" / "evaluate"
    there = {str(path.relative_to(folder)) for path in (folder / "templates").iterdir()}
    assert there == {PAGE, *PARTS}
    named = code_digests("tasks.evaluate.report")["tasks.evaluate.render"]
    assert there <= set(named)


def test_selections_are_drawn_named_and_counted() -> None:
    page = render(sample())
    elements = Page(page)
    maps = [svg for svg in elements.all("svg") if (svg.get("class") or "").startswith("map")]
    assert len(maps) == 3
    assert "40 rows of the pool, 9 rows that ot selected and 6 rows of the target" in str(maps[0]["aria-label"])
    assert "random, seed 1" in str(maps[1]["aria-label"])
    assert "13.7% of their variance" in page
    assert "990 of 1,000 tokens" in page and ">61%<" in page and ">4.2%<" in page
    assert "1.5% of the selected rows have a value smaller than its standard deviation" in page
    assert "64 of 120" in page and "within 0.1% of the least" in page
    assert "4 more" not in page and "1 more" in page  # eight sources, seven colours


def test_a_single_selection_needs_no_comparison() -> None:
    report = sample()
    chosen = report["selection"]
    chosen["selections"], chosen["map"]["selections"] = chosen["selections"][:1], chosen["map"]["selections"][:1]
    page = render(report)
    assert "By chance" not in page and "Jaccard" not in page
    assert "990 of 1,000 tokens" in page and page.count('class="map') == 1


def test_rows_stand_on_both_sides_of_a_threshold_and_one_sided_rules_are_folded() -> None:
    page = render(sample())
    section = page[page.index('<h2 id="thresholds">') :]
    assert section.index("min_words") < section.index("1 rule with rows on one side alone")
    assert section.index("1 rule with rows on one side alone") < section.rindex("max_symbols_per_word")
    assert "0.09999" in section and section.count("<h4>just kept") == section.count("<h4>just dropped") == 3
    assert "as <mark>quickly</mark> as" in section  # what differs between near-duplicates
    assert "<mark>&lt;b&gt;fast&lt;/b&gt;</mark>" in section


def test_arms_say_first_what_could_have_been_found_and_what_is_not_separable() -> None:
    page = render(sample())
    section = page[page.index('<h2 id="arms">') : page.index('<h2 id="arms-2">')]
    assert section.index("0.0125 nats per token is the smallest") < section.index("<svg")
    drawn = section[section.index("<svg") : section.index("</svg>")]
    assert drawn.count(", not separable") == 1 and drawn.count('class="mean crosses"') == 1
    assert "base" not in drawn and "0 is random" in drawn
    assert section.count("not separable") == 2 and section.count(">apart<") == 2 and ">reference<" in section
    models = page[page.index('<h2 id="models">') :]
    assert models.count('class="mean crosses"') == 1 and "0 is the base" in models


def test_each_comparison_of_arms_has_its_own_metric_and_unit() -> None:
    page = render(sample())
    section = page[page.index('<h2 id="arms-2">') : page.index('<h2 id="alignment">')]
    assert "Arms: exact match" in section and "3.1 percentage points is the smallest" in section
    assert ">66%<" in section and "+4.0<small>+3.0 to +5.0</small>" in section


def test_a_teacher_that_got_worse_is_told_loudly_beside_what_models_prefer() -> None:
    facts = sample()
    section = render(facts)[render(facts).index('<h2 id="alignment">') :]
    assert 'class="warning">The teacher got worse' in section and "41% before and 31% after" in section
    assert "the better one is right in 31% of the pairs, the longer one in 69%" in section
    assert "<script>" not in section
    assert section.count('<td class="num">\N{EN DASH}</td>') >= 3  # the first was asked for no answers
    facts["alignment"]["check"] |= {"worse": False}
    assert 'class="note">The teacher is no worse' in render(facts)


def test_what_checks_found_is_told() -> None:
    page = render(sample())
    assert "5 rows equal one, 2 share words with one, and 30 share too little" in page
    assert "once upon a time &lt;script&gt;" in page
    assert re.search(r">email</th><td class=\"num\">12</td><td class=\"num\">3</td><td class=\"num\">9</td>", page)


def test_a_page_of_a_large_report_stays_small() -> None:
    """As many marks, rules and selections as there can be: the page stays below 1.5 MB."""
    report = sample()
    text = "As long as an excerpt may be, with words. " * 14
    border = {"row_id": "x" * 36, "value": 0.5, "text": text, "detail": None, "partner": None, "partner_text": None}
    rules = [{"rule": f"rule {n}", "threshold": 0.5, "kept": [border] * 3, "dropped": [border] * 3} for n in range(26)]
    report["thresholds"] = [{"stage": "filter", "fingerprint": "0" * 32, "rules": rules}]
    plane, n = report["selection"]["map"], 1500
    plane["pool"] = [[(7 * i % n) / n, (11 * i % n) / n] for i in range(n)]
    spots = [{"x": x, "y": y, "text": "seventy characters of a row " * 2} for x, y in plane["pool"]]
    plane["target"] = spots[:300]
    plane["selections"] = [{"name": f"arm {n}", "rows": 400, "points": spots[:400]} for n in range(8)]
    assert len(render(report).encode()) < 1_500_000


def test_importing_the_module_stays_cheap() -> None:
    code = "import sys, tasks.evaluate.render; print('jinja2' in sys.modules, 'matplotlib' in sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
