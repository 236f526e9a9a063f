"""What README and docs tell people to do, done."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
from torch import nn
from typer.testing import CliRunner

from flows.cli import app
from tasks import schema
from tasks.columns import CELL
from tasks.science.correction_table import CORRECTIONS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str = README) -> list[list[str]]:
    lines = [line for block in blocks("sh", text) for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_that_docs_name_is_there(name: str):
    named = {words[1] for words in commands((ROOT / name).read_text()) if words[0] == "make"}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert named
    assert named <= targets


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the README calls my_package and rates.toml, and weights of two such networks, in the current folder."""
    folder = tmp_path / "my_package"
    folder.mkdir()
    (tmp_path / "checkpoints").mkdir()
    (folder / "my_module.py").write_text(
        "import torch\nfrom torch.nn import Flatten, Linear, ReLU, Sequential\n\n"
        "images = torch.randn(50, 1, 8, 8)\n\n"
        "def build(width=16):\n    return Sequential(Flatten(), Linear(64, width), ReLU(), Linear(width, 10))\n\n"
        "def load():\n    labels = torch.arange(50) % 10\n    return (images, labels), (images, labels)\n"
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    for name in "ab":
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
        for place in (f"{name}.safetensors", f"checkpoints/seed_{ord(name)}.safetensors"):
            safetensors.torch.save_file(network.state_dict(), tmp_path / place)
    (study,) = blocks("toml")
    (tmp_path / "rates.toml").write_text(study)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.usefixtures("own_package")
@pytest.mark.parametrize("words", [words for words in commands() if words[0].endswith("repairlab")])
def test_every_command_of_the_readme_is_understood(words: list[str], tmp_path: Path, monkeypatch):
    """Runs are only planned, what was imported among them; everything else is run, and what needs tables says that
    there are none."""
    monkeypatch.chdir(tmp_path)
    arguments = words[1:]
    for earlier in commands() if "imported" in arguments else []:
        if "import" in earlier:
            assert CliRunner().invoke(app, earlier[1:]).exit_code == 0
    if arguments[0] == "run" and "--dry-run" not in arguments:
        arguments = [*arguments, "--dry-run"]
    called = CliRunner().invoke(app, arguments)
    if arguments[0] in ("report", "compare"):
        assert "holds no tables of" in str(called.exception)
    else:
        assert called.exit_code == 0, called.output
        assert called.output.strip()


@pytest.mark.parametrize(("command", "n_least"), [("run", 10), ("merge", 8), ("import", 6)])
def test_every_option_stands_in_the_readme(command: str, n_least: int):
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).output
    options = set(re.findall(r"--[a-z-]+", shown)) - {"--help"}
    assert len(options) >= n_least
    assert {option for option in options if option not in README} == set()


def test_the_python_of_the_readme_runs_on_tables_of_the_schema(tmp_path: Path):
    folder = tmp_path / "runs/studies/digits-depth"
    folder.mkdir(parents=True)
    cell = {"study": "digits-depth", "cell_id": "c", "width": 128, "depth": 4}
    cell |= {"split": "test", "matcher": "activation", "measurement": "default"}
    rows = [{**cell, "merge_id": "m", "correction": c, "metric": "accuracy_barrier"} for c in ("none", "repair")]
    for table in (schema.ABLATION, schema.BARRIERS):
        frame = pd.DataFrame(rows).reindex(columns=list(table.columns))
        frame.astype({"mean": float} if "mean" in frame else {"loss_barrier": float}).to_parquet(
            folder / f"{table.name}.parquet"
        )
    (code,) = (block for block in blocks("python") if "read_parquet" in block)
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "repair" in ran.stdout


@pytest.mark.usefixtures("own_package")
def test_the_five_lines_of_the_readme_merge_two_networks(tmp_path: Path):
    (code,) = (block for block in blocks("python") if "merge_networks" in block)
    assert len([line for line in code.splitlines() if line]) == 5
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    network.load_state_dict(safetensors.torch.load_file(tmp_path / "merged.safetensors"), strict=True)


def test_the_picture_of_the_readme_is_there():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).stat().st_size > 10_000


@pytest.mark.parametrize("name", ["recipes", "tables"])
def test_the_page_is_made_from_the_code(name: str):
    module = page_module(name)
    assert module.PAGE.read_text() == module.page(), f"run docs/{name}.py"


def page_module(name: str) -> Any:
    path = ROOT / "docs" / f"{name}.py"
    module = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location(f"{name}_page", path))  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def test_the_page_of_tables_has_every_column_in_its_section_or_names_it_there():
    sections = {part.split("`")[0]: part for part in page_module("tables").page().split("\n## `")[1:]}
    assert list(sections) == [table.name for table in schema.TABLES]
    for table in schema.TABLES:
        assert {name for name in table.columns if f"`{name}`" not in sections[table.name]} <= CELL.keys(), table.name


def test_the_page_of_corrections_is_the_table():
    page = (ROOT / "docs" / "corrections.md").read_text()
    for name, row in CORRECTIONS.items():
        assert f"| `{name}` | {row.does} | {row.touches} |" in page
