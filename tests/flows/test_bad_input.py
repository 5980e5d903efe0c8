"""Bad input ends with code 2 and says what was found, what was wanted and what to do; what is done stays done."""

import errno
import gzip
import json
import os
import pickle
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from flows.__main__ import main
from flows.recipe import find_recipe

ROOT = Path(__file__).parents[2]
Refused = Callable[..., str]
Recipe = Callable[[str], str]

GOOD = [{"prompt": f"upper: w{n}", "completion": f"W{n}"} for n in range(40)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, with a store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLHOUSE_STORE", "store")
    monkeypatch.setenv("STILLHOUSE_WORKERS", "1")
    monkeypatch.delenv("STILLHOUSE_REAL_DATA", raising=False)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must be refused, and return what it said."""

    def refused(*arguments: str) -> str:
        code = main(arguments)
        answer, said = capsys.readouterr()
        assert code == 2, said
        assert answer == ""
        assert_explained(said)
        return said

    return refused


def assert_explained(said: str) -> None:
    assert re.search(r"^found: +\S.*\nwanted: +\S.*\nto do: +\S.*", said, re.MULTILINE | re.DOTALL), said
    assert "Traceback" not in said


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Write a recipe file and return its path."""

    def recipe(text: str) -> str:
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        return "mine.yaml"

    return recipe


def rows_recipe(path: str, extra: str = "") -> str:
    """A quickstart on a file of one's own; its first line of parameters is line 3."""
    return f"""flow: quickstart
parameters:
  load:
    sources:
      - path: {path}
        licence: CC0-1.0
        layout: prompt-completion
{extra}"""


def write_rows(path: Path, rows: list[dict[str, str]] = GOOD) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# ---- recipes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "number", "found", "wanted"),
    [
        ("  claen: {}", 8, "claen is no parameter", "did you mean 'clean'?"),
        ("  clean:\n    max_charcters: 5", 9, "clean.max_charcters is no parameter", "did you mean 'max_characters'?"),
        ("  clean:\n    zzz: 5", 9, "clean.zzz is no parameter", "one of min_characters, max_characters"),
        ("  clean:\n    max_characters: many", 9, "clean.max_characters = 'many'", "valid integer"),
        ("  clean:\n    max_characters: 0", 9, "clean.max_characters = 0", "greater than or equal to 1"),
        ("  seeds: [0, one]", 8, "seeds.1 = 'one'", "valid integer"),
        ("  seeds: []", 8, "seeds = []", "at least 1 item"),
        ("  seeds: [-1]", 8, "seeds.0 = -1", "greater than or equal to 0"),
        ("  clean: 5", 8, "clean = 5", "valid dictionary"),
        ("  1: 2", 8, "the key '1' is no plain text", "YAML of plain values"),
        ("  sft: {batch_size: 6, micro_batch_size: 4}", 8, "sft", "wanted a divisor"),
        ("  compare: {names: [one]}", 2, "parameters = {", "as models are trained: 4, not 1"),
        ("  seeds: [1]\n  compare: {pooled: 2}", 2, "parameters = {", "compare.pooled of at most 1"),
        ("  evaluate: {answer_pattern: '(' }", 8, "evaluate.answer_pattern = '('", "no regular expression"),
    ],
)
def test_a_parameter_that_is_wrong_is_told_with_its_line(
    refused: Refused, recipe: Recipe, line: str, number: int, found: str, wanted: str
) -> None:
    for command in ("run", "plan"):
        said = refused(command, recipe(rows_recipe("rows.jsonl", line)))
        assert f"mine.yaml, line {number}: " in said
        assert found in said
        assert wanted in said
        assert len(said) < 1000
    assert not Path("store").exists()


@pytest.mark.parametrize(
    ("key", "value", "found", "wanted"),
    [
        ("pth", "x", "line 5: load.sources.0.pth is no parameter", "did you mean 'path'?"),
        ("layout", "alpacca", "line 5: load.sources.0.layout = 'alpacca'", "'alpaca'"),
        ("columns", "[prompt]", "line 5: load.sources.0.columns = ['prompt']", "valid dictionary"),
        ("keep", "[prompt]", "line 5: load.sources.0", "keep names prompt"),
    ],
)
def test_a_source_that_is_wrong_is_told_with_its_line(
    refused: Refused, recipe: Recipe, key: str, value: str, found: str, wanted: str
) -> None:
    source = {"path": "rows.jsonl", "licence": "MIT", "layout": "alpaca"} | {key: value}
    text = ", ".join(f"{name}: {each}" for name, each in source.items())
    said = refused("run", recipe(f"flow: quickstart\nparameters:\n  load:\n    sources:\n      - {{{text}}}\n"))
    assert found in said
    assert wanted in said


def test_a_parameter_that_is_missing_is_named(refused: Refused, recipe: Recipe) -> None:
    said = refused("run", recipe("flow: quickstart\nparameters: {load: {sources: [{path: x}]}}\n"))
    assert "load.sources.0.licence is missing" in said
    assert "load.sources.0.layout is missing" in said
    assert "load is missing" in refused("run", recipe("flow: quickstart\n"))


EXECUTE = '!!python/object/apply:os.system ["touch executed"]'


@pytest.mark.parametrize(
    "text",
    [
        f"flow: quickstart\nparameters: {EXECUTE}\n",
        f"flow: quickstart\nabout: {EXECUTE}\nparameters: {{}}\n",
        EXECUTE,
        f"flow: quickstart\nparameters: {{load: {{sources: [{{path: {EXECUTE}}}]}}}}\n",
        'flow: quickstart\nparameters: {? !!python/object/apply:os.system ["touch executed"] : 1}\n',
        "flow: quickstart\nparameters: !!python/name:os.system\n",
    ],
)
def test_yaml_that_would_execute_something_does_not(refused: Refused, recipe: Recipe, text: str) -> None:
    for command in ("run", "plan", "recipes"):
        assert "recipes are data and run nothing" in refused(command, recipe(text))
    assert not Path("executed").exists()


def test_a_value_that_would_execute_something_does_not(refused: Refused) -> None:
    assert "a value in YAML" in refused("plan", "quickstart", "--set", f"clean={EXECUTE}")
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("flow: quickstart\nparameters:\n  clean: {}\n  clean: {}\n", "line 4: the key 'clean' stands twice"),
        ("flow: quickstart\nflow: finetune\n", "line 2: the key 'flow' stands twice"),
        ("flow: quickstart\nparameters:\n  clean: {max_characters: 1, max_characters: 2}\n", "line 3: the key"),
        ("flow: quickstart\nparameters: [\n", "mine.yaml, line 3"),
        ("flow: quickstart\nparameters:\n\tclean: {}\n", "mine.yaml, line 3"),
        ("flow: quickstart\nparameters: {? [a, b] : c}\n", "mine.yaml, line 2"),
        ("flow: quickstart\nparameters: &all\n  clean: *all\n", "mine.yaml, line 3"),
        ("flow: quickstart\nparameters:\n  clean: &one {max_characters: 5}\n  split: *one\n", "mine.yaml, line 4"),
        ("flow: quickstart\nparameters:\n  clean:\n    <<: {max_characters: 5}\n", "mine.yaml, line 4"),
        ("flow: quickstart\nparameters: {}\n---\nflow: quickstart\n", "mine.yaml, line 3"),
        ("flow: quickstart\nparmeters: {}\n", "mine.yaml with flow, parmeters"),
        ("flow: quickstart\n1: 2\n", "mine.yaml, line 2: the key '1' is no plain text"),
        ("flow: [quickstart]\n", "mine.yaml with flow"),
        ("flow: quickstart\nparameters: [clean]\n", "mine.yaml"),
        ("flow: quickstart\nparameters: clean\n", "mine.yaml"),
        ("- flow\n- quickstart\n", "mine.yaml with list"),
        ("quickstart", "mine.yaml with str"),
        ("", "mine.yaml with NoneType"),
        ("flow: quickstrat\nparameters: {}\n", "mine.yaml: flow 'quickstrat'"),
        ("flow: recipe\nparameters: {}\n", "mine.yaml: flow 'recipe'"),
        ("flow: ../quickstart\nparameters: {}\n", "mine.yaml: flow '../quickstart'"),
        ("flow: __main__\nparameters: {}\n", "mine.yaml: flow '__main__'"),
        ("[" * 900 + "]" * 900, "mine.yaml, nested too deeply"),
    ],
)
def test_a_recipe_of_another_form_is_refused(refused: Refused, recipe: Recipe, text: str, found: str) -> None:
    assert found in refused("run", recipe(text))


def test_a_recipe_that_doubles_itself_forty_times_is_refused_at_once(refused: Refused, recipe: Recipe) -> None:
    bomb = "\n".join(f"  a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))
    said = refused("run", recipe(f"flow: quickstart\nparameters:\n  a0: &a0 [x]\n{bomb}\n"))
    assert "mine.yaml, line 4" in said


def test_a_recipe_that_is_no_text_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes("flow: quickstart\nabout: é\n".encode("latin-1"))
    assert "mine.yaml is not UTF-8" in refused("run", "mine.yaml")
    (tmp_path / "mine.yaml").write_bytes(b"\0\1\2" * 100)
    assert "mine.yaml" in refused("run", "mine.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "no recipe 'folder.yaml'" in refused("run", "folder.yaml")


def test_an_unknown_recipe_is_refused_with_the_nearest(refused: Refused) -> None:
    for command in ("run", "plan", "recipes"):
        assert "did you mean 'quickstart'?" in refused(command, "quikstart")
    assert "stillhouse recipes" in refused("run", "zzz")
    assert "no recipe 'nowhere.yaml'" in refused("run", "nowhere.yaml")
    assert "no recipe '../recipes/quickstart'" in refused("run", "../recipes/quickstart")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("clean", "--set clean"),
        ("=5", "--set =5"),
        ("clean..max_characters=5", "--set clean..max_characters=5"),
        ("clean.max_characters=[", "--set clean.max_characters=["),
        ("clean.max_characters.x=5", "nothing at clean.max_characters.x"),
        ("load.sources.7.path=x", "nothing at load.sources.7"),
        ("load.sources.first.path=x", "nothing at load.sources.first"),
        ("clean.max_charcters=5", "--set clean.max_charcters is no parameter"),
        ("clean.max_characters=many", "--set clean.max_characters = 'many'"),
        ("clean=", "--set clean = None"),
        ("load.sources=[]", "--set load.sources = []"),
    ],
)
def test_a_change_that_is_wrong_is_refused_by_its_own_name(refused: Refused, change: str, found: str) -> None:
    for command in ("run", "plan"):
        assert found in refused(command, "quickstart", "--set", change)
    assert not Path("store").exists()


def test_an_environment_variable_that_is_wrong_is_named(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_WORKERS", "many")
    assert "STILLHOUSE_WORKERS='many'" in refused("plan", "quickstart")


def test_real_recipes_want_the_folder_of_the_real_data(
    refused: Refused, capsys: pytest.CaptureFixture[str], recipe: Recipe
) -> None:
    assert main(["recipes", "--json"]) == 0
    assert "sft-real" in [each["recipe"] for each in json.loads(capsys.readouterr().out)]
    for command in ("run", "plan"):
        said = refused(command, "sft-real")
        assert "STILLHOUSE_REAL_DATA is not set" in said
        assert "set STILLHOUSE_REAL_DATA=FOLDER" in said
    assert "${HOME}" in refused("plan", recipe(rows_recipe("${HOME}/rows.jsonl")))


@pytest.mark.parametrize("arguments", [[], ["brew"], ["run"], ["run", "quickstart", "--speed", "9"], ["show"]])
def test_wrong_usage_is_code_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: stillhouse" in capsys.readouterr().err


# ---- files ---------------------------------------------------------------------------------------------------

FILES = {
    "empty.jsonl": (b"", "is empty (0 bytes)"),
    "text.parquet": (b"prompt,completion\n1,2\n", "holds no Parquet"),
    "plain.jsonl.gz": (b'{"prompt": "p"}\n', "holds data that starts with"),
    "plain.csv.zst": (b"prompt,completion\n", "holds data that starts with"),
    "cut.jsonl.gz": (gzip.compress(b'{"prompt": "p", "completion": "c"}\n' * 999)[:-9], "breaks off"),
    "cut.jsonl.zst": (zstandard.compress(b'{"prompt": "p", "completion": "c"}\n' * 999)[:-9], "breaks off"),
    "array.jsonl": (b'[{"prompt": "p", "completion": "c"}]', "holds a JSON array"),
    "binary.jsonl": (b"\x7fELF\0\0\0\0", "holds binary data"),
    "packed.jsonl": (gzip.compress(b'{"prompt": "p"}\n'), "holds gz data"),
    "words.json": (b"hello", "holds text that is not one JSON value"),
    "notes.txt": (b"hello", "a file of another kind"),
    "renamed.jsonl": (b'{"question": "q", "answer": "a"}\n', "no column 'prompt'; the row has question, answer"),
    "missing.csv": (b"prompt,response\n1,2\n", "no column 'completion'; the row has prompt, response"),
    "blank.jsonl": (b"\n\n\n", "without a single row"),
    "broken.jsonl": (
        b'{"prompt": "p", "completion": "c"}\n{"prompt"\n',
        "1 of 2 rows could not be read: broken.jsonl:2",
    ),
}


def load_refused(path: str) -> str:
    """Load through the flow itself: without Prefect, which the command line would start first."""
    from data.errors import BadInput
    from flows.quickstart import quickstart
    from infra.store import current_store

    parameters = find_recipe("quickstart").parameters(
        ["load.sources.0.path=" + path, "load.sources.0.keep=[]", "evaluate.group_column=''"]
    )
    current_store().prepare()
    with pytest.raises(BadInput) as error:
        quickstart(parameters)
    assert_explained(str(error.value))
    return str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_used_is_refused(name: str) -> None:
    content, found = FILES[name]
    Path(name).write_bytes(content)
    said = load_refused(name)
    assert name.split(".")[0] in said
    assert found in said
    assert not list(Path("store").glob("*/*/record.json"))


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_file_that_is_missing_or_empty_is_refused_before_anything_starts(
    refused: Refused, recipe: Recipe, command: str
) -> None:
    write_rows(Path("rows.jsonl"))
    said = refused(command, recipe(rows_recipe("row.jsonl")))
    assert "no file row.jsonl" in said
    assert "did you mean one of rows.jsonl?" in said
    Path("rows.jsonl").write_bytes(b"")
    assert "rows.jsonl is empty (0 bytes)" in refused(command, recipe(rows_recipe("rows.jsonl")))
    Path("rows").mkdir()
    assert "rows, a folder without data files" in refused(command, recipe(rows_recipe("rows")))


def test_a_hundred_megabytes_in_one_row_fail_alone_and_are_never_held() -> None:
    from tasks.curate.load import LoadParameters, load

    write_rows(Path("rows.jsonl"))
    with Path("rows.jsonl").open("ab") as file:
        file.write(b'{"prompt": "')
        file.writelines(b"x" * 1_000_000 for _ in range(100))
        file.write(b'", "completion": "c"}\n')
    source = {"path": "rows.jsonl", "licence": "MIT", "layout": "prompt-completion"}
    Path("store").mkdir()
    tracemalloc.start()
    made = load(LoadParameters.model_validate({"sources": [source]}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50_000_000
    assert made.rows == 40
    (failed,) = made["failed"].read().to_pylist()
    assert failed["location"] == "rows.jsonl:41"
    assert "a row of 100,000,034 bytes, more than max_row_bytes = 4,194,304" in failed["error"]


@pytest.mark.timeout(180)
def test_bad_input_found_on_the_way_ends_a_run_with_code_two_and_keeps_what_is_done(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row can be loaded, cleaned and split; the control cannot shuffle it."""
    write_rows(Path("rows.jsonl"), [{"prompt": "p ", "completion": "c"}])
    path = recipe(rows_recipe("rows.jsonl", "  split: {test_share: 1.0e-9}"))
    environment = {**os.environ, "PREFECT_HOME": str(Path("prefect").absolute()), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows", "run", path, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert_explained(done.stderr)
    assert "found:  1 rows with row_id" in done.stderr
    assert main(["plan", path, "--json"]) == 0
    states = {step["stage"]: step["state"] for step in json.loads(capsys.readouterr().out)}
    assert [states[name] for name in ("load", "clean", "deduplicate", "split")] == ["cached"] * 4
    assert states["shuffle"] == "to run"


# ---- stores --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["taken", "taken/store"])
def test_a_store_that_is_a_file_or_below_one_is_refused(refused: Refused, recipe: Recipe, store: str) -> None:
    write_rows(Path("rows.jsonl"))
    Path("taken").write_text("precious")
    said = refused("run", recipe(rows_recipe("rows.jsonl")), "--store", store)
    assert store in said
    assert "--store" in said
    assert Path("taken").read_text() == "precious"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(folder: Path) -> None:
    """Fill a file system to the last byte."""
    with pytest.raises(OSError, match="No space left") as full, (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    assert full.value.errno == errno.ENOSPC


def read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True, capture_output=True)
    with pytest.raises(OSError, match="Read-only"):
        (folder / "probe").touch()


def test_a_full_store_is_refused(refused: Refused, recipe: Recipe, small_disk: Path) -> None:
    write_rows(Path("rows.jsonl"))
    fill(small_disk)
    for store in (small_disk, small_disk / "store"):
        said = refused("run", recipe(rows_recipe("rows.jsonl")), "--store", str(store))
        assert f"the store {store} is full" in said
        assert "what is done stays done" in said


def test_a_store_that_becomes_full_on_the_way_is_refused_and_goes_on_when_there_is_space(small_disk: Path) -> None:
    from data.errors import BadInput
    from infra.settings import use_settings
    from infra.store import current_store
    from tasks.curate.clean import CleanParameters, clean
    from tasks.curate.load import LoadParameters, load

    noise = [{"prompt": os.urandom(1500).hex(), "completion": str(n)} for n in range(100)]
    write_rows(Path("rows.jsonl"), noise)
    source = {"path": "rows.jsonl", "licence": "MIT", "layout": "prompt-completion"}
    with use_settings(store=small_disk):
        current_store().prepare()
        rows = load(LoadParameters.model_validate({"sources": [source]}))
        fill(small_disk)
        with pytest.raises(BadInput, match="is full") as error:
            clean(CleanParameters(), rows)
        assert_explained(str(error.value))
        assert [each.stage for each in current_store().artifacts()] == ["load"]
        (small_disk / "filler").unlink()
        assert clean(CleanParameters(), rows).rows == 100


def test_a_read_only_store_is_refused_by_run_and_can_still_be_asked(
    refused: Refused, recipe: Recipe, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(Path("rows.jsonl"))
    path = recipe(rows_recipe("rows.jsonl"))
    read_only(small_disk)
    for store in (small_disk, small_disk / "store"):
        said = refused("run", path, "--store", str(store))
        assert f"the store {store} is read-only" in said
        assert "choose another with --store" in said
        assert main(["plan", path, "--store", str(store), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["state"] == "to run"


# ---- models --------------------------------------------------------------------------------------------------


class Touch:
    """A pickle of this touches a file when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def finetune_recipe(model: str) -> str:
    return rows_recipe("rows.jsonl", f"  pretrained:\n    model: {model}\n").replace("quickstart", "finetune")


def model_folder(config: dict[str, object] | None, **files: bytes) -> str:
    folder = Path("model")
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return str(folder)


@pytest.mark.parametrize(
    ("config", "files", "found", "remedy"),
    [
        ({"model_type": "llama"}, {}, "model with no weights", "name the file, or a folder that holds one model"),
        (None, {}, "model with no weights", "a folder that holds one model"),
        (None, {"model__safetensors": b"x"}, "model without config.json", "save_pretrained"),
        ({"model_type": "llama"}, {"pytorch_model__bin": b""}, "in a pickle (pytorch_model.bin)", "safetensors"),
        ({}, {"model__pt": b""}, "in a pickle (model.pt)", "safetensors"),
        ({"auto_map": {"AutoModel": "mine.Mine"}}, {"model__safetensors": b"x", "mine__py": b"open('executed','w')"},
         "config.json with auto_map", "runs no code"),
        ({}, {"a__gguf": b"", "b__gguf": b""}, "model with 2 GGUF files", "name the file"),
    ],
)  # fmt: skip
def test_a_model_folder_that_cannot_be_trusted_or_used_is_refused(
    refused: Refused, recipe: Recipe, config: dict[str, object] | None, files: dict[str, bytes], found: str, remedy: str
) -> None:
    write_rows(Path("rows.jsonl"))
    pickled = pickle.dumps(Touch())
    model = model_folder(config, **{name: content or pickled for name, content in files.items()})
    for command in ("run", "plan"):
        said = refused(command, recipe(finetune_recipe(model)))
        assert found in said
        assert remedy in said
    assert not Path("executed").exists()
    pickle.loads(pickled)  # noqa: S301 - our own, to show that it would have been seen
    assert Path("executed").exists()


def test_a_pickle_named_directly_is_refused_and_not_read(refused: Refused, recipe: Recipe) -> None:
    write_rows(Path("rows.jsonl"))
    Path("weights.pt").write_bytes(pickle.dumps(Touch()))
    assert "in a pickle (weights.pt)" in refused("plan", recipe(finetune_recipe("weights.pt")))
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("model", "found"),
    [("./model", "no model at './model'"), ("package:no_such_model", "no installed package 'no_such_model'")],
)
def test_a_model_that_is_nowhere_is_refused(refused: Refused, recipe: Recipe, model: str, found: str) -> None:
    write_rows(Path("rows.jsonl"))
    assert found in refused("plan", recipe(finetune_recipe(model)))


def test_a_model_of_the_hub_without_a_network_is_refused(recipe: Recipe) -> None:
    """In a process of its own: the hub's library reads HF_HUB_OFFLINE once, when it is first imported."""
    write_rows(Path("rows.jsonl"))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows", "plan", recipe(finetune_recipe("someone/model"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert_explained(done.stderr)
    assert "'someone/model', neither a local folder nor a model that the hub answers for" in done.stderr


# ---- names ---------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(recipe: Recipe) -> Path:
    """A store with one artifact."""
    from tasks.curate.load import LoadParameters, load

    write_rows(Path("rows.jsonl"))
    Path("store").mkdir()
    source = {"path": "rows.jsonl", "licence": "MIT", "layout": "prompt-completion"}
    return load(LoadParameters.model_validate({"sources": [source]})).path


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("command", ["show", "trace"])
@pytest.mark.parametrize(
    "name", ["../../etc", "..", "/etc", "store/../..", "store/load/../../../etc/passwd", "store/load", "store", "abc",
             "ffffffff", "zzzzzzzz", "load", "", "*", "store/.work/x"],
)  # fmt: skip
def test_an_artifact_that_is_none_is_refused(refused: Refused, command: str, name: str) -> None:
    said = refused(command, name)
    assert "root:" not in said


def test_a_link_that_leads_out_of_the_store_is_not_followed(refused: Refused, kept: Path) -> None:
    Path("store/load/" + "0" * 32).symlink_to("/etc")
    assert "outside the store" in refused("show", "store/load/" + "0" * 32)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    "row", ["ffffffff", "abc", "rows.jsonl:99", "other.jsonl:1", "../../etc/passwd", "'; DROP", ""]
)
def test_a_row_that_is_none_is_refused(refused: Refused, row: str) -> None:
    assert "no row" in refused("why", row)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("run", ["nothing", "../../etc/passwd", ""])
def test_a_run_that_is_none_is_refused(refused: Refused, run: str) -> None:
    assert "with a report" in refused("report", run)
    assert "with a report" in refused("report")


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    "query",
    ["SELEC 1", "FROM nothing", "SELECT 1 +", "DROP TABLE row", "INSERT INTO row_edge SELECT * FROM row_edge", ""],
)
def test_sql_that_is_wrong_or_would_change_something_is_refused(refused: Refused, query: str) -> None:
    refused("sql", query)


@pytest.mark.parametrize("arguments", [["sql", "FROM artifact"], ["why", "abcdef12"], ["trace", "abcdef12"]])
def test_a_store_that_is_not_there_is_refused(refused: Refused, arguments: list[str]) -> None:
    assert "no store at" in refused(*arguments, "--store", "nowhere")
    assert not Path("nowhere").exists()


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    from data.errors import BadInput

    with pytest.raises(BadInput):
        main(["run", "quikstart", "--debug"])


def test_parquet_with_other_columns_is_told_what_it_has() -> None:
    pq.write_table(pa.table({"question": ["q"], "answer": ["a"]}), "rows.parquet")
    assert "no column 'prompt'; the row has question, answer" in load_refused("rows.parquet")


def test_a_home_that_prefect_cannot_write_is_explained(recipe: Recipe, tmp_path: Path) -> None:
    write_rows(Path("rows.jsonl"))
    (tmp_path / "file").write_text("no folder")
    command = [sys.executable, "-m", "flows", "run", recipe(rows_recipe("rows.jsonl"))]
    environment = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path / "file" / "home"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    environment.pop("PREFECT_API_URL", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2, done.stderr
    assert_explained(done.stderr)
    assert "set PREFECT_HOME" in done.stderr
