"""The map: each mark is where its own row's vector puts it."""

from typing import Any

import numpy as np
import pytest

from tasks.evaluate.selection_map import TITLE, map_of, sample_ids


@pytest.fixture
def drawn(curation: Any) -> dict[str, Any]:
    picked = [curation.chosen, *curation.others]
    found = map_of(picked, [each.stage for each in picked], curation.apart, True, 0)
    assert found
    return found


def test_everything_small_enough_is_on_the_map(drawn: dict[str, Any], curation: Any) -> None:
    assert len(drawn["pool"]) == curation.apart.rows
    assert len(drawn["target"]) == curation.target.rows
    assert [(each["name"], each["rows"], len(each["points"])) for each in drawn["selections"]] == [
        (each.stage, 20, 20) for each in [curation.chosen, *curation.others]
    ]
    assert 0 < drawn["share"] < 1
    every = [*drawn["pool"], *([spot["x"], spot["y"]] for spot in drawn["target"])]
    assert all(-1 <= number <= 1 for point in every for number in point)
    assert max(abs(number) for point in every for number in point) > 0.5


def test_a_selected_row_lies_where_it_lies_in_the_pool(drawn: dict[str, Any]) -> None:
    pool = {tuple(point) for point in drawn["pool"]}
    for each in drawn["selections"]:
        assert all((spot["x"], spot["y"]) in pool for spot in each["points"])


def test_marks_tell_their_own_text(drawn: dict[str, Any], curation: Any) -> None:
    """Rows of equal text have equal vectors: where two selections have the same text, they have the same place."""
    places: dict[str, set[tuple[float, float]]] = {}
    for each in drawn["selections"]:
        for spot in each["points"]:
            assert spot["text"].startswith("prompt: ") and len(spot["text"]) <= TITLE + 1 and "\n" not in spot["text"]
            places.setdefault(spot["text"], set()).add((spot["x"], spot["y"]))
    assert len(places) > 30 and all(len(found) == 1 for found in places.values())
    texts = {" ".join(f"prompt: {row['prompt']}".split())[:40] for row in curation.target.read().to_pylist()}
    assert {spot["text"][:40] for spot in drawn["target"]} == texts


def test_marks_are_joined_to_their_vectors_by_row_id(drawn: dict[str, Any], curation: Any) -> None:
    """The coordinates are those of a library's singular values, for the target rows found by their texts."""
    pool, target = (each["embeddings"].read() for each in (curation.vectors, curation.target_vectors))
    inside = set(curation.apart.read(["row_id"])["row_id"].to_pylist())
    own = [line["vector"] for line in pool.to_pylist() if line["row_id"] in inside]
    by_id = {line["row_id"]: line["vector"] for line in target.to_pylist()}
    rows = {f"prompt: {row['prompt']}": by_id[row["row_id"]] for row in curation.target.read().to_pylist()}
    vectors = np.array([*own, *by_id.values()])
    directions = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)[2][:2]
    found = [next(rows[text] for text in rows if text[:60] == spot["text"][:60]) for spot in drawn["target"]]
    wanted = (np.array(found) - vectors.mean(0)) @ directions.T
    shown = np.array([[spot["x"], spot["y"]] for spot in drawn["target"]])
    for axis in (0, 1):
        assert abs(np.corrcoef(wanted[:, axis], shown[:, axis])[0, 1]) > 0.99


def test_rows_are_drawn_by_lots_of_their_ids(curation: Any) -> None:
    drawn = [set(sample_ids(curation.apart, 30, seed).to_pylist()) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 30
    assert drawn[0] < set(sample_ids(curation.apart, 1000, 0).to_pylist())
    assert len(sample_ids(curation.apart, 1000, 0)) == curation.apart.rows


def test_where_no_selection_is_the_flows_own_one_for_the_target_comes_first(curation: Any) -> None:
    picked, names = [curation.random, curation.nearest, curation.chosen], ["random", "nearest", "ot"]
    for own, wanted in ((True, names), (False, ["nearest", "ot", "random"])):
        drawn = map_of(picked, names, curation.apart, own, 0)
        assert drawn and [each["name"] for each in drawn["selections"]] == wanted


def test_without_embeddings_there_is_no_map(curation: Any) -> None:
    assert map_of([curation.random], ["random"], curation.apart, True, 0) is None
