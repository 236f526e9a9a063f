"""Where and on what things run: from `REPAIRLAB_*` environment variables, never part of a spec or an id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

Runner = Literal["processes", "threads"]
RUNNERS: tuple[str, ...] = get_args(Runner)


def usable_cores() -> int:
    """How many cores this process may use."""
    # macOS has no affinities.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Settings(BaseSettings):
    """One field per variable: `store` is `REPAIRLAB_STORE`, and so on."""

    model_config = SettingsConfigDict(env_prefix="REPAIRLAB_", extra="ignore")

    store: str = "./runs"
    data_dir: Path = Path("~/.cache/repairlab/data")
    runner: Runner = "processes"
    workers: int = Field(default_factory=usable_cores, ge=1)


def load_settings() -> Settings:
    """The settings of this process. ValueError, in one sentence, where a variable holds something it cannot."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        variable = "REPAIRLAB_" + "_".join(str(part) for part in first["loc"]).upper()
        raise ValueError(f"{variable}={first['input']!r}: {first['msg']}") from error
