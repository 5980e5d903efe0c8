"""Shards: the same tables in the same order however they are run, and nothing done twice."""

import os
import signal
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data.contracts import failed_schema
from data.errors import BadInput
from infra.settings import use_settings
from infra.shards import Tables, Unfinished, map_shards, read_shard, stop_ray


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with use_settings(workers=1, max_attempts=3, accept_failed=False, ray_address=None):
        yield


@pytest.fixture(scope="module")
def ray() -> Iterator[dict[str, Any]]:
    """The settings under which every shard goes to Ray; it starts once for this module."""
    yield {"workers": 2, "ray_min_seconds": 0}
    stop_ray()


def note(notes: Path, what: object) -> None:
    notes.mkdir(exist_ok=True)
    (notes / f"{what}.{os.getpid()}.{uuid.uuid4().hex}").touch()


def noted(notes: Path) -> list[str]:
    return sorted(path.name.partition(".")[0] for path in notes.glob("*"))


def processes(notes: Path) -> set[str]:
    return {path.name.split(".")[1] for path in notes.glob("*")}


def square(notes: Path, number: int) -> Tables:
    note(notes, number)
    return {"rows": pa.table({"n": [number], "square": [number**2]}), "odd": pa.table({"n": [number][: number % 2]})}


def refuse_three(notes: Path, number: int) -> Tables:
    if number == 3:
        raise BadInput("a 3", "any other number", "take it out")
    return square(notes, number)


def fail_three(notes: Path, number: int) -> Tables:
    if number == 3:
        raise RuntimeError("three!")
    return square(notes, number)


def die_once_at_three(notes: Path, number: int) -> Tables:
    marker = notes.parent / "died"
    if number == 3 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(notes, number)


def dawdle_at_zero(notes: Path, number: int) -> Tables:
    if number == 0:
        time.sleep(0.6)
    return square(notes, number)


def row(number: int) -> uuid.UUID:
    return uuid.UUID(int=number)


def ask_server(notes: Path, down: set[int], numbers: list[int]) -> Tables:
    """Ask for each number; those that are down fail for now, and 13 fails for good."""
    note(notes, numbers[0])

    def lost(which: list[int], error: str) -> pa.Table:
        ids = pa.array([row(number).bytes for number in which], pa.uuid())
        return pa.table(
            {"row_id": ids, "error": [error] * len(which), "location": [None] * len(which)}, failed_schema()
        )

    good = [number for number in numbers if number not in down and number != 13]
    return {
        "rows": pa.table({"row_id": pa.array([row(number).bytes for number in good], pa.uuid()), "n": good}),
        "failed": lost([number for number in numbers if number == 13], "unlucky"),
        "transient": lost([number for number in numbers if number in down], "timeout"),
    }


def values(shards: list[Path], table: str = "rows", column: str = "n") -> list[Any]:
    return [value for shard in shards for value in read_shard(shard, table)[column].to_pylist()]


def held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- a plain loop ----


def test_shards_come_in_the_order_of_their_payloads(tmp_path: Path) -> None:
    shards = map_shards(partial(square, tmp_path / "notes"), [5, 3, 4], tmp_path / "work")
    assert values(shards, column="square") == [25, 9, 16]
    assert values(shards, "odd") == [5, 3]
    assert [shard.name for shard in shards] == ["00000", "00001", "00002"]


def test_payloads_may_be_lazy_and_there_may_be_none(tmp_path: Path) -> None:
    assert values(map_shards(partial(square, tmp_path / "notes"), iter(range(3)), tmp_path / "a")) == [0, 1, 2]
    assert map_shards(partial(square, tmp_path / "notes"), [], tmp_path / "b") == []


def test_finished_shards_are_not_run_again(tmp_path: Path) -> None:
    notes, work = tmp_path / "notes", tmp_path / "work"
    with pytest.raises(RuntimeError, match="three!"):
        map_shards(partial(fail_three, notes), range(5), work)
    assert noted(notes) == ["0", "1", "2"]
    (work / "00003.partial-1").mkdir()
    assert values(map_shards(partial(square, notes), range(5), work)) == [0, 1, 2, 3, 4]
    assert noted(notes) == ["0", "1", "2", "3", "4"]
    assert not list(work.glob("*partial*"))


def test_bad_input_is_what_the_function_found(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as refused:
        map_shards(partial(refuse_three, tmp_path / "notes"), range(5), tmp_path / "work")
    assert refused.value.found == "a 3"


# ---- rows that fail for now ----


def test_rows_that_fail_for_now_wait_and_only_their_shard_is_tried_again(tmp_path: Path) -> None:
    notes, work, payloads = tmp_path / "notes", tmp_path / "work", [[1, 2], [3, 4], [5, 13]]
    with pytest.raises(Unfinished, match="1 rows failed for now, the last with: timeout"):
        map_shards(partial(ask_server, notes, {4}), payloads, work)
    assert noted(notes) == ["1", "3", "5"]
    assert [path.name for path in sorted(work.iterdir()) if path.is_dir()] == ["00000", "00001.waiting", "00002"]
    shards = map_shards(partial(ask_server, notes, set()), payloads, work)
    assert noted(notes) == ["1", "3", "3", "5"]
    assert values(shards) == [1, 2, 3, 4, 5]
    assert values(shards, "failed", "error") == ["unlucky"]


def test_a_row_that_fails_often_while_others_succeed_is_given_up(tmp_path: Path) -> None:
    notes, work, payloads = tmp_path / "notes", tmp_path / "work", [[1, 2], [4, 13, 5]]
    for _ in range(2):
        with pytest.raises(Unfinished):
            map_shards(partial(ask_server, notes, {4}), payloads, work)
    shards = map_shards(partial(ask_server, notes, {4}), payloads, work)
    assert values(shards) == [1, 2, 5]
    assert sorted(zip(values(shards, "failed", "row_id"), values(shards, "failed", "error"), strict=True)) == [
        (row(4), "timeout"),
        (row(13), "unlucky"),
    ]


def test_a_row_alone_in_failing_is_given_up_though_all_rows_stand_in_one_shard(tmp_path: Path) -> None:
    ask = partial(ask_server, tmp_path / "notes", {4})
    for _ in range(2):
        with pytest.raises(Unfinished):
            map_shards(ask, [[1, 2, 4]], tmp_path / "work")
    assert values(map_shards(ask, [[1, 2, 4]], tmp_path / "work"), "failed", "error") == ["timeout"]


def test_when_everything_fails_no_row_is_blamed(tmp_path: Path) -> None:
    ask = partial(ask_server, tmp_path / "notes", {1, 2, 3})
    for _ in range(5):
        with pytest.raises(Unfinished, match="3 rows failed for now"):
            map_shards(ask, [[1, 2], [3]], tmp_path / "work")


def test_tries_begin_anew_when_a_row_was_answered_in_between(tmp_path: Path) -> None:
    notes, work, payloads = tmp_path / "notes", tmp_path / "work", [[1, 2], [4, 6]]
    for down in ({4}, {4}, {6}, {4}):
        with pytest.raises(Unfinished):
            map_shards(partial(ask_server, notes, down), payloads, work)


def test_the_rest_is_accepted_when_asked_for(tmp_path: Path) -> None:
    with use_settings(accept_failed=True):
        shards = map_shards(partial(ask_server, tmp_path / "notes", {4}), [[1, 2], [3, 4]], tmp_path / "work")
    assert values(shards) == [1, 2, 3]
    assert values(shards, "failed", "row_id") == [row(4)]


def test_not_even_then_is_nothing_but_failures_accepted(tmp_path: Path) -> None:
    with use_settings(accept_failed=True), pytest.raises(Unfinished):
        map_shards(partial(ask_server, tmp_path / "notes", {1, 2}), [[1], [2]], tmp_path / "work")


def test_what_was_accepted_once_is_tried_again_by_a_run_that_does_not_accept(tmp_path: Path) -> None:
    notes, work, payloads = tmp_path / "notes", tmp_path / "work", [[1, 2], [3, 4]]
    with use_settings(accept_failed=True):
        map_shards(partial(ask_server, notes, {4}), payloads, work)
    shards = map_shards(partial(ask_server, notes, set()), payloads, work)
    assert noted(notes) == ["1", "3", "3"]
    assert values(shards) == [1, 2, 3, 4]


# ---- Ray ----


def test_ray_gives_the_same_bytes_in_other_processes(tmp_path: Path, ray: dict[str, Any]) -> None:
    notes = tmp_path / "notes"
    map_shards(partial(square, tmp_path / "here"), range(8), tmp_path / "plain")
    with use_settings(**ray):
        shards = map_shards(partial(square, notes), range(8), tmp_path / "on ray")
    assert values(shards) == list(range(8))
    assert held(tmp_path / "on ray") == held(tmp_path / "plain")
    assert str(os.getpid()) not in processes(notes)


def test_on_ray_too_finished_shards_are_not_run_again(tmp_path: Path, ray: dict[str, Any]) -> None:
    notes, work = tmp_path / "notes", tmp_path / "work"
    map_shards(partial(square, notes), range(2), work)
    with use_settings(**ray):
        assert values(map_shards(partial(square, notes), range(4), work)) == [0, 1, 2, 3]
    assert noted(notes) == ["0", "1", "2", "3"]


def test_a_loop_that_takes_long_hands_the_rest_to_ray(tmp_path: Path, ray: dict[str, Any]) -> None:
    with use_settings(**{**ray, "ray_min_seconds": 0.5}):
        shards = map_shards(partial(dawdle_at_zero, tmp_path / "notes"), range(4), tmp_path / "work")
    assert values(shards) == [0, 1, 2, 3]
    here = {path.name.partition(".")[0] for path in (tmp_path / "notes").glob(f"*.{os.getpid()}.*")}
    assert here == {"0"}


def test_bad_input_crosses_ray_as_it_is(tmp_path: Path, ray: dict[str, Any]) -> None:
    with use_settings(**ray), pytest.raises(BadInput) as refused:
        map_shards(partial(refuse_three, tmp_path / "notes"), range(5), tmp_path / "work")
    assert type(refused.value) is BadInput
    assert (refused.value.found, refused.value.wanted, refused.value.remedy) == (
        "a 3",
        "any other number",
        "take it out",
    )


def test_another_fault_on_ray_keeps_its_name(tmp_path: Path, ray: dict[str, Any]) -> None:
    with use_settings(**ray), pytest.raises(RuntimeError, match="three!"):
        map_shards(partial(fail_three, tmp_path / "notes"), range(5), tmp_path / "work")


def test_the_shard_of_a_killed_worker_is_done_again(tmp_path: Path, ray: dict[str, Any]) -> None:
    with use_settings(**ray):
        shards = map_shards(partial(die_once_at_three, tmp_path / "notes"), range(5), tmp_path / "work")
    assert (tmp_path / "died").exists()
    assert values(shards) == [0, 1, 2, 3, 4]


def test_rows_that_fail_for_now_on_ray_wait_too(tmp_path: Path, ray: dict[str, Any]) -> None:
    notes, work, payloads = tmp_path / "notes", tmp_path / "work", [[1, 2], [3, 4]]
    with use_settings(**ray):
        with pytest.raises(Unfinished):
            map_shards(partial(ask_server, notes, {4}), payloads, work)
        assert values(map_shards(partial(ask_server, notes, set()), payloads, work)) == [1, 2, 3, 4]
    assert noted(notes) == ["1", "3", "3"]
