"""The command, as a person calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from made_tables import write_study
from object_storage import BUCKET

from flows.cli import main
from infra.paths import report_key
from infra.sealing import seal_page
from infra.storage import Store

COMMAND = Path(sys.executable).with_name("repairlab")


def call(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(COMMAND), *words], cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "REPAIRLAB_DATA_DIR": str(cwd / "data")},
    )  # fmt: skip


CallHere = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def call_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> CallHere:
    """The same in this process and a folder of its own, where the seconds that a new process takes show nothing."""

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["repairlab", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        code = ended.value.code
        return subprocess.CompletedProcess(words, code if isinstance(code, int) else 0, written.out, written.err)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPAIRLAB_DATA_DIR", str(tmp_path / "data"))
    return call


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("run", "nope"), "there is no study 'nope'; known: digits-depth, width, "),
        (("run", "mlp-width", "--width", "-3"), "width must be at least 1, got -3"),
        (("run", "digits-depth", "--alphas", "10"), "the number of alphas must be odd and at least 3"),
        (("run", "digits-depth", "--width", "32,wide"), "--width takes whole numbers, got 32, wide"),
        (
            ("run", "digits-depth", "--matcher", "activation/reading=sideways"),
            "matcher activation: reading must be one of",
        ),
        (("run", "digits-depth", "--correction", "reset"), "correction reset is not defined for normalization none"),
        (("run", "digits-depth", "--correction", "magic"), "there is no correction 'magic'; known: none, repair"),
        (("run", "digits-depth", "--statistics", "1"), "statistics must be at least 2, got 1"),
        (("run", "r20-norm-short", "--normalization", "fixup"), "r20-norm-short has no normalization 'fixup'; it has"),
        (("run", "digits-depth", "--dataset", "imagenette"), "there is no data set 'imagenette'"),
        (("run", "digits-depth", "--precision", "half"), "precision must be float32, bfloat16 or float16, got 'half'"),
        (
            ("run", "digits-depth", "--precision", "float16"),
            "recipe digits/precision=float16: precision=float16 needs skip_nonfinite=True",
        ),
        (
            ("run", "mlp-width", "--recipe", "table1-skip", "--precision", "float16"),
            "recipe table1-skip/precision=float16 trains in float16, which needs a GPU: on a CPU ask for",
        ),
        (("run", "digits-depth", "--runner", "gpu"), "--runner takes processes, threads or dask, got gpu"),
        (("run", "digits-depth", "--size", "huge"), "digits-depth has no size 'huge'"),
        (("run", "digits-depth", "--sweep", "learning_rate"), "--sweep takes FIELD=VALUE,VALUE,..., got learning_rate"),
        (("run", "digits-depth", "--sweep", "batch_size=8,x"), "batch_size takes whole numbers, got x"),
        (("run", "digits-depth", "--sweep", "epoch=1,first"), "epoch takes whole numbers, got first"),
        (("run", "digits-depth", "--sweep", "epoch=1,61"), "epoch must be a whole number from 0 to 60, the epochs of"),
        (("run", "digits-depth", "--sweep", "flip=maybe"), "flip is true or false, got maybe"),
        (("run", "digits-depth", "--sweep", "speed=1"), "there is no field 'speed' to sweep; known, of recipes: "),
        (("run", "own.toml"), "own.toml cannot be read (No such file or directory)"),
        (("run", "mlp-width", "--dataset", "mnist"), "mlp-width would take about "),
        (("report", "../x"), "'../x' is no name"),
    ],
)
def test_wrong_words_are_one_sentence_and_exit_code_2(call_here: CallHere, words: tuple[str, ...], sentence: str):
    called = call_here(*words)
    assert called.returncode == 2
    assert called.stderr.startswith(f"repairlab: {sentence}" if "must be" not in sentence else "repairlab: ")
    assert sentence in called.stderr
    assert called.stderr.count("\n") == 1
    assert called.stdout == ""
    assert list(Path().iterdir()) == []


def test_wrong_words_end_the_command_with_2(tmp_path: Path):
    called = call("run", "nope", cwd=tmp_path)
    assert called.returncode == 2
    assert called.stderr.startswith("repairlab: there is no study 'nope'; known: digits-depth, ")
    assert called.stdout == ""


def test_a_command_or_option_that_is_not_there_exits_with_2(call_here: CallHere):
    assert call_here("frobnicate").returncode == 2
    assert call_here("run", "digits-depth", "--frobnicate").returncode == 2


def test_a_store_that_cannot_be_written_is_one_sentence(call_here: CallHere):
    Path("file").write_text("")
    called = call_here("run", "digits-depth", "--store", "file/store")
    assert called.returncode == 1
    assert called.stderr.startswith("repairlab: the store file/store cannot be written (")
    assert called.stderr.count("\n") == 1


def test_missing_data_are_one_sentence_before_anything_starts(
    call_here: CallHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    called = call_here("run", "mlp-width", "--dataset", "mnist", "--width", "32", "--yes")
    assert called.returncode == 1
    assert called.stderr.splitlines()[-1].startswith("repairlab: mnist: its files were not found and they could not be")
    assert not (tmp_path / "runs" / "endpoints").exists()


def test_a_dry_run_prints_its_counts_first_and_needs_neither_data_nor_server(call_here: CallHere, tmp_path: Path):
    called = call_here("run", "mlp-width", "--dataset", "mnist", "--width", "32,64", "--dry-run")
    assert called.returncode == 0, called.stderr
    assert called.stdout.startswith("10 endpoints, 20 pairs, ")
    assert "mnist was not found" in called.stdout
    assert list(tmp_path.iterdir()) == []


def test_matchers_corrections_and_networks_can_be_chosen(call_here: CallHere):
    words = ("--matcher", "none,activation/reading=pre,solver=scipy,weight/restarts=2", "--correction", "none,reset")
    called = call_here("run", "r20-norm-short", *words, "--statistics", "5000", "--dry-run")
    assert called.returncode == 0, called.stderr
    assert called.stdout.startswith("8 endpoints, 12 pairs, ")
    assert "correction reset is not defined for resnet20 with normalization layer, and left out there" in called.stdout
    one = call_here("run", "r20-norm-short", *words, "--normalization", "batch", "--dry-run")
    assert one.stdout.startswith("4 endpoints, 6 pairs, ")
    assert "left out" not in one.stdout


def test_studies_are_listed_with_what_they_ask_and_cost(call_here: CallHere):
    called = call_here("studies")
    assert called.returncode == 0
    assert "digits-depth: How does the barrier" in called.stdout
    assert "140 endpoints, 280 pairs, " in called.stdout
    assert "recipes mlp, table1, table1-skip; sizes smoke, small; figure mlp_datasets2; run here: " in called.stdout


def test_a_report_without_tables_says_how_to_make_them(call_here: CallHere):
    assert call_here("report", "nonsense").returncode == 2
    called = call_here("report", "digits-depth")
    assert called.returncode == 1
    assert "has no tables of digits-depth; `repairlab run digits-depth`" in called.stderr


PAGE = seal_page("a page", report_key("digits-depth"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a browser was asked to open."""
    urls: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: urls.append(url) or True)
    return urls


def test_a_page_in_a_folder_is_opened_where_it_lies(call_here: CallHere, opened: list[str], tmp_path: Path):
    page = tmp_path / "my runs" / report_key("digits-depth")
    Store(str(tmp_path / "my runs")).replace(report_key("digits-depth"), PAGE)
    called = call_here("report", "digits-depth", "--store", "my runs", "--open")
    assert (called.returncode, called.stdout.strip()) == (0, str(page))
    assert opened == [page.as_uri()]
    assert page.read_bytes() == PAGE


def test_a_page_that_was_changed_is_not_opened(call_here: CallHere, opened: list[str], tmp_path: Path):
    Store(str(tmp_path / "runs")).replace(report_key("digits-depth"), PAGE.replace(b"a page", b"A page"))
    called = call_here("report", "digits-depth", "--open")
    assert called.returncode == 1
    assert "report.html is damaged (its content is not what was written under its name)" in called.stderr
    assert opened == []


def test_a_page_that_is_not_there_is_drawn_and_opened(
    call_here: CallHere, opened: list[str], tmp_path: Path, ablation: pd.DataFrame
):
    write_study(Store(str(tmp_path / "runs")), ablation)
    assert call_here("report", "s", "--open").returncode == 0
    page = tmp_path / "runs" / report_key("s")
    assert opened == [page.as_uri()]
    assert "<html" in page.read_text()


@pytest.mark.s3
@pytest.mark.usefixtures("s3_credentials")
def test_a_page_on_s3_is_fetched_to_be_opened(
    call_here: CallHere, opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = Store(f"s3://{BUCKET}/{tmp_path.name}")
    store.replace(report_key("digits-depth"), PAGE)
    called = call_here("report", "digits-depth", "--store", store.url, "--open")
    page = Path(called.stdout.strip())
    assert (called.returncode, page.read_bytes()) == (0, PAGE)
    assert page.is_relative_to(tmp_path)
    assert opened == [page.as_uri()]


def test_without_a_browser_the_page_is_told(call_here: CallHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("webbrowser.open", lambda _url: False)
    Store(str(tmp_path / "runs")).replace(report_key("digits-depth"), PAGE)
    called = call_here("report", "digits-depth", "--open")
    assert called.returncode == 1
    assert called.stdout.strip() == str(tmp_path / "runs" / report_key("digits-depth"))
    assert called.stderr == "repairlab: there is no browser here; the page is the file above\n"


def test_what_needs_a_gpu_is_planned_and_said(call_here: CallHere):
    planned = call_here("run", "r20-curves", "--dry-run")
    assert planned.returncode == 0
    assert planned.stdout.startswith("10 endpoints, 20 pairs, ")
    assert "not to be trained here: recipe r20-saved trains in float16, which needs a GPU" in planned.stdout
    refused = call_here("run", "r20-curves", "--yes")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "which needs a GPU" in refused.stderr
