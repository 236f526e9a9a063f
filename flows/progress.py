"""Shows how far a study is: a bar per stage on a terminal, a line per stage elsewhere."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Stages:
    """Counts what each stage has to do and has done."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console, self._progress = console, progress
        self._bars = {}
        self._totals: dict[str, int] = {}
        self._done: dict[str, int] = {}

    def expect(self, stage: str, n: int) -> None:
        """`n` more things for `stage` to do."""
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(stage, total=0)
        self._totals[stage] = self._totals.get(stage, 0) + n
        if not self._console.is_terminal and n and self._totals[stage] == n:
            self._console.print(f"{stage}: begun", highlight=False)
        self._progress.update(self._bars[stage], total=self._totals[stage])

    def advance(self, stage: str, n: int) -> None:
        """`n` of them done."""
        self._done[stage] = self._done.get(stage, 0) + n
        self._progress.update(self._bars[stage], advance=n)
        if not self._console.is_terminal and self._done[stage] == self._totals[stage]:
            self._console.print(f"{stage}: {self._done[stage]} done", highlight=False)


@contextmanager
def show_stages(*, quiet: bool = False) -> Generator[Stages]:
    """Stages on standard error, so that what a command prints stays clean; counted only, where `quiet`."""
    console = Console(stderr=True, quiet=quiet)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
    )
    with progress:
        yield Stages(console, progress)
