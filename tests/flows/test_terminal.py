"""Names of strangers on a terminal, a page, a picture and Prefect's page: shown, never obeyed."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.live import Live
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from flows.cli import app, main
from flows.refusals import WrongWordsError
from flows.report.figures.chart import Chart, Line, Panel, PanelAxis
from flows.report.figures.drawing import draw_png
from flows.report.prefect_page import as_markdown
from flows.stages import Stages
from flows.study import UnfinishedError
from flows.terminal import make_console, say, tell
from flows.work import Work
from infra.runners import Routing
from infra.settings import Settings
from infra.storage import Store, StoreError
from infra.text import MOST_CHARACTERS, one_line, printable

HOSTILE = (
    "\x1b[31mred", "\x1b]0;title\x07", "\x9b31m", "a\rb", "\u202eabc", "\u2066x", "\u200bx", "\x00", "\x7f", "\ud800",
    "\U000e0041", "\u2028", "a\nrepairlab: all is well",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_name_is_one_line_of_printable_characters(name: str):
    assert one_line(name).isprintable()
    assert printable(name).replace("\n", "").isprintable()
    assert one_line(f"{name}é 日本 ß") == one_line(name) + "é 日本 ß"


def test_a_line_has_an_end():
    assert one_line("x" * 10**6) == "x" * MOST_CHARACTERS + "..."
    assert one_line("\x1b" * 10**6) == ("\\x1b" * MOST_CHARACTERS)[:MOST_CHARACTERS] + "..."
    assert one_line("  two  spaces") == "  two  spaces"


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_nothing_that_is_printed_commands_the_terminal(name: str, capsys: pytest.CaptureFixture[str]):
    out = io.StringIO()
    console = make_console(file=out, width=80)
    table = Table("name", title=name, box=None)
    table.add_row(name)
    table.add_row(Text(name))
    console.print(table)
    console.print(name)
    console.print(Text(name), soft_wrap=True)
    tell(console, f"left out: {name}")
    with Live(console=console):
        console.print(name)
    say(name)
    say(name, err=True)
    told = capsys.readouterr()
    for shown in (out.getvalue(), told.out, told.err):
        assert all(line.isprintable() for line in shown.split("\n"))
    assert f"left out: {one_line(name)}" in out.getvalue()


def test_no_name_is_markup():
    out = io.StringIO()
    console = make_console(file=out, width=80, force_terminal=True, color_system="truecolor")
    table = Table("name", box=None)
    table.add_row("[red]x[/red] :smile:")
    console.print(table)
    console.print("[bold]y[/bold] [/oops]", highlight=False)
    tell(console, "[link=http://a]z[/link]")
    for shown in ("[red]x[/red] :smile:", "[bold]y[/bold] [/oops]", "[link=http://a]z[/link]"):
        assert shown in out.getvalue()


def test_a_terminal_still_has_its_colours_and_bars():
    out = io.StringIO()
    console = make_console(file=out, width=80, force_terminal=True, color_system="truecolor")
    console.print("bold", style="bold")
    with Progress(console=console) as progress:
        progress.update(progress.add_task("train", total=1), completed=1)
    assert "\x1b[1mbold\x1b[0m" in out.getvalue()
    assert "\x1b[?25l" in out.getvalue()


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
@pytest.mark.parametrize("kind", [WrongWordsError, StoreError, lambda text: UnfinishedError([text, text])])
def test_an_error_is_as_many_lines_as_it_has_sentences(
    name: str, kind: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail() -> None:
        raise kind(f"there is no {name}")

    monkeypatch.setattr("flows.cli.app", fail)
    with pytest.raises(SystemExit):
        main()
    sentence = f"there is no {one_line(name)}"
    n_sentences = 1 if isinstance(kind, type) else 2
    assert capsys.readouterr().err == "repairlab: " + "\n".join([sentence] * n_sentences) + "\n"


def test_names_in_files_are_printable_in_what_commands_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    torch.save({"net": {"a\x1b[31m\u202e": torch.zeros(1)}, "x\x9b": 1}, "a\x1b[31m.pt")
    Path("own.toml").write_text('"na\\u001b[31mme" = 3\n')
    Store(str(tmp_path / "runs")).create("studies/a\x1b[31m/requests/x.json", b"{}")
    calls = [
        ["import", "a\x1b[31m.pt", "--network", "mlp", "--data", "digits", "--set", "width=4", "--set", "depth=2"],
        ["import", "\x1b[31m", "--network", "mlp", "--data", "digits"],
        ["import", "a\x1b[31m.pt", "--network", "m\x1b[31m", "--data", "digits"],
        ["run", "own.toml", "--dry-run"],
        ["run", "digits-depth", "--dataset", "\x1b[31m"],
        ["run", "digits-depth", "--matcher", "weight/\x1b[31m=3"],
        ["run", "digits-depth", "--sweep", "\x1b[31m=3"],
        ["report", "\x1b[31m"],
        ["du"],
    ]
    for words in calls:
        monkeypatch.setattr("flows.cli.app", lambda words=words: app(words, standalone_mode=False))
        with pytest.raises(SystemExit):
            main()
        told = capsys.readouterr()
        assert told.out + told.err
        assert all(line.isprintable() for line in (told.out + told.err).split("\n")), words


def test_a_problem_of_a_task_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    logged: list[str] = []
    log = SimpleNamespace(warning=lambda _form, problem: logged.append(problem))
    monkeypatch.setattr("flows.work.run_logger", lambda: log)
    work = Work(Stages(), Routing.of(Settings(store=str(tmp_path))))
    work.report("no \x1b[31mlayer\nall is well")
    assert work.problems == logged == ["no \\x1b[31mlayer\\nall is well"]


def test_a_name_with_a_formula_is_drawn_as_it_is():
    line = Line("$\\frac", "#000000", (0.0, 1.0), (0.0, 1.0))
    chart = Chart((Panel("$\\oops$ $", PanelAxis("$x"), PanelAxis("y$"), (line,)),), 1)
    assert draw_png(chart).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("89.2 [88.1, 90.3]", "89.2 [88.1, 90.3]"),
        ("activation/reading=pre", "activation/reading=pre"),
        ("[x](javascript:alert)", r"\[x\]\(javascript\:alert\)"),
        ("<img src=x>", r"\<img src\=x\>"),
        ("**b** `c`", r"\*\*b\*\* \`c\`"),
        ("a\x1b[31m", r"a\\x1b\[31m"),
    ],
)
def test_a_name_is_no_markdown_on_prefects_page(text: str, shown: str):
    assert as_markdown(text) == shown
