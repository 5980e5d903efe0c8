"""Write rows out of forms: hand-written sentences with alternatives, fields and numbers (texts/*.yaml).

    <one|another>     one of these
    {name} {name2}    a word of the list `name`, of the form or of shared.yaml, not the same one twice; or a column of
                      the form's table, which holds facts that belong together
    {a} {a:money}     a number that `numbers` draws (a = 3..9 by 2), works out (b = a * 4) or wants (need b > 9);
                      cents as euros; {d:weekday} is a day, 1 for Monday

A form makes `rows` rows, or one for each line of its table. All that is drawn comes from `Random.random`, the one
method whose sequence Python promises to keep across versions.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import yaml

from data.samples.make_samples import below, shuffled

Item = TypeVar("Item")
Form = Mapping[str, Any]
Row = dict[str, str]
Values = dict[str, Any]

TEXTS = Path(__file__).with_name("texts")
ALIKE = 0.55  # share of their runs of three words that two rows of one form may have in common
TRIES = 60  # draws for each row before a form counts as used up
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def read(name: str) -> Any:
    """Read a file of texts."""
    return yaml.safe_load((TEXTS / f"{name}.yaml").read_text(encoding="utf-8"))


def written(rng: Random, shared: Form, forms: Sequence[Form], alike: float = ALIKE) -> list[Row]:
    """Make the rows of all forms; those of one form differ, unless it makes a crowd (`planted`).

    Args:
        rng: where all draws come from.
        shared: lists of words for all forms.
        forms: ask and answer, and whatever these need.
        alike: share of their runs of three words that two rows of one form may have in common.
    """
    made: list[Row] = []
    for form in forms:
        facts = table(form["table"]) if "table" in form else [{}]
        order: list[dict[str, str]] = []
        seen: list[set[tuple[str, ...]]] = []
        wanted, tries = form.get("rows", len(facts)), 0
        while len(seen) < wanted and tries < TRIES * wanted:
            tries += 1
            order = order or shuffled(rng, facts)
            row = one_row(rng, shared, form, order.pop())
            runs = runs_of(row)
            if "planted" in form or all(len(runs & each) < alike * len(runs | each) for each in seen):
                seen.append(runs)
                made.append(row)
        if len(seen) < wanted:
            raise ValueError(f"only {len(seen)} of {wanted} rows that differ enough: {form['ask'][0]}")
    return made


def one_row(rng: Random, shared: Form, form: Form, facts: Mapping[str, str]) -> Row:
    """Make one row of a form from a line of its table."""
    values: Values = {name: int(value) if value.isdigit() else value for name, value in facts.items()}
    values |= form.get("known", {})
    if numbers := [*form.get("numbers", ()), *form.get("more", ())]:
        values = drawn_numbers(rng, numbers, values)
        values |= {name: filled(rng, value, [], values) for name, value in facts.items() if not value.isdigit()}
    texts = [filled(rng, chosen(rng, pick(rng, form[part])), [form, shared], values) for part in ("ask", "answer")]
    if not form.get("as_is"):
        texts = [capitalised(text) for text in texts]
    return {"prompt": texts[0], "completion": texts[1], "planted": form.get("planted", "")}


def chosen(rng: Random, text: str) -> str:
    """Choose one of the alternatives at each place of a text."""
    return re.sub(r"<([^<>|]*\|[^<>]*)>", lambda match: pick(rng, match[1].split("|")), text)


def filled(rng: Random, text: str, lists: Sequence[Form], values: Values) -> str:
    """Fill the fields of a text; `values` holds what is known already, and takes up what is drawn here."""

    def fill(match: re.Match[str]) -> str:
        name, form = match[1], match[2]
        if name not in values:
            words = next(each[key] for each in lists for key in (name, name.rstrip("0123456789")) if key in each)
            values[name] = pick(rng, [str(each) for each in words if each not in values.values()])
        value = values[name]
        if form == "money":
            return f"{value // 100}.{value % 100:02}"
        return DAYS[(value - 1) % 7] if form == "weekday" else str(value)

    return re.sub(r"\{(\w+)(?::(\w+))?\}", fill, text)


def capitalised(text: str) -> str:
    """Begin each sentence with a capital."""
    return re.sub(r"^[a-z]|(?<=[.!?]\s)[a-z]|(?<=\n\n)[a-z]", lambda match: match[0].upper(), text)


def table(text: str) -> list[dict[str, str]]:
    r"""Read a table: a line of names, then a line for each fact; `\n` is a new line, `\|` is a bar."""

    def cells(line: str) -> list[str]:
        return [unescaped(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)]

    names, *lines = map(cells, text.strip().split("\n"))
    return [dict(zip(names, line, strict=True)) for line in lines]


def unescaped(text: str) -> str:
    """Take a backslash for what it says of the character behind it."""
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], text)


def runs_of(row: Row) -> set[tuple[str, ...]]:
    """Collect the runs of three words of a row."""
    words = words_in(row)
    return set(zip(words, words[1:], words[2:], strict=False))


def words_in(row: Row) -> list[str]:
    """List the words of a row."""
    return re.findall(r"\w+", f"{row['prompt']} {row['completion']}".lower())


def pick(rng: Random, items: Sequence[Item]) -> Item:
    """Draw one of `items`."""
    return items[below(rng, len(items))]


# ---- numbers ----

OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.Lt: operator.lt, ast.Gt: operator.gt, ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip


def drawn_numbers(rng: Random, lines: Sequence[str], known: Mapping[str, Any]) -> Values:
    """Draw and work out numbers, again until all that is needed of them holds."""
    while True:
        values = dict(known)
        if all(settled(rng, line, values) for line in lines):
            return values


def settled(rng: Random, line: str, values: Values) -> bool:
    """Follow one line of `numbers`; false if it needs something that does not hold."""
    if line.startswith("need "):
        return bool(worked_out(line.removeprefix("need "), values))
    name, _, rule = line.partition(" = ")
    if span := re.fullmatch(r"(\d+)\.\.(\d+)(?: by (\d+))?", rule):
        low, high, step = (int(each or 1) for each in span.groups())
        values[name] = low + step * below(rng, (high - low) // step + 1)
    else:
        values[name] = worked_out(rule, values)
    return True


def worked_out(rule: str, values: Values) -> int:
    """Work out a sum, or a comparison, of names and whole numbers."""

    def value(node: ast.AST) -> Any:
        match node:
            case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]):
                return OPERATORS[type(op)](value(left), value(right))
            case ast.Name(id=name):
                return values[name]
            case ast.Constant(value=number):
                return number
        raise ValueError(f"{rule}: only names, whole numbers and + - * // % < > == != are known")

    return int(value(ast.parse(rule, mode="eval").body))
