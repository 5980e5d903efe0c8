"""The flow align: every method from one start, a teacher that is checked first, and a way back to the seeds."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.errors import BadInput
from data.graph import ancestors
from flows.align import AlignParameters, align
from flows.recipe import find_recipe
from infra.flow import plan
from infra.settings import use_settings
from infra.stage import Run, current_run
from infra.store import current_store

SEEDED = random.Random(0)
WORDS = ["".join(SEEDED.choices("abcdefghij", k=4)) for _ in range(90)]
TRAINING = {"max_length": 32, "batch_size": 16, "max_steps": 4, "learning_rate": 1e-3, "threads": 1, "warmup": 0}
FINE_TUNING = TRAINING | {"max_steps": 90, "learning_rate": 1e-2}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    with use_settings(store=tmp_path / "store", workers=1):
        current_store().prepare()
        yield tmp_path / "store"


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """Copy a word; capitals are preferred. Rows answer in small letters, so that a teacher can only gain."""
    rows = [{"prompt": f"say {word}", "completion": word[0]} for word in WORDS]
    pairs = [{"prompt": f"say {word}", "chosen": word[0].upper(), "rejected": word[0]} for word in WORDS]
    sources = {}
    for name, lines, layout in (("rows", rows, "prompt-completion"), ("pairs", pairs, "preference")):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        sources[name] = {"sources": [{"path": str(path), "licence": "CC0-1.0", "layout": layout}]}
    model = {"origin": "scratch", "layers": 2, "width": 32, "heads": 2, "feed_forward": 64, "context": 48}
    methods: list[tuple[str, dict[str, Any]]] = [
        ("SFT on chosen", {"method": "sft", **TRAINING}),
        ("DPO", {"method": "dpo", **TRAINING}),
        ("ORPO", {"method": "orpo", **TRAINING}),
        ("VanillaKD", {"method": "dckd", "rejected_weight": 0, **TRAINING}),
        ("DCKD", {"method": "dckd", **TRAINING}),
        ("ADPA, no reference", {"method": "adpa", "without_reference": True, **TRAINING}),
        ("ADPA", {"method": "adpa", **TRAINING}),
        ("ADPA+", {"method": "adpa_plus", "dckd": TRAINING, "adpa": TRAINING}),
    ]
    arms: list[dict[str, Any]] = [{"name": name, "train": train} for name, train in methods]
    arms[1]["seeds"] = [0, 1]
    arms.insert(-1, {"name": "DPO, shuffled", "shuffled": True, "train": {"method": "dpo", **TRAINING}})
    return {
        **sources,
        "split": {"test_share": 0.4},
        "teacher": {"origin": model, "sft": FINE_TUNING},
        "student": {"origin": {"origin": "cut", "keep": 1, "rows": 8}, "sft": FINE_TUNING | {"max_steps": 30}},
        "preflight": {"max_length": 32, "batch_size": 16},
        "dpo": TRAINING | {"max_steps": 12, "sft_weight": 1.0, "beta": 0.1},
        "students_pairs": {"budget": 24},
        "respond": {"max_new_tokens": 6, "max_length": 32, "batch_size": 16},
        "teacher_cache": {"max_length": 32},
        "arms": arms,
        "evaluate": {"max_length": 32, "max_new_tokens": 6},
        "evaluate_pairs": {"max_length": 32, "draws": 200},
        "evaluate_responses": {"max_length": 40, "draws": 200},
        "teacher_check": {"draws": 200},
        "compare": {"metric": "exact_match", "base": "SFT", "reference": "SFT on chosen", "draws": 200},
        "compare_rewards": {"metric": "reward_accuracy", "base": "SFT", "reference": "SFT", "draws": 200},
    }


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_every_method_learns_from_one_lesson_and_its_model_knows_its_seeds(store: Path, given: dict[str, Any]) -> None:
    parameters = AlignParameters.model_validate(given)
    run = Run("test", current_store())
    token = current_run.set(run)
    try:
        built = align(parameters)
    finally:
        current_run.reset(token)
    stages = [step.stage for step in run.steps]
    made = {name: {step.fingerprint for step in run.steps if step.stage == name} for name in set(stages)}
    trained = {name: len(made[name]) for name in ("sft", "dpo", "orpo", "dckd", "adpa")}
    assert trained == {"sft": 3, "dpo": 4, "orpo": 1, "dckd": 2, "adpa": 3}  # ADPA+ begins with DCKD's own model
    assert len(made["teacher_cache"]) >= 3  # pairs; responses, with and without the reference
    assert len(made["teacher_check"]) == len(made["cut"]) == len(made["shuffle"]) == 1

    assert built.model is not None and built.report is not None
    before = ancestors(built.model)
    assert {each.stage for each in before.there} >= {"load", "split", "cut", "sft", "dckd", "respond", "teacher_cache"}
    assert sum(each.stage == "load" for each in before.there) == 2 and not before.gone

    facts = json.loads((built.report.path / "report.json").read_bytes())
    names = [model["name"] for model in facts["alignment"]["models"]]
    assert names == ["teacher", "SFT", "SFT on chosen", "DPO, 1 of 2", "DPO, 2 of 2", "ORPO", "VanillaKD", "DCKD",
                     "ADPA, no reference", "ADPA", "DPO, shuffled", "ADPA+"]  # fmt: skip
    assert [told["metric"] for told in facts["arms"]] == ["exact_match", "reward_accuracy"]
    assert all(model["advantage"] for model in facts["alignment"]["models"][1:])
    assert facts["alignment"]["check"]["worse"] is False
    assert {step.state for step in plan(align, parameters)} == {"cached"}


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_a_teacher_that_got_worse_teaches_nobody_unless_it_is_allowed_to(store: Path, given: dict[str, Any]) -> None:
    given["pairs"]["sources"][0]["columns"] = {"chosen": "rejected", "rejected": "chosen"}  # small letters preferred
    wrecking = TRAINING | {"max_steps": 30, "learning_rate": 3e-2, "beta": 0.1, "spike": None}
    given |= {"dpo": wrecking, "arms": given["arms"][:1]}
    with pytest.raises(BadInput, match="exact match"):
        align(AlignParameters.model_validate(given))
    done = sorted(folder.name for folder in store.iterdir() if not folder.name.startswith("."))
    assert "dpo" in done and "teacher_check" not in done and "select_random" not in done
    given["teacher_check"]["allow_worse"] = True
    built = align(AlignParameters.model_validate(given))
    assert built.report is not None
    assert "The teacher got worse" in (built.report.path / "report.html").read_text(encoding="utf-8")


def test_arms_and_comparisons_must_name_each_other(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="no arm 'nobody'"):
        AlignParameters.model_validate(given | {"compare": {"reference": "nobody"}})
    with pytest.raises(ValidationError, match="give each a name of its own"):
        AlignParameters.model_validate(given | {"arms": [*given["arms"], {**given["arms"][0], "name": "SFT"}]})


def test_a_teacher_cannot_be_cut_out_of_itself(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="'scratch', 'pretrained'"):
        AlignParameters.model_validate(given | {"teacher": {"origin": {"origin": "cut", "keep": 1}}})


def test_defaults_are_the_papers() -> None:
    """DCKD and ADPA: rates of 5e-7, alpha .1, gamma 1.6, batches of 128; the teacher's DPO: beta .01."""
    reference = [f"{compare}={{metric: loss, base: SFT, reference: SFT}}" for compare in ("compare", "compare_rewards")]
    bare = find_recipe("align").parameters(["arms=[{name: a, train: {method: adpa_plus}}]", "dpo={}", *reference])
    assert isinstance(bare, AlignParameters)
    train = bare.arms[0].train
    assert train.method == "adpa_plus"
    for each in (train.dckd, train.adpa, bare.dpo):
        assert (each.learning_rate, each.batch_size, each.schedule, each.warmup) == (5e-7, 128, "cosine", 0.1)
    assert (train.dckd.chosen_weight, train.dckd.rejected_weight, train.dckd.sft_weight) == (0.1, 0.1, 1.0)
    assert (train.adpa.gamma, train.adpa.sft_weight, train.adpa.clip) == (1.6, 1.0, None)
    assert (bare.dpo.beta, bare.dpo.sft_weight) == (0.01, 0.0)
