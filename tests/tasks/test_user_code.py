"""User-defined code where it is reached: from the current folder, in the processes that run it and in no others."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.science.specs.cell import Cell
from tasks.user_code import count_layers, import_code, reach_code, search_current_folder

_numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder, where Python does not look for modules."""
    name = f"reached_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text("def build():\n    return None\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return name


def test_named_code_is_imported_from_the_current_folder_and_other_words_are_left_alone(module: str):
    import_code({"--network": "mlp", "--data": "digits"})
    assert str(Path.cwd()) not in sys.path
    import_code({"--network": f"{module}:build"})
    assert module in sys.modules
    with pytest.raises(ValueError, match=f"--data {module}:load: module {module} has no function load"):
        import_code({"--data": f"{module}:load"})


def test_a_folder_is_searched_first_and_once(module: str):
    assert module not in sys.modules
    search_current_folder()
    search_current_folder()
    assert sys.path[0] == str(Path.cwd())
    assert sys.path.count(str(Path.cwd())) == 1


@pytest.mark.usefixtures("module")
def test_only_the_cells_of_user_defined_code_open_the_folder(cell: Cell):
    reach_code(cell)
    assert str(Path.cwd()) not in sys.path
    reach_code(dataclasses.replace(cell, data=dataclasses.replace(cell.data, name="mine:load")))
    assert sys.path.pop(0) == str(Path.cwd())
    reach_code(dataclasses.replace(cell, architecture="mine:build", graph="0" * 64))
    assert sys.path[0] == str(Path.cwd())


def test_the_layers_that_corrections_reach_are_counted_without_the_one_of_the_logits():
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))
    assert count_layers(network, network.state_dict(), torch.zeros(2, 1, 6, 6)) == 2
