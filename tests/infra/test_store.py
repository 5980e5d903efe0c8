"""The store: names that cannot climb, one rename that publishes, one holder of each work folder."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.artifact import Artifact
from data.errors import BadInput
from data.fingerprint import file_digest
from data.tags import read_tags
from infra.settings import use_settings
from infra.store import Store, remembered_digest

REPOSITORY = Path(__file__).parents[2]
ONE, TWO = "a" * 32, "a" * 8 + "b" * 24


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


def put(store: Store, stage: str, fingerprint: str, **digests: str) -> Artifact:
    record = {"outputs": {name: {"digest": each} for name, each in digests.items()}, "output_digest": repr(digests)}
    with store.lease(stage, fingerprint, "test", unexpected) as work:
        (work / "out").mkdir()
        (work / "out" / "record.json").write_text(json.dumps(record))
        return store.publish(work, stage, fingerprint)


def unexpected(holder: str) -> None:
    raise AssertionError(f"waits for {holder}")


def refusal(store: Store, name: str) -> BadInput:
    with pytest.raises(BadInput) as refused:
        store.resolve(name)
    return refused.value


# ---- names ----


@pytest.mark.parametrize(
    ("stage", "fingerprint"),
    [
        ("..", ONE),
        ("clean", ".."),
        ("../clean", ONE),
        ("/clean", ONE),
        ("clean", "../" + "a" * 29),
        ("clean", ONE + "\n"),
        ("clean", ONE.upper()),
        ("clean", "a" * 31),
        (".work", ONE),
        ("", ONE),
    ],
)
def test_a_name_that_is_no_stage_or_fingerprint_has_no_folder(store: Store, stage: str, fingerprint: str) -> None:
    with pytest.raises(BadInput):
        store.folder(stage, fingerprint)


def test_an_artifact_is_found_by_its_folder_and_by_its_first_digits(store: Store) -> None:
    made, other = put(store, "clean", ONE), put(store, "clean", TWO)
    assert store.resolve(str(made.path)) == made
    assert store.resolve(ONE) == store.resolve(ONE[:9]) == made
    assert store.resolve(TWO[:9]) == other
    assert store.find("clean", "c" * 32) is None


def test_too_few_digits_and_shared_digits_are_refused(store: Store) -> None:
    put(store, "clean", ONE)
    put(store, "clean", TWO)
    assert "2 artifacts" in refusal(store, ONE[:8]).found
    assert "no artifact" in refusal(store, ONE[:5]).found
    assert "no artifact" in refusal(store, "cccccc").found


def test_a_path_outside_the_store_is_refused(store: Store, tmp_path: Path) -> None:
    elsewhere = put(Store(tmp_path / "other"), "clean", ONE)
    assert "outside the store" in refusal(store, str(elsewhere.path)).found
    assert "outside the store" in refusal(store, f"{store.root}/../other/clean/{ONE}").found


def test_a_link_out_of_the_store_is_refused(store: Store, tmp_path: Path) -> None:
    elsewhere = put(Store(tmp_path / "other"), "clean", ONE)
    (store.root / "clean").mkdir()
    (store.root / "clean" / ONE).symlink_to(elsewhere.path)
    assert "outside the store" in refusal(store, str(store.root / "clean" / ONE)).found


def test_a_folder_of_the_store_that_is_no_artifact_is_refused(store: Store) -> None:
    put(store, "clean", ONE)
    assert "no published artifact" in refusal(store, str(store.root / "clean")).found
    assert "no published artifact" in refusal(store, str(store.root / "clean" / TWO)).found


def test_artifacts_are_listed_by_stage_and_fingerprint(store: Store) -> None:
    for stage, fingerprint in (("split", ONE), ("clean", TWO), ("clean", ONE)):
        put(store, stage, fingerprint)
    (store.root / "clean" / "stray").mkdir()
    (store.root / "clean" / "stray" / "record.json").write_text("{}")
    assert [(each.stage, each.fingerprint) for each in store.artifacts()] == [
        ("clean", ONE), ("clean", TWO), ("split", ONE)
    ]  # fmt: skip


# ---- tags ----


def test_a_tag_names_an_artifact_in_versions(store: Store) -> None:
    first, second = put(store, "split", ONE, train="1"), put(store, "split", TWO, train="2")
    assert str(store.tag(first, "book", "because")) == "book@v1"
    assert str(store.tag(second, "book")) == "book@v2"
    assert store.resolve("book@v1") == first
    assert store.resolve("book") == store.resolve("book@v2") == second
    kept = json.loads((store.root / "tags" / "book" / "v1.json").read_bytes())
    assert kept.pop("made") > 0
    assert kept == {
        "name": "book", "version": 1, "stage": "split", "fingerprint": ONE, "output": None,
        "output_digest": first.record["output_digest"], "note": "because",
    }  # fmt: skip


def test_what_the_newest_version_names_keeps_it(store: Store) -> None:
    first, second = put(store, "split", ONE, train="1"), put(store, "split", TWO, train="2")
    assert [store.tag(each, "book").version for each in (first, first, second, second, first)] == [1, 1, 2, 2, 3]
    again = put(store, "split", "c" * 32, train="1")  # other code, say, and the same content
    assert store.tag(again, "book").version == 3
    assert store.resolve("book") == first
    assert len(list((store.root / "tags" / "book").iterdir())) == 3


def test_equal_content_of_another_stage_or_table_is_another_version(store: Store) -> None:
    made = put(store, "split", ONE, train="1", test="1")
    assert store.tag(made["train"], "book").version == 1
    assert store.tag(made["test"], "book").version == 2
    assert store.tag(put(store, "clean", ONE, train="1")["train"], "book").version == 3


def test_a_table_is_named_after_a_colon(store: Store) -> None:
    made = put(store, "split", ONE, train="1", test="2")
    store.tag(made, "book")
    assert store.resolve("book:train") == store.resolve("book@v1:train") == store.resolve(f"{ONE}:train")
    assert store.resolve(f"{made.path}:test") == made["test"]
    store.tag(store.resolve("book:train"), "book-train")
    assert store.resolve("book-train") == made["train"]
    assert "asked for its 'rows'" in refusal(store, "book:rows").found


@pytest.mark.parametrize(
    "name", ["", "Book", "böök", "a b", "../book", "a/b", "-book", ".book", "book\n", "a" * 101, "book@v1", "a:b"]
)
def test_a_tag_of_other_characters_is_refused(store: Store, name: str) -> None:
    with pytest.raises(BadInput, match="lower-case letters"):
        store.tag(put(store, "clean", ONE), name)
    assert not list(store.root.glob("tags/**/*.json"))


@pytest.mark.parametrize("name", ["abcdef", "123456", "20261124", "0123456789abcdef" * 2, "abcdef01-2345"])
def test_a_tag_that_could_be_first_digits_is_refused(store: Store, name: str) -> None:
    with pytest.raises(BadInput, match="first digits"):
        store.tag(put(store, "clean", ONE), name)


@pytest.mark.parametrize("name", ["a", "abcde", "facade-2", "2026-11-24", "book.v2", "a_b", "0", "abcdefg"])
def test_other_names_are_fine(store: Store, name: str) -> None:
    made = put(store, "clean", ONE)
    assert str(store.tag(made, name)) == f"{name}@v1"
    assert store.resolve(name) == store.resolve(f"{name}@v1") == made


def test_a_tag_comes_before_a_folder_of_its_name(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = put(store, "clean", ONE)
    store.tag(made, "book")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book").mkdir()
    assert store.resolve("book") == made
    assert "outside the store" in refusal(store, "./book").found


def test_a_version_that_is_not_there_is_refused(store: Store) -> None:
    store.tag(put(store, "clean", ONE), "book")
    for version in ("v2", "v0", "v01", "1", "", "v1x"):
        refused = refusal(store, f"book@{version}")
        assert f"no version {version!r}" in refused.found
        assert "book@v1" in refused.wanted
    assert "no artifact for 'bock@v1'" in refusal(store, "bock@v1").found


def test_a_tag_whose_artifact_is_gone_or_other_says_so(store: Store) -> None:
    made = put(store, "clean", ONE, rows="1")
    store.tag(made, "book")
    made.path.rename(store.root / "aside")
    assert f"book@v1, whose artifact clean/{ONE} is gone" in refusal(store, "book").found
    other = put(store, "clean", ONE, rows="2")
    assert "other content than when it was tagged" in refusal(store, "book@v1").found
    assert store.tag(other, "book").version == 2
    assert store.resolve("book") == other


def test_a_version_that_names_what_is_gone_is_followed_by_another(store: Store) -> None:
    made = put(store, "clean", ONE, rows="1")
    assert store.tag(made, "book").version == 1
    made.path.rename(store.root / "aside")
    assert store.tag(put(store, "clean", TWO, rows="1"), "book").version == 2


TAG = """
import sys
from pathlib import Path
from infra.store import Store

store = Store(Path(sys.argv[1]))
print(*(store.tag(store.find("clean", sys.argv[2] * 32), "book").version for _ in range(20)))
"""


def test_processes_that_tag_at_once_never_make_one_version_twice(store: Store) -> None:
    """Four processes tag four artifacts in turn, so that each call wants a new version."""
    for digit in "abcd":
        put(store, "clean", digit * 32, rows=digit)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TAG, str(store.root), digit], stdout=subprocess.PIPE, text=True, env=environment
        )
        for digit in "abcd"
    ]
    versions = {digit: process.communicate()[0].split() for digit, process in zip("abcd", processes, strict=True)}
    tags = {tag.version: tag.fingerprint[0] for tag in read_tags(store.root, "book")}
    assert len(tags) >= 4
    assert sorted(tags) == list(range(1, len(tags) + 1))
    for digit, given in versions.items():
        assert {tags[int(version)] for version in given} == {digit}
    assert not [file for file in (store.root / "tags" / "book").iterdir() if not file.name.startswith("v")]


# ---- folders that cannot be written ----


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    for root in (tmp_path / "store", tmp_path / "store" / "below"):
        with pytest.raises(BadInput, match="is no folder"):
            Store(root).prepare()


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "is full"), (errno.EROFS, "is read-only"), (errno.EACCES, "is read-only")]
)
def test_a_store_that_cannot_be_written_is_said_to_be_so(store: Store, number: int, said: str) -> None:
    with pytest.raises(BadInput, match=said), store.lease("clean", ONE, "test", unexpected):
        raise OSError(number, os.strerror(number), str(store.root / "file"))


def test_trouble_outside_the_store_is_not_blamed_on_it(store: Store, tmp_path: Path) -> None:
    with pytest.raises(PermissionError), store.lease("clean", ONE, "test", unexpected):
        raise PermissionError(errno.EACCES, "not yours", str(tmp_path / "elsewhere"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(BadInput, match="read-only"):
        Store(tmp_path / "locked" / "store").prepare()


# ---- publishing and holding ----


def test_what_is_published_was_moved_there_by_one_rename(store: Store) -> None:
    with store.lease("clean", ONE, "test", unexpected) as work:
        (work / "out" / "deep").mkdir(parents=True)
        (work / "out" / "record.json").write_text("{}")
        (work / "shard").mkdir()
        inode = (work / "out").stat().st_ino
        assert store.find("clean", ONE) is None
        made = store.publish(work, "clean", ONE)
    assert made.path.stat().st_ino == inode
    assert sorted(path.name for path in made.path.iterdir()) == ["deep", "record.json"]
    assert list((store.root / ".work").iterdir()) == []


def test_a_body_that_fails_leaves_its_work_for_the_next(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.lease("clean", ONE, "test", unexpected) as work:
        (work / "shard").mkdir()
        raise ZeroDivisionError
    with store.lease("clean", ONE, "test", unexpected) as work:
        assert [path.name for path in work.iterdir()] == ["shard"]


HOLD = """
import sys
from pathlib import Path
from infra.store import Store

with Store(Path(sys.argv[1])).lease("clean", "a" * 32, sys.argv[2], lambda holder: print("waits", holder, flush=True)):
    Path(sys.argv[1], ".work", "clean-" + "a" * 32, sys.argv[2]).touch()
    print("holds", flush=True)
    sys.stdin.read()
"""


def hold(store: Store, run: str, *, briefly: bool = False) -> "subprocess.Popen[str]":
    """Hold the work folder in a process of its own, until `release` or but briefly."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.root), run],
        stdin=subprocess.DEVNULL if briefly else subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def says(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def release(process: "subprocess.Popen[str]") -> None:
    process.communicate()
    assert process.returncode == 0


def test_a_second_process_waits_and_says_for_whom(store: Store) -> None:
    first = hold(store, "first")
    assert says(first) == "holds\n"
    second = hold(store, "second")
    waits, holder = says(second).split(" ", 1)
    assert waits == "waits"
    assert json.loads(holder)["run"] == "first"
    assert json.loads(holder)["pid"] == first.pid
    assert second.poll() is None
    release(first)
    assert says(second) == "holds\n"
    release(second)


def test_the_folder_of_a_dead_holder_is_taken_over_as_it_is(store: Store) -> None:
    dead = hold(store, "dead")
    assert says(dead) == "holds\n"
    dead.kill()
    dead.communicate()
    assert dead.returncode == -signal.SIGKILL
    with store.lease("clean", ONE, "next", unexpected) as work:
        assert [path.name for path in work.iterdir()] == ["dead"]


def test_three_processes_hold_one_after_the_other(store: Store) -> None:
    first = hold(store, "first")
    assert says(first) == "holds\n"
    others = [hold(store, name, briefly=True) for name in ("second", "third")]
    assert all(says(each).startswith("waits") for each in others)
    release(first)
    for each in others:
        each.communicate()
    assert [each.returncode for each in others] == [0, 0]
    assert list((store.root / ".work").glob("*.lease")) == []


def test_two_fingerprints_do_not_wait_for_each_other(store: Store) -> None:
    with store.lease("clean", ONE, "one", unexpected), store.lease("clean", TWO, "two", unexpected):
        pass


def test_runs_are_listed_oldest_first(store: Store) -> None:
    for run in ("20260102T000000-b", "20260101T000000-a"):
        store.write_run(run, {"run": run})
    assert [each["run"] for each in store.runs()] == ["20260101T000000-a", "20260102T000000-b"]


# ---- remembered digests ----


@pytest.fixture
def memory(store: Store) -> Iterator[Path]:
    with use_settings(store=store.root):
        yield store.root / ".digests.sqlite"


def test_a_digest_is_read_again_when_the_file_changes(memory: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_text("one")
    assert remembered_digest(file) == file_digest(file)
    assert memory.exists()
    file.write_text("two")
    assert remembered_digest(file) == file_digest(file)
    replaced = tmp_path / "other"
    replaced.write_text("six")
    os.utime(replaced, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    replaced.rename(file)
    assert remembered_digest(file) == file_digest(file)


def test_a_digest_of_an_unchanged_file_is_not_read_again(memory: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_text("one")
    before, status = remembered_digest(file), file.stat()
    # the same size, time and inode: only reading the bytes would tell
    file.write_text("two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert remembered_digest(file) == before != file_digest(file)


def test_without_a_store_a_digest_is_read(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_text("one")
    with use_settings(store=tmp_path / "nowhere"):
        assert remembered_digest(file) == file_digest(file)
    assert not (tmp_path / "nowhere").exists()
