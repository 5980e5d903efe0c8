"""Of rows whose vectors nearly coincide the best by rank is kept, in whatever order they come."""

from collections.abc import Callable
from math import acos, log2, pi
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.artifact import SHARD_ROWS, Artifact
from data.errors import BadInput
from infra.settings import use_settings
from infra.shards import stop_ray
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.deduplicate_semantic import (
    FOUND,
    MOST_BANDS,
    DeduplicateSemanticParameters,
    Planes,
    band_hashes,
    centre_of,
    cosines,
    deduplicate_semantic,
    planes_for,
)
from tasks.curate.embed import EmbedParameters, embed
from tasks.curate.leaders import choose_sharing
from tasks.curate.load import LoadParameters, load

quick = settings(deadline=None, max_examples=100)

Embedded = Callable[..., tuple[Artifact, Artifact]]
Vectors = npt.NDArray[np.float32]


def unit(vectors: npt.NDArray[np.float64]) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def groups(count: int, size: int, spread: float, width: int = 64, aside: float = 0, seed: int = 0) -> Vectors:
    """Make groups of vectors that lie together, group after group, all of them somewhat to one side."""
    draw = np.random.default_rng(seed)
    middle = unit(unit(draw.normal(size=(count, width))) + aside * np.eye(width)[0])
    return unit(np.repeat(middle, size, 0) + spread * unit(draw.normal(size=(count * size, width))))


def strictness(threshold: float, **more: Any) -> DeduplicateSemanticParameters:
    return DeduplicateSemanticParameters(threshold=threshold, **more)


def agreement(planes: Planes, cosine: float) -> float:
    return float(1 - (1 - (1 - acos(cosine) / pi) ** planes.bits) ** planes.bands)


def places(rows: Artifact) -> dict[Any, int]:
    """The number in the text of each row."""
    table = rows.read(["row_id", "text"]).to_pydict()
    return {each: int(text.split()[-1]) for each, text in zip(*table.values(), strict=True)}


def dropped(made: Artifact) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = made["dropped"].read().to_pylist() if "dropped" in made.record["outputs"] else []
    return lines


# ---- hyperplanes ----


@quick
@given(st.floats(0.5, 1), st.integers(1, 10**9))
def test_a_pair_at_the_threshold_is_found_with_the_promised_probability(threshold: float, rows: int) -> None:
    planes = planes_for(strictness(threshold), np.zeros(8), rows)
    assert agreement(planes, threshold) >= FOUND - 1e-9
    assert planes.bands <= MOST_BANDS
    assert planes.bits <= log2(max(rows, 2)) + 3


def test_bits_grow_with_the_logarithm_of_the_rows() -> None:
    sizes = [planes_for(strictness(0.95), np.zeros(8), 2**power).bits for power in (1, 10, 17, 24)]
    assert sizes == [3, 12, 19, 26]


@pytest.mark.parametrize("aside", [0.0, 1.0])
def test_pairs_are_found_as_often_as_the_formula_says(aside: float) -> None:
    """Also of vectors that all lie to one side, whose angle seen from their centre is wider."""
    pairs = 1500
    vectors = groups(pairs, 2, 0.4, aside=aside)
    cosine = (vectors[::2].astype(np.float64) * vectors[1::2]).sum(1)
    planes = planes_for(strictness(float(np.median(cosine))), vectors.mean(0).astype(np.float64), 4000)
    keys = band_hashes(planes, vectors)
    near = np.abs(cosine - np.median(cosine)) < 0.01
    assert near.sum() > 300
    found = (keys[:, ::2] == keys[:, 1::2])[:, near].any(0).mean()
    assert abs(found - FOUND) < 0.02


@quick
@given(st.integers(0, 1 << 32), st.integers(2, 300))
def test_a_vectors_bits_depend_on_nothing_beside_it(seed: int, width: int) -> None:
    vectors = groups(40, 1, 1.0, width, seed=seed)
    planes = Planes(vectors.mean(0).astype(np.float64), 5, 9, seed)
    whole = band_hashes(planes, vectors)
    order = np.random.default_rng(seed).permutation(40)
    assert np.array_equal(band_hashes(planes, vectors[order]), whole[:, order])
    parts = [band_hashes(planes, vectors[start:stop]) for start, stop in ((0, 1), (1, 8), (8, 40))]
    assert np.array_equal(np.concatenate(parts, 1), whole)


def test_opposite_vectors_share_no_band_and_a_seed_draws_other_planes() -> None:
    vectors = groups(50, 1, 1.0)
    planes = planes_for(strictness(0.9), np.zeros(64), 50)
    ours, opposite = band_hashes(planes, vectors), band_hashes(planes, -vectors)
    assert not (ours == opposite).any()
    other = planes_for(strictness(0.9, seed=1), np.zeros(64), 50)
    assert not np.array_equal(ours, band_hashes(other, vectors))


def test_cosines_are_rounded_so_that_noise_does_not_decide() -> None:
    vectors = groups(300, 1, 1.0)
    left, right = np.triu_indices(300, 1)
    exact = (vectors.astype(np.float64) @ vectors.T.astype(np.float64))[left, right]
    assert np.array_equal(cosines(vectors, left, right), np.round(exact, 6))


def test_the_centre_does_not_depend_on_the_order(embedded: Embedded) -> None:
    vectors = groups(500, 1, 1.0, aside=0.5)
    order = np.random.default_rng(1).permutation(500).tolist()
    first, second = (centre_of(embedded(vectors, f"v{at}", order=each)[1]) for at, each in enumerate((None, order)))
    assert np.array_equal(first, second)
    assert np.allclose(first, vectors.mean(0), atol=1e-5)


# ---- recall ----


@pytest.mark.parametrize(
    ("aside", "spread", "threshold"), [(0.0, 0.23, 0.95), (0.0, 0.42, 0.85), (1.5, 0.23, 0.95), (2.5, 0.15, 0.98)]
)
def test_hardly_a_pair_is_missed_and_few_are_compared(aside: float, spread: float, threshold: float) -> None:
    """Also where all vectors lie so much to one side that most have a cosine of 0.7, or of 0.9, with each other."""
    vectors = groups(1000, 3, spread, aside=aside)
    planes = planes_for(strictness(threshold), vectors.mean(0).astype(np.float64), len(vectors))
    keys = band_hashes(planes, vectors)
    made = choose_sharing(len(vectors), keys, lambda those: lambda a, b: cosines(vectors[those], a, b), threshold)
    left, right = np.triu_indices(len(vectors), 1)
    alike = cosines(vectors, left, right) >= threshold
    left, right = left[alike], right[alike]
    kept = made.leader < 0
    assert len(left) > 500
    assert (keys[:, left] == keys[:, right]).any(0).mean() > FOUND - 0.01
    assert (kept[left] & kept[right]).mean() < 0.02
    assert made.compared < 0.1 * len(vectors) ** 2 / 2


# ---- the stage ----


def test_a_dropped_row_names_a_kept_row_that_means_nearly_the_same(embedded: Embedded) -> None:
    vectors = groups(100, 4, 0.23)
    rows, embeddings = embedded(vectors, "v")
    made = deduplicate_semantic(strictness(0.95), rows, embeddings)
    at, stayed = places(rows), set(places(made))
    for line in dropped(made):
        assert line["reason"] == "near in meaning"
        assert line["partner"] in stayed
        assert line["partner"].bytes < line["row_id"].bytes
        one, other = at[line["row_id"]], at[line["partner"]]
        assert one // 4 == other // 4
        assert line["score"] == cosines(vectors, np.array([one]), np.array([other]))[0] >= 0.95
    assert len(dropped(made)) > 50
    kept = np.array([at[each] for each in stayed])
    left, right = np.triu_indices(len(kept), 1)
    assert (cosines(vectors[kept], left, right) >= 0.95).mean() < 1e-4


def test_borders_show_pairs_on_both_sides(embedded: Embedded) -> None:
    vectors = groups(100, 4, 0.35)
    rows, embeddings = embedded(vectors, "v")
    made = deduplicate_semantic(strictness(0.9), rows, embeddings)
    at = places(rows)
    lines = made["borders"].read().to_pylist()
    assert sorted(line["kept"] for line in lines) == [False] * 3 + [True] * 3
    for line in lines:
        assert line["value"] == cosines(vectors, *(np.array([at[line[each]]]) for each in ("row_id", "partner")))[0]
        assert line["kept"] == (line["value"] < 0.9)


def test_the_order_of_rows_and_of_embeddings_changes_nothing(embedded: Embedded) -> None:
    vectors = groups(60, 3, 0.23, aside=0.5)
    order = np.random.default_rng(1).permutation(len(vectors)).tolist()
    made = [
        (rows, deduplicate_semantic(strictness(0.95), rows, embeddings))
        for each in (None, order)
        for rows, embeddings in [embedded(vectors, "v", order=each)]
    ]
    (_, first), (rows, second) = made
    assert first["dropped"].digest == second["dropped"].digest
    assert first["borders"].digest == second["borders"].digest
    assert places(first) == places(second)
    crossed = deduplicate_semantic(strictness(0.95), rows, embedded(vectors, "v")[1])
    assert crossed.digest == second.digest


@pytest.mark.usefixtures("store")
def test_the_preferred_source_is_kept(write: Any) -> None:
    """Two sources with the same texts have the same vectors by hashed words."""
    texts = [{"text": f"text number {n} of many"} for n in range(20)]
    paths = [write(f"{name}.jsonl", texts) for name in ("one", "two")]
    given = [{"path": str(path), "licence": "MIT", "layout": "unlabelled"} for path in paths]
    rows = load(LoadParameters.model_validate({"sources": given}))
    embeddings = embed(EmbedParameters(), rows)
    for prefer in (("two",), ("one", "two")):
        made = deduplicate_semantic(strictness(1, prefer=prefer), rows, embeddings)
        assert made.read(["source"])["source"].to_pylist() == [prefer[0]] * 20


def test_rows_are_judged_by_their_own_vectors_among_those_of_others(embedded: Embedded) -> None:
    """Embeddings made before rows were dropped have more vectors than there are rows."""
    vectors = groups(50, 2, 0.1)
    rows, embeddings = embedded(vectors, "row")
    fewer = clean(CleanParameters(max_characters=5), rows)  # numbers of one digit
    assert fewer.rows == 10
    made = deduplicate_semantic(strictness(0.95), fewer, embeddings)
    assert len({place // 2 for place in places(made).values()}) == made.rows == 5


def test_rows_without_a_vector_are_bad_input(embedded: Embedded) -> None:
    rows, _ = embedded(groups(20, 1, 1.0), "rows")
    _, embeddings = embedded(groups(20, 1, 1.0), "others")
    with pytest.raises(BadInput, match="20 of 20 rows without a vector"):
        deduplicate_semantic(strictness(0.95), rows, embeddings)


def test_vectors_that_are_not_finite_are_bad_input(embedded: Embedded) -> None:
    vectors = groups(5, 1, 1.0)
    vectors[3, 2] = np.nan
    with pytest.raises(BadInput, match="not finite"):
        deduplicate_semantic(strictness(0.95), *embedded(vectors, "v"))


@pytest.mark.parametrize(
    ("vectors", "threshold", "left"),
    [
        (groups(1, 1, 1.0), 0.95, 1),
        (np.repeat(groups(1, 1, 1.0), 60, 0), 0.95, 1),
        (np.repeat(groups(3, 1, 1.0), 20, 0), 1.0, 3),
        (groups(2, 2, 0.05), 1.0, 4),
        (np.zeros((6, 16), np.float32), 0.5, 6),
        (np.concatenate([np.zeros((3, 64), np.float32), np.repeat(groups(1, 1, 1.0), 3, 0)]), 0.95, 4),
        (groups(1, 40, 0.05), 0.95, 1),
    ],
    ids=["one row", "equal", "equal, threshold 1", "near, threshold 1", "zeros", "zeros among others", "all near"],
)
def test_few_or_equal_vectors_and_zeros(embedded: Embedded, vectors: Vectors, threshold: float, left: int) -> None:
    assert deduplicate_semantic(strictness(threshold), *embedded(vectors, "v")).rows == left


def test_no_rows_at_all_are_published_as_such(embedded: Embedded) -> None:
    rows, embeddings = embedded(groups(3, 1, 1.0), "v")
    nothing = clean(CleanParameters(max_characters=1), rows)
    assert nothing.rows == 0
    assert deduplicate_semantic(strictness(0.95), nothing, embeddings).rows == 0


@pytest.mark.heavy
def test_workers_change_no_byte(embedded: Embedded, store: Path) -> None:
    rows, embeddings = embedded(groups(SHARD_ROWS // 2 + 100, 2, 0.2, width=32), "v")
    made = deduplicate_semantic(strictness(0.95), rows, embeddings)
    first = {file.name: file.read_bytes() for file in made.path.glob("*.parquet")}
    made.path.rename(store / "elsewhere")
    with use_settings(store=store, workers=2, ray_min_seconds=0):
        again = deduplicate_semantic(strictness(0.95), rows, embeddings)
    stop_ray()
    assert again == made
    assert {file.name: file.read_bytes() for file in again.path.glob("*.parquet")} == first
    assert len(first) > 3
