"""The rooms are ours wherever we stand, and the light ones stay light."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROOMS = ("flows", "tasks", "infra", "data")
HEAVY = {"torch", "prefect", "ray", "duckdb", "pandas", "transformers", "trl", "datasets", "pyarrow"}
# What these commands may import is said here; the rest of HEAVY they must not.
LIGHT = [(["--help"], set[str]()), (["run", "--help"], set()), (["recipes"], {"pyarrow"})]


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A folder with other people's packages of our names."""
    for room in ROOMS:
        (tmp_path / "strange" / room).mkdir(parents=True)
        (tmp_path / "strange" / room / "__init__.py").write_text("raise SystemExit('other people')\n")
    return tmp_path / "strange"


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_is_the_repositorys(room: str) -> None:
    module = importlib.import_module(room)
    assert module.__file__ is not None
    assert Path(module.__file__).parent == REPOSITORY / room


def test_the_command_finds_its_rooms_from_a_folder_of_other_peoples(strange: Path) -> None:
    command = [str(Path(sys.executable).with_name("stillhouse")), "doctor", "--json", "--store", "store"]
    told = subprocess.run(command, cwd=strange, capture_output=True, text=True, check=False)
    assert "other people" not in told.stderr
    rooms = {line["check"]: line for line in json.loads(told.stdout) if line["check"].startswith("room ")}
    assert {name: line["found"] for name, line in rooms.items()} == {
        f"room {room}": str(REPOSITORY / room) for room in ROOMS
    }
    assert {line["state"] for line in rooms.values()} == {"ok"}


ON_RAY = """
import importlib, json, os, sys
from pathlib import Path
import pyarrow as pa
from infra.settings import use_settings
from infra.shards import map_shards, read_shard, stop_ray

def look(room):
    return {"rows": pa.table({"file": [importlib.import_module(room).__file__], "process": [os.getpid()]})}

if __name__ == "__main__":
    with use_settings(workers=2, ray_min_seconds=0):
        shards = map_shards(look, ["flows", "tasks", "infra", "data"], Path(sys.argv[1]))
        stop_ray()
    rows = [read_shard(shard, "rows").to_pylist()[0] for shard in shards]
    print(json.dumps([os.getpid(), rows]))
"""


@pytest.mark.heavy
def test_rays_workers_find_their_rooms_from_there_too(strange: Path, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "look.py").write_text(ON_RAY)
    told = subprocess.run(
        [sys.executable, str(tmp_path / "scripts" / "look.py"), str(tmp_path / "work")],
        cwd=strange,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    own, rows = json.loads(told.stdout.splitlines()[-1])
    for room, row in zip(ROOMS, rows, strict=True):
        found = Path(row["file"])
        assert row["process"] != own
        assert not found.is_relative_to(strange)
        assert found.parent.name == room
        assert found.read_bytes() == (REPOSITORY / room / "__init__.py").read_bytes()


@pytest.mark.parametrize(("command", "allowed"), LIGHT, ids=lambda each: " ".join(each))
def test_light_commands_import_nothing_heavy(command: list[str], allowed: set[str], tmp_path: Path) -> None:
    ask = (
        "import sys\nfrom flows.__main__ import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
        "sys.stderr.write('\\n'.join({name.partition('.')[0] for name in sys.modules}))\nsys.exit(code)"
    )
    told = subprocess.run(
        [sys.executable, "-c", ask, *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0
    assert told.stdout
    assert set(told.stderr.splitlines()) & HEAVY <= allowed
