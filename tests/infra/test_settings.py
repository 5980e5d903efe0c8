"""Settings say where and how fast to work; a bad one is named with its variable."""

from pathlib import Path

import pytest

from data.errors import BadInput
from infra.settings import settings, use_settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STILLHOUSE_WORKERS", "two"),
        ("STILLHOUSE_WORKERS", "0"),
        ("STILLHOUSE_THREADS", "-1"),
        ("STILLHOUSE_RAY_MIN_SECONDS", "soon"),
        ("STILLHOUSE_DEVICE", "abacus"),
        ("STILLHOUSE_ACCEPT_FAILED", "perhaps"),
    ],
)
def test_a_bad_value_is_named_with_its_variable(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput) as refused:
        settings()
    assert refused.value.found == f"{name}='{value}'"
    assert name in refused.value.remedy


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_STORE", "elsewhere")
    monkeypatch.setenv("STILLHOUSE_WORKERS", "3")
    assert settings().store == Path("elsewhere")
    assert settings().workers == 3


def test_a_variable_that_no_setting_knows_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_MOOD", "calm")
    assert settings().max_attempts == 3


def test_settings_change_for_a_while_and_keep_what_is_not_named(tmp_path: Path) -> None:
    before = settings()
    with use_settings(store=tmp_path, workers=7):
        with use_settings(workers=8):
            assert (settings().store, settings().workers) == (tmp_path, 8)
        assert settings().workers == 7
    assert settings() == before
