"""The public Python interface of repairlab, and its command.

>>> import repairlab
>>> study = repairlab.open_study("runs", "digits-depth")

The code lies in the packages `flows`, `tasks` and `infra` beside this module. A name is imported when it is first used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows.results import StudyResults as StudyResults
    from flows.results import open_study as open_study
    from infra.settings import load_settings as load_settings
    from infra.weights import read_weights as read_weights
    from infra.weights import write_weights as write_weights
    from tasks.data.datasets import load_dataset as load_dataset
    from tasks.science.merging import merge_networks as merge_networks
    from tasks.science.symmetry.permutation import PermutationSpec as PermutationSpec
    from tasks.science.symmetry.tracing import trace_permutation_spec as trace_permutation_spec
    from tasks.tables.schema import TABLES as TABLES

_HOMES = {
    "open_study": "flows.results",
    "StudyResults": "flows.results",
    "merge_networks": "tasks.science.merging",
    "trace_permutation_spec": "tasks.science.symmetry.tracing",
    "PermutationSpec": "tasks.science.symmetry.permutation",
    "read_weights": "infra.weights",
    "write_weights": "infra.weights",
    "load_dataset": "tasks.data.datasets",
    "load_settings": "infra.settings",
    "TABLES": "tasks.tables.schema",
}
"""The public names, each with the module that defines it."""

__all__ = [
    "TABLES",
    "PermutationSpec",
    "StudyResults",
    "load_dataset",
    "load_settings",
    "merge_networks",
    "open_study",
    "read_weights",
    "trace_permutation_spec",
    "write_weights",
]

_PACKAGES = ("flows", "tasks", "infra")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'repairlab' has no attribute {name!r}; it has {', '.join(_HOMES)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__


def _check_packages() -> None:
    """Raise ImportError when a module of another origin hides one of the packages that repairlab consists of."""
    here = Path(__file__).resolve().parent
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError(f"repairlab is installed without its package {name}: install it again")
        # A folder without an __init__.py has no origin.
        origin = spec.origin or next(iter(spec.submodule_search_locations or [name]))
        if Path(origin).resolve() != here / name / "__init__.py":
            raise ImportError(
                f"{origin} hides the package {name} of repairlab: rename it, or start Python from another folder "
                "and without it in PYTHONPATH"
            )


def main() -> None:
    """Run the command that the command line names."""
    try:
        _check_packages()
    except ImportError as error:
        sys.exit(f"repairlab: {error}")
    from flows.entry import main as run_command

    run_command()


_IS_COMMAND = Path(next(iter(sys.argv), "")).stem == "repairlab"

if __name__ == "__main__":
    main()
elif not _IS_COMMAND:
    _check_packages()
elif "__mp_main__" in sys.modules:
    # A worker process of the command has to end with it, from its first import on.
    importlib.import_module("flows.entry")
