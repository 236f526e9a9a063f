"""Displays of the progress of a study: bars on a terminal, lines elsewhere, and further watchers."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from flows.stages import Stage, Stages, Watcher
from flows.terminal import make_console
from infra.interrupt import before_the_end

_LINE_SECONDS = 60.0
"""The seconds between lines of a working stage, at least, where there is no terminal."""

_TICK_SECONDS = 0.5

_PATIENCE_SECONDS = 15.0
"""The seconds that the end of a study waits for a watcher to have its last look."""


class Lines:
    """A line where a stage begins, at most one a minute while it works, and one at its end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: dict[str, float] = {}
        self._over: set[str] = set()

    def look(self, stages: Sequence[Stage], now: float, *, last: bool) -> None:
        """Write the lines that are due."""
        for stage in stages:
            if stage.name not in self._told:
                todo = f"{stage.n_expected} {stage.unit} to do" if stage.whole else "begun"
                self._say(f"{stage.label}: {todo}", stage, now)
            if stage.name in self._over:
                continue
            if stage.is_over or last:
                self._over.add(stage.name)
                self._say(f"{stage.label}: {stage.tell(now)}", stage, now)
            elif now - self._told[stage.name] >= _LINE_SECONDS:
                self._say(f"{stage.label}: {stage.tell(now)}", stage, now)

    def _say(self, line: str, stage: Stage, now: float) -> None:
        self._told[stage.name] = now
        self._console.print(line, highlight=False, soft_wrap=True)


class _Told(ProgressColumn):
    """The progress of a stage in words, as its task holds them."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["told"])

    def get_table_column(self) -> Column:
        return Column(no_wrap=True)


class Bars:
    """A bar per stage."""

    def __init__(self, console: Console) -> None:
        # Where room is short the bar is, and not the words.
        bar = BarColumn(bar_width=None, table_column=Column(min_width=4, max_width=20))
        self._progress = Progress(TextColumn("{task.description}"), bar, _Told(), console=console)
        self._bars: dict[str, Any] = {}
        self._drawing, self._is_over = threading.Lock(), False

    def look(self, stages: Sequence[Stage], now: float, *, last: bool) -> None:
        """Draw the bars."""
        with self._drawing:
            if not self._is_over:
                self._draw(stages, now, last=last)

    def end(self) -> None:
        """Leave the terminal in order, below the bars, and draw no more."""
        with self._drawing:
            self._is_over = True
            self._progress.stop()

    def _draw(self, stages: Sequence[Stage], now: float, *, last: bool) -> None:
        self._progress.start()
        for stage in stages:
            told = stage.tell(now)
            if stage.name not in self._bars:
                self._bars[stage.name] = self._progress.add_task(stage.label, told=told)
            self._progress.update(self._bars[stage.name], total=stage.n_expected, completed=stage.n_done, told=told)
        if last:
            self._progress.stop()


@contextmanager
def show_stages(watchers: Sequence[Watcher] = (), *, quiet: bool = False) -> Generator[Stages]:
    """Yield stages that are shown to `watchers` and, unless `quiet`, on standard error."""
    console = make_console(stderr=True)
    bars = Bars(console) if console.is_terminal and not quiet else None
    terminal: list[Watcher] = [] if quiet else [bars or Lines(console)]
    stages, ended = Stages(), threading.Event()

    def watch(watcher: Watcher) -> None:
        while not ended.wait(_TICK_SECONDS):
            stages.show(watcher)
        stages.show(watcher, last=True)

    # A thread for each: a server that is slow to answer holds up neither the study nor the terminal.
    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(watch, watcher), daemon=True)
        for watcher in [*terminal, *watchers]
    ]
    for thread in threads:
        thread.start()
    try:
        with nullcontext() if bars is None else before_the_end(bars.end):
            yield stages
    finally:
        stages.settle()
        ended.set()
        for thread in threads:
            thread.join(_PATIENCE_SECONDS)
