from __future__ import annotations

import subprocess
import sys

import pytest

FORBIDDEN = ("prefect", "pydantic", "fsspec", "s3fs", "infra.settings", "infra.storage", "flows")

PROBE = """
import importlib, pkgutil, sys
import {package}
modules = [{package!r}]
if hasattr({package}, "__path__"):
    modules += [found.name for found in pkgutil.walk_packages({package}.__path__, {package!r} + ".")]
for module in modules:
    importlib.import_module(module)
print(len(modules), *sorted(name for name in {forbidden!r} if name in sys.modules))
"""


def imported_by(package: str) -> tuple[int, list[str]]:
    """How many modules `package` has, and which of the forbidden ones importing them all brings in."""
    code = PROBE.format(package=package, forbidden=FORBIDDEN)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return int(out[0]), out[1:]


@pytest.mark.parametrize(
    "package", ["tasks.science", "tasks.data.datasets", "tasks.data.image_folder", "tasks.tables.points"]
)
def test_science_and_data_sets_run_without_prefect_settings_or_a_store(package: str):
    n_modules, found = imported_by(package)
    assert n_modules >= (15 if package == "tasks.science" else 1)
    assert found == []


def test_the_probe_can_fail():
    assert "prefect" in imported_by("tasks.train")[1]
