"""Preflight: each fault has its finding, and all that is bad is said at once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data.artifact import Artifact
from data.contracts import PROMPT_COMPLETION
from data.errors import BadInput
from infra.settings import use_settings
from infra.work import Slice
from tasks.train.lengths import lengths_of, measure_rows
from tasks.train.models import load_model, load_tokenizer
from tasks.train.needs import GIB, cache_bytes, memory_there, sizes_of, training_needs
from tasks.train.pairs import encode_preferences
from tasks.train.preflight import PreflightParameters, enough, preflight
from tasks.train.teacher_cache import TeacherCacheParameters, teacher_cache
from tasks.train.training import LoraParameters, TrainingParameters, adapted
from tests.tasks.train.small import (
    Family,
    GivenParameters,
    Record,
    answer,
    byte_tokenizer,
    given,
    rows_of,
    table_of,
    turns,
    write_base,
)

Pairs = Callable[[list[Record]], Artifact]


def pair(asked: str, chosen: str, rejected: str) -> Record:
    return {"prompt": turns(asked), "chosen": answer(chosen), "rejected": answer(rejected)}


def good_pairs() -> list[Record]:
    """Forty pairs; the longer answer is the chosen one in half of them."""
    return [pair(f"ask {n}", "x" * (3 + n % 2), "y" * (4 - n % 2)) for n in range(40)]


@pytest.fixture
def pairs(shelf: None, tmp_path: Path) -> Pairs:
    return lambda records: rows_of(tmp_path / "pairs", records)


def options(**changes: Any) -> PreflightParameters:
    return PreflightParameters(**({"max_length": 64, "batch_size": 4} | changes))


def findings(made: Artifact) -> dict[str, Record]:
    return {line["check"]: line for line in made["findings"].read().to_pylist()}


def verdicts(made: Artifact) -> dict[str, str]:
    """The findings that are not good."""
    return {check: line["verdict"] for check, line in findings(made).items() if line["verdict"] != "good"}


def republished(model: Artifact, folder: Path, change: Callable[[Path], None]) -> Artifact:
    """Publish a changed copy of a model."""
    shutil.copytree(model.path, folder, ignore=shutil.ignore_patterns("record.json", "run.json"))
    change(folder)
    return given(GivenParameters(path=str(folder)))


def edited(file: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    """Say how to change a JSON file of a folder."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))

    return edit


def swap_two_tokens(tokenizer: Any) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def another_template(folder: Path) -> None:
    with (folder / "chat_template.jinja").open("a") as file:
        file.write("{# another #}")


# ---- all is well ----


def test_a_family_and_good_pairs_pass(models: Family, pairs: Pairs) -> None:
    made = preflight(options(), pairs(good_pairs()), models.student, models.teacher, [models.reference])
    assert verdicts(made) == {}
    assert list(findings(made)) == [
        "tokenizers", "chat templates", "embeddings", "origin", "prompts", "rows with nothing to learn", "rows cut",
        "context", "lengths of pairs", "memory", "disk", "sizes",
    ]  # fmt: skip
    measures = made.record["measures"]
    assert (measures["rows"], measures["rows_cut"], measures["rows_to_nothing"], measures["notes"]) == (40, 0, 0, 0)
    assert 0 < measures["memory_needed_gib"] < 1
    assert 0 < measures["cache_gib"] < measures["disk_needed_gib"] < 1
    assert 1 < measures["size_ratio"] < 2.5


def test_a_teacher_that_is_not_trained_yet_has_no_reference(models: Family, pairs: Pairs) -> None:
    made = preflight(options(), pairs(good_pairs()), models.student, models.reference, [])
    assert verdicts(made) == {}
    assert findings(made)["origin"]["found"] == "no reference yet"


def test_rows_with_one_answer_pass_too(models: Family, tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path / "rows", [{"prompt": "say a", "completion": "a" * n} for n in range(1, 9)], PROMPT_COMPLETION
    )
    assert verdicts(preflight(options(), rows, models.student, models.teacher, [models.reference])) == {}


def test_padded_vocabularies_are_no_difference(models: Family, pairs: Pairs, tmp_path: Path) -> None:
    padded = given(GivenParameters(path=str(write_base(tmp_path / "padded", byte_tokenizer(), vocab_size=320))))
    made = preflight(options(), pairs(good_pairs()), padded, models.teacher, [])
    assert verdicts(made) == {}
    assert findings(made)["embeddings"]["found"] == "259 tokens; embeddings of 320 (student) and 259"


# ---- each fault has its finding ----


def test_other_tokens_are_refused(models: Family, pairs: Pairs, tmp_path: Path) -> None:
    other = republished(models.teacher, tmp_path / "other", edited("tokenizer.json", swap_two_tokens))
    with pytest.raises(BadInput, match=r"^found:  tokenizers: student and teacher with different tokens: 259 and 259"):
        preflight(options(), pairs(good_pairs()), models.student, other, [])


def test_another_template_is_refused(models: Family, pairs: Pairs, tmp_path: Path) -> None:
    other = republished(models.teacher, tmp_path / "other", another_template)
    with pytest.raises(BadInput, match=r"^found:  chat templates: student and teacher with different chat templates"):
        preflight(options(), pairs(good_pairs()), models.student, other, [])


def test_embeddings_that_miss_tokens_are_refused(models: Family, pairs: Pairs, tmp_path: Path) -> None:
    def shrink(config: Any) -> None:
        config["vocab_size"] = 257

    less = republished(models.teacher, tmp_path / "less", edited("config.json", shrink))
    with pytest.raises(BadInput, match=r"^found:  embeddings: 259 tokens; embeddings of 259 \(student\) and 257"):
        preflight(options(), pairs(good_pairs()), models.student, less, [])


def test_a_reference_of_another_origin_is_refused(models: Family, pairs: Pairs) -> None:
    with pytest.raises(BadInput, match=r"^found:  origin: the teacher .* of different origin"):
        preflight(options(), pairs(good_pairs()), models.student, models.teacher, [models.student])


def test_two_references_are_refused(models: Family, pairs: Pairs) -> None:
    with pytest.raises(BadInput, match=r"^found:  origin: 2 references"):
        preflight(options(), pairs(good_pairs()), models.student, models.teacher, [models.reference, models.other])


def test_a_teacher_that_is_its_reference_is_a_note(models: Family, pairs: Pairs) -> None:
    made = preflight(options(), pairs(good_pairs()), models.student, models.teacher, [models.teacher])
    assert verdicts(made) == {"origin": "note"}
    assert "every advantage is 0" in findings(made)["origin"]["found"]


def test_some_prompts_that_do_not_fit_are_a_note(models: Family, pairs: Pairs) -> None:
    long = [pair("long " * 20, f"x{n}", f"y{n}") for n in range(4)]
    made = preflight(options(), pairs(good_pairs() + long), models.student, models.teacher, [models.reference])
    assert verdicts(made) == dict.fromkeys(("prompts", "rows with nothing to learn", "rows cut"), "note")
    assert "4 of 44 (9.1%)" in findings(made)["prompts"]["found"]
    assert made.record["measures"]["rows_to_nothing"] == 4
    assert made.record["measures"]["rows_cut"] == 0
    assert made.record["measures"]["prompt_tokens_max"] > 100


def test_answers_that_are_cut_are_told_by_their_side(models: Family, pairs: Pairs) -> None:
    long = [pair("ask", "x" * 80, "no"), pair("ask", "yes", "y" * 80), pair("ask", "yes!", "z" * 80)]
    rows = pairs(good_pairs() + long)
    made = preflight(options(), rows, models.student, models.teacher, [models.reference])
    assert verdicts(made) == {"rows cut": "note"}
    assert findings(made)["rows cut"]["found"].endswith("chosen 1 of 43 (2.3%), rejected 2 of 43 (4.7%)")
    assert (made.record["measures"]["rows_cut"], made.record["measures"]["rows_to_nothing"]) == (3, 0)


def test_rows_of_which_most_are_lost_are_refused(models: Family, pairs: Pairs) -> None:
    with pytest.raises(BadInput, match=r"rows with nothing to learn: 40 of 40 \(100\.0%\)"):
        preflight(options(max_length=8), pairs(good_pairs()), models.student, models.teacher, [models.reference])


def test_what_is_dropped_in_training_is_what_was_foretold(models: Family, pairs: Pairs) -> None:
    rows = pairs(good_pairs() + [pair("ask " * n, "yes", "no" * n) for n in range(1, 20)])
    made = preflight(options(max_length=48), rows, models.student, models.teacher, [models.reference])
    _, dropped = encode_preferences(rows.read(), load_tokenizer(models.student.path), 48)
    assert made.record["measures"]["rows_to_nothing"] == len(dropped) > 0


def test_a_model_made_for_shorter_texts_is_a_note(models: Family, pairs: Pairs, tmp_path: Path) -> None:
    short = given(
        GivenParameters(path=str(write_base(tmp_path / "short", byte_tokenizer(), max_position_embeddings=16)))
    )
    made = preflight(options(), pairs(good_pairs()), short, models.teacher, [])
    assert verdicts(made) == {"context": "note"}


@pytest.mark.parametrize(("wins", "told"), [(27, "the chosen one in 68%"), (13, "the shorter in 68%")])
def test_pairs_that_length_decides_are_a_note(wins: int, told: str, models: Family, pairs: Pairs) -> None:
    records = [pair("ask", *(("long", "yo") if n < wins else ("me", "tall"))) for n in range(40)]
    made = preflight(options(), pairs(records), models.student, models.teacher, [models.reference])
    assert verdicts(made) == {"lengths of pairs": "note"}
    assert told in findings(made)["lengths of pairs"]["found"]


def test_sizes_far_from_the_law_are_a_note(models: Family, pairs: Pairs, tmp_path: Path) -> None:
    tiny = write_base(tmp_path / "tiny", byte_tokenizer(), hidden_size=8, intermediate_size=8, num_hidden_layers=1)
    rows, small = pairs(good_pairs()), given(GivenParameters(path=str(tiny)))
    made = preflight(options(), rows, small, models.teacher, [models.reference])
    assert verdicts(made) == {"sizes": "note"}
    assert made.record["measures"]["size_ratio"] > 10
    turned = preflight(options(), rows, models.teacher, small, [])
    assert verdicts(turned) == {"sizes": "note"}
    assert findings(turned)["sizes"]["remedy"] == "take a larger teacher"


def test_too_little_memory_is_refused_with_what_it_is_for(models: Family, pairs: Pairs) -> None:
    with pytest.raises(BadInput, match=r"^found:  memory: about .* training .*activations .*logits") as caught:
        preflight(options(memory_gib=1e-4), pairs(good_pairs()), models.student, models.teacher, [models.reference])
    assert "0.1 MiB that are free" in caught.value.wanted
    assert "lower batch_size" in caught.value.remedy


def test_too_little_disk_is_refused() -> None:
    assert enough("disk", 2 * GIB, GIB, "a cache", "free some").verdict == "bad"
    assert enough("disk", GIB, 2 * GIB, "a cache", "free some").verdict == "good"


def test_no_rows_are_refused(models: Family, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    pq.write_table(table_of(good_pairs()).slice(0, 0), tmp_path / "none" / "rows-00000.parquet")
    rows = given(GivenParameters(path=str(tmp_path / "none")))
    with pytest.raises(BadInput, match="without a row"):
        preflight(options(), rows, models.student, models.teacher, [])


def test_all_that_is_bad_is_in_one_message(models: Family, pairs: Pairs, tmp_path: Path) -> None:
    def both(folder: Path) -> None:
        another_template(folder)
        edited("tokenizer.json", swap_two_tokens)(folder)

    other, rows = republished(models.teacher, tmp_path / "other", both), pairs(good_pairs())
    with pytest.raises(BadInput, match="3 things that are bad") as caught:
        preflight(options(memory_gib=1e-4), rows, models.student, other, [])
    for number, check in enumerate(("tokenizers", "chat templates", "memory"), 1):
        assert f"\n  {number}. {check}: " in caught.value.found
        assert f"\n  {number}. " in caught.value.wanted
        assert f"\n  {number}. " in caught.value.remedy


def test_nothing_is_published_of_what_is_bad(models: Family, pairs: Pairs, tmp_path: Path) -> None:
    with use_settings(store=tmp_path / "store") as settings:
        with pytest.raises(BadInput):
            preflight(options(memory_gib=1e-4), pairs(good_pairs()), models.student, models.teacher, [])
        assert not list((settings.store / "preflight").glob("*/record.json"))


def test_findings_say_nothing_of_the_machine(models: Family, pairs: Pairs) -> None:
    asked = (pairs(good_pairs()), models.student, models.teacher, [models.reference])
    one, other = (preflight(options(memory_gib=each), *asked) for each in (1.0, 2.0))
    assert one.fingerprint != other.fingerprint
    assert one["findings"].digest == other["findings"].digest


# ---- what it counts and estimates ----


def test_tokens_are_counted_as_training_cuts_them(models: Family, pairs: Pairs) -> None:
    rows = pairs([pair("ask " * n, "x" * 9 * n, "y") for n in range(1, 6)])
    counted = lengths_of(measure_rows(40, models.student.path, Slice(rows, 0, 5))["lengths"])
    whole, _ = encode_preferences(rows.read(), load_tokenizer(models.student.path), 1 << 30)
    lists = {name: whole[name].to_pylist() for name in ("chosen_ids", "chosen_mask", "second_ids", "second_mask")}
    for column, side in enumerate(("chosen", "second")):
        ids, masks = lists[f"{side}_ids"], lists[f"{side}_mask"]
        assert counted.tokens[:, column].tolist() == [len(each) for each in ids]
        assert counted.answer[:, column].tolist() == [sum(each) for each in masks]
        assert counted.positions[:, column].tolist() == [sum(each[1:40]) for each in masks]
    assert counted.prompt.tolist() == [each.index(1) for each in lists["chosen_mask"]]


def test_the_cache_takes_the_bytes_that_were_foretold(models: Family, pairs: Pairs) -> None:
    rows = pairs(good_pairs())
    made = preflight(options(), rows, models.student, models.other, [models.reference])
    cache = teacher_cache(TeacherCacheParameters(max_length=64), rows, models.other, [models.reference])
    taken = sum(file.stat().st_size for file in cache.path.iterdir() if file.suffix in (".npy", ".safetensors"))
    headers = 4 * 200  # of two arrays and two files of a head
    assert taken == pytest.approx(made.record["measures"]["cache_gib"] * GIB, abs=headers)


def test_sizes_are_those_of_the_opened_model(models: Family) -> None:
    folder, lora = models.student.path, LoraParameters(rank=3)
    model = load_model(folder, load_tokenizer(folder), seed=0)
    sizes = sizes_of(folder, lora)
    assert sizes.parameters == model.num_parameters()
    matrices = adapted(model, TrainingParameters(lora=lora))
    assert sizes.trained == sum(each.numel() for each in matrices.parameters() if each.requires_grad)
    assert sizes.trained < sizes.parameters == sizes_of(folder).trained
    assert (sizes.layers, sizes.width, sizes.inner, sizes.heads) == (2, 32, 64, 2)


def test_modules_that_lora_does_not_find_are_told_before_training(models: Family, pairs: Pairs) -> None:
    lora = LoraParameters(targets=("no_such_projection",))
    with pytest.raises(BadInput, match="no_such_projection"):
        preflight(options(lora=lora), pairs(good_pairs()), models.student, models.teacher, [])


def test_what_saves_memory_lowers_the_estimate(models: Family) -> None:
    full, lora = sizes_of(models.student.path), sizes_of(models.student.path, LoraParameters(rank=2))
    asked = {"sequences": 8, "length": 256, "positions": 1000, "precision": "fp32", "checkpointing": False}
    usual = training_needs(full, **asked)
    assert usual.weights == 16 * full.parameters
    assert usual.logits == 6 * 4 * 1000 * full.vocabulary
    assert training_needs(lora, **asked).weights < usual.weights
    for less in ({"sequences": 4}, {"length": 128}, {"precision": "bf16"}):
        assert training_needs(full, **(asked | less)).activations < usual.activations
    assert training_needs(full, **(asked | {"positions": 100})).total < usual.total
    deep = full._replace(layers=24)
    without, checkpointed = (training_needs(deep, **(asked | {"checkpointing": each})) for each in (False, True))
    assert checkpointed.activations < without.activations / 3


def test_teachers_in_memory_need_memory_and_no_cache(models: Family, pairs: Pairs) -> None:
    asked = (pairs(good_pairs()), models.student, models.teacher, [models.reference])
    apart, together = (preflight(options(teachers_in_memory=each), *asked).record["measures"] for each in (False, True))
    assert together["memory_needed_gib"] > apart["memory_needed_gib"]
    assert together["cache_gib"] == 0 < apart["cache_gib"]


def test_a_cache_of_half_precision_is_half_as_large(models: Family) -> None:
    sizes = [sizes_of(models.teacher.path)]
    assert cache_bytes(sizes, 100, "fp32") == 2 * cache_bytes(sizes, 100, "bf16") == 4 * 48 * (100 + 259)


def test_memory_is_there(shelf: None) -> None:
    assert GIB / 100 < memory_there() < 1e6 * GIB
