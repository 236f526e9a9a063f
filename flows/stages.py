"""The progress of a study: the units of each stage, those done, their rate and the time left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

_UNITS = {"train": "endpoints", "train_parent": "checkpoints", "align": "pairs"}

_LEAST_SECONDS = 2.0
"""The seconds below which no rate is told: several workers that end at once would make it arbitrarily large."""


@dataclass
class Stage:
    """The units of one stage; it is `whole` once no more units will be submitted.

    `since` is when its work began: when its first unit was submitted or, as workers take units in turn, when the last
    unit of another stage ended before its own first.
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
        """The name in words."""
        return self.name.replace("_", " ")

    @property
    def unit(self) -> str:
        """The unit that is counted."""
        return _UNITS.get(self.name, "paths")

    @property
    def n_ended(self) -> int:
        """The units that were done or failed."""
        return self.n_done + self.n_failed

    @property
    def is_over(self) -> bool:
        """True once all units of a whole stage have ended."""
        return self.whole and self.n_ended == self.n_expected

    @property
    def percent(self) -> int:
        """The share of units done; 100 only where all are."""
        return 100 * self.n_done // self.n_expected if self.n_expected else 0

    def rate(self) -> float | None:
        """Return the units that ended per second, up to the last of them; None before that can be told."""
        seconds = self.last - self.since
        return self.n_ended / seconds if self.n_ended and seconds >= _LEAST_SECONDS else None

    def seconds_left(self, now: float) -> float | None:
        """Return the time left by the rate so far; None before there is a rate, and while the stage is not whole.

        A stage that waits longer than it should for its next unit is taken to need as long again.
        """
        rate = self.rate()
        if rate is None or not self.whole:
            return None
        idle = now - self.last
        return max((self.n_expected - self.n_ended) / rate - idle, idle)

    def tell(self, now: float) -> str:
        """Return the progress in words: `12 of 36 endpoints, about 1 min left, 0.4 a second`.

        The least important words come last, since a narrow page cuts them off. Once it is over: `36 endpoints in 2
        min`.
        """
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
    """Return a duration in seconds, minutes or hours, whichever suits it."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 59.5 * 60:
        return f"{_short(seconds / 60)} min"
    return f"{_short(seconds / 3600)} h"


def tell_rate(per_second: float) -> str:
    """Return a rate per second, minute or hour, whichever suits it."""
    for per, name in ((1, "second"), (60, "minute")):
        if per_second * per >= 0.1:
            return f"{_short(per_second * per)} a {name}"
    return f"{_short(per_second * 3600)} an hour"


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 9.5 else f"{number:.2g}"


class Watcher(Protocol):
    """A display of stages; one thread calls it again and again."""

    def look(self, stages: Sequence[Stage], now: float, *, last: bool) -> None:
        """Show the news; everything where this is the `last` look."""
        ...


class Stages:
    """Counts of the units of each stage. Any thread may call it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._stages: dict[str, Stage] = {}
        self._last_end = clock()

    def expect(self, stage: str, n: int) -> None:
        """Add `n` units to `stage`."""
        with self._lock:
            found = self._stages.setdefault(stage, Stage(stage, since=self._clock()))
            found.n_expected += n
            found.whole = False

    def settle(self) -> None:
        """Declare the present stages whole: no more units will be submitted to them."""
        with self._lock:
            for stage in self._stages.values():
                stage.whole = True

    def advance(self, stage: str, n: int, *, failed: bool = False) -> None:
        """Count `n` units of a stage as done, or as `failed`."""
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
        """Show the stages as they are to `watcher`."""
        with self._lock:
            stages = [Stage(**vars(stage)) for stage in self._stages.values()]
        watcher.look(stages, self._clock(), last=last)
