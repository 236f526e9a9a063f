"""The public Python interface, and the wheel that installs it."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import repairlab

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def run(*words: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "REPAIRLAB_"))}
    return subprocess.run(words, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", repairlab.__all__)
def test_every_public_name_is_there_and_is_what_its_module_defines(name: str):
    value = getattr(repairlab, name)
    assert getattr(value, "__module__", repairlab._HOMES[name]) == repairlab._HOMES[name]


def test_the_names_to_import_are_those_that_have_a_home():
    assert sorted(repairlab._HOMES) == sorted(repairlab.__all__)


def test_an_unknown_name_is_told_beside_those_that_there_are():
    with pytest.raises(AttributeError, match=r"no attribute 'open_stduy'; it has open_study, "):
        repairlab.open_stduy  # noqa: B018


def test_readers_are_shown_the_public_interface_alone():
    """But for the pages about changing the code itself, whose snippets are modules of it."""
    pattern = r"^(?:from|import) (?:flows|tasks|infra)\b.*"
    for page in (page for page in PAGES if page.stem not in ("network", "study", "matcher", "correction", "data")):
        assert re.findall(pattern, page.read_text(), re.MULTILINE) == [], page
    notebook = (ROOT / "docs/analysis.ipynb").read_text()
    assert not re.findall(r"\"(?:from|import) (?:flows|tasks|infra)\b", notebook)


@pytest.mark.parametrize("name", ["flows", "tasks", "infra"])
@pytest.mark.parametrize("file", ["{}.py", "{}/__init__.py"])
def test_a_module_that_hides_a_package_is_named(tmp_path: Path, name: str, file: str):
    hiding = tmp_path / file.format(name)
    hiding.parent.mkdir(exist_ok=True)
    hiding.write_text("raise SystemExit('it was run')")
    for words in (("-c", "import repairlab"), ("-m", "repairlab", "studies")):
        ended = run(sys.executable, *words, cwd=tmp_path, PYTHONPATH=str(ROOT))
        assert ended.returncode == 1
        assert f"{hiding} hides the package {name} of repairlab: rename it, or" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel, and what the wheel needs from the environment of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    source = folder / "source"  # Without what earlier builds have left in the checkout.
    for name in ("flows", "tasks", "infra"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("repairlab.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    built = run(*pip, "wheel", "--no-deps", "--wheel-dir", folder, source, cwd=folder)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("repairlab-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" not in name} == {
            "repairlab.py", "flows", "tasks", "infra"
        }  # fmt: skip
    environment = folder / "environment"
    assert run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=folder).returncode == 0
    (packages,) = environment.glob("lib/python*/site-packages")
    # A folder that a .pth file names is searched, and its own .pth files, such as that of this checkout, are not read.
    (packages / "needed.pth").write_text("\n".join(site.getsitepackages()))
    put = run(*pip, "--python", environment / "bin/python", "install", "--no-deps", wheel, cwd=folder)
    assert put.returncode == 0, put.stderr
    return environment / "bin"


@pytest.mark.slow
def test_the_wheel_runs_the_demo_and_the_snippets_of_the_readme(installed: Path, tmp_path: Path):
    where = run(installed / "python", "-c", "import repairlab; print(repairlab.__file__)", cwd=tmp_path)
    assert where.stdout.startswith(str(installed.parent))
    ended = run(installed / "repairlab", "demo", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert snippets
    for snippet in snippets:
        ended = run(installed / "python", "-c", snippet, cwd=tmp_path, MPLBACKEND="agg")
        assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_the_installed_command_names_what_hides_a_package(installed: Path, tmp_path: Path):
    (tmp_path / "flows.py").write_text("")
    ended = run(installed / "repairlab", "studies", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"repairlab: {tmp_path / 'flows.py'} hides the package flows of repairlab")
