"""Code that a study's file or a store names: run only where the command names the same place, or trusts all."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline import make_request, run_all
from processes import Process

from flows.options import StudyOptions, read_study
from flows.results import open_study
from infra.storage import Store
from tasks.science.specs.cell import Cell
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.request import Request
from tasks.science.symmetry.tracing.graph import TraceError
from tasks.stored.requests import save_request

STUDY = {"name": '"stranger"', "dataset": '"digits"', "architecture": '"mlp"', "depth": "2", "recipe": '"small/digits"'}

MODULE = """
from pathlib import Path

import torch
from torch import nn

Path("MARK").touch()


def build(width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def load():
    images = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 10
    return (images, labels), (images, labels)
"""

Call = Callable[..., tuple[int, str, str]]

_numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder that leaves a file MARK when it is imported, under a name never used before."""
    name = f"marking_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return name


def write(folder: Path = Path(), **fields: str) -> str:
    """A study's file with these fields in place of its own; returns its name."""
    path = folder / "stranger.toml"
    kept = {key: value for key, value in {**STUDY, **fields}.items() if value}
    path.write_text("".join(f"{key} = {value}\n" for key, value in kept.items()))
    return str(path)


NETWORK = {"depth": ""}
"""A user-defined network has no number of hidden layers to give."""

FORMS = {
    "data": ({"dataset": '"MODULE:load"'}, "--data MODULE:load"),
    "data among others": ({"dataset": '["digits", "MODULE:load"]'}, "--data MODULE:load"),
    "network": ({"architecture": '"MODULE:build"', **NETWORK}, "--network MODULE:build"),
    "network among others": ({"architecture": '["mlp", "MODULE:build"]'}, "--network MODULE:build"),
    "both": (
        {"architecture": '"MODULE:build"', "dataset": '"MODULE:load"', **NETWORK},
        "--network MODULE:build --data MODULE:load",
    ),
    "several": ({"dataset": '["MODULE:load", "os:abort"]'}, "--data MODULE:load,os:abort"),
    "abort": ({"dataset": '"os:abort"'}, "--data os:abort"),
    "system": ({"architecture": '"os:system"', **NETWORK}, "--network os:system"),
    "escaped": ({"dataset": '"o\\u0073:abort"'}, "--data os:abort"),
}


@pytest.mark.parametrize("words", [["--dry-run"], ["--yes", "--json", "--dataset", "digits"]], ids=["planned", "run"])
@pytest.mark.parametrize("form", FORMS)
def test_code_that_only_a_file_names_is_not_imported(call: Call, module: str, form: str, words: list[str]):
    fields, options = FORMS[form]
    file = write(**{key: value.replace("MODULE", module) for key, value in fields.items()})
    code, out, err = call("run", file, *words)
    assert (code, out) == (2, "")
    assert err == (
        f"repairlab: stranger names code, which runs only where you name it too: give "
        f"{options.replace('MODULE', module)}, or --trust-code to run all code that it names\n"
    )
    assert not Path("MARK").exists()
    assert module not in sys.modules
    assert str(Path.cwd()) not in sys.path
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"dataset": '" MODULE:load"'}, "--data takes package.module:function, got ' MODULE:load'"),
        ({"dataset": '"MODULE:load "'}, "--data takes package.module:function, got 'MODULE:load '"),
        ({"dataset": '"MODULE: load"'}, "--data takes package.module:function, got 'MODULE: load'"),
        ({"dataset": '"MODULE:load:load"'}, "--data takes package.module:function, got 'MODULE:load:load'"),
        ({"dataset": '"./MODULE:load"'}, "--data takes package.module:function, got './MODULE:load'"),
        ({"architecture": '"MODULE:"'}, "--network takes package.module:function, got 'MODULE:'"),
        ({"dataset": '"MODULE\\u001b[2J:load"'}, "got 'MODULE\\x1b[2J:load'"),
        ({"dataset": '"MODULE.load"'}, "there is no data set 'MODULE.load'"),
        ({"dataset": '"../MODULE"'}, "there is no data set '../MODULE'"),
        ({"dataset": '"/etc"'}, "there is no data set '/etc'"),
        ({"dataset": '{place = "MODULE:load"}'}, "dataset cannot be {'place': 'MODULE:load'}"),
        ({"dataset": '[["MODULE:load"]]'}, "dataset cannot be ['MODULE:load']"),
        ({"architecture": '"MODULE.build"'}, "there is no architecture 'MODULE.build'"),
        ({"normalization": '"MODULE:build"'}, "mlp has no normalization 'MODULE:build'"),
        ({"recipe": '"MODULE:build"'}, "there is no recipe 'MODULE:build'"),
        ({"recipe": '{base = "small/digits", optimizer = "MODULE:build"}'}, "optimizer must be one of"),
        ({"recipe": '{base = "small/digits", initialization = "MODULE:build"}'}, "initialization must be one of"),
        ({"recipe": '{base = "small/digits", dataset = "MODULE:load"}'}, "recipe has no field 'dataset'"),
        ({"matcher": '"MODULE:build"'}, "there is no matcher 'MODULE:build'"),
        ({"matcher": '"activation/solver=MODULE:build"'}, "solver must be one of"),
        ({"correction": '"MODULE:build"'}, "there is no correction 'MODULE:build'"),
        ({"measurement": '{evaluated_in = "MODULE:build"}'}, "evaluated_in must be one of"),
        ({"sweep": '{dataset = ["MODULE:load"]}'}, "dataset has an option of its own"),
        ({"sweep": '{architecture = ["MODULE:build"]}'}, "architecture has an option of its own"),
        ({"sweep": '{optimizer = ["MODULE:build"]}'}, "optimizer must be one of"),
        ({"network": '"MODULE:build"'}, "there is no field 'network'"),
        ({"data": '"MODULE:load"'}, "there is no field 'data'"),
        ({"imports": '{network = "MODULE:build"}'}, "there is no field 'imports'"),
        ({"trust_code": "true", "dataset": '"MODULE:load"'}, "there is no field 'trust_code'"),
        ({"store": '"/tmp/x"'}, "there is no field 'store'"),
        ({"data_dir": '"/etc"'}, "there is no field 'data_dir'"),
        ({"name": '"../stranger"', "dataset": '"MODULE:load"'}, "'../stranger' is no name"),
        ({"name": '"/tmp/stranger"'}, "'/tmp/stranger' is no name"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_word_in_a_file_that_is_no_place_or_stands_elsewhere_imports_nothing(
    call: Call, module: str, fields: dict[str, str], sentence: str
):
    """Even where the file is trusted with code, unless it names a place besides."""
    file = write(**{key: value.replace("MODULE", module) for key, value in fields.items()})
    trusted = [] if any(place in str(fields) for place in ("MODULE:load", "MODULE:build")) else ["--trust-code"]
    code, out, err = call("run", file, "--dry-run", *trusted)
    assert (code, out) == (2, "")
    assert sentence.replace("MODULE", module) in err
    assert err.count("\n") == 1
    assert not Path("MARK").exists()


BOTH = {"architecture": '"MODULE:build"', "dataset": '"MODULE:load"', **NETWORK}


@pytest.mark.parametrize("words", [["--network", "MODULE:build", "--data", "MODULE:load"], ["--trust-code"]], ids=str)
def test_code_that_the_command_names_too_is_run(call: Call, module: str, words: list[str]):
    file = write(**{key: value.replace("MODULE", module) for key, value in BOTH.items()})
    code, out, err = call("run", file, "--dry-run", *(word.replace("MODULE", module) for word in words))
    assert code == 0, err
    assert out.startswith("4 endpoints, 6 pairs")
    assert Path("MARK").exists()


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        (BOTH, {"network": "MODULE:build", "data": "MODULE:load"}),
        (BOTH, {"trust_code": True}),
        ({"dataset": '["digits", "MODULE:load"]'}, {"data": "MODULE:load"}),
        ({"dataset": '["digits", "MODULE:load"]'}, {"data": "digits, MODULE:load"}),
        ({"dataset": '["digits", "MODULE:load"]'}, {"dataset": ["MODULE:load"]}),
        ({"architecture": '["mlp", "MODULE:build"]'}, {"architecture": ["MODULE:build"]}),
    ],
)
@pytest.mark.usefixtures("module")
def test_the_options_that_name_a_place_are_those_that_take_one(fields: dict[str, str], options: dict[str, Any]):
    own = read_study(Path(write(**fields)))
    assert StudyOptions(study=own.name, own=own, **options).preset(lambda _: None) == own.preset()
    with pytest.raises(ValueError, match="stranger names code"):
        StudyOptions(study=own.name, own=own).preset(lambda _: None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data", "os:getcwd"], "--data os:getcwd is not in the file of stranger, which names digits, MODULE:load"),
        (["--network", "MODULE:build"], "--network MODULE:build is not in the file of stranger, which names mlp"),
        (["--data", "digits"], "stranger names code, which runs only where you name it too: give --data MODULE:load"),
        (["--network", "mlp"], "stranger names code, which runs only where you name it too: give --data MODULE:load"),
    ],
)
def test_another_place_than_the_files_is_no_leave_to_run_it(call: Call, module: str, words: list[str], sentence: str):
    file = write(dataset=f'["digits", "{module}:load"]')
    code, _, err = call("run", file, "--dry-run", *(word.replace("MODULE", module) for word in words))
    assert code == 2
    assert sentence.replace("MODULE", module) in err
    assert not Path("MARK").exists()


def test_a_files_own_folder_is_not_where_code_is_looked_for(call: Call, module: str, tmp_path: Path):
    """The module lies beside the file, and the command is given in another folder."""
    (tmp_path / "theirs").mkdir()
    Path(f"{module}.py").rename(tmp_path / "theirs" / f"{module}.py")
    file = write(tmp_path / "theirs", dataset=f'"{module}:load"')
    for words in (["--data", f"{module}:load"], ["--trust-code"]):
        code, _, err = call("run", file, "--dry-run", *words)
        assert code == 2
        assert f"there is no module {module} in this folder or among what is installed" in err
    assert str(tmp_path / "theirs") not in sys.path
    assert not list(tmp_path.rglob("MARK"))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("prefect.toml", "[logging]\nconfig_path = 'log.yml'\n"),
        (".env", "prefect_logging_config_path=log.yml\n"),
        ("pyproject.toml", "[tool.prefect.logging]\nconfig_path = 'log.yml'\n"),
        ("pyproject.toml", "tool = {prefect = {api = {url = 'http://127.0.0.1:9/api'}}}\n"),
    ],
)
@pytest.mark.usefixtures("module")
def test_a_file_beside_a_studys_that_sets_prefect_up_is_refused(call: Call, file: str, text: str):
    """A configuration of its log may call anything."""
    Path(file).write_text(text)
    study = write()
    for words in (["--dry-run"], ["--data", "digits"]):
        code, out, err = call("run", study, *words)
        assert (code, out) == (2, "")
        assert err == (
            f"repairlab: {file} in this folder configures Prefect, which may run code: give the command in another "
            "folder, or --trust-code where you trust it\n"
        )
    assert call("run", study, "--trust-code", "--dry-run")[0] == 0
    assert call("run", "digits-depth", "--dry-run")[0] == 0  # A folder of one's own.


@pytest.mark.usefixtures("module")
def test_a_project_of_ones_own_that_does_not_set_prefect_up_is_no_hindrance(call: Call):
    Path("pyproject.toml").write_text("[tool.ruff]\nline-length = 120\n")
    Path(".env").write_text("AWS_DEFAULT_REGION=x\n")
    assert call("run", write(), "--dry-run")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["processes", "dask"])
def test_modules_beside_a_studys_file_are_run_by_no_process_of_a_run(tmp_path: Path, runner: str):
    """Named like those of Python and of what is installed, in the folder that the command is given in."""
    mark = tmp_path / "mark"
    (folder := tmp_path / "theirs").mkdir()
    ours = {"flows", "tasks", "infra"}
    installed = {name for name in importlib.metadata.packages_distributions() if name.isidentifier()}
    for name in {*sys.stdlib_module_names, *installed, *ours, "sitecustomize", "usercustomize"}:
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r})\n")
    file = write(folder, width="8", seeds="2", recipe='{base = "small/digits", epochs = 1}', measurement="{alphas = 3}")
    words = ("repairlab", "run", Path(file).name, "--runner", runner)
    with Process(folder / "run.log", *words, PREFECT_HOME=str(tmp_path / "prefect")) as process:
        assert process.wait() == 0, process.output()[-3000:]
    assert not mark.exists(), mark.read_text()


def test_every_other_command_takes_a_files_name_for_a_study(call: Call, module: str):
    file = write(dataset=f'"{module}:load"')
    for words in (["report", file], ["compare", file], ["doctor", "--store", "runs"], ["du"], ["gc"]):
        call(*words)
        assert not Path("MARK").exists()


@pytest.fixture
def hostile(tmp_path: Path, module: str, blobs, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with tables, and beside their request one of a stranger's whose network is code."""
    store = Store(str(tmp_path / "store"))
    monkeypatch.setattr("tasks.train.load_dataset", lambda *_: blobs)
    for module_name in ("align", "stored.pairs"):
        monkeypatch.setattr(f"tasks.{module_name}.load_dataset", lambda *_: blobs)
    recipe = Recipe("r", batch_size=40, epochs=2, learning_rate=0.05, warmup=0.1)
    request = make_request(Cell(blobs.spec, "mlp", "none", 8, 2, recipe), n_seeds=2, alphas=3)
    run_all(store, request)
    cell = dataclasses.replace(request.cells[0], architecture=f"{module}:build", graph="0" * 64)
    theirs = Request("test", (cell,), (0, 1), ("none",), ("none",), request.measurements)
    save_request(store, theirs)
    return store


def test_code_that_a_stored_request_names_is_run_by_no_command(call: Call, module: str, hostile: Store):
    for words in (["run", "test", "--dry-run"], ["report", "test"], ["compare", "test"], ["du"], ["gc"]):
        call(*words, "--store", hostile.url)
        assert module not in sys.modules, words
        assert not Path("MARK").exists(), words


def test_the_network_of_a_point_is_made_by_stored_code_only_where_that_is_trusted(
    module: str, hostile: Store, monkeypatch: pytest.MonkeyPatch
):
    study = open_study(hostile, "test")
    mine = study.barriers["merge_id"].iloc[0]
    assert study.network(mine, 0.5)
    path = next(iter(study._paths))
    cell = dataclasses.replace(path.pairing.cell, architecture=f"{module}:build", graph="0" * 64)
    theirs = dataclasses.replace(path, pairing=dataclasses.replace(path.pairing, cell=cell))
    monkeypatch.setitem(study.__dict__, "_paths", [theirs])
    with pytest.raises(ValueError, match=f"test names code, {module}:build, which runs only where you trust it: trust"):
        study.network(theirs.pairing.id, 0.5)
    assert not Path("MARK").exists()
    with pytest.raises(TraceError, match="cannot be traced"):  # It is for other images.
        study.network(theirs.pairing.id, 0.5, trust_code=True)
    assert Path("MARK").exists()
