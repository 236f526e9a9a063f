"""What a person is told of a study that is under way, by a clock that the test holds."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence

import pytest
from rich.console import Console

from flows.progress import Bars, Lines, show_stages
from flows.stages import Stage, Stages, tell_rate, tell_seconds
from infra import interrupt


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


class Last:
    """Remembers what it was last shown."""

    def look(self, stages: Sequence[Stage], now: float, *, last: bool) -> None:
        self.told = {stage.name: stage.tell(now) for stage in stages}
        self.stages, self.last = {stage.name: stage for stage in stages}, last


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stages(clock: Clock) -> Stages:
    return Stages(clock)


def told(stages: Stages, stage: str) -> str:
    stages.show(watcher := Last())
    return watcher.told[stage]


def test_a_stage_tells_counts_rate_and_time_left(stages: Stages, clock: Clock):
    stages.expect("train", 36)
    stages.settle()
    assert told(stages, "train") == "0 of 36 endpoints"
    clock.pass_by(30)
    stages.advance("train", 12)
    assert told(stages, "train") == "12 of 36 endpoints, about 1 min left, 0.4 a second"
    clock.pass_by(60)
    stages.advance("train", 24)
    clock.pass_by(1000)
    assert told(stages, "train") == "36 endpoints in 1.5 min"


def test_no_time_is_left_to_tell_before_there_is_a_rate_or_while_more_may_come(stages: Stages, clock: Clock):
    stages.expect("align", 6)
    clock.pass_by(1)
    stages.advance("align", 2)
    assert told(stages, "align") == "2 of 6 pairs"
    clock.pass_by(9)
    stages.advance("align", 2)
    assert told(stages, "align") == "4 of 6 pairs, 0.4 a second"
    stages.settle()
    assert told(stages, "align") == "4 of 6 pairs, about 5 s left, 0.4 a second"
    stages.expect("align", 6)
    assert told(stages, "align") == "4 of 12 pairs, 0.4 a second"


def test_time_left_runs_down_while_a_unit_is_waited_for_and_up_again_where_it_does_not_come(
    stages: Stages, clock: Clock
):
    stages.expect("train", 2)
    stages.settle()
    clock.pass_by(600)
    stages.advance("train", 1)
    for waited, left in ((0, "10 min"), (240, "6 min"), (360, "10 min"), (3000, "1 h")):
        clock.pass_by(waited)
        assert told(stages, "train") == f"1 of 2 endpoints, about {left} left, 0.1 a minute"


def test_the_time_that_units_wait_for_workers_is_not_counted_as_work(stages: Stages, clock: Clock):
    stages.expect("train", 100)
    stages.expect("align", 20)
    stages.settle()
    for _ in range(10):
        clock.pass_by(60)
        stages.advance("train", 10)
    for _ in range(5):
        clock.pass_by(5)
        stages.advance("align", 1)
    assert told(stages, "align") == "5 of 20 pairs, about 1.2 min left, 0.2 a second"


def test_what_failed_is_told_and_is_never_called_done(stages: Stages, clock: Clock):
    stages.expect("repair", 300)
    stages.settle()
    clock.pass_by(10)
    stages.advance("repair", 299)
    stages.advance("repair", 1, failed=True)
    stages.show(watcher := Last())
    assert watcher.told["repair"] == "299 of 300 paths in 10 s, 1 failed"
    assert watcher.stages["repair"].percent == 99


def test_rates_and_times_are_in_units_that_a_person_takes():
    assert [tell_rate(rate) for rate in (123.4, 9.6, 1.25, 0.1, 0.05, 0.0016, 0.0005)] == [
        "123 a second", "10 a second", "1.2 a second", "0.1 a second", "3 a minute", "5.8 an hour", "1.8 an hour"
    ]  # fmt: skip
    assert [tell_seconds(seconds) for seconds in (0.4, 59, 60, 3540, 3600, 36_000)] == [
        "0 s", "59 s", "1 min", "59 min", "1 h", "10 h"
    ]  # fmt: skip


def test_without_a_terminal_there_are_few_lines(stages: Stages, clock: Clock):
    lines = Lines(Console(file=(out := io.StringIO())))
    stages.expect("train_parent", 300)
    stages.settle()
    for _ in range(150):
        stages.show(lines)
        clock.pass_by(1)
        stages.advance("train_parent", 2)
    stages.show(lines)
    stages.show(lines, last=True)
    assert out.getvalue().splitlines() == [
        "train parent: 300 checkpoints to do",
        "train parent: 120 of 300 checkpoints, about 1.5 min left, 2 a second",
        "train parent: 240 of 300 checkpoints, about 30 s left, 2 a second",
        "train parent: 300 checkpoints in 2.5 min",
    ]


def test_a_stage_that_is_left_unfinished_has_a_last_line(stages: Stages):
    lines = Lines(Console(file=(out := io.StringIO())))
    stages.expect("align", 3)
    stages.show(lines)
    stages.show(lines, last=True)
    assert out.getvalue().splitlines() == ["align: begun", "align: 0 of 3 pairs"]


def test_bars_are_whole_in_80_columns(stages: Stages, clock: Clock):
    console = Console(width=80, file=(out := io.StringIO()), force_terminal=True, color_system=None)
    stages.expect("train", 12)
    stages.expect("interpolate", 12_345)
    stages.settle()
    stages.show(bars := Bars(console))
    clock.pass_by(90)
    stages.advance("train", 12)
    clock.pass_by(400)
    stages.advance("interpolate", 1234)
    stages.advance("interpolate", 1, failed=True)
    stages.show(bars, last=True)
    drawn = [line.rpartition("\x1b[2K")[2] for line in out.getvalue().splitlines()]
    train, interpolate = drawn[-3:-1]
    assert train.startswith("train  ")
    assert "12 endpoints in 1.5 min" in train
    assert interpolate.endswith("1234 of 12345 paths, 1 failed, about 1 h left, 3.1 a second")
    assert {len(train), len(interpolate)} == {80}


def test_bars_that_are_ended_leave_the_cursor_and_draw_no_more(stages: Stages):
    out = io.StringIO()
    stages.expect("train", 12)
    stages.show(bars := Bars(Console(file=out, force_terminal=True, width=80)))
    assert out.getvalue().rfind("\x1b[?25l") > out.getvalue().rfind("\x1b[?25h")
    bars.end()
    drawn = out.getvalue()
    assert drawn.endswith("\n\x1b[?25h")
    stages.advance("train", 12)
    stages.show(bars, last=True)
    assert out.getvalue() == drawn


def test_a_process_that_is_stopped_ends_the_bars_first(monkeypatch: pytest.MonkeyPatch):
    farewells: list[Callable[[], None]] = []
    monkeypatch.setattr(interrupt, "_farewells", farewells)
    monkeypatch.setattr("flows.progress.make_console", lambda **_: Console(file=io.StringIO(), force_terminal=True))
    with show_stages():
        (farewell,) = farewells
        assert isinstance(farewell.__self__, Bars)
    assert not farewells
    with show_stages(quiet=True):
        assert not farewells


def test_a_study_that_is_quiet_writes_nothing_and_its_watchers_see_its_end(capsys: pytest.CaptureFixture[str]):
    with show_stages([watcher := Last()], quiet=True) as stages:
        stages.expect("shift", 2)
        stages.advance("shift", 2)
    assert capsys.readouterr() == ("", "")
    assert (watcher.told["shift"], watcher.last) == ("2 paths in 0 s", True)
    with show_stages() as stages:
        stages.expect("shift", 2)
    assert capsys.readouterr() == ("", "shift: 2 paths to do\nshift: 0 of 2 paths\n")


def test_units_that_end_in_many_threads_are_all_counted(stages: Stages):
    stages.expect("repair", 4000)
    threads = [threading.Thread(target=lambda: [stages.advance("repair", 1) for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told(stages, "repair").startswith("4000 of 4000 paths")
