"""The same fingerprints and the same bytes, wherever and by however many workers they are made."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
SAMPLE = REPOSITORY / "data" / "samples" / "quickstart.jsonl"
MORE = 15_000  # with these, three shards
TRAIN_ROWS = 12

SCRIPT = """
import json, sys
from pathlib import Path
from data.fingerprint import file_digest
from infra.shards import stop_ray
from infra.stage import Run, current_run
from infra.store import current_store
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.deduplicate import DeduplicateParameters, deduplicate
from tasks.curate.load import LoadParameters, Source, load
from tasks.curate.shuffle import ShuffleParameters, shuffle
from tasks.curate.split import SplitParameters, split

def curate(parameters):
    unique = deduplicate(DeduplicateParameters(), clean(CleanParameters(), load(parameters)))
    shuffle(ShuffleParameters(), split(SplitParameters(), unique)["train"])

def train(parameters):
    from tasks.evaluate.evaluate import EvaluateParameters, evaluate
    from tasks.train.scratch import ScratchParameters, scratch
    from tasks.train.sft import SftParameters, sft

    rows = load(parameters)
    base = scratch(ScratchParameters(layers=1, width=16, heads=2, feed_forward=16, context=32))
    model = sft(SftParameters(max_length=32, max_steps=3, batch_size=4, learning_rate=1e-2, threads=1), rows, base)
    evaluate(EvaluateParameters(batch_size=3, max_length=32, max_new_tokens=2), rows, model)

if __name__ == "__main__":
    run = Run("test", current_store())
    current_run.set(run)
    make, *files = sys.argv[1:]
    sources = [Source(path=file, licence="CC0-1.0", layout="prompt-completion") for file in files]
    {"curate": curate, "train": train}[make](LoadParameters(sources=tuple(sources)))
    stop_ray()
    made = {}
    for step in run.steps:
        tables = {file.name: file_digest(file) for file in step.artifact.path.glob("*.parquet")}
        made[step.stage] = {"fingerprint": step.fingerprint, "record": step.artifact.record, "tables": tables}
    print(json.dumps([made, "ray" in sys.modules]))
"""


def start(folder: Path, make: str, *files: Path, **environment: str) -> "subprocess.Popen[str]":
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, make, *map(str, files)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "STILLHOUSE_WORKERS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: "subprocess.Popen[str]") -> tuple[dict[str, Any], bool]:
    out, err = process.communicate()
    assert process.returncode == 0, err
    made, with_ray = json.loads(out.splitlines()[-1])
    return made, with_ray


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The sample, and a longer file with rows that are equal, blank or in want of cleaning."""
    more = tmp_path_factory.mktemp("files") / "more.jsonl"
    lines = (
        {"prompt": f"{n % 14_500}\u0000 e\u0301", "completion": " \n" if n % 500 == 0 else "yes "} for n in range(MORE)
    )
    more.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [SAMPLE, more]


@pytest.fixture(scope="module")
def curated(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made, with_ray = finished(start(tmp_path_factory.mktemp("here"), "curate", *files))
    assert not with_ray
    assert made["clean"]["record"]["measures"]["rows_dropped"] > 0
    assert made["deduplicate"]["record"]["measures"]["rows_dropped"] > 0
    assert "rows-00002.parquet" in made["clean"]["tables"]
    return made


@pytest.mark.parametrize("workers", ["2", "4"])
def test_any_number_of_workers_makes_the_same(
    workers: str, curated: dict[str, Any], files: list[Path], tmp_path: Path
) -> None:
    made, with_ray = finished(start(tmp_path, "curate", *files, STILLHOUSE_WORKERS=workers))
    assert not with_ray
    assert made == curated


@pytest.mark.parametrize("workers", ["2", pytest.param("4", marks=pytest.mark.heavy)])
def test_ray_makes_the_same_even_beside_other_peoples_rooms(
    workers: str, curated: dict[str, Any], files: list[Path], tmp_path: Path
) -> None:
    for room in ("data", "tasks"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise SystemExit('other people')")
    on_ray = {"STILLHOUSE_WORKERS": workers, "STILLHOUSE_RAY_MIN_SECONDS": "0", "PYTHONSAFEPATH": "1"}
    made, with_ray = finished(start(tmp_path, "curate", *files, **on_ray))
    assert with_ray
    assert made == curated


def test_another_place_and_time_make_the_same(curated: dict[str, Any], files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    moved = [Path(shutil.copyfile(file, tmp_path / "moved" / file.name)) for file in files]
    elsewhere = {"TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "7", "LC_ALL": "C", "STILLHOUSE_STORE": "../a store/deep"}
    made, _ = finished(start(tmp_path / "there", "curate", *moved, **elsewhere))
    assert made == curated
    assert (tmp_path / "a store" / "deep" / "load").is_dir()


@pytest.mark.heavy
def test_models_and_scores_are_the_same_with_one_worker_and_with_two(tmp_path: Path) -> None:
    book = tmp_path / "book.jsonl"
    lines = ({"prompt": "1" * n, "completion": "2" * (n % 5 + 1)} for n in range(1, TRAIN_ROWS + 1))
    book.write_text("".join(json.dumps(line) + "\n" for line in lines))
    one = start(tmp_path / "one", "train", book, PYTHONHASHSEED="1")
    two = start(
        tmp_path / "two", "train", book, STILLHOUSE_WORKERS="2", STILLHOUSE_RAY_MIN_SECONDS="0", PYTHONHASHSEED="2"
    )
    (made, on_ray), (again, on_ray_again) = finished(one), finished(two)
    assert (on_ray, on_ray_again) == (False, True)
    assert again == made
    assert "model.safetensors" in made["sft"]["record"]["outputs"]["files"]["files"]
    assert made["evaluate"]["record"]["measures"]["rows_asked"] == TRAIN_ROWS
