"""The pages of docs/howto, followed to the letter on a copy of the code."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "howto"
PACKAGES = ("flows", "tasks", "infra")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page that goes into `file`: a change of it, or all of a new one."""

    file: str
    text: str
    is_new: bool


def changes(page: str) -> list[Block]:
    """The blocks under "In `file`:", up to the next heading, and those under "New file `file`:"."""
    found: list[Block] = []
    file, is_new = "", False
    pattern = r"^(In|New file) `([^`]+)`:$|^```(\w+)\n(.*?)^```$|^#"
    for place, named, language, text in re.findall(pattern, page, flags=re.DOTALL | re.MULTILINE):
        if place:
            file, is_new = named, place == "New file"
        elif not language:
            file = ""
        elif file and language == ("python" if is_new else "diff"):
            found.append(Block(file, text, is_new))
    return found


def apply(block: Block, root: Path) -> None:
    """AssertionError where the lines that the block says are there are not, or stand in several places."""
    path = root / block.file
    if block.is_new:
        assert not path.exists(), f"{block.file} is there already"
        path.write_text(block.text)
        return
    lines = [line or " " for line in block.text.splitlines()]
    assert {line[0] for line in lines} <= {" ", "+", "-"}, f"{block.file}: no change: {block.text}"
    old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in kept) for kept in (" -", " +"))
    text = path.read_text()
    assert text.count(f"\n{old}") == 1, f"{block.file} has these lines {text.count(old)} times:\n{old}"
    path.write_text(text.replace(f"\n{old}", f"\n{new}"))


def follow(name: str, root: Path) -> set[str]:
    """Does to the copy of the code at `root` what the page says; the files that it names."""
    found = changes((PAGES / name).read_text())
    for block in found:
        apply(block, root)
    return {block.file for block in found}


def copied(root: Path) -> Path:
    """`root`, with a copy of the code."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def differing(root: Path) -> set[str]:
    """Files of the packages that are not what they are here."""
    files = {
        str(path.relative_to(base))
        for base in (ROOT, root)
        for package in PACKAGES
        for path in (base / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return {
        file
        for file in files
        if not (ROOT / file).exists()
        or not (root / file).exists()
        or (ROOT / file).read_bytes() != (root / file).read_bytes()
    }


def call(root: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a process that imports the copy at `root`, on one thread of one process."""
    settings = {
        "PYTHONPATH": str(root),
        "REPAIRLAB_RUNNER": "threads",
        "REPAIRLAB_WORKERS": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ, **settings},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


def command(name: str) -> list[str]:
    """The words of the one command of the page that runs a study."""
    (block,) = re.findall(r"```sh\n(.*?)```", (PAGES / name).read_text(), flags=re.DOTALL)
    return shlex.split(block)[1:]


OWN_FILES = {
    "matcher.md": {"tasks/science/specs/matchers.py", "tasks/science/alignment/matching.py"},
    "network.md": {"tasks/science/networks/lenet.py", "tasks/science/networks/__init__.py"},
    "correction.md": {"tasks/science/specs/corrections.py"},
    "data.md": {"tasks/data/datasets.py"},
    "study.md": {"flows/presets/weight_decay.py", "flows/presets/__init__.py"},
}

LENET = """
name = "lenet"
dataset = "digits"
architecture = "lenet"
seeds = 2
recipe = {base = "small/digits", epochs = 2}
measurement = {alphas = 3, statistics = 200, evaluation = 100}
correction = ["none", "rescale", "rescale-closed-form"]
controls = false
"""


@dataclass(frozen=True)
class Followed:
    """A copy of the code that was changed as all pages say, and what a process that imported it wrote."""

    root: Path
    out: str


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Followed:
    """All pages on one copy, so that none stands in the way of another; and one process, which takes long to start."""
    root = copied(tmp_path_factory.mktemp("followed"))
    for page, files in OWN_FILES.items():
        before = differing(root)
        assert follow(page, root) == files
        assert differing(root) - before == files
    (root / "lenet.toml").write_text(LENET)
    runs = [
        [*command("matcher.md"), "--epochs", "5", "--alphas", "3"],
        [*command("correction.md"), "--dry-run"],
        ["run", "width", "--dataset", "fashion_mnist_20k", "--dry-run"],
        ["run", "weight-decay", "--dry-run"],
        ["run", "lenet.toml"],
    ]
    ran = call(
        root,
        "import flows, tasks\n"
        "from tasks.science.specs.matchers import parse_matcher\n"
        "print(tasks.__path__[0])\n"
        "print(parse_matcher('activation-greedy/reading=pre').text)\n"
        "try:\n    parse_matcher('activation-greedy/solver=lapx')\n"
        "except ValueError as error:\n    print(error)\n"
        "from flows.cli import app\n"
        "from flows.presets import PRESETS\n"
        "from infra.runners import prefect_api\n"
        "print(PRESETS['weight-decay'].question)\n"
        f"with prefect_api():\n    for words in {runs!r}:\n        app(words, standalone_mode=False)\n"
        "from pathlib import Path\n"
        "from tasks.data.datasets import find_dataset, load_dataset\n"
        "if find_dataset('fashion_mnist_20k', Path('data')):\n"
        "    print(len(load_dataset('fashion_mnist_20k', Path('data')).train.labels), 'images')\n",
    )
    assert ran.returncode == 0, ran.stderr
    return Followed(root, ran.stdout)


@pytest.mark.xdist_group("howto")
def test_a_matcher_is_added_by_two_files_and_measured_like_any_other(followed: Followed):
    where, text, refusal, *_ = followed.out.splitlines()
    assert Path(where) == followed.root / "tasks"
    assert text == "activation-greedy/reading=pre"
    assert f"```text\n{refusal}\n```" in (PAGES / "matcher.md").read_text()
    tables = followed.root / "runs/studies/digits-depth"
    merges = pd.read_parquet(tables / "merges.parquet").query("kind == 'pair'")
    greedy, optimal = (merges[merges["matcher"] == name] for name in ("activation-greedy", "activation"))
    assert len(greedy) == len(optimal) == 3
    assert (greedy["function_error"] < 1e-9).all()
    assert [json.loads(options) for options in greedy["matcher_options"]] == [{"reading": "post"}] * 3
    beside = greedy.merge(optimal, on=["seed_a", "seed_b"], suffixes=("", "_optimal"))
    assert (beside["objective"] <= beside["objective_optimal"]).all()
    for table in ("paths", "barriers", "axes", "ablation", "contrasts"):
        assert "activation-greedy" in set(pd.read_parquet(tables / f"{table}.parquet")["matcher"]), table


@pytest.mark.xdist_group("howto")
def test_a_network_a_correction_a_data_set_and_a_preset_are_added_as_their_pages_say(followed: Followed):
    assert "Does weight decay make MLPs easier to merge?" in followed.out
    assert followed.out.count("to do: ") == 3
    if "images" in followed.out.splitlines()[-1]:
        assert followed.out.splitlines()[-1] == "20000 images"
    tables = followed.root / "runs/studies/lenet"
    merges = pd.read_parquet(tables / "merges.parquet").query("matcher == 'activation'")
    assert len(merges) == 1
    assert (merges["function_error"] < 1e-9).all()
    assert set(pd.read_parquet(tables / "axes.parquet")["size"]) == {6, 16, 120, 84}
    layers = pd.read_parquet(tables / "layers.parquet").query("matcher == 'activation' and alpha == 0.5")
    first = layers[layers["position"] == 0].set_index("correction")
    # The closed form is exact in the first layer, as is one batch of everything.
    assert first.loc["rescale-closed-form", "sd_error"] < 1e-4
    assert first.loc["none", "sd_error"] > 10 * first.loc["rescale-closed-form", "sd_error"]


def test_a_change_whose_place_is_gone_is_told(tmp_path: Path):
    block = Block(
        "tasks/science/specs/matchers.py", " there is no such line\n+and nothing goes behind it\n", is_new=False
    )
    with pytest.raises(AssertionError, match="has these lines 0 times"):
        apply(block, copied(tmp_path))
