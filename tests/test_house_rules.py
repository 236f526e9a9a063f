"""Rules of the house that no linter knows: one meaning for each public name, files of one subject."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for package in ("flows", "tasks", "infra") for path in sorted((ROOT / package).rglob("*.py"))]

SHARED = {
    "PRESET": "one in every module of a study that ships",
    "main": "programs",
    "interpolate": "a task is named as its function in Prefect's UI",
    "repair": "a task is named as its function in Prefect's UI",
    "report": "a deployment and a task, both named in Prefect's UI",
    "study": "a flow and the deployment of it, both named in Prefect's UI",
}
"""Names that are defined more than once, and why."""

MOST_LINES = 400

OPENINGS = ("What ", "How ", "Those ", "As ", "Of ", "Whose ", "Which ", "Where ")


def public_names(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                names.append(name)
            case ast.Assign(targets=targets):
                names += [target.id for target in targets if isinstance(target, ast.Name)]
            case _:
                pass
    return [name for name in names if not name.startswith("_")]


def test_a_public_name_has_one_meaning():
    places: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for name in public_names(path):
            places[name].append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1 and name not in SHARED} == {}
    assert {name for name in SHARED if len(places[name]) < 2} == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_short_and_its_docstrings_begin_with_their_subject(path: Path):
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            assert not docstring.startswith(OPENINGS), docstring
            is_property = isinstance(node, ast.FunctionDef) and node.decorator_list
            assert is_property or not docstring.startswith("Whether "), docstring
