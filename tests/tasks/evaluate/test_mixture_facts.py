"""Shares of the sources: of the pool, of the mixture, of what was taken."""

from typing import Any

import pytest

from tasks.evaluate.mixture_facts import mixture_facts


def test_shares_add_up_and_are_those_of_the_stage(curation: Any) -> None:
    told = mixture_facts([curation.chosen, curation.mixture], ["ot", "mixture"])
    assert told and told["selection"] == "mixture"
    lines = {line["source"]: line for line in curation.mixture["mixture"].read().to_pylist()}
    assert [line["source"] for line in told["sources"]] == ["plain", "other"]
    for name in ("pool", "mixture", "selected"):
        assert sum(line[name] for line in told["sources"]) == pytest.approx(1, abs=1e-5)
    for line in told["sources"]:
        assert line["mixture"] == lines[line["source"]]["share"]
        assert line["rows"] == lines[line["source"]]["rows"]
        assert line["selected"] == lines[line["source"]]["selected_units"] / 20
    assert told["cost"] <= told["pool_cost"]
    assert told["gap"] == curation.mixture.record["measures"]["gap"]


def test_without_a_mixture_there_is_nothing_to_tell(curation: Any) -> None:
    assert mixture_facts([curation.chosen, curation.random], ["ot", "random"]) is None
