"""A study as a DAG: endpoints -> permutations -> paths (direct, aligned, repaired) -> tables -> report.

Each cell's endpoints are trained by groups of seeds; all pairs of a cell are aligned in one pass; their paths are
measured as interpolation leaves them, and after REPAIR; what all requests under the study's name have measured is
gathered into tables. Only what the store lacks is submitted, so a study that was interrupted goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture
from pydantic import BaseModel, Field

from flows.plan import group_size, path_seconds, trained_members, training_seconds
from flows.presets import find_preset
from flows.progress import Stages, show_stages
from flows.report import report
from infra.paths import request_key
from infra.runners import make_runner
from infra.settings import Settings
from infra.storage import Store
from tasks.align import align
from tasks.artifacts import has_match, has_path, missing_seeds
from tasks.datasets import load_dataset
from tasks.gather import gather
from tasks.interpolate import interpolate
from tasks.repair import repair
from tasks.science.specs import Cell, DataSpec, Endpoint, Merge, Path, Request
from tasks.train import train

CORRECTION_TASKS = {"none": interpolate, "repair": repair}


class StudyOptions(BaseModel):
    """A study by its name, and what of it is to be other than it comes."""

    study: str = Field(description="Name of the study")
    dataset: list[str] | None = Field(None, description="Data sets instead of the study's own")
    width: list[int] | None = Field(None, description="Widths instead of the study's own")
    depth: list[int] | None = Field(None, description="Numbers of hidden layers instead of the study's own")
    seeds: int | None = Field(None, description="How many seeds of each cell to train")
    recipe: str | None = Field(None, description="Another of the study's recipes")
    epochs: int | None = Field(None, description="Epochs instead of the recipe's own")
    alphas: int | None = Field(None, description="Odd number of points on each path")

    def resolve(self, describe: Any) -> Request:
        """The request these options make; `describe` looks a data set up by its name."""
        return find_preset(self.study).request(
            describe,
            datasets=self.dataset,
            widths=self.width,
            depths=self.depth,
            n_seeds=self.seeds,
            recipe=self.recipe,
            epochs=self.epochs,
            alphas=self.alphas,
        )


@dataclass(frozen=True)
class StudyResult:
    """Where a study's tables and report lie, and what could not be done, a sentence each."""

    tables: list[str]
    report: str
    problems: list[str]


class Work:
    """Submits tasks, waits for them, and keeps what went wrong: one task that fails stops nothing else."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.problems: list[str] = []

    def wait(self, future: PrefectFuture[Any], stage: str, n: int) -> tuple[Any, str | None]:
        """The task's result, or None and the reason it has none."""
        try:
            result = future.result()
        except Exception as error:  # Whatever a task dies of becomes a recorded outcome of its cell.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if reason not in self.problems:
                self.problems.append(reason)
            return None, reason
        self.stages.advance(stage, n)
        return result, None


@flow(name="study", persist_result=False)
def study(options: StudyOptions, store_url: str, data_dir: Folder) -> StudyResult:
    """Carries a study out on `store_url` and gathers everything measured under its name."""

    def describe(name: str) -> DataSpec:
        return load_dataset(name, data_dir).spec

    request = options.resolve(describe)
    store = Store(store_url)
    store.check_writable()
    store.create(request_key(request.study, request.id), request.to_json().encode())
    with show_stages() as stages:
        work = Work(stages)
        training = train_endpoints(work, request, store, data_dir)
        failures: dict[str, str] = {}
        matching: list[tuple[list[Merge], PrefectFuture[Any] | None, int]] = []
        for cell, groups in training.items():
            for seeds, future in groups:
                _, reason = work.wait(future, "train", len(seeds))
                if reason is not None:
                    failures |= {Endpoint(cell, seed).id: reason for seed in seeds}
            merges = request.merges(cell, trained_members(store, request, cell))
            matching.append((merges, *align_pairs(work, merges, groups, store, data_dir)))
        measuring: list[tuple[PrefectFuture[Any], str, int]] = []
        for merges, future, n in matching:
            if future is not None:
                stopped, _ = work.wait(future, "align", n)
                work.problems += stopped or []
            usable = [merge for merge in merges if has_match(store, merge)]
            measuring += measure_paths(work, request.paths(usable), future, store, data_dir)
        for future, stage, n in measuring:
            work.wait(future, stage, n)
    gathered = gather.with_options(task_run_name=f"gather {request.study}").submit(request.study, store_url, failures)
    tables = gathered.result()
    page = report.with_options(task_run_name=f"report {request.study}").submit(
        request.study, store_url, wait_for=[gathered]
    )
    return StudyResult(tables, page.result(), work.problems)


def train_endpoints(
    work: Work, request: Request, store: Store, data_dir: Folder
) -> dict[Cell, list[tuple[list[int], PrefectFuture[Any]]]]:
    """Submits the endpoints that are missing, the longest trainings first, so that no worker is left with one alone."""
    training: dict[Cell, list[tuple[list[int], PrefectFuture[Any]]]] = {}
    for cell in sorted(request.cells, key=training_seconds, reverse=True):
        missing = missing_seeds(store, cell, request.seeds)
        size = group_size(training_seconds(cell))
        groups = [missing[start : start + size] for start in range(0, len(missing), size)]
        work.stages.expect("train", len(missing))
        training[cell] = [
            (
                seeds,
                train.with_options(task_run_name=f"train {cell.label}, {_seeds_label(seeds)}").submit(
                    cell, seeds, store.url, data_dir
                ),
            )
            for seeds in groups
        ]
    return training


def align_pairs(
    work: Work,
    merges: Sequence[Merge],
    groups: Sequence[tuple[list[int], PrefectFuture[Any]]],
    store: Store,
    data_dir: Folder,
) -> tuple[PrefectFuture[Any] | None, int]:
    """Submits a cell's missing alignments, all in one task: they come from one pass. None where none is missing."""
    missing = [merge for merge in merges if not has_match(store, merge)]
    if not missing:
        return None, 0
    work.stages.expect("align", len(missing))
    name = f"align {missing[0].cell.label}, {len(missing)} pairs"
    future = align.with_options(task_run_name=name).submit(
        missing, store.url, data_dir, wait_for=[future for _, future in groups if not future.state.is_failed()]
    )
    return future, len(missing)


def measure_paths(
    work: Work, paths: Sequence[Path], after: PrefectFuture[Any] | None, store: Store, data_dir: Folder
) -> list[tuple[PrefectFuture[Any], str, int]]:
    """Submits the paths of a cell that are missing, by correction, as many to a task as fill it."""
    submitted: list[tuple[PrefectFuture[Any], str, int]] = []
    for correction, verb in CORRECTION_TASKS.items():
        missing = [path for path in paths if path.correction == correction and not has_path(store, path)]
        if not missing:
            continue
        stage, cell = verb.name, missing[0].merge.cell
        work.stages.expect(stage, len(missing))
        size = group_size(path_seconds(cell, missing[0].measurement.alphas))
        for start in range(0, len(missing), size):
            chunk = missing[start : start + size]
            future = verb.with_options(task_run_name=f"{stage} {cell.label}, {_pairs_label(chunk)}").submit(
                chunk, store.url, data_dir, wait_for=[after] if after is not None else None
            )
            submitted.append((future, stage, len(chunk)))
    return submitted


def run_study(options: StudyOptions, settings: Settings, store_url: str) -> StudyResult:
    """The flow, on the runner that the settings name."""
    configured = study.with_options(task_runner=make_runner(settings), flow_run_name=options.study)
    return configured(options, store_url, settings.data_dir)


def _seeds_label(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]}-{seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"


def _pairs_label(paths: Sequence[Path]) -> str:
    return f"{len(paths)} paths from {paths[0].merge.matcher} {paths[0].merge.a.seed}-{paths[0].merge.b.seed}"
