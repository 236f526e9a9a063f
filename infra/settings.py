"""Settings of where and on what things run, from `REPAIRLAB_*` variables; never part of a spec or an id."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.cores import usable_cores

Runner = Literal["processes", "threads", "dask"]
RUNNERS: tuple[str, ...] = get_args(Runner)

Device = Literal["cpu", "cuda"]
DEVICES: tuple[str, ...] = get_args(Device)


class Settings(BaseSettings):
    """Settings by variable: the field `store` is `REPAIRLAB_STORE`, and so on."""

    model_config = SettingsConfigDict(env_prefix="REPAIRLAB_", extra="ignore")

    store: str = Field(default="./runs", description="Folder or s3:// URL of the store")
    upstream: str | None = Field(
        default=None, description="Store that is read for files that this one lacks, and never written"
    )
    data_dir: Path = Field(default=Path("~/.cache/repairlab/data"), description="Folder of the data sets")
    runner: Runner = Field(default="processes", description="Runner of the tasks: processes, threads or dask")
    workers: int = Field(default_factory=usable_cores, ge=1, description="Number of tasks that run at once")
    scheduler: str | None = Field(
        default=None, description="Address of a Dask scheduler; without one, dask starts workers of its own"
    )
    device: Device = Field(default="cpu", description="Device that networks are trained on: cpu or cuda")
    quiet: bool = Field(default=False, description="Print no progress of a run")

    def anchored(self) -> Settings:
        """Return these settings with absolute paths, for workers on this machine that run in another folder."""
        paths = {name: str(Path(url).expanduser().absolute()) for name in ("store", "upstream")
                 if (url := getattr(self, name)) and "://" not in url}  # fmt: skip
        return self.model_copy(update={**paths, "data_dir": self.data_dir.expanduser().absolute()})


def load_settings() -> Settings:
    """Return the settings of this process. Raises ValueError, in one sentence, for a variable with an invalid value."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        variable = "REPAIRLAB_" + "_".join(str(part) for part in first["loc"]).upper()
        raise ValueError(f"{variable}={first['input']!r}: {first['msg']}") from error
