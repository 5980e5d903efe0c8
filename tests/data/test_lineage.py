"""The ledger answers from the records alone, and its index can be lost at any moment."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from data.artifact import Artifact
from data.contracts import PROMPT_COMPLETION, dropped_schema, edges_schema, failed_schema
from data.ids import content_ids, created_id, ids_from_bytes
from data.ledger import INDEX, ledger, refresh
from data.lineage import Event, find_rows, history, latest_run, parents, upstream
from infra.settings import use_settings
from infra.stage import Measures, Parameters, Rows, stage
from infra.store import Store
from infra.work import Work
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.deduplicate import DeduplicateParameters, deduplicate
from tasks.curate.load import LoadParameters, Source, load

REPOSITORY = Path(__file__).parents[2]
LINES = [
    b'{"prompt": "plain", "completion": "one"}',
    b'{"prompt": " blank ", "completion": "two"}',
    b'{"prompt": "", "completion": "empty"}',
    b'{"prompt": "plain", "completion": "one"}',
    b'{"prompt": "broken", "completion": ',
    b'{"prompt": "poison", "completion": "three"}',
    b'{"prompt": "last", "completion": "four"}',
]


class Nothing(Parameters):
    """No parameters."""


@stage("exact")
def refuse_poison(work: Work, parameters: Nothing, rows: Rows) -> Measures:
    """Fail the row that is poison."""
    table = rows.read()
    bad = pc.equal(table["prompt"], "poison")
    failed = table["row_id"].filter(bad).combine_chunks()
    work.write([table.filter(pc.invert(bad))])
    columns = {"row_id": failed, "error": ["poison"] * len(failed), "location": pa.nulls(len(failed), pa.string())}
    work.ledger("failed", [pa.table(columns, failed_schema())])
    return {"poisoned": len(failed)}


@stage("exact")
def join_all(work: Work, parameters: Nothing, rows: Rows) -> Measures:
    """Make one row of all."""
    table = rows.read()
    parents = table["row_id"].combine_chunks().storage.to_pylist()
    made = ids_from_bytes(created_id("join_all", parents))
    texts = {name: [" ".join(table[name].to_pylist())] for name in ("prompt", "completion")}
    plain = pa.table({**texts, "source": ["joined"], "licence": ["CC0-1.0"]})
    joined = plain.add_column(0, "content_id", content_ids(plain, PROMPT_COMPLETION)).add_column(0, "row_id", made)
    work.write([joined])
    child = ids_from_bytes(made.storage[0].as_py() * len(parents))
    work.ledger("edges", [pa.table({"child": child, "parent": table["row_id"]}, edges_schema())])
    return {}


@stage("exact", trains=True)
def learn(work: Work, parameters: Nothing, rows: Rows) -> Measures:
    """Make a model of all rows but those that are blank."""
    table = rows.read()
    useless = table["row_id"].filter(pc.equal(table["prompt"], "blank")).combine_chunks()
    columns = {
        "row_id": useless, "reason": ["teaches nothing"] * len(useless), "score": [0.25] * len(useless),
        "partner": pa.nulls(len(useless), pa.uuid()), "detail": pa.nulls(len(useless), pa.string()),
    }  # fmt: skip
    work.ledger("dropped", [pa.table(columns, dropped_schema())])
    (work.out / "weights.txt").write_text("1 2 3")
    return {"loss": 0.5}


@dataclass(frozen=True)
class House:
    """A store with one chain of stages: loaded, cleaned, unique, sound -> model, and sound -> joined -> model."""

    store: Path
    loaded: Artifact
    cleaned: Artifact
    unique: Artifact
    sound: Artifact
    model: Artifact
    joined: Artifact
    of_joined: Artifact

    @property
    def chain(self) -> list[str]:
        return [each.fingerprint for each in (self.loaded, self.cleaned, self.unique, self.sound, self.model)]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    (folder / "book.jsonl").write_bytes(b"\n".join(LINES))
    book = Source(path=str(folder / "book.jsonl"), name="book", licence="CC0-1.0", layout="prompt-completion")
    with use_settings(store=folder / "store", workers=1):
        loaded = load(LoadParameters(sources=(book,), max_failed_share=0.5))
        cleaned = clean(CleanParameters(), loaded)
        unique = deduplicate(DeduplicateParameters(), cleaned)
        sound = refuse_poison(Nothing(), unique)
        model = learn(Nothing(), sound)
        joined = join_all(Nothing(), sound)
        yield House(folder / "store", loaded, cleaned, unique, sound, model, joined, learn(Nothing(), joined))


@pytest.fixture
def copy(house: House, tmp_path: Path) -> Path:
    """A copy of the store, to be spoilt."""
    return Path(shutil.copytree(house.store, tmp_path / "store"))


def everything(store: Path) -> dict[str, list[tuple[object, ...]]]:
    """All that the ledger says, table by table."""
    with ledger(store) as connection:
        names = [row[0] for row in connection.execute("SELECT table_name FROM information_schema.tables").fetchall()]
        return {name: sorted(connection.execute(f"FROM {name}").fetchall(), key=repr) for name in names}


def row_at(house: House, line: int) -> uuid.UUID:
    with ledger(house.store) as connection:
        (row,) = find_rows(connection, f"book.jsonl:{line}")
    return row


def told(house: House, row: uuid.UUID, fingerprints: list[str] | None = None) -> list[tuple[str, str, str]]:
    with ledger(house.store) as connection:
        events = history(connection, row, fingerprints or house.chain)
    return [(event.stage, event.what, event.detail) for event in events]


# ---- the index ----


def test_the_ledger_counts_what_the_records_say(house: House) -> None:
    with ledger(house.store) as connection:
        counts = connection.execute(
            "SELECT artifact.stage, coalesce(sum(rows), 0)::INT FROM artifact LEFT JOIN output USING (fingerprint) "
            "WHERE output.name = 'rows' GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        losses = connection.execute("SELECT stage, value FROM measure WHERE name = 'loss'").fetchall()
    assert counts == [("clean", 5), ("deduplicate", 4), ("join_all", 1), ("load", 6), ("refuse_poison", 3)]
    assert losses == [("learn", 0.5), ("learn", 0.5)]


def test_refreshing_again_changes_nothing(copy: Path) -> None:
    before = everything(copy)
    status = (copy / INDEX).stat()
    refresh(copy)
    assert (copy / INDEX).stat().st_ino == status.st_ino
    assert (copy / INDEX).stat().st_mtime_ns == status.st_mtime_ns
    assert everything(copy) == before


def test_losing_the_index_loses_nothing(copy: Path) -> None:
    before = everything(copy)
    (copy / INDEX).unlink()
    assert everything(copy) == before


def test_a_removed_artifact_leaves_the_ledger_and_comes_back_with_its_folder(copy: Path, house: House) -> None:
    before = everything(copy)
    gone = copy / house.joined.path.relative_to(house.store)
    gone.rename(copy / "aside")
    after = everything(copy)
    with ledger(copy) as connection:
        found = connection.execute("SELECT DISTINCT stage FROM artifact ORDER BY ALL").fetchall()
    assert ("join_all",) not in found
    lost = house.joined.fingerprint
    for table, rows in after.items():
        if table not in ("trained_on", "input"):
            assert rows == [row for row in before[table] if lost not in row], table
    (copy / "aside").rename(gone)
    assert everything(copy) == before


def test_tags_come_into_the_ledger_and_go_with_their_files(copy: Path, house: House) -> None:
    ask = "SELECT * EXCLUDE made, made > '2020-01-01' FROM tag ORDER BY ALL"

    def tags() -> list[tuple[object, ...]]:
        with ledger(copy) as connection:
            return connection.execute(ask).fetchall()

    assert tags() == []
    store = Store(copy)
    store.tag(house.cleaned, "book", "washed")
    store.tag(house.unique["rows"], "book")
    first, second = house.cleaned.record["output_digest"], house.unique["rows"].digest
    assert tags() == [
        ("book", 1, "clean", house.cleaned.fingerprint, None, first, "washed", True),
        ("book", 2, "deduplicate", house.unique.fingerprint, "rows", second, "", True),
    ]
    inode = (copy / INDEX).stat().st_ino
    assert len(tags()) == 2
    assert (copy / INDEX).stat().st_ino == inode
    (copy / "tags" / "book" / "v2.json").unlink()
    assert [tag[1] for tag in tags()] == [1]
    store.tag(house.cleaned, "book")
    store.tag(house.sound, "book")  # the same version again, with other content
    assert [tag[2] for tag in tags()] == ["clean", "refuse_poison"]


def test_a_ledger_can_be_opened_while_another_is(copy: Path) -> None:
    with ledger(copy) as first, ledger(copy) as second:
        count = "SELECT count(*) FROM artifact"
        assert first.execute(count).fetchall() == second.execute(count).fetchall() == [(7,)]


def test_two_processes_refresh_at_once(copy: Path) -> None:
    before = everything(copy)
    (copy / INDEX).unlink()
    both = [start_refresh(copy) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert everything(copy) == before
    assert not list(copy.glob(".lineage.next*"))


def test_a_refresh_that_had_to_wait_sees_what_was_published_meanwhile(copy: Path, house: House) -> None:
    place = copy / house.joined.path.relative_to(house.store)
    place.rename(copy / "aside")
    with (copy / ".lineage.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = start_refresh(copy)
        until_open(waiting.pid, copy / ".lineage.lock")
        (copy / "aside").rename(place)
    assert waiting.wait() == 0
    listed = subprocess.run(
        [sys.executable, "-c", "import duckdb, sys; print(duckdb.connect(sys.argv[1]).execute("
         "'SELECT count(*) FROM artifact').fetchone()[0])", str(copy / INDEX)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert listed.stdout == "7\n"


def test_a_refresh_killed_half_way_spoils_nothing(copy: Path, house: House) -> None:
    place = copy / house.joined.path.relative_to(house.store)
    place.rename(copy / "aside")
    refresh(copy)
    (copy / "aside").rename(place)
    shutil.copyfile(copy / INDEX, copy / ".lineage.next")
    write = (
        "import duckdb, os, sys; c = duckdb.connect(sys.argv[1]); "
        "c.execute(\"INSERT INTO measure VALUES ('half', 'a', 'line', 1.0)\"); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", write, str(copy / ".lineage.next")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (copy / ".lineage.next.wal").stat().st_size > 0
    assert everything(copy) == everything(house.store)
    assert not list(copy.glob(".lineage.next*"))


def start_refresh(store: Path) -> subprocess.Popen[bytes]:
    ask = "import sys, pathlib; from data.ledger import refresh; refresh(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen([sys.executable, "-c", ask, str(store)], env=environment)


def until_open(pid: int, file: Path) -> None:
    """Wait until a process has a file open."""
    while not any(os.path.realpath(each) == str(file.resolve()) for each in Path(f"/proc/{pid}/fd").iterdir()):
        time.sleep(0.01)


# ---- what became of a row ----


def test_a_row_that_stays_as_it_is(house: House) -> None:
    assert told(house, row_at(house, 7)) == [
        ("load", "loaded", "from book.jsonl, line 7"),
        ("clean", "kept", ""),
        ("deduplicate", "kept", ""),
        ("refuse_poison", "kept", ""),
        ("learn", "trained on", ""),
    ]


def test_a_row_that_is_edited_and_then_teaches_nothing(house: House) -> None:
    assert told(house, row_at(house, 2)) == [
        ("load", "loaded", "from book.jsonl, line 2"),
        ("clean", "edited", ""),
        ("deduplicate", "kept", ""),
        ("refuse_poison", "kept", ""),
        ("learn", "dropped", "teaches nothing, score 0.25"),
    ]


def test_a_row_that_is_dropped_for_its_length(house: House) -> None:
    assert told(house, row_at(house, 3)) == [
        ("load", "loaded", "from book.jsonl, line 3"),
        ("clean", "dropped", "prompt too short, score 0"),
    ]


def test_of_two_equal_rows_one_is_dropped_because_of_the_other(house: House) -> None:
    first, second = row_at(house, 1), row_at(house, 4)
    assert first != second
    kept, dropped = sorted((first, second), key=lambda row: row.bytes)
    assert told(house, dropped)[-1] == ("deduplicate", "dropped", f"duplicate, score 1, because of {kept}")
    assert told(house, kept)[-1] == ("learn", "trained on", "")
    with ledger(house.store) as connection:
        (partner,) = (e.partner for e in history(connection, dropped, house.chain) if e.what == "dropped")
    assert partner == kept


def test_a_line_that_cannot_be_read_is_a_row_that_failed(house: House) -> None:
    ((stage_name, what, detail),) = told(house, row_at(house, 5))
    assert (stage_name, what) == ("load", "failed")
    assert detail.startswith("book.jsonl:5: ")


def test_a_row_that_fails_later_says_where_and_why(house: House) -> None:
    assert told(house, row_at(house, 6))[-1] == ("refuse_poison", "failed", "poison")


def test_a_consumed_row_names_its_child_and_the_child_its_parents(house: House) -> None:
    chain = [*house.chain[:4], house.joined.fingerprint, house.of_joined.fingerprint]
    with ledger(house.store) as connection:
        ((child,),) = connection.execute("SELECT DISTINCT child FROM row_edge").fetchall()
        came_from = parents(connection, child)
    assert told(house, row_at(house, 7), chain)[-1] == ("join_all", "consumed", f"into {child}")
    assert row_at(house, 7) in came_from
    assert len(came_from) == 3
    assert told(house, child, chain) == [
        ("join_all", "created", f"from {', '.join(str(each) for each in came_from)}"),
        ("learn", "trained on", ""),
    ]


def test_without_a_run_a_rows_history_goes_by_age(house: House) -> None:
    row = row_at(house, 6)
    with ledger(house.store) as connection:
        assert latest_run(connection, row) == house.chain[:4]


def test_the_newest_run_that_met_a_row_tells_its_history(copy: Path, house: House) -> None:
    row = row_at(house, 7)
    (copy / "runs").mkdir()
    for name, began, chain in (("early", 1.0, house.chain), ("late", 2.0, house.chain[:2]), ("other", 3.0, [])):
        stages = [{"stage": "s", "fingerprint": each, "state": "done", "seconds": 0.0} for each in chain]
        run = {"run": name, "flow": "f", "recipe": "r", "state": "done", "began": began, "seconds": 0.0,
               "dataset": None, "model": None, "report": None, "stages": stages}  # fmt: skip
        (copy / "runs" / f"{name}.json").write_bytes(orjson.dumps(run))
    with ledger(copy) as connection:
        assert latest_run(connection, row) == house.chain[:2]
    (copy / "runs" / "late.json").unlink()
    with ledger(copy) as connection:
        assert latest_run(connection, row) == house.chain


# ---- finding and walking ----


def test_a_row_is_found_by_the_first_digits_of_its_id(house: House) -> None:
    row = row_at(house, 1)
    with ledger(house.store) as connection:
        assert find_rows(connection, str(row)) == find_rows(connection, str(row)[:8].upper()) == [row]
        assert find_rows(connection, str(row)[:5]) == []
        assert find_rows(connection, "book.jsonl:99") == []
        assert find_rows(connection, "%%%%%%%%") == []


def test_the_source_rows_of_a_model_are_those_that_it_was_trained_on(house: House) -> None:
    ask = "SELECT source, licence, file, line FROM source_rows(?)"
    with ledger(house.store) as connection:
        lines = connection.execute(ask, [house.model.fingerprint]).fetchall()
    kept = 1 if row_at(house, 1).bytes < row_at(house, 4).bytes else 4
    # line 2 taught nothing, 3 and 5 never came so far, of 1 and 4 one was kept, 6 failed
    assert lines == [("book", "CC0-1.0", "book.jsonl", line) for line in (kept, 7)]


def test_the_source_rows_of_a_model_are_found_through_the_rows_made_of_them(house: House) -> None:
    with ledger(house.store) as connection:
        ask = "SELECT line FROM source_rows(?)"
        lines = [row[0] for row in connection.execute(ask, [house.of_joined.fingerprint[:8]]).fetchall()]
    assert len(lines) == 3
    assert {2, 7} < set(lines)


def test_an_artifacts_ancestors_are_walked_with_their_depth(house: House) -> None:
    with ledger(house.store) as connection:
        walked = upstream(connection, house.of_joined.fingerprint)
    assert [(depth, stage_name, role) for depth, stage_name, _, role in walked] == [
        (0, "learn", ""),
        (1, "join_all", "rows"),
        (2, "refuse_poison", "rows"),
        (3, "deduplicate", "rows"),
        (4, "clean", "rows"),
        (5, "load", "rows"),
    ]


def test_an_event_knows_its_content(house: House) -> None:
    with ledger(house.store) as connection:
        events: list[Event] = history(connection, row_at(house, 2), house.chain)
    contents = {event.stage: event.content_id for event in events if event.content_id}
    assert contents["load"] != contents["clean"] == contents["deduplicate"]


@pytest.mark.parametrize("broken", [b"no database", b""])
def test_an_index_that_cannot_be_read_is_made_anew(copy: Path, broken: bytes) -> None:
    with ledger(copy) as connection:
        before = connection.execute("SELECT * FROM row ORDER BY ALL").fetchall()
    (copy / INDEX).write_bytes(broken)
    with ledger(copy) as connection:
        assert connection.execute("SELECT * FROM row ORDER BY ALL").fetchall() == before != []
