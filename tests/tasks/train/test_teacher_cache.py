"""Teachers: a cache says what the models themselves say, the compact form nearly so, and no wrong cache is taken."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.artifact import Artifact
from data.errors import BadInput
from infra.settings import use_settings
from tasks.train import adpa, dckd
from tasks.train.cached import read_about
from tasks.train.models import load_tokenizer
from tasks.train.pairs import encode_preferences
from tasks.train.teacher_cache import TeacherCacheParameters, teacher_cache
from tests.tasks.train.small import (
    ChangedParameters,
    Family,
    GivenParameters,
    Trained,
    alike,
    byte_tokenizer,
    changed,
    contents,
    farthest,
    given,
    preferences,
    rows_of,
    trained,
    turns,
    write_base,
)

SMALL = {"batch_size": 6, "max_length": 64, "learning_rate": 1e-3, "checkpoint_every": 100, "threads": 1, "epochs": 2}
ALL = 10_000  # more tokens than there are


def cache(rows: Artifact, teacher: Artifact, *references: Artifact, **changes: Any) -> Artifact:
    return teacher_cache(TeacherCacheParameters(**({"max_length": 64} | changes)), rows, teacher, list(references))


def distilled(folder: Path, rows: Artifact, student: Artifact, *teachers: Artifact, **changes: Any) -> Trained:
    parameters = dckd.DckdParameters(**(SMALL | {"chosen_weight": 1.0, "rejected_weight": 1.0} | changes))
    return trained(dckd.fit, folder, parameters, rows, student.path, list(teachers))


@pytest.fixture(scope="module")
def guided(rows: Artifact, responses: Artifact) -> Callable[..., Trained]:
    """Run `adpa` on the rows and responses."""

    def guided(folder: Path, student: Artifact, *teachers: Artifact, **changes: Any) -> Trained:
        parameters = adpa.AdpaParameters(**(SMALL | changes))
        return trained(adpa.fit, folder, parameters, rows, responses, student.path, list(teachers))

    return guided


def closest(one: Trained, other: Trained, *columns: str, tolerance: float = 1e-4) -> None:
    for column in columns:
        assert alike(one.history[column], other.history[column], tolerance), column
    assert farthest(one, other) < 1e-4  # weights move by up to 1e-3 a step


# ---- what a cache says ----


@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
@pytest.mark.parametrize(("teacher", "form"), [("teacher", "shared"), ("other", "exact")])
def test_advantages_of_a_cache_are_those_of_the_models(
    teacher: str,
    form: str,
    clip: tuple[float, float] | None,
    models: Family,
    responses: Artifact,
    guided: Callable[..., Trained],
    tmp_path: Path,
) -> None:
    taught = getattr(models, teacher)
    kept = cache(responses, taught, models.reference)
    assert read_about(kept.path).form == form
    online = guided(tmp_path / "online", models.student, taught, models.reference, clip=clip)
    offline = guided(tmp_path / "offline", models.student, kept, clip=clip)
    assert max(map(abs, online.history["advantage"])) > 0.01
    closest(online, offline, "loss", "advantage", "sft")
    assert offline.history["coverage"] == pytest.approx([1.0] * 4)


def test_divergences_of_a_cache_are_those_of_the_model(models: Family, rows: Artifact, tmp_path: Path) -> None:
    kept = cache(rows, models.teacher)
    assert read_about(kept.path).form == "exact"
    online = distilled(tmp_path / "online", rows, models.student, models.teacher)
    offline = distilled(tmp_path / "offline", rows, models.student, kept)
    closest(online, offline, "loss", "kl_chosen", "kl_rejected")


@pytest.mark.parametrize("advantage", [False, True])
def test_the_compact_form_of_all_tokens_is_the_exact_one(
    advantage: bool, models: Family, rows: Artifact, responses: Artifact, guided: Callable[..., Trained], tmp_path: Path
) -> None:
    if advantage:
        teachers = (models.other, models.reference)
        kept = [cache(responses, *teachers, form=form, top=ALL) for form in ("exact", "compact")]
        runs = [guided(tmp_path / each.fingerprint, models.student, each) for each in kept]
        columns = ("loss", "advantage")
    else:
        kept = [cache(rows, models.teacher, form=form, top=ALL) for form in ("exact", "compact")]
        runs = [distilled(tmp_path / each.fingerprint, rows, models.student, each) for each in kept]
        columns = ("loss", "kl_chosen", "kl_rejected")
    assert [read_about(each.path).form for each in kept] == ["exact", "compact"]
    for column in columns:  # fp16 log-probabilities
        assert np.allclose(runs[0].history[column], runs[1].history[column], atol=2e-3), column
    assert runs[1].history["coverage"] == pytest.approx([1.0] * 4, abs=1e-5)


def test_fewer_tokens_see_less_of_a_divergence_and_say_how_much_of_the_student(
    models: Family, rows: Artifact, tmp_path: Path
) -> None:
    """The first loss is that of the same weights for all."""
    exact = distilled(tmp_path / "exact", rows, models.student, cache(rows, models.other), max_steps=1)
    seen, covered = [0.0], [0.0]
    for top in (1, 8, 64):
        kept = cache(rows, models.other, form="compact", top=top)
        run = distilled(tmp_path / str(top), rows, models.student, kept, max_steps=1)
        seen.append(run.history["kl_chosen"][0])
        covered.append(run.history["coverage"][0])
    seen.append(exact.history["kl_chosen"][0])
    covered.append(exact.history["coverage"][0])
    assert seen == sorted(seen) and len(set(seen)) == len(seen)
    assert covered == sorted(covered) and covered[-1] == pytest.approx(1)
    assert 0 < covered[1] < covered[3] < 1


def test_the_cells_of_the_compact_form_are_the_likeliest_tokens_of_either_model(
    models: Family, responses: Artifact
) -> None:
    kept = cache(responses, models.other, models.reference, form="compact", top=5)
    bounds, tokens, tails = (np.load(kept.path / f"{name}.npy") for name in ("bounds", "tokens", "tails"))
    logs = [np.load(kept.path / f"{name}.npy").astype(np.float64) for name in ("teacher", "reference")]
    widths = np.diff(bounds)
    assert widths.min() >= 5 and widths.max() <= 10
    assert len(widths) == kept.record["measures"]["positions"]
    for at, (start, stop) in enumerate(itertools.pairwise(bounds)):
        assert (np.diff(tokens[start:stop].astype(int)) > 0).all(), "ascending, each once"
        for number, log in enumerate(logs):
            assert np.exp(log[start:stop]).sum() + np.exp(tails[at, number]) == pytest.approx(1, abs=2e-3)


# ---- teachers are left as they are ----


@pytest.mark.parametrize("cached", [False, True])
def test_no_teacher_learns(
    cached: bool, models: Family, responses: Artifact, guided: Callable[..., Trained], tmp_path: Path
) -> None:
    from tasks.train.passes import open_model

    teachers = (models.other, models.reference)
    given_as = (cache(responses, *teachers),) if cached else teachers
    files = [contents(each.path) for each in given_as]
    guided(tmp_path, models.student, *given_as)
    assert [contents(each.path) for each in given_as] == files
    if not cached:
        for each in teachers:
            inside, fresh = open_model(each.path)[0], open_model.__wrapped__(each.path)[0]
            assert inside is not fresh
            for (name, weight), other in zip(inside.named_parameters(), fresh.parameters(), strict=True):
                assert torch.equal(weight, other), name
                assert weight.grad is None and not weight.requires_grad


# ---- the same bytes ----


@pytest.mark.parametrize("form", ["exact", "compact"])
def test_a_position_has_the_same_lines_in_whichever_shard_it_is_run(
    form: str, models: Family, rows: Artifact, tmp_path: Path
) -> None:
    """The lines of the last rows alone are the end of the lines of all."""
    everything = cache(rows, models.other, models.reference, form=form)
    table = rows.read()
    few = rows_of(tmp_path / "few", [each | {"rejected": each["rejected"]} for each in table.slice(8).to_pylist()])
    alone = cache(few, models.other, models.reference, form=form)
    encoded = [each["encoded"].read().to_pylist() for each in (everything, alone)]
    place = {tuple(each["ids"]): each for each in encoded[0]}
    names = ("teacher", "reference") if form == "exact" else ("tails",)
    for line in encoded[1]:
        other = place[tuple(line["ids"])]
        for name in names:
            files = [np.load(each.path / f"{name}.npy") for each in (everything, alone)]
            mine = files[1][line["place"] : line["place"] + line["positions"]]
            theirs = files[0][other["place"] : other["place"] + other["positions"]]
            assert np.array_equal(mine, theirs), name


@pytest.mark.heavy
def test_workers_change_no_byte(models: Family, tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows", preferences(600))  # three shards
    made = []
    for workers in (1, 2):
        options = {"store": tmp_path / f"store{workers}", "workers": workers, "ray_min_seconds": 0.0}
        with use_settings(**options):
            from infra.store import current_store

            current_store().prepare()
            made.append(contents(cache(rows, models.other, models.reference).path))
    for each in made:
        del each["run.json"]
    assert made[0] == made[1]


# ---- vocabularies of other sizes ----


def padded(folder: Path, size: int, seed: int, **config: Any) -> Artifact:
    """A model whose embedding has more rows than its tokenizer has tokens."""
    path = write_base(folder, byte_tokenizer(), seed=seed, vocab_size=size, **config)
    return given(GivenParameters(path=str(path)))


@pytest.mark.parametrize("form", ["exact", "compact"])
def test_padded_vocabularies_mean_nothing(
    form: str, models: Family, rows: Artifact, responses: Artifact, guided: Callable[..., Trained], tmp_path: Path
) -> None:
    tokens = len(load_tokenizer(models.student.path))
    reference = padded(tmp_path / "wide", tokens + 60, 1, hidden_size=48)
    teacher = changed(ChangedParameters(seed=2), reference)
    students = [models.student, padded(tmp_path / "padded", tokens + 20, 5)]
    for number, student in enumerate(students):
        for clip in (None, (0.0, 1.0)):
            kept = cache(responses, teacher, reference, form=form, top=ALL)
            online = guided(tmp_path / f"on{number}{clip}", student, teacher, reference, clip=clip)
            offline = guided(tmp_path / f"off{number}{clip}", student, kept, clip=clip)
            assert np.allclose(
                online.history["loss"], offline.history["loss"], atol=2e-3 if form == "compact" else 1e-4
            )
            assert offline.history["coverage"] == pytest.approx([1.0] * 4, abs=1e-5)
        kept = cache(rows, teacher, form=form, top=ALL)
        online = distilled(tmp_path / f"kl{number}", rows, student, teacher)
        offline = distilled(tmp_path / f"klc{number}", rows, student, kept)
        for column in ("kl_chosen", "kl_rejected"):
            assert np.allclose(online.history[column], offline.history[column], atol=2e-3)


def test_without_a_reference_every_form_says_the_teachers_log_probabilities(
    models: Family, responses: Artifact, guided: Callable[..., Trained], tmp_path: Path
) -> None:
    kept = [cache(responses, models.teacher, form=form, top=ALL) for form in ("exact", "compact")]
    runs = [
        guided(tmp_path / str(number), models.student, each, without_reference=True)
        for number, each in enumerate([models.teacher, *kept])
    ]
    for run in runs:
        assert max(run.history["advantage"]) < 0, "a mean of log-probabilities"
        assert np.allclose(run.history["advantage"], runs[0].history["advantage"], atol=5e-3)


# ---- what is refused ----


def test_another_tokenizer_is_refused(models: Family, rows: Artifact, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(**{"pad_token": "<|other|>"})
    foreign = given(GivenParameters(path=str(write_base(tmp_path / "foreign", tokenizer))))
    with pytest.raises(BadInput, match="student and teacher with different tokens"):
        distilled(tmp_path / "online", rows, models.student, foreign)
    with pytest.raises(BadInput, match="teacher and reference with different tokens"):
        cache(rows, models.teacher, foreign)
    kept = cache(rows, foreign)
    with pytest.raises(BadInput, match="other ids than the student") as caught:
        distilled(tmp_path / "offline", rows, models.student, kept)
    assert "make the cache again" in caught.value.remedy


def test_another_template_is_refused(models: Family, rows: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for name, content in contents(models.teacher.path).items():
        if name not in ("record.json", "run.json"):
            (folder / name).write_bytes(content)
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + "\n{# another #}")
    with pytest.raises(BadInput, match="different chat templates"):
        distilled(tmp_path / "run", rows, models.student, given(GivenParameters(path=str(folder))))


def test_a_reference_that_the_teacher_did_not_begin_as_is_refused(
    models: Family, responses: Artifact, guided: Callable[..., Trained], tmp_path: Path
) -> None:
    path = write_base(tmp_path / "stranger", byte_tokenizer(), seed=9, hidden_size=48)
    stranger = given(GivenParameters(path=str(path)))
    for refused in (
        lambda: cache(responses, models.teacher, stranger),
        lambda: guided(tmp_path / "run", models.student, models.teacher, stranger),
    ):
        with pytest.raises(BadInput, match="of different origin") as caught:
            refused()
        assert "own SFT model" in caught.value.remedy


def test_a_cache_of_other_rows_or_lengths_is_refused(models: Family, rows: Artifact, tmp_path: Path) -> None:
    others = rows_of(tmp_path / "others", preferences(13)[1:])
    with pytest.raises(BadInput, match=r"1 of 12 rows whose chosen is not in the teacher_cache"):
        distilled(tmp_path / "others-run", rows, models.student, cache(others, models.teacher))
    shorter = (
        max(
            len(ids)
            for ids in encode_preferences(rows.read(), load_tokenizer(models.student.path), 64)[0][
                "chosen_ids"
            ].to_pylist()
        )
        - 3
    )
    kept = cache(rows, models.teacher, max_length=shorter)
    with pytest.raises(BadInput, match="other ids than in training") as caught:
        distilled(tmp_path / "length-run", rows, models.student, kept)
    assert "same max_length" in caught.value.remedy


def test_a_cache_of_another_kind_is_refused(
    models: Family, rows: Artifact, responses: Artifact, guided: Callable[..., Trained], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="without a reference"):
        guided(tmp_path / "no", models.student, cache(responses, models.teacher))
    with pytest.raises(BadInput, match="with a reference"):
        kept = cache(responses, models.teacher, models.reference)
        guided(tmp_path / "with", models.student, kept, without_reference=True)
    with pytest.raises(BadInput, match="differences of teacher and reference"):
        distilled(tmp_path / "kl", rows, models.student, cache(rows, models.teacher, models.reference))
    with pytest.raises(BadInput, match="no teacher"):
        distilled(tmp_path / "none", rows, models.student)
    with pytest.raises(BadInput, match="1 models as teachers"):
        guided(tmp_path / "one", models.student, models.teacher)
    with pytest.raises(BadInput, match="2 references"):
        cache(rows, models.teacher, models.reference, models.student)


def test_sides_that_are_cut_to_nothing_have_no_line(models: Family, tmp_path: Path) -> None:
    records = preferences(3)
    records[1] = records[1] | {"prompt": turns("long " * 20)}
    rows = rows_of(tmp_path / "some", records)
    kept = cache(rows, models.teacher)
    assert kept.record["measures"]["sides_cut_to_nothing"] == 2
    assert len(kept["encoded"].read()) == 4
    assert distilled(tmp_path / "run", rows, models.student, kept).dropped.values()
    with pytest.raises(BadInput, match="none with a response within 8 tokens"):
        cache(rows, models.teacher, max_length=8)
