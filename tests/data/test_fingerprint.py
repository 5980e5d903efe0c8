"""A key holds everything that a result depends on, and nothing of where it was made."""

import enum
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from data.fingerprint import (
    NOT_IN_KEY,
    canonical,
    canonical_json,
    differences,
    digest_of,
    files_digest,
    fingerprint_of,
    seed_for,
)

REPOSITORY = Path(__file__).parents[2]
quick = settings(deadline=None, max_examples=60)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


class Colour(enum.Enum):
    RED = "red"


class Inner(BaseModel):
    path: Annotated[str, NOT_IN_KEY]
    name: str


class Outer(BaseModel):
    sources: tuple[Inner, ...]
    every: Annotated[int, NOT_IN_KEY] = 1


# ---- canonical values ----


@given(plain)
@quick
def test_a_canonical_form_is_its_own_and_survives_json(value: Any) -> None:
    assert canonical(canonical(value)) == canonical(value)
    assert canonical_json(json.loads(canonical_json(value))) == canonical_json(value)


@given(st.dictionaries(st.text(max_size=5), plain, max_size=4))
@quick
def test_the_order_of_a_mapping_does_not_count(mapping: dict[str, Any]) -> None:
    assert digest_of(dict(reversed(mapping.items()))) == digest_of(mapping)


def test_lists_and_tuples_are_one_and_their_order_counts() -> None:
    assert digest_of((1, 2)) == digest_of([1, 2]) != digest_of([2, 1])


def test_numbers_texts_and_truth_are_told_apart() -> None:
    assert len({digest_of(each) for each in (1, "1", True, None, 1.5, [1], {"1": 1})}) == 7


def test_an_enum_is_its_value() -> None:
    assert canonical({"colour": Colour.RED}) == {"colour": "red"}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ({1, 2}, "set"),
        (b"raw", "bytes"),
        (Path("here"), "Path"),
        (object(), "object"),
        ({1: "one"}, "{1: 'one'}"),
    ],
    ids=["nan", "infinity", "set", "bytes", "path", "object", "number as key"],
)
def test_a_value_without_canonical_form_is_refused_by_name(value: Any, named: str) -> None:
    with pytest.raises(TypeError) as refused:
        canonical({"deep": [value]})
    assert named in str(refused.value)


def test_what_is_marked_not_in_key_is_left_out_however_deep() -> None:
    here, there = (Outer(sources=(Inner(path=path, name="books"),), every=n) for path, n in (("/a", 1), ("/b", 2)))
    assert canonical(here) == {"sources": [{"name": "books"}]}
    assert digest_of(here) == digest_of(there)


def test_the_golden_fingerprint_and_seed_stay() -> None:
    key = {"stage": "clean", "parameters": {"share": 0.1, "names": ("ö", None)}, "n": 3}
    assert fingerprint_of(key) == "984921561028d8ea42eb73d22a80699d"
    assert seed_for("shuffle", 0) == 6_084_047_291_336_068_433


def test_seeds_differ_by_purpose_and_fit_a_signed_integer() -> None:
    seeds = [seed_for("shuffle", 0), seed_for("shuffle", 1), seed_for("split", 0), seed_for("split", "0")]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_folder_is_its_names_and_digests_in_any_order() -> None:
    assert (
        files_digest({"a": "1", "b": "2"}) == files_digest({"b": "2", "a": "1"}) != files_digest({"a": "2", "b": "1"})
    )


def test_differences_name_the_place_and_both_values() -> None:
    old = {"parameters": {"n": 1, "sources": [{"name": "a"}]}, "gone": 1, "same": [1]}
    new = {"parameters": {"n": 2, "sources": [{"name": "b"}]}, "come": 1, "same": [1]}
    assert list(differences(old, new)) == [
        ("come", None, 1),
        ("gone", 1, None),
        ("parameters/n", 1, 2),
        ("parameters/sources/0/name", "a", "b"),
    ]


def test_lists_of_two_lengths_differ_as_a_whole() -> None:
    assert list(differences({"inputs": ["a"]}, {"inputs": ["a", "b"]})) == [("inputs", ["a"], ["a", "b"])]


# ---- code: a method in a tiny house of its own, so that it can be edited ----

METHOD = '''"""A method."""
import json
import numpy
from infra.wheels import turn
from tasks.curate import far
from tasks.curate.helper import help_out

LIMIT = 3
TEMPLATE = "method.jinja"


def work(x):
    """Say what it does."""
    from data.shapes import shape

    # how it does it
    return help_out(x) + LIMIT
'''
HOUSE = {
    "tasks/__init__.py": "",
    "tasks/curate/__init__.py": '"""Curate."""',
    "tasks/curate/method.py": METHOD,
    "tasks/curate/helper.py": "from . import deep\n\n\ndef help_out(x):\n    return deep.go(x)\n",
    "tasks/curate/deep.py": "def go(x):\n    return x\n",
    "tasks/curate/far.py": "FAR = 1\n",
    "tasks/curate/stranger.py": "STRANGE = 1\n",
    "tasks/curate/method.jinja": "{{ x }}",
    "tasks/curate/other.jinja": "{{ y }}",
    "data/__init__.py": "",
    "data/shapes.py": "shape = 1\n",
    "infra/__init__.py": "",
    "infra/wheels.py": "turn = 1\n",
}
ASK = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("ours", sys.argv[1])
ours = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ours)
code = ours.code_digests("tasks.curate.method")
print(json.dumps([code, ours.package_versions(tuple(code))]))
"""


def built(folder: Path) -> Path:
    """Build the house."""
    for name, text in HOUSE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def digests(house: Path) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Ask a fresh process, which imports that house's rooms, for the digests of the method's code."""
    asked = subprocess.run(
        [sys.executable, "-c", ASK, str(REPOSITORY / "data" / "fingerprint.py")],
        cwd=house,
        env={**os.environ, "PYTHONPATH": str(house)},
        capture_output=True,
        text=True,
        check=True,
    )
    code, packages = json.loads(asked.stdout)
    return code, packages


@pytest.fixture
def house(tmp_path: Path) -> Path:
    return built(tmp_path)


def edited(house: Path, name: str, old: str, new: str) -> list[str]:
    """The places of the digest that an edit of one file changes."""
    before = digests(house)[0]
    text = (house / name).read_text()
    assert old in text
    (house / name).write_text(text.replace(old, new))
    return [place for place, _, _ in differences(before, digests(house)[0])]


def test_code_is_that_of_the_method_and_of_what_it_reaches_in_tasks_and_data(house: Path) -> None:
    code, packages = digests(house)
    assert sorted(code) == [
        "data.shapes",
        "tasks.curate",
        "tasks.curate.deep",
        "tasks.curate.far",
        "tasks.curate.helper",
        "tasks.curate.method",
    ]
    assert sorted(code["tasks.curate.method"]) == ["LIMIT", "TEMPLATE", "imports", "method.jinja", "work"]
    assert list(packages) == ["numpy"]
    assert packages["numpy"].count(".") == 1


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("tasks/curate/method.py", "# how it does it", "# how it really does it"),
        ("tasks/curate/method.py", "Say what it does.", "Say it better."),
        ("tasks/curate/method.py", '"""A method."""', '"""A fine method."""'),
        ("tasks/curate/method.py", '    """Say what it does."""\n', ""),
        ("tasks/curate/method.py", "\n\ndef work", "\n\n\n\n\ndef work"),
        ("tasks/curate/method.py", "help_out(x) + LIMIT", "(help_out( x ) + LIMIT)"),
        ("tasks/curate/stranger.py", "1", "2"),
        ("tasks/curate/other.jinja", "y", "z"),
        ("infra/wheels.py", "1", "2"),
    ],
    ids=["comment", "docstring", "module's docstring", "no docstring", "blank lines", "layout",
         "module not reached", "template not named", "infra"],
)  # fmt: skip
def test_what_changes_no_result_changes_no_digest(house: Path, name: str, old: str, new: str) -> None:
    assert edited(house, name, old, new) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "place"),
    [
        ("tasks/curate/method.py", "LIMIT = 3", "LIMIT = 4", "tasks.curate.method/LIMIT"),
        ("tasks/curate/method.py", "(x) + LIMIT", "(x) - LIMIT", "tasks.curate.method/work"),
        ("tasks/curate/method.py", "import json", "import csv", "tasks.curate.method/imports"),
        ("tasks/curate/helper.py", "go(x)", "go(-x)", "tasks.curate.helper/help_out"),
        ("tasks/curate/deep.py", "return x", "return -x", "tasks.curate.deep/go"),
        ("data/shapes.py", "1", "2", "data.shapes/shape"),
        ("tasks/curate/method.jinja", "x", "x | upper", "tasks.curate.method/method.jinja"),
    ],
    ids=["constant", "function", "import", "helper", "helper's helper", "data", "template"],
)
def test_what_may_change_a_result_changes_its_own_digest(
    house: Path, name: str, old: str, new: str, place: str
) -> None:
    assert edited(house, name, old, new) == [place]


def test_a_definition_that_comes_or_goes_is_named(house: Path) -> None:
    assert edited(house, "tasks/curate/deep.py", "def go", "DEPTH = 1\n\n\ndef go") == ["tasks.curate.deep/DEPTH"]


def test_an_import_inside_a_function_is_reached(house: Path) -> None:
    assert edited(house, "tasks/curate/method.py", "    from data.shapes import shape\n", "") == [
        "data.shapes",
        "tasks.curate.method/work",
    ]
