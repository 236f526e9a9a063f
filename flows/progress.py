"""How far a study is: what each stage has to do, has done, at what rate, and how long it still takes.

One count feeds all that show it: bars on a terminal, lines elsewhere, artifacts on Prefect's page.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

_UNITS = {"train": "endpoints", "train_parent": "checkpoints", "align": "pairs"}

_LEAST_SECONDS = 2.0
"""Over less no rate is told: what several workers end at once would make it as large as one likes."""

_LINE_SECONDS = 60.0
"""How often, at most, a stage that works says so where there is no terminal."""

_TICK_SECONDS = 0.5

_PATIENCE_SECONDS = 15.0
"""How long the end of a study waits for a watcher to have its last look."""


@dataclass
class Stage:
    """The units of one stage, times as a clock tells them. It is `whole` once no more units will be handed out.

    `since` is when it came to work: when its first unit was handed out or, as workers take units in turn, when the last
    one of another stage ended before its own first.
    """

    name: str
    since: float
    n_expected: int = 0
    n_done: int = 0
    n_failed: int = 0
    last: float = 0.0
    whole: bool = False

    @property
    def label(self) -> str:
        return self.name.replace("_", " ")

    @property
    def unit(self) -> str:
        """What it counts."""
        return _UNITS.get(self.name, "paths")

    @property
    def n_ended(self) -> int:
        return self.n_done + self.n_failed

    @property
    def is_over(self) -> bool:
        return self.whole and self.n_ended == self.n_expected

    @property
    def percent(self) -> int:
        """What is done; 100 only where all of it is."""
        return 100 * self.n_done // self.n_expected if self.n_expected else 0

    def rate(self) -> float | None:
        """Units that ended per second, up to the last of them; None before that can be told."""
        seconds = self.last - self.since
        return self.n_ended / seconds if self.n_ended and seconds >= _LEAST_SECONDS else None

    def seconds_left(self, now: float) -> float | None:
        """By the rate so far; None before there is one, and while more may be handed out. One that waits longer than
        it should for its next unit is taken to need as long again."""
        rate = self.rate()
        if rate is None or not self.whole:
            return None
        idle = now - self.last
        return max((self.n_expected - self.n_ended) / rate - idle, idle)

    def tell(self, now: float) -> str:
        """As in `12 of 36 endpoints, about 1 min left, 0.4 a second`, where what is cut off on a narrow page is worth
        least; `36 endpoints in 2 min` once it is over."""
        counted = f"{self.n_done} of {self.n_expected} {self.unit}"
        if self.is_over and not self.n_failed:
            counted = f"{self.n_done} {self.unit}"
        if self.is_over:
            counted += f" in {tell_seconds(self.last - self.since)}"
        if self.n_failed:
            counted += f", {self.n_failed} failed"
        if self.is_over:
            return counted
        if (left := self.seconds_left(now)) is not None:
            counted += f", about {tell_seconds(left)} left"
        if (rate := self.rate()) is not None:
            counted += f", {tell_rate(rate)}"
        return counted


def tell_seconds(seconds: float) -> str:
    """A duration in the unit that a person would take."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 59.5 * 60:
        return f"{_short(seconds / 60)} min"
    return f"{_short(seconds / 3600)} h"


def tell_rate(per_second: float) -> str:
    for per, name in ((1, "second"), (60, "minute")):
        if per_second * per >= 0.1:
            return f"{_short(per_second * per)} a {name}"
    return f"{_short(per_second * 3600)} an hour"


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 9.5 else f"{number:.2g}"


class Watcher(Protocol):
    """Something that shows stages; one thread calls it, again and again."""

    def look(self, stages: Sequence[Stage], now: float, *, last: bool) -> None:
        """Shows what is new; all of it where this is the `last` look."""
        ...


class Stages:
    """Counts what each stage has to do and has done. Any thread may call it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._stages: dict[str, Stage] = {}
        self._last_end = clock()

    def expect(self, stage: str, n: int) -> None:
        """`n` more units for `stage` to do."""
        with self._lock:
            found = self._stages.setdefault(stage, Stage(stage, since=self._clock()))
            found.n_expected += n
            found.whole = False

    def settle(self) -> None:
        """Nothing more will be handed out to the stages that there are."""
        with self._lock:
            for stage in self._stages.values():
                stage.whole = True

    def advance(self, stage: str, n: int, *, failed: bool = False) -> None:
        """`n` of them done, or `failed`."""
        with self._lock:
            found, now = self._stages[stage], self._clock()
            if not found.n_ended:
                found.since = max(found.since, self._last_end)
            if failed:
                found.n_failed += n
            else:
                found.n_done += n
            found.last = self._last_end = now

    def show(self, watcher: Watcher, *, last: bool = False) -> None:
        """Has `watcher` look at the stages as they are."""
        with self._lock:
            stages = [Stage(**vars(stage)) for stage in self._stages.values()]
        watcher.look(stages, self._clock(), last=last)


class Lines:
    """A line where a stage begins, at most one a minute while it works, and one at its end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: dict[str, float] = {}
        self._over: set[str] = set()

    def look(self, stages: Sequence[Stage], now: float, *, last: bool) -> None:
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
    """A stage in words, as its task holds them."""

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

    def look(self, stages: Sequence[Stage], now: float, *, last: bool) -> None:
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
    """Stages that `watchers` are shown and, unless `quiet`, standard error, so that what a command prints stays
    clean."""
    console = Console(stderr=True)
    terminal: list[Watcher] = [] if quiet else [Bars(console) if console.is_terminal else Lines(console)]
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
        yield stages
    finally:
        stages.settle()
        ended.set()
        for thread in threads:
            thread.join(_PATIENCE_SECONDS)
