"""A study as a DAG: endpoints -> permutations -> paths (direct, aligned, repaired) -> tables -> report.

Each cell's endpoints are trained by groups of seeds, a seed's checkpoints in one run; all pairs of a cell are aligned
in one pass; their paths are measured as interpolation leaves them, and after each correction; the measurements of all
requests under the study's name are gathered into tables. Only missing artifacts are submitted, so an interrupted study
goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path as Folder
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.lasting import Lasting
from flows.options import StudyOptions
from flows.plan import TASK_SECONDS, group_size, measuring_seconds, path_seconds, task_seconds, training_seconds
from flows.progress import show_stages
from flows.report.page import report
from flows.report.prefect_page import progress_artifacts, tag_run
from flows.resolve import resolve
from flows.work import Submitted, Work
from infra.runners import Routing, ServerError, check_runner, make_runner, prefect_api, safe_path, telling_of_the_api
from infra.settings import Settings
from infra.storage import Store, StoreError
from tasks.align import align
from tasks.data.datasets import load_dataset, published_shape
from tasks.data.published import DataError
from tasks.ensemble import ensemble
from tasks.gather import gather
from tasks.interpolate import interpolate
from tasks.joint import evaluate_joint
from tasks.repair import repair
from tasks.science.data.augmentation import check_statistics
from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.specs.data import DataSpec
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.path import EnsemblePath, JointPath, LogitShiftPath, Path, UnmergedPath, WeightPath
from tasks.science.specs.request import Request
from tasks.science.specs.user_code import UserCodeError
from tasks.shift import shift
from tasks.stored.expansion import Expansion, UsableMatch, group_checkpoints
from tasks.stored.requests import save_request
from tasks.train import train, train_parent

UNMERGED_TASKS: Mapping[type[UnmergedPath], Any] = {
    EnsemblePath: ensemble,
    LogitShiftPath: shift,
    JointPath: evaluate_joint,
}
"""The task that measures each kind of path on which no weights are averaged."""


def path_task(path: Path) -> Any:
    """Return the task that measures paths of this kind."""
    if isinstance(path, WeightPath):
        return interpolate if path.correction == "none" else repair
    return UNMERGED_TASKS[type(path)]


@dataclass(frozen=True)
class StudyResult:
    """The places of a study's tables and of its report."""

    tables: list[str]
    report: str


class UnfinishedError(Exception):
    """A study was carried out, tables and report included, but for some problems: a sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


FOR_A_PERSON = (DataError, UserCodeError, StoreError, ServerError, UnfinishedError)
"""Errors whose message is a sentence with the way out, to which a traceback adds nothing."""


@flow(name="study", persist_result=False)
def study(options: StudyOptions, settings: Settings) -> State[StudyResult]:
    """Train the missing endpoints of a study, measure every pair, and gather its tables and report."""
    try:
        result = carry_out(options, settings)
    except FOR_A_PERSON as error:
        # Prefect would put the error's kind before its sentence, and a traceback into the run's log.
        return Failed(message=str(error), data=error)
    return Completed(message=f"Report: {result.report}", data=result)


@dataclass(frozen=True)
class Run:
    """The tasks, the expansion and the settings that the steps of one flow run share."""

    work: Work
    expansion: Expansion
    settings: Settings

    @property
    def request(self) -> Request:
        return self.expansion.request

    @property
    def where(self) -> tuple[Store, Folder]:
        """The store and the folder of data, which every verb takes."""
        return self.expansion.view.store, self.settings.data_dir


@dataclass(frozen=True)
class CellTraining:
    """Cells that one training per seed passes through, and the tasks that train their missing seeds."""

    cells: list[Cell]
    tasks: list[tuple[list[int], Submitted]]

    def wait(self, work: Work) -> dict[str, str]:
        """Wait for the tasks; return the reasons why endpoints are missing, by id."""
        failures: dict[str, str] = {}
        for seeds, submitted in self.tasks:
            if failure := work.wait(submitted).failure:
                failures |= {Endpoint(cell, seed).id: failure for cell in self.cells for seed in seeds}
        return failures


@dataclass(frozen=True)
class CellAlignment:
    """A cell's pairings, and the tasks that find the missing permutations."""

    cell: Cell
    matches: list[UsableMatch]
    tasks: list[Submitted]

    def wait(self, work: Work) -> None:
        """Wait for the tasks, and report the pairs that had to stop."""
        for submitted in self.tasks:
            for stopped in work.wait(submitted).result or []:
                work.report(stopped)


def carry_out(options: StudyOptions, settings: Settings) -> StudyResult:
    """Carry a study out in the current flow run, and gather everything measured under its name.

    Raises UnfinishedError, after tables and report are written, where a task failed or a pair had to stop. Before
    anything is trained, raises DataError where the samples of a measurement cannot be held in memory, and StoreError
    where requests of the study cannot be read.
    """
    # 1. Declare the request on the data that there are.
    store = Store(settings.store, settings.upstream)
    request, lacking = find_request(options, store, settings.data_dir)
    _check_samples(request)
    save_request(store, request)
    tag_run(request, options.size)
    with Lasting(store, request) as lasting:
        with progress_artifacts(request.study) as artifacts, show_stages(artifacts, quiet=settings.quiet) as stages:
            run = Run(Work(stages, Routing.of(settings)), Expansion.of(request, store), settings)
            for sentence in lacking:
                run.work.report(sentence)
            # 2. Train what is missing.
            trainings = train_endpoints(run)
            stages.settle()
            # 3. Align the pairs of each cell once its endpoints are there.
            failures: dict[str, str] = {}
            alignments: list[CellAlignment] = []
            for training in trainings:
                failures |= training.wait(run.work)
                alignments += [align_pairs(run, cell, training) for cell in training.cells if cell in request.cells]
                lasting.check_kept(training.cells, failures)
            stages.settle()
            # 4. Measure the paths of each cell once its permutations are there.
            seconds = task_seconds(measuring_seconds(request), settings.workers)
            measuring: list[Submitted] = []
            for alignment in alignments:
                alignment.wait(run.work)
                measuring += measure_paths(run, alignment, seconds)
            stages.settle()
            for submitted in measuring:
                run.work.wait(submitted)
        # 5. Gather and report all that was measured under the study's name.
        lasting.check_kept()
        tables = gather.with_options(task_run_name=f"gather {request.study}")(request.study, store, failures)
        page = report.with_options(task_run_name=f"report {request.study}")(request.study, store)
    if run.work.problems:
        raise UnfinishedError(run.work.problems)
    return StudyResult(tables, page)


def _check_samples(request: Request) -> None:
    """Raise DataError where the samples of a measurement cannot be held in memory."""
    for cell, measurement in product(request.cells, request.measurements):
        try:
            check_statistics(cell.data, measurement.samples)
        except ValueError as error:
            raise DataError(str(error)) from error


def find_request(options: StudyOptions, store: Store, data_dir: Folder) -> tuple[Request, list[str]]:
    """Return the request that `options` make on the data that there are, and a sentence for each missing data set.

    Cells of missing data sets are left out. Raises DataError where none is left, and else as `resolve`.
    """
    missing: dict[str, DataError] = {}

    def describe(name: str) -> DataSpec:
        try:
            return load_dataset(name, data_dir).spec
        except DataError as error:
            missing[name] = error
            return published_shape(name)

    request = resolve(options, store, describe)
    cells = [cell for cell in request.cells if cell.data.name not in missing]
    if not cells:
        raise next(iter(missing.values()))
    if not missing:
        return request, []
    return dataclasses.replace(request, cells=tuple(cells)), [
        f"{error}; its cells are left out" for error in missing.values()
    ]


def train_endpoints(run: Run) -> list[CellTraining]:
    """Submit the trainings of missing endpoints, the longest first, so that none is left alone at the end.

    Parents are trained first, beside all that needs no parent; a child is submitted once they have ended.
    """
    parents = [_submit_parent(run, states) for states in run.expansion.missing_parents()]
    groups = group_checkpoints(run.request.trained_cells)
    missing = {end: run.expansion.missing_checkpoints(cells) for end, cells in groups.items()}
    seconds = {end: training_seconds(max(cells, key=lambda cell: cell.last_epoch)) for end, cells in groups.items()}
    whole = sum(len(missing[end]) * seconds[end] for end in groups)
    # On a GPU a group is trained as one network.
    on_cpu = run.settings.device == "cpu"
    carried = task_seconds(whole, run.settings.workers) if on_cpu else TASK_SECONDS
    trainings: list[CellTraining] = []
    for end in sorted(groups, key=lambda cell: (cell.spawn is None, training_seconds(cell)), reverse=True):
        if end.spawn is not None:
            # A parent that failed is tried once more by its children, which then tell the reason.
            for parent in parents:
                run.work.wait(parent)
            parents = []
        seeds, size = list(missing[end]), group_size(seconds[end], carried)
        chunks = [seeds[start : start + size] for start in range(0, len(seeds), size)]
        tasks = [(chunk, _submit_training(run, groups[end], chunk, missing[end])) for chunk in chunks]
        trainings.append(CellTraining(groups[end], tasks))
    return trainings


def _submit_parent(run: Run, states: Sequence[Endpoint]) -> Submitted:
    name = f"train {states[0].cell.at(None).label}, seed {states[0].seed}, to spawn from"
    arguments = (states, *run.where, run.settings.device)
    return run.work.submit(train_parent, name, len(states), *arguments, trains=True)


def _submit_training(
    run: Run, cells: Sequence[Cell], seeds: Sequence[int], missing: Mapping[int, Sequence[Endpoint]]
) -> Submitted:
    end, epochs = cells[0].at(None), [cell.epoch for cell in cells]
    name = f"train {end.label}, {label_seeds(seeds)}"
    if len(cells) > 1:
        name += f", {len(cells)} checkpoints"
    n_endpoints = sum(len(missing[seed]) for seed in seeds)
    arguments = (end, seeds, *run.where, epochs, run.settings.device)
    return run.work.submit(train, name, n_endpoints, *arguments, trains=True)


def align_pairs(run: Run, cell: Cell, training: CellTraining) -> CellAlignment:
    """Submit a cell's missing alignments, all that see the same images in one task: they come from one pass."""
    run.expansion.view.refresh()
    matches = run.expansion.matches(cell)
    # A matcher that needs no data makes one permutation for all samples, and is asked for it once.
    missing = [match.pairing for match in run.expansion.view.due(matches)]
    submitted: list[Submitted] = []
    for samples in dict.fromkeys(pairing.samples for pairing in missing):
        wanted = [pairing for pairing in missing if pairing.samples == samples]
        name = f"align {cell.label}, {len(wanted)} pairs"
        after = [task for _, task in training.tasks]
        submitted.append(run.work.submit(align, name, len(wanted), wanted, *run.where, after=after))
    return CellAlignment(cell, matches, submitted)


def measure_paths(run: Run, alignment: CellAlignment, seconds: float) -> list[Submitted]:
    """Submit a cell's missing paths, by method, correction and measurement, as many to a task as fill `seconds`."""
    run.expansion.view.refresh()
    groups: dict[tuple[str, str, Measurement], list[Path]] = {}
    # Measurements that differ in their statistics alone share their ensembles and logit shifts.
    for measured in run.expansion.view.due(run.expansion.paths(alignment.cell, alignment.matches)):
        path = measured.path
        groups.setdefault((path.method, path.correction, path.measurement), []).append(path)
    measuring: list[Submitted] = []
    for (_, correction, measurement), missing in groups.items():
        verb = path_task(missing[0])
        size = group_size(path_seconds(alignment.cell, measurement), seconds)
        for start in range(0, len(missing), size):
            chunk = missing[start : start + size]
            done = verb.name if correction == "none" else correction
            name = f"{done} {alignment.cell.label}, paths {start + 1}-{start + len(chunk)} of {len(missing)}"
            measuring.append(run.work.submit(verb, name, len(chunk), chunk, *run.where, after=alignment.tasks))
    return measuring


def run_study(options: StudyOptions, settings: Settings) -> StudyResult:
    """Run the flow on the runner that the settings name. Raises ServerError where a server it needs does not answer."""
    check_runner(settings)
    with safe_path(), prefect_api():
        configured = study.with_options(task_runner=make_runner(settings), flow_run_name=options.study)
        with telling_of_the_api():
            # Prefect takes the state apart that a flow returns: its result is returned, its error raised.
            result: Any = configured(options, settings.anchored())
            return result


def label_seeds(seeds: Sequence[int]) -> str:
    """Return the seeds as a label: `seed 4`, `seeds 0-3`, or, with gaps, `seeds 0, 2, 3`."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]}-{seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"
