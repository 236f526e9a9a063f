"""What README, CONTRIBUTING and the pages of docs tell people to do, done."""

from __future__ import annotations

import ast
import html
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
from markdown_it import MarkdownIt
from torch import nn
from typer.testing import CliRunner

from flows.cli import app
from flows.presets import PRESETS
from infra.paths import table_key
from infra.storage import Store
from infra.tables import write_table
from tasks.data.datasets import load_dataset
from tasks.science.correction.sites import find_sites
from tasks.science.specs.corrections import CORRECTIONS
from tasks.tables import schema
from tasks.tables.columns import CELL

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

FOLLOWED = ("docs/howto/matcher.md", "docs/howto/correction.md")
"""Their commands need the code that they add: test_howto runs them."""

REFERENCE = ("flows.results", "tasks.science.evaluation.barrier", "tasks.science.statistics.jackknife", "infra.tables")

SYSTEM = (
    "apt-get", "cp", "docker", "done", "export", "for", "sbatch", "scp", "sleep", "source", "ssh",
)  # fmt: skip
"""What is not run here: programs of the system, which need root, another machine, a container engine or a cluster. Of
what they are given in quotes every command is checked like any other."""


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The commands of all shell blocks of `text`, without the variables set before them, and what stands in quotes that
    is itself a script."""
    for block in blocks("sh", text):
        yield from _commands_of(block)


def _commands_of(script: str) -> Iterator[list[str]]:
    # shlex knows no substitutions, and would take the end of a line with a comment.
    plain = re.sub(r"\$\([^()]*\)", "X", re.sub(r"(^|\s)#.*$", r"\1", script, flags=re.MULTILINE))
    lexer = shlex.shlex(plain.replace("\\\n", " "), posix=True, punctuation_chars=";&|\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words: list[str] = []
    for word in [*lexer, "\n"]:
        if word.strip(";&|\n"):
            words.append(word)
            continue
        while words and (re.fullmatch(r"\w+=.*", words[0], flags=re.DOTALL) or words[0] == "do"):
            del words[0]
        if words:
            yield words
        for inner in words[1:]:
            if " -m " in inner or "repairlab run" in inner:
                yield from _commands_of(inner)
        words = []


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


EVERY = [(name_of(page), words) for page in PAGES for words in commands(page.read_text())]

OURS = {tuple(words[1:]): page for page, words in EVERY if words[0].endswith("repairlab") and page not in FOLLOWED}
"""The words of every command of ours, once, and a page that it stands on."""


def test_commands_are_found_wherever_they_stand():
    script = (
        "A=$(hostname -i) B='x y' make up  # it's why\n"
        "ssh other 'source ./env && C=2 python -m x.y \\\n --host h &'\nfor i in 1; do\n"
    )
    assert list(_commands_of(script)) == [
        ["make", "up"],
        ["ssh", "other", "source ./env && C=2 python -m x.y   --host h &"],
        ["source", "./env"],
        ["python", "-m", "x.y", "--host", "h"],
        ["for", "i", "in", "1"],
    ]
    assert {name for name, _ in EVERY} > {"README.md", "CONTRIBUTING.md", "docs/scale.md", "docs/howto/s3.md"}


def test_every_shell_block_is_shell():
    scripts = [block for page in PAGES for block in blocks("sh", page.read_text())]
    assert len(scripts) > 10
    for script in scripts:
        ran = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{script}\n{ran.stderr}"


@pytest.mark.parametrize(("page", "words"), [one for one in EVERY if not one[1][0].endswith("repairlab")])
def test_every_other_command_of_the_docs_is_one_that_there_is(page: str, words: list[str]):
    """None is run: they start servers, change a machine or take minutes. Targets are looked up in the Makefile, options
    asked of the program's own parser, files and modules of ours looked for."""
    first, *rest = words
    if first == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
        assert set(rest) <= targets
    elif first == "prefect":
        # The stack starts the same, and a test of it in earnest.
        assert {f'"{word}"' for word in rest[:2]} <= set(re.findall(r'"\w+"', _text("infra/stack/parts.py")))
    elif first.endswith("python") and rest[0] == "-m":
        module = rest[1]
        assert importlib.util.find_spec(module) is not None
        if module.startswith("distributed."):
            known = {option for parameter in importlib.import_module(module).main.params for option in parameter.opts}
            assert {word for word in rest if word.startswith("--")} <= known
    elif first.endswith("python"):
        assert (ROOT / rest[0]).exists()
    else:
        assert first in SYSTEM, page


def _text(path: str) -> str:
    return (ROOT / path).read_text()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What docs call my_package and rates.toml, and weights of two such networks, in the current folder."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (module,) = (block for block in blocks("python", _text("docs/howto/network.md")) if "def load" in block)
    (tmp_path / "my_package/my_module.py").write_text(module)
    network = _network()
    for name in "ab":
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
        for place in (f"{name}.safetensors", f"checkpoints/seed_{ord(name)}.safetensors"):
            safetensors.torch.save_file(network.state_dict(), tmp_path / place)
    for page in PAGES:
        for file, study in re.findall(r"`([\w-]+\.toml)`:\n\n```toml\n(.*?)^```$", page.read_text(), re.DOTALL | re.M):
            (tmp_path / file).write_text(study)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_every_command_of_the_docs_is_understood(words: tuple[str, ...], request: pytest.FixtureRequest):
    """Runs are only planned, what was imported among them; everything else is run, on a real S3 server where it is on
    S3, and what needs tables says that there are none."""
    arguments = list(words)
    if any(word.startswith("s3://") for word in arguments):
        request.getfixturevalue("s3_credentials")
    for earlier in OURS if "imported" in arguments else []:
        if earlier[0] == "import":
            assert CliRunner().invoke(app, earlier).exit_code == 0
    if arguments[0] == "run" and "--dry-run" not in arguments:
        arguments = [*arguments, "--dry-run"]
    called = CliRunner().invoke(app, arguments)
    if arguments[0] in ("report", "compare"):
        # A user-defined study that was not run has no known name.
        refusal = "has no tables of" if arguments[1] in PRESETS else "there is no study"
        assert refusal in str(called.exception)
    elif arguments[0] == "doctor" and "cuda" in arguments:
        assert "on cuda" in called.output or "no GPU" in called.output
    else:
        assert called.exit_code == 0, f"{OURS[words]}: {called.output}"
        assert called.output.strip()


@pytest.mark.parametrize(
    ("command", "page", "n_least"),
    [
        ("run", "docs/options.md", 20),
        ("merge", "docs/howto/merge.md", 8),
        ("import", "docs/howto/network.md", 6),
        ("doctor", "docs/options.md", 6),
        ("gc", "docs/options.md", 3),
        ("studies", "docs/options.md", 1),
    ],
)
def test_every_option_stands_on_its_page(command: str, page: str, n_least: int):
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).output
    options = set(re.findall(r"--[a-z-]+", shown)) - {"--help"}
    assert len(options) >= n_least
    # Where a store is stands on the page of options, whatever takes it.
    text = _text(page) + _text("docs/options.md")
    assert {option for option in options if f"`{option}" not in text} == set()


def test_every_command_there_is_stands_on_the_page_of_options():
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert len(names) >= 8
    page = _text("docs/options.md")
    assert [name for name in names if f"`repairlab {name}" not in page] == []


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """A study's tables `ablation` and `barriers`, with a row for each correction."""
    store = Store(str(tmp_path / "runs"))
    cell = {"study": "digits-depth", "cell_id": "c", "width": 128, "depth": 4}
    cell |= {"split": "test", "matcher": "activation", "measurement": "default"}
    rows = [{**cell, "merge_id": "m", "correction": c, "metric": "accuracy_barrier"} for c in ("none", "repair")]
    for table in (schema.ABLATION, schema.BARRIERS):
        frame = pd.DataFrame(rows).reindex(columns=list(table.columns))
        write_table(store, table_key("digits-depth", table.name), table, frame, {"gathering": "g"})
    return tmp_path / "runs/studies/digits-depth"


def test_tables_on_s3_open_as_the_page_says(tables: Path, s3_credentials: None, capsys: pytest.CaptureFixture[str]):  # noqa: ARG001
    from s3fs import S3FileSystem

    filesystem = S3FileSystem()
    for path in tables.iterdir():
        filesystem.put(str(path), f"lab/repair/studies/digits-depth/{path.name}")
    by_pandas, by_duckdb, by_us = blocks("python", _text("docs/howto/s3.md"))
    for code in (by_pandas, by_duckdb):
        exec(code, {})  # noqa: S102
        assert "repair" in capsys.readouterr().out
    study: dict[str, object] = {}
    exec(by_us.split("print")[0], study)  # noqa: S102
    assert len(study["study"].ablation) == 2  # type: ignore[attr-defined]


def test_the_four_lines_that_merge_two_networks_merge_them(here: Path):
    (code,) = blocks("python", _text("docs/howto/merge.md"))
    assert len([line for line in code.splitlines() if line]) == 4
    ran = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    _network().load_state_dict(safetensors.torch.load_file(here / "merged.safetensors"), strict=True)


def test_every_link_of_the_docs_leads_to_a_file_that_is_there():
    links = [
        (page, target)
        for page in PAGES
        for target in re.findall(
            r"\]\(([^)#]+)[^)]*\)", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        )
        if "://" not in target
    ]
    assert len(links) > 30
    assert [f"{name_of(page)}: {target}" for page, target in links if not (page.parent / target).exists()] == []


def test_the_pictures_of_the_docs_are_there():
    pictures = [(page, path) for page in PAGES for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())]
    assert pictures
    for page, path in pictures:
        assert (page.parent / path).stat().st_size > 10_000


def test_every_module_and_function_of_the_method_is_there():
    text = _text("docs/method.md")
    modules = set(re.findall(r"`((?:tasks|benchmarks)/[^`]+\.py)`", text))
    assert len(modules) >= 15
    assert [module for module in modules if not (ROOT / module).exists()] == []
    named = re.findall(r"`(tasks/[^`]+\.py)`(?:,| \() ?((?:`\w+`(?:, | and )?)+)", text)
    assert len(named) >= 15
    for module, functions in named:
        defined = {node.name for node in ast.parse(_text(module)).body if hasattr(node, "name")}  # type: ignore[attr-defined]
        assert set(re.findall(r"\w{4,}", functions)) <= defined, module


def test_every_other_name_of_the_method_is_a_column_or_stands_in_the_code():
    columns = {name for table in schema.TABLES for name in table.columns}
    text = _text("docs/method.md")
    code = "".join(_text(module) for module in re.findall(r"`((?:tasks|benchmarks)/[^`]+\.py)`", text))
    names = set(re.findall(r"`([a-z]+_[a-z_]+)`", text))
    assert {"variance_ratio_target", "fit_probability", "new_pair_high"} <= names & columns
    assert {name for name in names - columns if f"def {name}(" not in code} == set()


def test_markdown_leaves_every_formula_as_it_is_written():
    """Where it does not know of mathematics, Markdown takes `*` and `_` for emphasis and `\\,` for a comma."""
    formulas = re.findall(r"\$\$.*?\$\$|\$[^$]+\$", _text("docs/method.md"), flags=re.DOTALL)
    assert len(formulas) > 40
    for formula in formulas:
        assert html.unescape(MarkdownIt().renderInline(formula)) == formula


def test_no_page_has_half_of_a_formula():
    for page in PAGES:
        text = re.sub(r"^```.*?^```$|`[^`]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        assert text.count("$$") % 2 == 0, page
        for paragraph in text.replace("$$", "").split("\n\n"):
            assert paragraph.count("$") % 2 == 0, paragraph


def test_the_index_names_every_page():
    index = ROOT / "docs/index.md"
    named = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+)\)", index.read_text())}
    assert {name_of(page) for page in PAGES if page != index and page not in named} == set()


def test_the_reference_is_built_without_a_warning_and_needs_no_network(tmp_path: Path):
    """Of a few of the modules that `make docs` names, with its own words."""
    (line,) = (line for line in _text("Makefile").splitlines() if " -m pdoc " in line)
    options = shlex.split(line)[1:]
    place = options.index("build/reference")
    assert {name.partition(".")[0] for name in options[place + 1 :]} == {"flows", "tasks", "infra"}
    words = [sys.executable, *options[:place], str(tmp_path), *REFERENCE]
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    page = (tmp_path / "flows/results.html").read_text()
    assert "Return how much larger" in page
    assert not re.findall(r"(?:src|@import)[=( ]*[\"']?https?:", page)


def test_every_public_function_has_a_docstring():
    """Of methods those of a study's results, which people call; elsewhere a class says what it does."""
    lacking: list[str] = []
    for path in [ROOT / "flows/results.py", *(ROOT / "tasks/science").rglob("*.py")]:
        for node in ast.parse(path.read_text()).body:
            members = node.body if isinstance(node, ast.ClassDef) and path.name == "results.py" else []
            for each in [node, *members]:
                if isinstance(each, ast.FunctionDef | ast.ClassDef) and not each.name.startswith("_"):
                    lacking += [] if ast.get_docstring(each) else [f"{path.relative_to(ROOT)}: {each.name}"]
    assert lacking == []


@pytest.mark.parametrize("name", ["options", "recipes", "tables"])
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
    page = _text("docs/corrections.md")
    for name, row in CORRECTIONS.items():
        assert f"| `{name}` | {row.does} | {row.touches} |" in page


def test_the_page_of_merges_has_a_row_for_every_network_that_its_script_merges():
    spec = importlib.util.spec_from_file_location("merges", ROOT / "docs/merges.py")
    assert spec is not None
    assert spec.loader is not None
    merges = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(merges)
    rows = re.findall(r"^\| (.+?) \| \d", (ROOT / "docs/merges.md").read_text(), flags=re.MULTILINE)
    assert rows == list(merges.NETWORKS)
    data = load_dataset("digits", Path())
    for build in merges.NETWORKS.values():
        sites = find_sites(network := build().eval(), network.state_dict(), data.train.images)
        assert sites.layers
