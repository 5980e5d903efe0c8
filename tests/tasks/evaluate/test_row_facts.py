"""Why rows left, with the rows on whose account they did, and who stood next to a threshold."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.artifact import Artifact
from tasks.evaluate.row_facts import EXCERPT, overlap_facts, personal_facts, reasons, stage_facts, thresholds


def by_reason(artifact: Artifact) -> dict[str, dict[str, Any]]:
    return {reason["reason"]: reason for reason in reasons(artifact)}


def test_every_dropped_row_is_counted_under_its_reason(curation: Any) -> None:
    for artifact in curation.made:
        told = reasons(artifact)
        assert sum(each["rows"] for each in told) == artifact.record["measures"]["rows_dropped"]
        assert [each["rows"] for each in told] == sorted((each["rows"] for each in told), reverse=True)
    facts = stage_facts(curation.vectors, None)
    assert (facts["rows_in"], facts["rows_out"], facts["tables"], facts["reasons"]) == (0, 0, {}, [])


def test_a_near_duplicate_stands_beside_the_row_that_was_kept(curation: Any) -> None:
    told = by_reason(curation.unique)["near-duplicate"]["example"]
    both = [told["text"], told["partner_text"]]
    assert sorted(both, key=len)[1] == sorted(both, key=len)[0] + " indeed"
    assert told["partner"] != told["row_id"] and 0.6 <= told["score"] < 1


def test_the_partner_of_a_leaked_row_is_found_in_the_evaluation_set(curation: Any) -> None:
    told = by_reason(curation.clear)["equals an evaluation item"]["example"]
    [item] = [row for row in curation.evaluation.read().to_pylist() if str(row["row_id"]) == told["partner"]]
    assert told["partner_text"] == f"prompt: {item['prompt']}\ncompletion: {item['completion']}" == told["text"]


def test_a_row_without_a_partner_has_none(curation: Any) -> None:
    told = by_reason(curation.filtered)["too few words"]["example"]
    assert told["partner"] is told["partner_text"] is None
    assert told["text"].startswith("prompt: H") and told["score"] == 2


def test_rows_stand_on_their_side_of_a_threshold_the_nearest_first(curation: Any) -> None:
    for artifact in (curation.filtered, curation.unique, curation.clear, curation.chosen):
        told = thresholds(artifact)
        assert told and told["stage"] == artifact.stage
        borders = artifact["borders"].read()
        shown = [row for rule in told["rules"] for row in [*rule["kept"], *rule["dropped"]]]
        assert len(shown) == len(borders)
        for rule in told["rules"]:
            for name in ("kept", "dropped"):
                far = [abs(row["value"] - rule["threshold"]) for row in rule[name]]
                assert far == sorted(far)
        assert all(row["text"] for row in shown)
    [budget] = (thresholds(curation.chosen) or {})["rules"]
    kept = {str(row) for row in curation.chosen.read(["row_id"])["row_id"].to_pylist()}
    assert {row["row_id"] for row in budget["kept"]} <= kept
    assert not {row["row_id"] for row in budget["dropped"]} & kept


def test_rules_with_rows_on_both_sides_come_first(curation: Any) -> None:
    told = thresholds(curation.filtered)
    assert told
    assert [(rule["rule"], bool(rule["dropped"])) for rule in told["rules"]] == [
        ("min_words", True),
        ("max_words", False),
    ]
    assert thresholds(curation.parts) is thresholds(curation.vectors) is None


def test_texts_are_cut_unless_they_stand_beside_another(curation: Any) -> None:
    told = thresholds(curation.filtered)
    assert told
    [rule] = [each for each in told["rules"] if each["rule"] == "max_words"]
    long = rule["kept"][0]["text"]
    assert long.startswith("prompt: Say this at length") and len(long) == EXCERPT + 2 and long.endswith(" …")
    beside = thresholds(curation.unique)
    assert beside
    rows = [row for rule in beside["rules"] for row in [*rule["kept"], *rule["dropped"]]]
    assert rows and all(row["partner"] and row["partner_text"] for row in rows)


def test_values_that_are_no_numbers_are_none(curation: Any, tmp_path: Path) -> None:
    path = tmp_path / "filter" / "1"
    path.mkdir(parents=True)
    dropped = curation.filtered["dropped"].read()
    score = pa.array([float("nan"), float("inf")])
    pq.write_table(dropped.set_column(2, "score", score), path / "dropped.parquet")
    (path / "record.json").write_text(json.dumps({"inputs": [], "outputs": {"dropped": {"rows": 2}}}))
    [told] = reasons(Artifact("filter", "1", path))
    assert told["example"]["score"] is None and told["example"]["text"] == "" and told["rows"] == 2


def test_overlaps_are_counted_by_evaluation_set_with_the_phrases_that_do_not_count(curation: Any) -> None:
    told = overlap_facts(curation.clear)
    assert told
    assert (told["items"], told["rows_equal"], told["rows_sharing"]) == (2, 1, 0)
    assert told["sets"] == [{"source": "exam", "rows": 1, "items": 1}]
    assert told["rows_spared"] == 30
    assert all(phrase["rows"] == 30 and phrase["source"] == "exam" for phrase in told["phrases"])
    assert "once upon a time in a far away land there lived an old" in {phrase["text"] for phrase in told["phrases"]}
    assert overlap_facts(curation.unique) is None


def test_personal_data_is_counted_by_kind(curation: Any) -> None:
    assert personal_facts(curation.filtered) == [{"kind": "email", "masked": 1, "dropped": 0, "rows": 1}]
    assert personal_facts(curation.cleaned) == []
