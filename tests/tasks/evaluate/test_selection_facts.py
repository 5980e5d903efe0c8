"""Selections beside each other: how large, made of what, sharing how much, and called what."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.artifact import Artifact
from infra.settings import use_settings
from tasks.curate.select_random import SelectRandomParameters, select_random
from tasks.evaluate.selection_facts import is_selection, names_of, overlap, picked_from, selection_facts


def recorded(folder: Path, stage: str, **parameters: Any) -> Artifact:
    """An artifact with nothing but a record of its parameters."""
    path = folder / stage / f"{len(list(folder.glob('*/*'))):032}"
    path.mkdir(parents=True)
    record = {"key": {"parameters": parameters}, "outputs": {"rows": {"digest": str(path)}}, "measures": {}}
    (path / "record.json").write_text(json.dumps(record))
    return Artifact(stage, path.name, path)


def test_a_selection_is_known_by_what_selectors_publish(curation: Any) -> None:
    assert [is_selection(each) for each in curation.made].count(True) == 1
    assert all(map(is_selection, curation.others))
    assert picked_from(curation.made, [*curation.others, curation.chosen]) == [curation.chosen, *curation.others]
    assert picked_from(curation.made[:5], []) == []


def test_overlap_is_that_of_sets(curation: Any) -> None:
    picked = [curation.chosen, *curation.others]
    ids = [set(each.read(["row_id"])["row_id"].to_pylist()) for each in picked]
    square = overlap(picked)
    for i, left in enumerate(ids):
        for j, right in enumerate(ids):
            assert square[i][j] == square[j][i] == pytest.approx(len(left & right) / len(left | right), abs=1e-4)


def test_chance_is_what_random_selections_share(curation: Any) -> None:
    with use_settings(store=curation.folder / "store", workers=1):
        drawn = [select_random(SelectRandomParameters(budget=45, seed=seed), curation.apart) for seed in range(12)]
    facts = selection_facts(drawn, False, {}, 0)
    assert facts
    square = np.array(facts["overlap"])
    between = square[~np.eye(len(drawn), dtype=bool)]
    assert between.mean() == pytest.approx(facts["selections"][0]["chance"], abs=0.03)
    assert facts["selections"][0]["chance"] == pytest.approx((45 / 92) / (2 - 45 / 92))


def test_sources_add_up_to_the_rows(curation: Any) -> None:
    facts = selection_facts([curation.chosen, *curation.others], True, {}, 0)
    assert facts
    assert sum(facts["pool"]["sources"].values()) == facts["pool"]["rows"] == 92
    assert list(facts["pool"]["sources"]) == ["plain", "other"]
    for each in facts["selections"]:
        assert sum(each["sources"].values()) == each["rows"] == each["units"] == each["budget"] == 20
        assert each["unit"] == "rows"
    assert selection_facts([], False, {}, 0) is None


def test_names_say_what_sets_selections_apart(tmp_path: Path) -> None:
    common = {"budget": 5, "unit": "rows"}
    picked = [
        recorded(tmp_path, "select_ot", method="ot", mode="target", seed=0, **common),
        recorded(tmp_path, "select_ot", method="ot", mode="control", seed=0, **common),
        recorded(tmp_path, "select_random", method="random", seed=0, **common),
        recorded(tmp_path, "select_random", method="random", seed=1, **common),
        recorded(tmp_path, "select_dsir", method="dsir", seed=0, **common),
        recorded(tmp_path, "select_kcentre", method="kcentre", **common),
        recorded(tmp_path, "select_kcentre", method="kcentre", **common),
    ]
    wanted = [
        "ot, mode target",
        "ot, mode control",
        "random, seed 0",
        "random, seed 1",
        "dsir",
        "kcentre 1",
        "kcentre 2",
    ]
    assert names_of(picked, {}) == wanted
    arms = {picked[2].digest: "by lot", picked[3].digest: "by lot", picked[4].digest: "importance"}
    assert names_of(picked, arms)[2:5] == ["by lot, seed 0", "by lot, seed 1", "importance"]
