"""The training child: its result, its faults, and its end with its parent."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data.errors import BadInput
from infra.child import ChildFailed, run_in_child
from infra.settings import settings, use_settings

REPOSITORY = Path(__file__).parents[2]
OnStep = Callable[[int, int, float], None]


def add(left: int, right: int, on_step: OnStep) -> dict[str, int]:
    for step in range(3):
        on_step(step, 3, 0.5)
    return {"sum": left + right, "threads": settings().threads, "process": os.getpid()}


def refuse(on_step: OnStep) -> None:
    raise BadInput("a horse", "a model", "feed it hay")


def stumble(on_step: OnStep) -> None:
    raise ZeroDivisionError("by nothing")


def die(number: int, on_step: OnStep) -> None:
    os.kill(os.getpid(), number)


def leave(on_step: OnStep) -> None:
    os._exit(3)


def find_locked(folder: Path, on_step: OnStep) -> bool:
    return locked(folder)


def locked(folder: Path) -> bool:
    with (folder / "child.lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_result_comes_from_another_process_under_the_settings_in_force(tmp_path: Path) -> None:
    with use_settings(threads=7):
        told = run_in_child(add, 2, 3, folder=tmp_path, what="adding")
    assert (told["sum"], told["threads"]) == (5, 7)
    assert told["process"] != os.getpid()


def test_bad_input_comes_back_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as refused:
        run_in_child(refuse, folder=tmp_path, what="refusing")
    assert (refused.value.found, refused.value.wanted, refused.value.remedy) == ("a horse", "a model", "feed it hay")


def test_any_other_fault_comes_back_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match=r"(?s)stumbling failed:.*in stumble.*ZeroDivisionError: by nothing"):
        run_in_child(stumble, folder=tmp_path, what="stumbling")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_child_that_dies_is_named_with_its_signal(tmp_path: Path, number: signal.Signals) -> None:
    with pytest.raises(ChildFailed, match=f"the process of dying ended by {number.name}"):
        run_in_child(die, number, folder=tmp_path, what="dying")


def test_a_child_that_leaves_is_named_with_its_code(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="ended with code 3"):
        run_in_child(leave, folder=tmp_path, what="leaving")


def test_a_child_holds_its_work_folder_while_it_lives(tmp_path: Path) -> None:
    assert run_in_child(find_locked, tmp_path, folder=tmp_path, what="looking")
    assert not locked(tmp_path)


SCRIPT = """
import os, signal, subprocess, sys, time
from pathlib import Path
from infra import child

child.PRELOAD.clear()  # nothing heavy is wanted here


def speak(on_step):
    print("said by print")
    os.write(1, b"written to 1")
    subprocess.run(["echo", "said by a command"], check=True)


def sleep(folder, on_step):
    grandchild = subprocess.Popen(["sleep", "1000"])
    (folder / "partial").write_text(f"{os.getpid()} {grandchild.pid}")
    (folder / "partial").rename(folder / "pids")
    grandchild.wait()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    folder = Path(sys.argv[2])
    if sys.argv[1] == "speak":
        child.run_in_child(speak, folder=folder, what="speaking")
        print("the result")
    else:
        child.run_in_child(sleep, folder, folder=folder, what="sleeping")
"""


def start(folder: Path, command: str) -> "subprocess.Popen[str]":
    (folder / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(folder / "script.py"), command, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def test_what_a_child_says_goes_to_standard_error(tmp_path: Path) -> None:
    out, err = start(tmp_path, "speak").communicate()
    assert out == "the result\n"
    for said in ("said by print", "written to 1", "said by a command"):
        assert said in err


@pytest.fixture
def sleeping(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    """A process whose child sleeps beside a process of its own, and both their ids."""
    parent = start(tmp_path, "sleep")
    while not (tmp_path / "pids").exists():
        assert parent.poll() is None, parent.communicate()[1]
        time.sleep(0.01)
    pids = [int(each) for each in (tmp_path / "pids").read_text().split()]
    assert all(map(alive, pids))
    yield parent, pids
    parent.kill()
    parent.communicate()


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_child_and_its_children_end_with_its_parent(
    sleeping: tuple["subprocess.Popen[str]", list[int]], number: signal.Signals
) -> None:
    parent, pids = sleeping
    parent.send_signal(number)
    parent.wait(timeout=60)
    assert number == signal.SIGINT or parent.returncode == -signal.SIGKILL
    while any(map(alive, pids)):  # the test's own limit ends this if they live on
        time.sleep(0.01)
