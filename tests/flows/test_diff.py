"""Which rows two datasets do not share, and why: every row once, each with the reason of the side that lacks it."""

import json
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from data.artifact import Artifact
from data.contracts import PROMPT_COMPLETION, edges_schema, failed_schema
from data.diff import Difference, diff
from data.errors import BadInput
from data.ids import content_ids, created_id, ids_from_bytes
from data.ledger import ledger
from flows.__main__ import main
from infra.settings import use_settings
from infra.stage import Measures, Parameters, Rows, stage
from infra.work import Work
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.deduplicate import DeduplicateParameters, deduplicate
from tasks.curate.load import LoadParameters, load
from tasks.curate.shuffle import ShuffleParameters, shuffle
from tasks.curate.split import SplitParameters, split

Group = tuple[str, str, str, str]


class Choice(Parameters):
    """A word."""

    word: str


@stage("exact")
def refuse(work: Work, parameters: Choice, rows: Rows) -> Measures:
    """Fail the rows whose prompt has a word."""
    table = rows.read()
    bad = pc.match_substring(table["prompt"], parameters.word)
    failed = table["row_id"].filter(bad).combine_chunks()
    work.write([table.filter(pc.invert(bad))])
    columns = {"row_id": failed, "error": [f"has {parameters.word}"] * len(failed), "location": [None] * len(failed)}
    work.ledger("failed", [pa.table(columns, failed_schema())])
    return {}


@stage("exact")
def merge(work: Work, parameters: Choice, rows: Rows) -> Measures:
    """Make one row of those whose prompt has a word."""
    table = rows.read()
    chosen = pc.match_substring(table["prompt"], parameters.word)
    parents = table["row_id"].filter(chosen).combine_chunks()
    made = ids_from_bytes(created_id("merge", parents.storage.to_pylist()))
    texts = {name: [" ".join(table[name].filter(chosen).to_pylist())] for name in ("prompt", "completion")}
    plain = pa.table({**texts, "source": ["merged"], "licence": ["CC0-1.0"]})
    joined = plain.add_column(0, "content_id", content_ids(plain, PROMPT_COMPLETION)).add_column(0, "row_id", made)
    work.write([table.filter(pc.invert(chosen)), joined])
    child = ids_from_bytes(made.storage[0].as_py() * len(parents))
    work.ledger("edges", [pa.table({"child": child, "parent": parents}, edges_schema())])
    return {}


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    with use_settings(store=tmp_path / "store", workers=1):
        yield tmp_path / "store"


def row(prompt: str, completion: str = "c") -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def loaded(*rows: dict[str, str], name: str = "book") -> Artifact:
    Path(f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    source = {"path": f"{name}.jsonl", "licence": "CC0-1.0", "layout": "prompt-completion"}
    return load(LoadParameters.model_validate({"sources": [source]}))


def differ(store: Path, a: Artifact, b: Artifact, examples: int = 100) -> Difference:
    with ledger(store) as connection:
        return diff(connection, a, b, examples)


def counts(store: Path, a: Artifact, b: Artifact) -> dict[Group, int]:
    names = ("what", "reason", "stage", "source")
    groups = differ(store, a, b).counts
    told: dict[Group, int] = {tuple(each[name] for name in names): each["rows"] for each in groups}  # type: ignore[misc]
    assert_every_row_once(a, b, told)
    return told


def tables_of(artifact: Artifact) -> list[str]:
    tables = [name for name, each in artifact.record["outputs"].items() if "contract" in each]
    return [artifact.output] if artifact.output else tables


def contents(artifact: Artifact) -> dict[uuid.UUID, tuple[uuid.UUID, str]]:
    """Each row's content and table."""
    return {
        line["row_id"]: (line["content_id"], table)
        for table in tables_of(artifact)
        for line in artifact[table].read(["row_id", "content_id"]).to_pylist()
    }


def assert_every_row_once(a: Artifact, b: Artifact, told: dict[Group, int]) -> None:
    """The counts by kind are those of a comparison row by row, in Python."""
    ours, theirs = contents(a), contents(b)
    shared = set(tables_of(a)) & set(tables_of(b))
    wanted = Counter[str]()
    for each in {*ours, *theirs}:
        if each not in ours or each not in theirs:
            wanted["added" if each in theirs else "removed"] += 1
        elif ours[each][0] != theirs[each][0]:
            wanted["changed"] += 1
        else:
            tables = ours[each][1], theirs[each][1]
            wanted["moved" if tables[0] != tables[1] and shared & set(tables) else "unchanged"] += 1
    found = Counter[str]()
    for (what, *_), rows in told.items():
        found[what] += rows
    assert found == wanted


# ---- reasons ----


def test_equal_datasets_have_only_unchanged_rows(store: Path) -> None:
    rows = loaded(row("a"), row("b"))
    assert counts(store, rows, rows) == {("unchanged", "", "", "book"): 2}
    assert differ(store, rows, rows).rows == []


def test_a_removed_row_has_the_reason_for_which_it_was_dropped(store: Path) -> None:
    before = loaded(row("a"), row("a"), row(" "), row("b" * 30), row("d"))
    after = deduplicate(DeduplicateParameters(), clean(CleanParameters(max_characters=20), before))
    assert counts(store, before, after) == {
        ("removed", "duplicate", "deduplicate", "book"): 1,
        ("removed", "prompt too short", "clean", "book"): 1,
        ("removed", "row too long", "clean", "book"): 1,
        ("unchanged", "", "", "book"): 2,
    }
    ids = before.read(["row_id"])["row_id"].to_pylist()
    lines = {line["reason"]: line for line in differ(store, before, after).rows}
    assert (lines["row too long"]["row_id"], lines["row too long"]["score"]) == (ids[3], 31.0)
    twin = lines["duplicate"]
    assert {twin["row_id"], twin["partner"]} == set(ids[:2])
    assert (twin["table_a"], twin["table_b"], twin["content_b"]) == ("rows", None, None)


def test_an_added_row_has_the_reason_for_which_the_other_side_lacks_it(store: Path) -> None:
    rows = loaded(row("a" * 30), row("b"))
    strict, loose = (clean(CleanParameters(max_characters=most), rows) for most in (20, 90))
    assert counts(store, strict, loose) == {
        ("added", "row too long", "clean", "book"): 1, ("unchanged", "", "", "book"): 1
    }  # fmt: skip
    assert counts(store, loose, strict)[("removed", "row too long", "clean", "book")] == 1


def test_rows_of_other_sources_are_told_apart(store: Path) -> None:
    one, two = loaded(row("a"), row("b"), name="one"), loaded(row("a"), name="two")
    assert counts(store, one, two) == {
        ("removed", "not in the sources of B", "", "one"): 2, ("added", "not in the sources of A", "", "two"): 1
    }  # fmt: skip


def test_an_edited_source_removes_a_row_and_adds_one(store: Path) -> None:
    first = loaded(row("a"), row("b"))
    second = loaded(row("a"), row("B"))
    assert counts(store, first, second) == {
        ("removed", "not in the sources of B", "", "book"): 1,
        ("added", "not in the sources of A", "", "book"): 1,
        ("unchanged", "", "", "book"): 1,
    }


def test_a_changed_row_names_the_stage_that_edited_it_and_the_side(store: Path) -> None:
    rows = loaded(row(" a"), row("b"))
    cleaned = clean(CleanParameters(), rows)
    unique = deduplicate(DeduplicateParameters(), cleaned)
    assert counts(store, rows, unique)[("changed", "edited in B", "clean", "book")] == 1
    assert counts(store, unique, rows)[("changed", "edited in A", "clean", "book")] == 1
    line = differ(store, rows, unique).rows[0]
    assert line["content_a"] != line["content_b"]
    assert counts(store, cleaned, unique) == {("unchanged", "", "", "book"): 2}


def test_a_row_that_failed_says_so_with_its_error(store: Path) -> None:
    rows = loaded(row("good"), row("poison"))
    after = refuse(Choice(word="poison"), rows)
    assert counts(store, rows, after)[("removed", "failed", "refuse", "book")] == 1
    assert differ(store, rows, after).rows[0]["detail"] == "has poison"


def test_rows_that_became_another_are_consumed_and_the_new_one_is_created(store: Path) -> None:
    rows = loaded(row("a1"), row("a2"), row("b"))
    after = merge(Choice(word="a"), rows)
    assert counts(store, rows, after) == {
        ("removed", "consumed into new rows", "merge", "book"): 2,
        ("added", "created in B", "merge", "merged"): 1,
        ("unchanged", "", "", "book"): 1,
    }
    lines = {line["what"]: line for line in differ(store, rows, after).rows}
    assert lines["removed"]["partner"] == lines["added"]["row_id"]
    assert counts(store, after, rows)[("removed", "created in A", "merge", "merged")] == 1


def test_rows_that_were_split_otherwise_have_moved(store: Path) -> None:
    rows = loaded(*(row(f"r{n}") for n in range(60)))
    one, two = (split(SplitParameters(test_share=0.5, seed=seed), rows) for seed in (0, 1))
    told = counts(store, one, two)
    assert {(what, reason) for what, reason, *_ in told} == {
        ("moved", "train -> test"), ("moved", "test -> train"), ("unchanged", "")
    }  # fmt: skip
    assert counts(store, rows, one) == {("unchanged", "", "", "book"): 60}


def test_rows_that_all_moved_have_moved_though_their_table_is_empty_now(store: Path) -> None:
    rows = loaded(*(row(f"r{n}") for n in range(3)))
    low, high = (split(SplitParameters(test_share=share), rows) for share in (1e-9, 1 - 1e-9))
    assert (low["test"].rows, high["train"].rows) == (0, 0)
    assert counts(store, low, high) == {("moved", "train -> test", "", "book"): 3}


def test_one_table_can_be_compared_alone(store: Path) -> None:
    rows = loaded(*(row(f"r{n}") for n in range(60)))
    parts = split(SplitParameters(test_share=0.5), rows)
    kept = parts["train"].rows
    reason = "in table test, which was not read on"
    assert counts(store, rows, parts["train"]) == {
        ("removed", reason, "split", "book"): 60 - kept, ("unchanged", "", "", "book"): kept
    }  # fmt: skip
    shuffled = shuffle(ShuffleParameters(), parts["train"])
    told = counts(store, parts, shuffled)
    assert told[("removed", reason, "split", "book")] == 60 - kept
    assert told[("removed", "consumed into new rows", "shuffle", "book")] == kept


def test_ancestors_that_are_gone_are_not_taken_for_sources_without_the_row(store: Path) -> None:
    rows = loaded(row("a"), row(" "))
    after = deduplicate(DeduplicateParameters(), clean(CleanParameters(), rows))
    aside = clean(CleanParameters(), rows).path
    aside.rename(store / "aside")
    assert counts(store, rows, after) == {
        ("removed", "not met in what is left of B", "", "book"): 1, ("unchanged", "", "", "book"): 1
    }  # fmt: skip


def test_examples_are_those_of_the_lowest_row_ids_and_bounded_by_group(store: Path) -> None:
    before = loaded(*(row(f"r{n}") for n in range(9)), *(row("x" * 30 + str(n)) for n in range(5)))
    cleaned = clean(CleanParameters(max_characters=20), before)
    other = loaded(row("z"), name="other")
    lines = differ(store, before, cleaned, 2).rows
    long = sorted(each["row_id"] for each in clean_dropped(cleaned))
    assert [line["row_id"] for line in lines] == long[:2]
    assert Counter(line["what"] for line in differ(store, before, other, 3).rows) == {"removed": 3, "added": 1}
    assert differ(store, before, other, 0).rows == []


def clean_dropped(cleaned: Artifact) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = cleaned["dropped"].read().to_pylist()
    return lines


def test_what_has_no_rows_is_refused(store: Path) -> None:
    from tasks.curate.embed import EmbedParameters, embed

    rows = loaded(row("a"))
    with pytest.raises(BadInput, match="holds no rows"):
        differ(store, rows, embed(EmbedParameters(), rows))


# ---- the command ----


def test_the_command_prints_counts_and_rows(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = loaded(*(row(f"r{n}") for n in range(40)), *(row("x" * 30 + str(n)) for n in range(30)))
    after = clean(CleanParameters(max_characters=20), rows)
    where = ["--store", str(store)]
    assert main(["tag", after.fingerprint, "book", *where]) == 0
    capsys.readouterr()
    assert main(["diff", rows.fingerprint, "book", *where, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["a"] == {"stage": "load", "fingerprint": rows.fingerprint, "output": None}
    assert told["b"]["fingerprint"] == after.fingerprint
    assert told["counts"] == [
        {"what": "removed", "reason": "row too long", "stage": "clean", "source": "book", "rows": 30},
        {"what": "unchanged", "reason": "", "stage": "", "source": "book", "rows": 40},
    ]
    assert len(told["rows"]) == 20
    assert all(uuid.UUID(line["row_id"]) for line in told["rows"])
    assert main(["diff", rows.fingerprint, "book@v1", *where]) == 0
    plain = capsys.readouterr().out
    assert "row too long" in plain
    assert told["rows"][0]["row_id"] not in plain
    assert main(["diff", rows.fingerprint, "book@v1", *where, "--rows", "1"]) == 0
    assert told["rows"][0]["row_id"] in capsys.readouterr().out
    with pytest.raises(SystemExit) as refused:
        main(["diff", rows.fingerprint, "book", *where, "--rows", "-1"])
    assert refused.value.code == 2
    assert "where a number from 0 is wanted" in capsys.readouterr().err
