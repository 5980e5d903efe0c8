"""Where and how fast to work: settings from the environment (`STILLHOUSE_*`), never part of a key."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from data.errors import BadInput


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Settings(BaseSettings):
    """Read the settings; each field is `STILLHOUSE_` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="STILLHOUSE_", frozen=True, extra="ignore")

    store: Path = Field(Path(".store"), description="Folder that holds every artifact.")
    workers: int = Field(default_factory=_cores, ge=1, description="Ray workers for sharded stages; 1 is a plain loop.")
    ray_address: str | None = Field(None, description="Ray cluster to use; none starts a local one when needed.")
    ray_min_seconds: float = Field(
        20.0, ge=0, description="Seconds that a plain loop over shards may take before the rest goes to Ray."
    )
    threads: int = Field(default_factory=_cores, ge=1, description="CPU threads of a training process; recorded.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where models run; auto takes CUDA if there.")
    max_attempts: int = Field(3, ge=1, description="Tries before a row that fails transiently alone is given up.")
    accept_failed: bool = Field(False, description="Publish without the rows that still fail transiently.")
    real_data: Path | None = Field(None, description="Folder of the real data that the *-real recipes read.")


_override: ContextVar[Settings | None] = ContextVar("settings", default=None)


def settings() -> Settings:
    """Return the settings in force.

    Raises:
        BadInput: an environment variable has a value that its setting cannot take.
    """
    override = _override.get()
    if override is not None:
        return override
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = f"STILLHOUSE_{str(first['loc'][0]).upper()}"
        raise BadInput(f"{name}={first['input']!r}", first["msg"], f"change or unset {name}") from None


@contextmanager
def use_settings(**changes: Any) -> Iterator[Settings]:
    """Work under changed settings for a while; fields not named keep their values."""
    changed = settings().model_copy(update=changes)
    token = _override.set(changed)
    try:
        yield changed
    finally:
        _override.reset(token)
