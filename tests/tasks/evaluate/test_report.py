"""The facts of a report: every row accounted for, every number from its record, and the same bytes again."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from data.artifact import Artifact
from infra.settings import use_settings
from infra.stage import Measures, Parameters, Reference, Rows, stage
from infra.store import current_store
from infra.work import Work
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.deduplicate import DeduplicateParameters, deduplicate
from tasks.curate.load import LoadParameters, load
from tasks.curate.shuffle import ShuffleParameters, shuffle
from tasks.curate.split import SplitParameters, split
from tasks.evaluate.compare import CompareParameters, compare
from tasks.evaluate.compare_arms import Arm, CompareArmsParameters, compare_arms
from tasks.evaluate.evaluate import SCORES
from tasks.evaluate.report import ReportParameters, report
from tasks.evaluate.texts import HIDDEN

PARAMETERS = ReportParameters(title="Tiny <build>", generations=3)
STEPS = 900


class Seeded(Parameters):
    """Which model it stands for, and how often it is right."""

    seed: int
    every: int


@stage("float")
def first(work: Work, parameters: Seeded) -> Measures:
    """Stand for a model that knows nothing: a file that differs by seed."""
    (work.out / "weights").write_text(str(parameters.seed))
    return {}


@stage("float", trains=True)
def taught(work: Work, parameters: Seeded, rows: Rows, base: Reference) -> Measures:
    """Stand for a training: a file, and a loss that falls."""
    (work.out / "weights").write_text(f"{base.digest} {rows.digest} {parameters.seed}")
    losses = pa.table({"step": pa.array(range(STEPS), pa.int64()), "loss": [1 / (1 + n) for n in range(STEPS)]})
    work.write_single(losses, "history")
    return {"loss": 1 / STEPS}


@stage("float")
def asked(work: Work, parameters: Seeded, rows: Reference, model: Reference) -> Measures:
    """Scores of a model that is right on every so many rows."""
    lines = [
        {"row_id": row["row_id"], "group": row["task"], "prompt": row["prompt"], "reference": row["completion"]}
        | {"answer": "?", "correct": at % parameters.every == 0, "loss": 1.0 * parameters.every, "tokens": 2}
        for at, row in enumerate(rows.read().to_pylist())
    ]
    work.write_single(pa.Table.from_pylist(lines, schema=SCORES), "scores")
    return {}


class Scored(Parameters):
    """The loss of each row."""

    losses: list[float]


@stage("exact")
def scored(work: Work, parameters: Scored, rows: Reference, model: Reference) -> Measures:
    """Publish losses as `evaluate` does."""
    ids = rows.read(["row_id"])["row_id"]
    work.write_single(pa.table({"row_id": ids, "loss": parameters.losses, "tokens": [2] * len(ids)}), "scores")
    return {}


class Flow(NamedTuple):
    """A whole flow in small."""

    rows: Artifact
    parts: Artifact
    made: list[Artifact]
    evaluations: list[Artifact]
    compared: Artifact

    def told(self, parameters: ReportParameters = PARAMETERS) -> Artifact:
        return report(parameters, self.parts, self.made, [], self.evaluations, [self.compared])

    def facts(self, parameters: ReportParameters = PARAMETERS) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.told(parameters).path / "report.json").read_bytes())
        return facts


def build(folder: Path) -> Flow:
    """Two sources of 50 rows with 10 in common, one dirty, one too long, two broken lines; a model and a control."""
    source = folder / "source"
    (source / "set").mkdir(parents=True)
    lines = [json.dumps({"prompt": f"p{n}", "completion": f"c{n} ", "task": "ab"[n % 2]}) for n in range(90)]
    long = json.dumps({"prompt": "x" * 300, "completion": "y", "task": "a"})
    (source / "one.jsonl").write_text("\n".join([*lines[:50], "nonsense", long, "[1]"]))
    (source / "set" / "a.jsonl").write_text("\n".join(lines[40:60]))
    (source / "set" / "b.jsonl").write_text("\n".join(lines[60:]))
    common = {"layout": "prompt-completion", "keep": ["task"]}
    sources = [
        {"path": str(source / "one.jsonl"), "licence": "MIT", **common},
        {"path": str(source / "set"), "licence": "CC0-1.0", **common},
    ]
    rows = load(LoadParameters.model_validate({"sources": sources}))
    cleaned = clean(CleanParameters(max_characters=100), rows)
    unique = deduplicate(DeduplicateParameters(prefer=("set",)), cleaned)
    parts = split(SplitParameters(test_share=0.3), unique)
    mixed = shuffle(ShuffleParameters(), parts["train"])
    base = first(Seeded(seed=0, every=1))
    model, control = taught(Seeded(seed=1, every=1), parts["train"], base), taught(Seeded(seed=1, every=1), mixed, base)
    scores = [
        asked(Seeded(seed=0, every=every), parts["test"], each) for each, every in ((base, 4), (model, 1), (control, 3))
    ]
    parameters = CompareParameters(names=("model", "control"), draws=200, level=0.9)
    compared = compare(parameters, scores[0], scores[1:])
    return Flow(rows, parts, [rows, cleaned, unique, parts, mixed, base, model, control], scores, compared)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flow]:
    folder = tmp_path_factory.mktemp("flow")
    with use_settings(store=folder / "store", workers=1):
        current_store().prepare()
        yield build(folder)


@pytest.fixture(autouse=True)
def store(flow: Flow) -> Iterator[None]:
    """The store of the flow, in force in each test too."""
    with use_settings(store=flow.rows.path.parents[1], workers=1):
        yield


def test_the_rows_of_every_stage_add_up(flow: Flow) -> None:
    facts = flow.facts()
    assert [stage["stage"] for stage in facts["stages"]] == [
        "load", "clean", "deduplicate", "split", "shuffle", "first", "taught, model", "taught, control"
    ]  # fmt: skip
    for each, artifact in zip(facts["stages"], flow.made, strict=True):
        kept = each["rows_out"] - each["rows_created"]
        failed = 0 if each["stage"] == "load" else each["rows_failed"]
        assert each["rows_in"] == kept + each["rows_consumed"] + each["rows_dropped"] + failed
        for kind in ("dropped", "failed"):
            reasons = [reason for reason in each["reasons"] if reason["kind"] == kind]
            assert sum(reason["rows"] for reason in reasons) == each[f"rows_{kind}"]
        assert sum(each["tables"].values()) == each["rows_out"]
        assert each["fingerprint"] == artifact.fingerprint
    loaded, cleaned, unique, parts = facts["stages"][:4]
    assert (loaded["rows_out"], loaded["rows_failed"]) == (101, 2)
    assert (cleaned["rows_dropped"], unique["rows_dropped"], unique["rows_out"]) == (1, 10, 90)
    assert set(parts["tables"]) == {"train", "test"}


def test_reasons_have_an_example_with_its_text_place_or_partner(flow: Flow) -> None:
    loaded, cleaned, unique = flow.facts()["stages"][:3]
    assert {reason["example"]["detail"] for reason in loaded["reasons"]} == {"one.jsonl:51", "one.jsonl:53"}
    (long,) = cleaned["reasons"]
    assert (long["reason"], long["rows"], long["example"]["score"]) == ("row too long", 1, 301.0)
    assert long["example"]["text"].startswith("prompt: xxx")
    (duplicate,) = unique["reasons"]
    assert duplicate["reason"] == "duplicate"
    kept = {str(each) for each in flow.parts["train"].read(["row_id"])["row_id"].to_pylist()}
    kept |= {str(each) for each in flow.parts["test"].read(["row_id"])["row_id"].to_pylist()}
    assert duplicate["example"]["partner"] in kept
    assert duplicate["example"]["row_id"] not in kept


def test_five_trained_rows_lead_back_to_file_and_line(flow: Flow) -> None:
    facts = flow.facts()
    trained = {str(row["row_id"]): row for row in flow.parts["train"].read().to_pylist()}
    assert len(facts["ancestry"]) == len({each["row_id"] for each in facts["ancestry"]}) == 5
    for each in facts["ancestry"]:
        number = int(trained[each["row_id"]]["prompt"][1:])
        source = trained[each["row_id"]]["source"]
        place = {
            "one": ("one.jsonl", number + 1),
            "set": ("a.jsonl", number - 39) if number < 60 else ("b.jsonl", number - 59),
        }[source]
        assert each["steps"][0]["what"] == f"loaded from {place[0]}, line {place[1]}"
        assert [(step["stage"], step["what"]) for step in each["steps"][1:]] == [
            ("clean", "edited"), ("deduplicate", "kept"), ("split", "kept in train"), ("taught", "trained model on it")
        ]  # fmt: skip
        assert each["steps"][1]["before"] == f"prompt: p{number}\ncompletion: c{number} "
        assert each["steps"][1]["after"] == each["text"] == f"prompt: p{number}\ncompletion: c{number}"


def test_the_comparison_is_told_as_it_was_made(flow: Flow) -> None:
    facts = flow.facts()
    compared = {model["name"]: model for model in facts["comparison"]["models"]}
    assert list(compared) == ["base", "model", "control"]
    assert facts["comparison"]["level"] == 0.9
    assert facts["comparison"]["rows"] == flow.parts["test"].rows
    assert compared["base"]["difference"] is None
    assert compared["model"]["exact_match"] == 1
    measures = flow.compared.record["measures"]
    assert compared["control"]["difference"]["mean"] == measures["control, exact match, difference"]
    assert compared["control"]["loss_difference"]["low"] == measures["control, loss, difference_low"]
    assert compared["model"]["fingerprint"] == flow.made[6].digest[:32]


def test_the_headline_counts_rows_and_names_the_level(flow: Flow) -> None:
    headline = {fact["label"]: fact["value"] for fact in flow.facts()["headline"]}
    assert headline["rows kept"] == "90 of 103"
    assert headline["exact match, model"] == "100.0%"
    assert "90 % interval" in headline
    assert not any("95" in label for label in headline)


def test_groups_and_answers_stand_side_by_side(flow: Flow) -> None:
    facts = flow.facts()
    assert [group["group"] for group in facts["by_group"]] == ["a", "b"]
    assert sum(group["rows"] for group in facts["by_group"]) == flow.parts["test"].rows
    assert all(set(group["scores"]) == {"base", "model", "control"} for group in facts["by_group"])
    assert all(group["scores"]["model"] == 1 for group in facts["by_group"])
    assert len(facts["generations"]) == 3
    for each in facts["generations"]:
        assert [answer["model"] for answer in each["answers"]] == ["base", "model", "control"]
        assert each["reference"] == each["prompt"].replace("p", "c")


def test_losses_are_thinned_and_belong_to_their_models(flow: Flow) -> None:
    losses = flow.facts()["losses"]
    assert [each["model"] for each in losses] == ["model", "control"]
    for each in losses:
        assert 200 <= len(each["steps"]) == len(each["loss"]) <= 450
        assert each["loss"] == [1 / (1 + step) for step in each["steps"]]
        assert each["steps"][0] == 0


def test_sources_have_rows_licence_and_a_digest_of_all_their_files(flow: Flow) -> None:
    one, several = flow.facts()["provenance"]["sources"]
    assert one["role"] == several["role"] == "rows"
    assert (one["name"], one["rows"], one["licence"]) == ("one", 51, "MIT")
    assert (several["name"], several["rows"], several["licence"]) == ("set", 50, "CC0-1.0")
    reads = flow.rows.record["key"]["reads"]
    assert one["digest"] == reads["one"]["one.jsonl"]
    assert len(several["digest"]) == 64
    assert several["digest"] not in reads["set"].values()


def test_the_same_flow_gives_the_same_bytes_in_another_store(flow: Flow, tmp_path: Path) -> None:
    with use_settings(store=tmp_path / "elsewhere", workers=1):
        current_store().prepare()
        again = build(tmp_path).told()
    told = flow.told()
    assert again.path != told.path
    for name in ("report.json", "report.html", "record.json"):
        assert (again.path / name).read_bytes() == (told.path / name).read_bytes()
    assert str(tmp_path).encode() not in (again.path / "report.html").read_bytes()


def test_another_seed_shows_other_rows_and_changes_no_number(flow: Flow) -> None:
    facts, other = flow.facts(), flow.facts(PARAMETERS.model_copy(update={"seed": 1}))
    assert {each["row_id"] for each in facts["ancestry"]} != {each["row_id"] for each in other["ancestry"]}
    for part in ("headline", "stages", "thresholds", "comparison", "by_group", "losses", "provenance"):
        assert facts[part] == other[part]


def test_nothing_need_be_shown(flow: Flow) -> None:
    facts = flow.facts(ReportParameters(generations=0, ancestries=0))
    assert facts["generations"] == facts["ancestry"] == []


# ---- a curation: nothing is trained, and rows are selected ----


@pytest.fixture
def curated(curation: Any) -> Iterator[dict[str, Any]]:
    """The facts of a report on the curation, and its page under `page`."""
    with use_settings(store=curation.chosen.path.parents[1], workers=1):
        told = report(ReportParameters(seed=3), curation.parts, curation.made, curation.others, [], [])
        facts: dict[str, Any] = json.loads((told.path / "report.json").read_bytes())
        yield facts | {"page": (told.path / "report.html").read_text(encoding="utf-8")}


def test_a_curation_has_no_models_and_says_what_was_selected(curated: dict[str, Any]) -> None:
    assert curated["losses"] == curated["by_group"] == curated["generations"] == []
    assert curated["comparison"] is None and curated["arms"] == []
    headline = {fact["label"]: fact["value"] for fact in curated["headline"]}
    assert headline["rows kept"] == "20 of 96"
    assert headline["rows selected, ot"] == "20 of 92"
    assert headline["budget of 20 rows"] == "100% used"
    assert headline["dropped: too few words"] == "2"
    assert "dropped: others are wanted more" not in headline
    anchors = [f'<section aria-labelledby="{name}">' in curated["page"] for name in ("selection", "thresholds", "arms")]
    assert anchors == [True, True, False]


def test_baselines_are_compared_but_are_not_in_the_funnel(curated: dict[str, Any]) -> None:
    stages = [stage["stage"] for stage in curated["stages"]]
    assert stages.count("select_ot") == 1 and "select_random" not in stages
    assert [each["name"] for each in curated["selection"]["selections"]] == ["ot", "nearest", "random", "mixture"]


def test_provenance_names_also_what_was_only_read(curated: dict[str, Any]) -> None:
    roles = {source["name"]: source["role"] for source in curated["provenance"]["sources"]}
    assert roles == {"plain": "rows", "other": "rows", "exam": "reference", "wanted": "reference"}


def test_found_personal_data_is_nowhere_in_the_report(curated: dict[str, Any], curation: Any) -> None:
    """The row with the address is one of the longest, so next to a threshold, and it is selected, so in the dataset."""
    [finding] = curation.filtered["personal"].read().to_pylist()
    before = curation.cleaned.find(finding["row_id"])
    assert before and "openmail" in before["prompt"]
    assert curation.chosen.find(finding["row_id"])
    assert curated["personal"] == [{"kind": "email", "masked": 1, "dropped": 0, "rows": 1}]
    [rule] = [each for each in curated["thresholds"][0]["rules"] if each["rule"] == "max_words"]
    [beside] = [each for each in rule["kept"] if each["row_id"] == str(finding["row_id"])]
    assert beside["text"] == HIDDEN
    told = report(ReportParameters(ancestries=100), curation.chosen, curation.made[:-1], [], [], [])
    facts = json.loads((told.path / "report.json").read_bytes())
    assert len(facts["ancestry"]) == curation.chosen.rows - 1
    assert b"openmail" not in (told.path / "report.html").read_bytes() + (told.path / "report.json").read_bytes()
    assert "openmail" not in json.dumps(curated)


def test_a_curation_has_the_same_bytes_in_another_store(
    curated: dict[str, Any], curation: Any, run_curation: Callable[[Path], Any], tmp_path: Path
) -> None:
    again = run_curation(tmp_path)
    with use_settings(store=tmp_path / "store", workers=1):
        told = report(ReportParameters(seed=3), again.parts, again.made, again.others, [], [])
    assert told.path.parents[1] == tmp_path / "store"
    assert (told.path / "report.html").read_text(encoding="utf-8") == curated["page"]


def test_all_lists_may_be_empty(curation: Any) -> None:
    with use_settings(store=curation.chosen.path.parents[1], workers=1):
        told = report(ReportParameters(), curation.loaded, [curation.loaded], [], [], [])
    facts = json.loads((told.path / "report.json").read_bytes())
    assert facts["selection"] is facts["comparison"] is facts["alignment"] is None and facts["arms"] == []
    assert facts["thresholds"] == facts["overlaps"] == facts["personal"] == []
    page = (told.path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<section aria-labelledby="(\w+)">', page) == ["rows", "ancestry", "provenance"]


def test_selections_are_called_as_the_arms_that_trained_on_them(curation: Any) -> None:
    with use_settings(store=curation.chosen.path.parents[1], workers=1):
        base = first(Seeded(seed=0, every=1))
        picked = [curation.random, curation.nearest, curation.chosen]
        models = [taught(Seeded(seed=seed, every=2), rows, base) for seed, rows in enumerate(picked)]
        scores = [
            scored(Scored(losses=[1.0 + 0.1 * n] * curation.target.rows), curation.target, each)
            for n, each in enumerate([base, *models])
        ]
        arms = (Arm(name="by lot"), Arm(name="close by"), Arm(name="wanted"))
        compared = compare_arms(CompareArmsParameters(reference="by lot", arms=arms, draws=100), scores[0], scores[1:])
        told = report(ReportParameters(), curation.apart, curation.made[:7], picked, [], [compared])
        facts = json.loads((told.path / "report.json").read_bytes())
    assert [each["name"] for each in facts["selection"]["selections"]] == ["by lot", "close by", "wanted"]
    assert [(arm["name"], arm["separable"]) for arm in facts["arms"][0]["arms"]] == [
        ("base", True), ("by lot", None), ("close by", True), ("wanted", True)
    ]  # fmt: skip
    headline = {fact["label"]: fact["value"] for fact in facts["headline"]}
    assert headline["arms that differ from by lot"] == "2 of 2"
    assert headline["rows kept"] == "92 of 96" and "rows selected, by lot" not in headline
