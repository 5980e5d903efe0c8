"""Pairs, and responses to them, in the store that the tests of one file share (tests/tasks/conftest.py)."""

import pytest

from data.artifact import Artifact
from tests.tasks.train.small import preferences, responses_to, rows_of


@pytest.fixture(scope="module")
def rows(shelf: None, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return rows_of(tmp_path_factory.mktemp("rows") / "pairs", preferences(12))


@pytest.fixture(scope="module")
def responses(rows: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("responses") / "said"
    return responses_to(folder, rows, lambda n: "z" * (n % 6) + "y")
