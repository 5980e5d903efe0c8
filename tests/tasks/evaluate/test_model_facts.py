"""What models learnt, as it was measured."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.artifact import Artifact
from tasks.evaluate.compare_arms import ARMS
from tasks.evaluate.model_facts import arms_facts, by_group, draw, side_by_side


def test_arms_are_told_as_they_were_compared(tmp_path: Path) -> None:
    line = {"seeds": 2, "rows": 9, "value": 1.5, "seed_deviation": None}
    lines = [
        {"arm": "base", **line, "difference": 0.4, "low": 0.3, "high": 0.5, "separable": True},
        {"arm": "random", **line, "difference": None, "low": None, "high": None, "separable": None},
        {"arm": "ot", **line, "difference": 0.01, "low": -0.1, "high": 0.1, "separable": False},
    ]
    pq.write_table(pa.Table.from_pylist(lines, schema=ARMS), tmp_path / "arms.parquet")
    parameters = {"metric": "loss", "base": "base", "reference": "random", "control": "", "level": 0.9}
    record = {"key": {"parameters": parameters}, "measures": {"detectable": 0.02}, "outputs": {"arms": {"rows": 3}}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    told = arms_facts(Artifact("compare_arms", "0" * 32, tmp_path))
    assert (told["reference"], told["level"], told["detectable"], told["rows"]) == ("random", 0.9, 0.02, 9)
    assert [arm["separable"] for arm in told["arms"]] == [True, None, False]
    assert told["arms"][1]["difference"] is None
    assert told["arms"][2]["difference"] == {"mean": 0.01, "low": -0.1, "high": 0.1}


def test_without_scores_there_is_nothing_to_show() -> None:
    assert by_group({}) == side_by_side({}, []) == []


def test_rows_are_drawn_by_seed_alone() -> None:
    assert draw(10, 3, 0) == sorted(draw(10, 3, 0)) == draw(10, 3, 0)
    assert draw(3, 10, 0) == [0, 1, 2]
    assert draw(0, 5, 0) == []
    assert len({tuple(draw(100, 5, seed)) for seed in range(10)}) == 10
