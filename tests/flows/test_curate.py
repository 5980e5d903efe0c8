"""The recipe `curate` on the samples: what was planted is found, nothing else is lost, and the target decides."""

import importlib
import json
import re
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

from data.artifact import Artifact
from data.diff import diff
from data.ledger import ledger
from data.tags import read_tags
from flows.__main__ import main
from flows.recipe import SAMPLES, find_recipe
from infra.flow import Built, Flow, plan, run
from infra.settings import use_settings

Row = dict[str, Any]
Id = uuid.UUID

# what is planted -> the stage that drops it, its reasons, and the least share that it must find
FOUND = {
    "broken: empty": ("clean", {"completion too short"}, 1.0),
    "broken: too long": ("clean", {"row too long"}, 1.0),
    "licence denied": ("filter", {"licence denied"}, 1.0),
    "other language": ("filter", {"language"}, 0.95),
    "boilerplate": ("filter", {"javascript", "ellipsis lines", "repeated lines", "language", "lorem ipsum"}, 0.95),
    "broken: loop": ("filter", {"repeated 10-grams"}, 0.9),
    "broken: repeated line": ("filter", {"repeated lines"}, 0.9),
    "broken: no words": ("filter", {"too few words"}, 1.0),
    "equal row": ("deduplicate", {"duplicate"}, 1.0),
    "near-duplicate": ("deduplicate", {"near-duplicate"}, 0.95),
    "near-copy": ("deduplicate_semantic", {"near in meaning"}, 0.9),
    "leak, verbatim": ("decontaminate", {"equals an evaluation item"}, 1.0),
    "leak, with another answer": ("decontaminate", {"equals an evaluation item"}, 1.0),
    "leak, inside a longer text": ("decontaminate", {"shares words with an evaluation item"}, 1.0),
    "leak, one word changed": ("decontaminate", {"shares words with an evaluation item"}, 0.85),
}
STAYS = {"other language, short", "boilerplate, removed post", "broken: cut off", "broken: encoding", "leak, reworded"}
GOOD = {"", "common phrase", "crowd around one target row", "personal data"}
BEFORE_SELECTION = ("clean", "filter", "deduplicate", "decontaminate", "deduplicate_semantic")
CROWD = "crowd around one target row"


class Made(NamedTuple):
    """One run of the flow: what each stage published, in order."""

    store: Path
    flow: Flow
    parameters: BaseModel
    built: Built
    stages: list[Artifact]

    def of(self, stage: str) -> Artifact:
        """The first artifact of a stage: that of the pool, where the target has one too."""
        return next(each for each in self.stages if each.stage == stage)

    @property
    def evaluation(self) -> Artifact:
        return [each for each in self.stages if each.stage == "load"][1]


def curated(store: Path, *changes: str) -> Made:
    """Run the flow here, without Prefect."""
    recipe = find_recipe("curate")
    parameters = recipe.parameters(list(changes))
    built = recipe.flow(parameters)
    steps = plan(recipe.flow, parameters)
    assert {step.state for step in steps} == {"cached"}
    return Made(store, recipe.flow, parameters, built, [step.artifact for step in steps])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    store = tmp_path_factory.mktemp("curate") / "store"
    with use_settings(store=store, workers=1):
        yield curated(store)


@pytest.fixture(scope="module")
def loaded(made: Made) -> dict[Id, Row]:
    return {row["row_id"]: row for row in made.of("load").read().to_pylist()}


def dropped(artifact: Artifact) -> list[Row]:
    lines: list[Row] = artifact["dropped"].read().to_pylist()
    return lines


def kind(row: Row) -> str:
    """What is planted in a row, without its language, kind of data, or place."""
    told = re.sub(r" of (text \d|[a-z]+:\d+)$|: [a-z]+:\d+$", "", row["planted"])
    return re.sub(r"^(other language|personal data): .*", r"\1", told)


def places(artifact: Artifact) -> dict[Id, str]:
    """Where each row was loaded from, as `planted` says it: SOURCE:LINE."""
    origin = artifact["origin"].read().to_pylist()
    return {each["row_id"]: f"{each['file'].removeprefix('curate-').split('.')[0]}:{each['line']}" for each in origin}


# ---- the samples ----


def test_the_files_are_what_their_maker_writes_and_small() -> None:
    maker = importlib.import_module("data.samples.make_curate_samples")
    files = maker.files(Random(maker.SEED))
    found = {path.name: path.read_text(encoding="utf-8") for path in SAMPLES.glob("curate-*.jsonl")}
    assert found == {f"curate-{name}.jsonl": "\n".join(lines) + "\n" for name, lines in files.items()}
    assert sum(map(len, found.values())) < 1_500_000


def test_the_page_of_the_samples_states_what_is_in_them(loaded: dict[Id, Row]) -> None:
    page = (SAMPLES / "README.md").read_text(encoding="utf-8").partition("# curate-")[2].partition("\n# ")[0]
    told = {
        name.removesuffix(": ").removesuffix(" text ").removesuffix(" of ").removesuffix(" of"): int(
            rows.replace(",", "")
        )
        for name, rows in re.findall(r"^\| `([^`]+)` \| ([\d,]+) \|", page, re.M)
    }
    planted = {name: rows for name, rows in Counter(map(kind, loaded.values())).items() if name}
    files = {path.name: len(path.read_bytes().splitlines()) for path in SAMPLES.glob("curate-*.jsonl")}
    assert told == planted | files


# ---- what became of what was planted ----


@pytest.mark.parametrize("name", FOUND)
def test_what_was_planted_is_found_by_its_stage(name: str, made: Made, loaded: dict[Id, Row]) -> None:
    stage, reasons, least = FOUND[name]
    wanted = {each for each, row in loaded.items() if kind(row) == name}
    assert wanted
    found = {line["row_id"] for line in dropped(made.of(stage)) if line["reason"] in reasons}
    assert len(wanted & found) >= least * len(wanted)


def test_hardly_anything_else_is_dropped_before_the_selection(made: Made, loaded: dict[Id, Row]) -> None:
    good = {each for each, row in loaded.items() if kind(row) in GOOD}
    lost = [(stage, line["reason"], loaded[line["row_id"]]["prompt"]) for stage in BEFORE_SELECTION
            for line in dropped(made.of(stage)) if line["row_id"] in good]  # fmt: skip
    assert len(good) > 2500
    assert len(lost) <= 3, lost


def test_what_no_stage_is_made_for_stays_as_the_page_says(made: Made) -> None:
    left = Counter(map(kind, made.of("deduplicate_semantic").read().to_pylist()))
    assert set(left) == GOOD | STAYS | {"near-copy"}
    assert {name: left[name] for name in STAYS} == {
        "other language, short": 6, "boilerplate, removed post": 10, "broken: cut off": 10, "broken: encoding": 10,
        "leak, reworded": 3,
    }  # fmt: skip
    assert left["near-copy"] >= 3, "one of each text is kept"


@pytest.mark.parametrize("name", ["equal row", "near-duplicate", "leak"])
def test_a_dropped_row_names_the_very_row_that_it_repeats(name: str, made: Made, loaded: dict[Id, Row]) -> None:
    stage, partners = ("decontaminate", made.evaluation) if name == "leak" else ("deduplicate", made.of("load"))
    origin = places(partners)
    lines = [line for line in dropped(made.of(stage)) if kind(loaded[line["row_id"]]).startswith(name)]
    assert len(lines) > 25
    for line in lines:
        assert loaded[line["row_id"]]["planted"].endswith(origin[line["partner"]])


def test_no_item_of_the_evaluation_set_is_left(made: Made) -> None:
    items = {row["prompt"].casefold() for row in made.evaluation.read().to_pylist()}
    left = made.of("decontaminate").read(["prompt"])["prompt"].to_pylist()
    assert not [prompt for prompt in left if any(item in prompt.casefold() for item in items)]


def test_personal_data_is_masked_and_nothing_else_but_one_name_server(made: Made, loaded: dict[Id, Row]) -> None:
    maker = importlib.import_module("data.samples.make_curate_samples")
    found: dict[Id, set[str]] = {}
    for line in made.of("filter")["personal"].read().to_pylist():
        found.setdefault(line["row_id"], set()).add(line["kind"])
    planted = {each: set(row["planted"].partition(": ")[2].split(", ")) for each, row in loaded.items()
               if kind(row) == "personal data"}  # fmt: skip
    wrong = {each: kinds for each, kinds in found.items() if planted.get(each) != kinds}
    assert set(planted) <= set(found)
    assert list(wrong.values()) == [{"ip_address"}]
    assert all("8.8.8.8" in loaded[each]["completion"] for each in wrong)
    values = [*maker.CARDS, *maker.SOCIAL_SECURITY, ".internal", "+44", "+1 212", "+1-415", " TEST "]
    for row in made.of("filter").read().to_pylist():
        text = f"{row['prompt']} {row['completion']}"
        assert not [value for value in values if value in text], row
        if row["row_id"] in planted:
            assert all(f"[{each}]" in text for each in planted[row["row_id"]])


def test_every_line_is_in_the_dataset_or_left_once_with_a_reason(made: Made, loaded: dict[Id, Row]) -> None:
    ends = Counter(row["row_id"] for table in ("train", "test") for row in made.of("split")[table].read().to_pylist())
    assert ends.total() == 300
    for stage in (*BEFORE_SELECTION, "select_ot"):
        lines = dropped(made.of(stage))
        assert all(line["reason"] for line in lines)
        ends.update(line["row_id"] for line in lines)
    assert set(ends) == set(loaded)
    assert set(ends.values()) == {1}
    failed = made.of("load")["failed"].read().to_pylist()
    sources = ("household", "office", "sums", "forum", "archive")
    in_files = sum(len((SAMPLES / f"curate-{name}.jsonl").read_bytes().splitlines()) for name in sources)
    assert len(loaded) + len(failed) == in_files
    assert len(failed) == 3
    assert all(each["error"] for each in failed)


# ---- the selection ----


def test_the_selection_goes_for_the_target_and_is_not_crowded(made: Made) -> None:
    chosen = {name: made.of(f"select_{name}").read().to_pylist() for name in ("ot", "nearest", "kcentre", "random")}
    assert {name: len(rows) for name, rows in chosen.items()} == dict.fromkeys(chosen, 300)
    office = {name: sum(row["source"] == "office" for row in rows) / 300 for name, rows in chosen.items()}
    crowd = {name: sum(row["planted"] == CROWD for row in rows) for name, rows in chosen.items()}
    assert office["ot"] > office["random"] + 0.35
    assert office["ot"] > office["kcentre"] + 0.35
    assert crowd["nearest"] > 100, "the crowd is what lies nearest"
    assert crowd["ot"] < 30
    apart = {name: 300 * office[name] - crowd[name] for name in chosen}
    assert apart["ot"] > 1.3 * apart["nearest"], "there is more of the subject beside the crowd"


# ---- again, verified, changed ----


def test_a_second_run_is_cached_and_makes_no_second_version(made: Made) -> None:
    told: list[str] = []
    for _ in range(2):
        done, built = run(made.flow, made.parameters, "curate", lambda step: told.append(step.state))
        assert done.tagged == "curated-samples@v1"
        assert built == made.built
    assert set(told) == {"cached"}
    assert [(str(tag), tag.fingerprint) for tag in read_tags(made.store)] == [
        ("curated-samples@v1", made.of("split").fingerprint)
    ]


def test_the_dataset_is_made_again_to_the_byte(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["verify", made.of("split").fingerprint, "--store", str(made.store), "--json"])
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert code == 0
    assert {each["state"] for each in stages} == {"same"}
    assert {each["stage"] for each in stages} == {"load", *BEFORE_SELECTION, "embed", "select_ot", "split"}


def added_rows() -> list[Row]:
    """A hundredth more of the forum, each row with the reason why it does not get as far as the selection, or none."""
    office, items = (
        [json.loads(line) for line in (SAMPLES / f"curate-{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("office", "evaluation")
    )
    long = max(office, key=lambda row: len(row["completion"]))
    letter = "Dear colleagues, the meeting with the client has been moved to Monday. Please tell me if you cannot come."
    german = "Am besten wartest du bis zum Frühling und fragst dann noch einmal in der Gärtnerei nach."
    rows = [
        ("Write a note to the team that the meeting with the client is moved to Monday.", letter, None),
        ("Who waters the garden while I am away?", "Ask who else has a key, and share the days.", None),
        ("Who sells honey near the old mill?", "Ask zoe.marsh@oldmill.internal about it.", None),
        ("Is a sofa worth it?", " ", "completion too short"),
        ("Was tun mit welken Rosen?", german, "language"),
        (office[7]["prompt"], office[7]["completion"], "duplicate"),
        (long["prompt"], f"{long['completion']} Good luck!", "near-duplicate"),
        (f"From a quiz. {items[32]['prompt']}", "No idea.", "shares words with an evaluation item"),
    ]
    return [{"prompt": ask, "completion": answer, "planted": "", "why": why} for ask, answer, why in rows]


def test_diff_tells_which_rows_a_grown_source_added_and_why_others_did_not_enter(
    made: Made, loaded: dict[Id, Row], tmp_path: Path
) -> None:
    grown, new = tmp_path / "curate-forum.jsonl", added_rows()
    lines = "".join(json.dumps(row) + "\n" for row in new)
    grown.write_text((SAMPLES / grown.name).read_text(encoding="utf-8") + lines, encoding="utf-8")
    after = curated(made.store, f"load.sources.3.path={grown}")
    rows = {row["row_id"]: row for row in after.of("load").read().to_pylist()}
    fresh = set(rows) - set(loaded)
    assert len(fresh) == len(new) == len(lines.splitlines())

    with ledger(made.store) as connection:

        def told(a: Artifact, b: Artifact) -> dict[Id, Row]:
            return {uuid.UUID(str(line["row_id"])): line for line in diff(connection, a, b, 10_000).rows}

        added = told(made.of("load"), after.of("load"))
        assert set(added) == fresh
        assert {(line["what"], line["reason"]) for line in added.values()} == {("added", "not in the sources of A")}

        # as far as the selection, nothing changes for the rows that were there before
        entered = told(made.of("deduplicate_semantic"), after.of("deduplicate_semantic"))
        assert {line["what"] for line in entered.values()} == {"added"}
        assert {rows[each]["prompt"] for each in entered} == {row["prompt"] for row in new if not row["why"]}

        # of the others, the way from the file to the pool says why
        left = told(after.of("load"), after.of("deduplicate_semantic"))
        why = {rows[each]["prompt"]: left[each]["reason"] for each in fresh - set(entered)}
        assert why == {row["prompt"]: row["why"] for row in new if row["why"]}

        # in the dataset, who came took the place of one that the selection names
        changes = told(made.of("split"), after.of("split"))
        assert new[0]["prompt"] in {rows[each]["prompt"] for each in changes if changes[each]["what"] == "added"}
        what = Counter(line["what"] for line in changes.values())
        assert set(what) == {"added", "removed"}
        assert what["added"] == what["removed"]
        for each, line in changes.items():
            assert line["stage"] == ("" if each in fresh else "select_ot")
            assert line["reason"] in {"not in the sources of A", "others are wanted more", "its target has enough"}
