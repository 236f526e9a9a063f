"""User-defined code where it is reached: found from the current folder, and checked against what studies do with it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from tasks.science.correction.sites import find_sites
from tasks.science.specs.cell import Cell
from tasks.science.specs.state import State
from tasks.science.specs.user_code import find_function, names_code


def search_current_folder() -> None:
    """Let modules be imported from the current folder, before those of the same name that are installed."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()


def reach_code(cell: Cell) -> None:
    """Let the user-defined code of `cell` be imported in this process; nothing where it has none."""
    if cell.user_defined or cell.data.user_defined:
        search_current_folder()


def import_code(words: Mapping[str, str]) -> None:
    """Import the user-defined code that the user names, from the current folder; `words` are by option.

    Other words are left alone. ValueError where there is no such place, UserCodeError where importing it raises.
    """
    for option, word in words.items():
        if names_code(word):
            search_current_folder()
            find_function(word, option)


def count_layers(network: nn.Module, state: State, images: Tensor) -> int:
    """Return how many layers of a network corrections reach: the depth of a user-defined network that takes none."""
    return len(find_sites(network, state, images).layers)
