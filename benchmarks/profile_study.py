"""Where the seconds of a small width study go: MLPs on Fashion-MNIST, from the command to the page.

Runs `repairlab run mlp-width`, made small, on a store and with a Prefect server of its own, and prints wall and CPU
seconds by process and stage, without those of the stages within. Functions are timed where the flow and its workers
call them, and each process writes when it entered and left them; nothing of Prefect's own is looked at.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"

import psutil
import torch
from prefect.task_runners import ProcessPoolTaskRunner

from infra.lifeline import begin_worker
from infra.runners import use_one_thread

LOG = "REPAIRLAB_PROFILE_LOG"
"""The variable with the folder that every process writes its times into."""

TASKS = ("train", "align", "interpolate", "repair", "ensemble", "gather")

PLACES = {
    "read data": ("tasks.train.load_dataset", "tasks.align.load_dataset", "tasks.stored.pairs.load_dataset"),
    "draw statistics images": ("tasks.align.statistics_images", "tasks.stored.pairs.statistics_images"),
    "read weights": ("tasks.align.load_weights", "tasks.stored.pairs.load_weights"),
    "moments of endpoints": ("tasks.stored.pairs.measure_side",),
    "curves of endpoints": ("tasks.stored.pairs.evaluate_splits",),
    "store": (
        *("tasks.train.save_endpoint", "tasks.align.save_match", "tasks.stored.pairs.save_rows"),
        *("tasks.stored.pairs.save_moments", "tasks.stored.pairs.save_evaluation"),
    ),
}
"""What is timed within tasks, and where it is called."""


@dataclass(frozen=True)
class Span:
    """One call: what of, in which process, and that process' wall and CPU clocks before and after."""

    pid: int
    stage: str
    begin: float
    end: float
    cpu_begin: float
    cpu_end: float

    def holds(self, other: Span) -> bool:
        return self is not other and self.begin <= other.begin and other.end <= self.end


def write_span(stage: str, begin: float, cpu_begin: float) -> None:
    span = Span(os.getpid(), stage, begin, time.time(), cpu_begin, time.process_time())
    with (Path(os.environ[LOG]) / str(span.pid)).open("a") as log:
        log.write(json.dumps(list(vars(span).values())) + "\n")


def timed(stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def run(*arguments: Any, **options: Any) -> Any:
        begin, cpu_begin = time.time(), time.process_time()
        try:
            return call(*arguments, **options)
        finally:
            write_span(stage, begin, cpu_begin)

    return run


def install() -> None:
    """In this process everything that is looked at is timed, its own start included."""
    use_one_thread()
    for stage, places in PLACES.items():
        for place in places:
            module, _, name = place.rpartition(".")
            found = importlib.import_module(module)
            setattr(found, name, timed(stage, getattr(found, name)))
    for verb in TASKS:
        task = getattr(importlib.import_module(f"tasks.{verb}"), verb)
        task.fn = timed(verb, task.fn)
    write_span("start", psutil.Process().create_time(), 0.0)


def begin_timed_worker() -> None:
    """Prepare a worker process."""
    begin_worker()
    install()


def run_study(words: dict[str, Any], folder: Path) -> None:
    import flows.cli
    import flows.report.page
    import flows.study

    install()
    flows.report.page.report.fn = timed("report", flows.report.page.report.fn)
    flows.study.find_request = timed("begin", flows.study.find_request)
    flows.study.run_study = timed("with Prefect", flows.study.run_study)
    flows.study.make_runner = lambda settings: ProcessPoolTaskRunner(  # pyright: ignore
        max_workers=settings.workers, initializer=begin_timed_worker
    )
    flows.cli.run(study="mlp-width", store=str(folder / "store"), dataset=["fashion_mnist"], yes=True, **words)


def read_spans(folder: Path) -> list[Span]:
    return [Span(*json.loads(line)) for log in folder.iterdir() for line in log.read_text().splitlines()]


def own_seconds(spans: Sequence[Span]) -> dict[str, tuple[int, float, float]]:
    """By stage of one process: calls, wall and CPU seconds, without those of what is timed within."""
    totals: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    ordered = sorted(spans, key=lambda span: (span.begin, -span.end))
    for span in ordered:
        within = [other for other in ordered if span.holds(other)]
        children = [one for one in within if not any(other.holds(one) for other in within)]
        total = totals[span.stage]
        total[0] += 1
        total[1] += span.end - span.begin - sum(child.end - child.begin for child in children)
        total[2] += span.cpu_end - span.cpu_begin - sum(child.cpu_end - child.cpu_begin for child in children)
    return {stage: (int(n), wall, cpu) for stage, (n, wall, cpu) in totals.items()}


def print_profile(spans: Sequence[Span], me: int, seconds: float, others: dict[str, float]) -> None:
    # The command looks for its data once more, before it begins.
    begin = max((span for span in spans if span.stage == "begin"), key=lambda span: span.begin)
    outer, gather, report = (
        next(span for span in spans if span.stage == stage) for stage in ("with Prefect", "gather", "report")
    )
    workers = sorted({span.pid for span in spans} - {me})
    print(f"\n{seconds:.1f} s in all; {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n")
    print("| where | stage | calls | wall, s | CPU, s |\n| --- | --- | --- | --- | --- |")

    def row(where: str, stage: str, calls: int | str, wall: float, cpu: float | str) -> None:
        told = cpu if isinstance(cpu, str) else f"{cpu:.2f}"
        print(f"| {where} | {stage} | {calls} | {wall:.2f} | {told} |")

    mine = own_seconds([span for span in spans if span.pid == me])
    row("flow", "import, plan", "", outer.begin - psutil.Process().create_time(), outer.cpu_begin)
    row("flow", "start of Prefect", "", begin.begin - outer.begin, begin.cpu_begin - outer.cpu_begin)
    row("flow", "waits for workers", "", gather.begin - begin.begin, gather.cpu_begin - begin.cpu_begin)
    for stage in ("gather", "report"):
        row("flow", stage, *mine[stage])
    row("flow", "end", "", outer.end - report.end, outer.cpu_end - report.cpu_end)
    totals: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    rest = [0.0, 0.0]
    for pid in workers:
        of_worker = [span for span in spans if span.pid == pid]
        seen = own_seconds(of_worker)
        for stage, parts in seen.items():
            totals[stage] = [had + more for had, more in zip(totals[stage], parts, strict=True)]
        rest[0] += gather.begin - min(span.begin for span in of_worker) - sum(wall for _, wall, _ in seen.values())
        rest[1] += max(span.cpu_end for span in of_worker) - sum(cpu for *_, cpu in seen.values())
    for stage in ("start", *TASKS, *PLACES):
        if stage in totals:
            n, wall, cpu = totals[stage]
            row(f"{len(workers)} workers", stage, int(n), wall, cpu)
    row(f"{len(workers)} workers", "idle, and Prefect", "", *rest)
    for name, cpu in others.items():
        row(name, "all of its time", "", seconds, cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", default="32,64")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--alphas", type=int, default=11)
    parser.add_argument("--statistics", type=int, default=10_000)
    parser.add_argument("--evaluation", type=int, default=10_000)
    asked = parser.parse_args()
    words = {**vars(asked), "width": [asked.widths]}
    del words["widths"]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "log").mkdir()
        os.environ |= {LOG: str(home / "log"), "PREFECT_HOME": str(home / "prefect")}
        os.environ.pop("PREFECT_API_URL", None)
        run_study(words, home)
        seconds = time.time() - psutil.Process().create_time()
        spans = read_spans(home / "log")
        pids = {span.pid for span in spans}
        server = [child for child in psutil.Process().children(recursive=True) if child.pid not in pids]
        used = sum(sum(child.cpu_times()[:2]) for child in server)
        print_profile(spans, os.getpid(), seconds, {"Prefect's server": used})


if __name__ == "__main__":
    main()
