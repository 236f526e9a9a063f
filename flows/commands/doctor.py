"""`repairlab doctor`: a check of this machine, its store and its servers before a study."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.cores import usable_cores
from infra.runners import ServerError, check_runner
from infra.settings import Settings
from infra.storage import Store, StoreError
from infra.text import one_line
from tasks.data.datasets import DATASETS, find_dataset

PACKAGES = ("torch", "torchvision", "prefect", "numpy", "scipy", "pandas", "pyarrow", "s3fs", "prefect-dask", "lapx")


@dataclass(frozen=True)
class Finding:
    """One line: the thing examined, its state, and whether a study with these settings can use it."""

    what: str
    found: str
    is_well: bool = True


def examine_machine(settings: Settings) -> list[Finding]:
    """Return all findings. Nothing is changed: a file is written to the store and removed again."""
    store = _try("store", lambda: _look_at_store(settings))
    return [*_versions(), *_devices(settings), store, *_data(settings), _runner(settings), _server()]


def print_findings(findings: list[Finding], console: Console, *, as_json: bool) -> None:
    """Print the findings in 80 columns, problems marked, or as a JSON list of objects."""
    if as_json:
        console.print_json(json.dumps([dataclasses.asdict(finding) for finding in findings]))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(
            Text("ok" if finding.is_well else "!!"), Text(one_line(finding.what)), Text(one_line(finding.found))
        )
    console.print(table)


def _versions() -> Iterator[Finding]:
    versions = [f"repairlab {importlib.metadata.version('repairlab')}", f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    yield Finding("versions", ", ".join(versions))


def _devices(settings: Settings) -> Iterator[Finding]:
    yield Finding("cores", f"{usable_cores()}, of which {settings.workers} work at once")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding("GPUs", ", ".join(names) or "none that torch can use")


def _look_at_store(settings: Settings) -> str:
    store = Store(settings.store, settings.upstream, patience_seconds=0)
    store.check_writable()
    beside = ""
    if store.upstream is not None:
        store.upstream.check_readable()
        beside = f"; {store.upstream.url} is read beside it, with studies {_names(store.upstream)}"
    return f"{store.url} can be written, with studies {_names(store.own)}{beside}"


def _names(store: Store) -> str:
    return ", ".join(store.folders("studies")) or "none"


def _data(settings: Settings) -> Iterator[Finding]:
    found: list[str] = []
    missing: list[str] = []
    for name, known in DATASETS.items():
        if known.files is None:
            found.append(f"{name} (comes with scikit-learn)")
        elif (place := find_dataset(name, settings.data_dir)) is not None:
            found.append(f"{name} ({place})")
        else:
            missing.append(name)
    yield Finding("data sets", ", ".join(found))
    if missing:
        told = f"{', '.join(missing)}: fetched on first use into {settings.data_dir}"
        yield Finding("not here", f"{told}; put ImageNet there yourself" if "imagenet" in missing else told)


def _runner(settings: Settings) -> Finding:
    def look() -> str:
        check_runner(settings)
        where = f" on {settings.scheduler}" if settings.scheduler else ""
        return f"{settings.runner}{where}, training on {settings.device}"

    return _try("runner", look)


def _server() -> Finding:
    def look() -> str:
        url = get_current_settings().api.url
        if url is None:
            return "PREFECT_API_URL names none: every run starts one of its own, and ends it"
        with get_client(sync_client=True) as client:
            if (error := client.api_healthcheck()) is not None:
                reason = str(error) or type(error).__name__
                raise ServerError(f"{url} does not answer ({reason}): start it, or unset PREFECT_API_URL")
        return f"{url} answers"

    return _try("Prefect server", look)


def _try(what: str, look: Callable[[], str]) -> Finding:
    """Return the result of `look` as a finding, or the sentence of its error."""
    try:
        return Finding(what, look())
    except (StoreError, ServerError) as error:
        return Finding(what, str(error), is_well=False)
