"""A store that the tests of one file share, and in it the models of a small family."""

from collections.abc import Iterator

import pytest

from infra.settings import use_settings
from infra.store import current_store
from tests.tasks.train.small import Family, family


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty store, in force while the tests of a file run."""
    with use_settings(store=tmp_path_factory.mktemp("shelf") / "store", workers=1, threads=1, device="cpu"):
        current_store().prepare()
        yield


@pytest.fixture(scope="module")
def models(shelf: None, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family(tmp_path_factory.mktemp("family"))
