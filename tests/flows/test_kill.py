"""kill -9 anywhere and run again: the same bytes, nothing done twice; two at once do the work once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.store import Store

REPOSITORY = Path(__file__).parents[2]
ROWS = 21_500  # three shards, before and after rows are dropped

CURATE = """
import json, sys
from infra.settings import settings
from infra.stage import Run, current_run
from infra.store import current_store
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.deduplicate import DeduplicateParameters, deduplicate
from tasks.curate.load import LoadParameters, Source, load
from tasks.curate.split import SplitParameters, split

run = Run("test", current_store())
current_run.set(run)
book = Source(path=sys.argv[1], licence="CC0-1.0", layout="prompt-completion")
unique = deduplicate(DeduplicateParameters(), clean(CleanParameters(), load(LoadParameters(sources=(book,)))))
split(SplitParameters(), unique)
print(json.dumps({step.stage: [step.state, step.fingerprint, step.record["output_digest"]] for step in run.steps}))
"""

TRAIN = """
import json, sys
from pathlib import Path
from infra.settings import use_settings
from infra.stage import Run, current_run
from infra.store import Store
from tasks.curate.load import LoadParameters, Source, load
from tasks.train.scratch import ScratchParameters, scratch
from tasks.train.sft import SftParameters, sft

def make(what, store):
    run = Run("test", Store(store))
    token = current_run.set(run)
    with use_settings(store=store):
        book = Source(path=sys.argv[1], licence="CC0-1.0", layout="prompt-completion")
        rows = load(LoadParameters(sources=(book,)))
        base = scratch(ScratchParameters(layers=1, width=16, heads=2, feed_forward=16, context=32))
        model = sft(
            SftParameters(max_length=32, max_steps=4, batch_size=4, learning_rate=1e-2, checkpoint_every=2, threads=1),
            rows, base,
        )
        if what == "train and evaluate":
            from tasks.evaluate.evaluate import EvaluateParameters, evaluate

            evaluate(EvaluateParameters(rows=6, batch_size=2, max_length=32, max_new_tokens=2), rows, model)
    current_run.reset(token)
    return {step.stage: [step.state, step.fingerprint, step.record["output_digest"]] for step in run.steps}

if __name__ == "__main__":
    print(json.dumps([make(sys.argv[2], Path(each).absolute()) for each in sys.argv[3:]]))
"""


def start(folder: Path, script: str, *arguments: object, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "STILLHOUSE_WORKERS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: "subprocess.Popen[str]") -> Any:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out)


def killed(process: "subprocess.Popen[str]") -> None:
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def made(steps: dict[str, list[str]]) -> dict[str, list[str]]:
    """Fingerprint and digest of each stage, whoever made it."""
    return {stage: rest for stage, (_, *rest) in steps.items()}


def work_of(store: Path, stage: str) -> Path:
    """The one work folder that is left, which is that of a stage; nothing of it is published."""
    (folder,) = (path for path in (store / ".work").iterdir() if path.is_dir())
    assert folder.name.startswith(f"{stage}-")
    assert not list(store.glob(f"{stage}/*"))
    return folder


def inodes(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells whether a file was written anew."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of which some are equal, some blank."""
    file = tmp_path_factory.mktemp("book") / "book.jsonl"
    lines = ({"prompt": f" {n % 21_000}", "completion": "" if n % 1000 == 0 else "yes"} for n in range(ROWS))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def undisturbed(book: Path) -> dict[str, list[str]]:
    steps: dict[str, list[str]] = finished(start(book.parent, CURATE, book))
    assert {state for state, *_ in steps.values()} == {"done"}
    return steps


# The passes of a point are counted through the process: load's three shards come first, then clean's, …
@pytest.mark.parametrize(
    ("stage", "shards", "point"),
    [("load", "parsed", "shard:2"), ("clean", "rows", "shard:5"), ("split", "rows", "shard:11")],
)
def test_a_stage_killed_in_mid_shard_and_in_mid_publish_goes_on(
    tmp_path: Path, book: Path, undisturbed: dict[str, list[str]], stage: str, shards: str, point: str
) -> None:
    store = tmp_path / ".store"

    killed(start(tmp_path, CURATE, book, STILLHOUSE_FAILPOINT=point))
    work = work_of(store, stage)
    names = sorted(path.name.partition("-")[0] for path in (work / shards).iterdir())
    assert names == ["00000", "00001.partial"]
    done = inodes(work / shards / "00000")

    killed(start(tmp_path, CURATE, book, STILLHOUSE_FAILPOINT="publish"))
    assert work_of(store, stage) == work
    assert sorted(path.name for path in (work / shards).iterdir()) == ["00000", "00001", "00002"]
    assert (work / "out" / "record.json").exists()
    assert inodes(work / shards / "00000") == done

    rerun = finished(start(tmp_path, CURATE, book))
    assert rerun[stage][0] == "done"
    assert made(rerun) == made(undisturbed)
    assert not list((store / ".work").iterdir())


def test_two_processes_at_once_do_the_work_once(tmp_path: Path, book: Path, undisturbed: dict[str, list[str]]) -> None:
    store = Store(tmp_path / ".store")
    store.prepare()
    # While the test holds what both want first, both must wait, so that they do run at once.
    with store.lease("load", undisturbed["load"][1], "the test", print):
        both = [start(tmp_path, CURATE, book) for _ in range(2)]
        for process in both:
            assert process.stderr is not None
            said = process.stderr.readline()
            assert "load: waiting for" in said
            assert '"run": "the test"' in said
    one, other = (finished(process) for process in both)
    assert made(one) == made(other) == made(undisturbed)
    for stage in undisturbed:
        assert sorted([one[stage][0], other[stage][0]]) == ["cached", "done"], stage
    assert not list((store.root / ".work").iterdir())


def train(folder: Path, what: str, *stores: str, point: str = "") -> "subprocess.Popen[str]":
    """Train on a few rows in each store, one after the other."""
    lines = (json.dumps({"prompt": f"{n}", "completion": f"{n + 1}"}) for n in range(8))
    (folder / "book.jsonl").write_text("\n".join(lines))
    return start(folder, TRAIN, "book.jsonl", what, *stores, STILLHOUSE_FAILPOINT=point)


def test_a_training_killed_in_mid_checkpoint_and_in_mid_publish_goes_on(tmp_path: Path) -> None:
    # The child is what is killed here; its parent tells of it and ends.
    training = train(tmp_path, "train", "store", point="checkpoint:2")
    told = training.communicate()[1]
    assert training.returncode == 1
    assert "ended by SIGKILL; run again to go on from its last checkpoint" in told
    work = work_of(tmp_path / "store", "sft")
    checkpoints = work / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [".partial-checkpoint-4", "checkpoint-2"]
    first = inodes(checkpoints / "checkpoint-2")

    killed(train(tmp_path, "train", "store", point="publish"))
    assert work_of(tmp_path / "store", "sft") == work
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert (work / "out" / "model.safetensors").exists()
    assert inodes(checkpoints / "checkpoint-2") == first

    rerun, whole = finished(train(tmp_path, "train", "store", "another"))
    assert [rerun[stage][0] for stage in ("load", "scratch", "sft")] == ["cached", "cached", "done"]
    assert {state for state, *_ in whole.values()} == {"done"}
    assert made(rerun) == made(whole)


@pytest.mark.heavy
def test_an_evaluation_killed_in_mid_shard_goes_on(tmp_path: Path) -> None:
    finished(train(tmp_path, "train", "store"))
    killed(train(tmp_path, "train and evaluate", "store", point="shard:2"))
    scores = work_of(tmp_path / "store", "evaluate") / "scores"
    assert sorted(path.name.partition("-")[0] for path in scores.iterdir()) == ["00000", "00001.partial"]
    done = inodes(scores / "00000")
    killed(train(tmp_path, "train and evaluate", "store", point="publish"))
    assert inodes(scores / "00000") == done
    rerun, whole = finished(train(tmp_path, "train and evaluate", "store", "another"))
    assert made(rerun) == made(whole)
