"""A study as a DAG: endpoints -> permutations -> paths (direct, aligned, repaired) -> tables -> report.

Each cell's endpoints are trained by groups of seeds, a seed's checkpoints in one run; all pairs of a cell are aligned
in one pass; their paths are measured as interpolation leaves them, and after each correction; what all requests under
the study's name have measured is gathered into tables. Only what the store lacks is submitted, so a study that was
interrupted goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path as Folder
from typing import Any, get_args

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.options import StudyOptions
from flows.plan import (
    TASK_SECONDS,
    group_checkpoints,
    group_size,
    measuring_seconds,
    missing_parents,
    path_seconds,
    task_seconds,
    training_seconds,
)
from flows.progress import show_stages
from flows.report.page import report
from flows.report.prefect_page import progress_artifacts, tag_run
from flows.resolve import resolve
from flows.work import Submitted, Work
from infra.paths import ENDPOINTS, request_key
from infra.runners import Routing, ServerError, check_runner, make_runner, prefect_api, safe_path, telling_of_the_api
from infra.settings import Settings
from infra.storage import Store, StoreError, UnreachableError
from infra.text import one_line
from tasks.align import align
from tasks.data.datasets import load_dataset, published_shape
from tasks.data.published import DataError
from tasks.ensemble import ensemble
from tasks.gather import gather
from tasks.interpolate import interpolate
from tasks.joint import evaluate_joint
from tasks.repair import repair
from tasks.science.data.augmentation import check_statistics
from tasks.science.networks.user_code import OwnCodeError
from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.specs.corrections import CORRECTIONS
from tasks.science.specs.data import DataSpec
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.pairing import Pairing, Path, ShiftMethod
from tasks.science.specs.request import Request
from tasks.shift import shift
from tasks.stored.artifacts import (
    has_match,
    has_path,
    joint_members,
    missing_checkpoints,
    missing_seeds,
    trained_members,
)
from tasks.stored.requests import save_request
from tasks.train import train, train_parent

PATH_TASKS = {
    **{("weights", name): interpolate if name == "none" else repair for name in CORRECTIONS},
    ("ensemble", "none"): ensemble,
    ("joint", "none"): evaluate_joint,
    **{(method, "none"): shift for method in get_args(ShiftMethod)},
}
"""What measures a path, by its method and correction."""


@dataclass(frozen=True)
class StudyResult:
    """Where a study's tables and report lie."""

    tables: list[str]
    report: str


class UnfinishedError(Exception):
    """A study came to its end, tables and report included, with something left undone: a sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class MissingFileError(DataError):
    """A file that a study needs, and that is none of its store's, is not there."""


FOR_A_PERSON = (DataError, OwnCodeError, StoreError, ServerError, UnfinishedError)
"""Errors whose message is a sentence with the way out; a traceback adds nothing to it."""


@flow(name="study", persist_result=False)
def study(options: StudyOptions, settings: Settings) -> State[StudyResult]:
    """Trains what a study lacks, measures every pair, and gathers its tables and report."""
    try:
        result = carry_out(options, settings)
    except FOR_A_PERSON as error:
        # Prefect would put the error's kind before its sentence, and a traceback into the run's log.
        return Failed(message=str(error), data=error)
    return Completed(message=f"Report: {result.report}", data=result)


def carry_out(options: StudyOptions, settings: Settings) -> StudyResult:
    """Carries a study out, in the flow run that there is, on the store that the settings name, and gathers everything
    measured under its name.

    Raises UnfinishedError, after tables and report are written, where a task failed or a pair had to stop; before
    anything is trained, DataError where the samples of a measurement cannot be held in memory, and StoreError where
    requests of the study cannot be read.
    """
    store, data_dir = Store(settings.store, settings.upstream), settings.data_dir
    request, lacking = find_request(options, store, data_dir)
    for cell, measurement in product(request.cells, request.measurements):
        try:
            check_statistics(cell.data, measurement.samples)
        except ValueError as error:
            raise DataError(str(error)) from error
    save_request(store, request)
    tag_run(request, options.size)
    with lasting(store, request) as check_kept:
        with progress_artifacts(request.study) as artifacts, show_stages(artifacts, quiet=settings.quiet) as stages:
            work = Work(stages, Routing.of(settings))
            for sentence in lacking:
                work.report(sentence)
            training = train_endpoints(work, request, store, settings)
            stages.settle()
            failures: dict[str, str] = {}
            matching: list[tuple[Cell, list[Pairing], list[Submitted]]] = []
            for cells, groups in training:
                for seeds, submitted in groups:
                    if failure := work.wait(submitted).failure:
                        failures |= {Endpoint(cell, seed).id: failure for cell in cells for seed in seeds}
                trained = [submitted for _, submitted in groups]
                for cell in (cell for cell in cells if cell in request.cells):
                    pairings = request.pairings(cell, trained_members(store, request, cell))
                    matching.append((cell, pairings, align_pairs(work, pairings, trained, store, data_dir)))
                check_kept(cells, failures)
            stages.settle()
            measuring: list[Submitted] = []
            carried = task_seconds(measuring_seconds(request), settings.workers)
            for cell, pairings, aligning in matching:
                for submitted in aligning:
                    for stopped in work.wait(submitted).result or []:
                        work.report(stopped)
                usable = [pairing for pairing in pairings if has_match(store, pairing)]
                paths = request.paths(usable, joint_members(store, request, cell))
                measuring += measure_paths(work, paths, carried, aligning, store, data_dir)
            stages.settle()
            for submitted in measuring:
                work.wait(submitted)
        check_kept([], failures)
        tables = gather.with_options(task_run_name=f"gather {request.study}")(request.study, store, failures)
        page = report.with_options(task_run_name=f"report {request.study}")(request.study, store)
    if work.problems:
        raise UnfinishedError(work.problems)
    return StudyResult(tables, page)


@contextmanager
def lasting(store: Store, request: Request) -> Generator[Callable[[Iterable[Cell], Collection[str]], None]]:
    """Raises StoreError where what a study has finished goes from its store, or from the upstream, before the study is
    gathered. What is given looks whether the request is still there, and those endpoints of cells that have not failed.

    MissingFileError for a file that is missing elsewhere.
    """
    upstream = store.upstream
    lent = set[str]() if upstream is None else set(upstream.names(ENDPOINTS)) - set(store.own.names(ENDPOINTS))
    seen: dict[Cell, Collection[str]] = {}

    def gone(place: str) -> StoreError:
        return StoreError(
            f"{place} was emptied, or lost some of its files, while {request.study} ran, so nothing is reported: the "
            "same command makes again what is gone"
        )

    def check_kept(cells: Iterable[Cell], failures: Collection[str]) -> None:
        if not store.own.exists(request_key(request.study, request.id)):
            raise gone(f"the store {store.url}")
        lost: list[str] = []
        for cell in cells:
            seen[cell] = failures
            ids = [Endpoint(cell, seed).id for seed in missing_seeds(store, cell, request.seeds)]
            lost += [f"{endpoint_id}.safetensors" for endpoint_id in ids if endpoint_id not in failures]
        if upstream is not None and lost and lent.issuperset(lost):
            raise gone(f"the upstream {upstream.url}")
        if lost:
            raise gone(f"the store {store.url}")

    def check_all() -> None:
        check_kept([], [])
        for cell, failures in list(seen.items()):
            check_kept([cell], failures)

    try:
        yield check_kept
    except UnreachableError:
        raise
    except FileNotFoundError as error:
        check_all()
        # A store names no file in what it raises, but has a cause.
        if error.filename is None and isinstance(error.__cause__, OSError):
            either = "" if upstream is None else f", or its upstream {upstream.url},"
            raise gone(f"the store {store.url}{either}") from error
        raise MissingFileError(
            f"{request.study} stopped, for a file outside its store is missing ({one_line(error.filename or error)}): "
            "with it in its place the same command goes on from here"
        ) from error
    except Exception:  # Whatever comes of half a store is explained by that.
        check_all()
        raise
    check_kept([], [])


def find_request(options: StudyOptions, store: Store, data_dir: Folder) -> tuple[Request, list[str]]:
    """What `options` ask for on the data that there are, and a sentence for each data set that is not there, whose
    cells are left out. Raises DataError where none of them is there, and else as `resolve`."""
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


def train_endpoints(
    work: Work, request: Request, store: Store, settings: Settings
) -> list[tuple[list[Cell], list[tuple[list[int], Submitted]]]]:
    """Submits the endpoints that are missing, the longest trainings first, so that no worker ends up with one alone:
    cells that are checkpoints of one training per seed, with their groups of seeds.

    What others are spawned from is trained first, beside all that needs no parent.
    """
    data_dir, device = settings.data_dir, settings.device
    parents: list[Submitted] = []
    for states in missing_parents(store, request):
        name = f"train {states[0].cell.at(None).label}, seed {states[0].seed}, to spawn from"
        parents.append(work.submit(train_parent, name, len(states), states, store, data_dir, device, trains=True))
    training: list[tuple[list[Cell], list[tuple[list[int], Submitted]]]] = []
    groups = group_checkpoints(request.trained_cells)
    lacking = {
        end: missing_checkpoints(store, end, request.seeds, [cell.epoch for cell in cells])
        for end, cells in groups.items()
    }
    seconds_each = {
        end: training_seconds(max(cells, key=lambda cell: cell.last_epoch)) for end, cells in groups.items()
    }
    whole = sum(len(lacking[end]) * seconds for end, seconds in seconds_each.items())
    # On a GPU a group is trained as one network.
    carried = task_seconds(whole, settings.workers) if device == "cpu" else TASK_SECONDS
    # Children last, and each group the longest first.
    for end in sorted(groups, key=lambda cell: (cell.spawn is None, training_seconds(cell)), reverse=True):
        if end.spawn is not None:
            # One that failed is tried once more by its children, which then tell the reason.
            for parent in parents:
                work.wait(parent)
            parents = []
        cells = groups[end]
        epochs = [cell.epoch for cell in cells]
        missing = lacking[end]
        seeds, size = list(missing), group_size(seconds_each[end], carried)
        submitted: list[tuple[list[int], Submitted]] = []
        for start in range(0, len(seeds), size):
            group = seeds[start : start + size]
            name = f"train {end.label}, {label_seeds(group)}"
            if len(cells) > 1:
                name += f", {len(cells)} checkpoints"
            n_endpoints = sum(len(missing[seed]) for seed in group)
            where = (store, data_dir, epochs, device)
            task = work.submit(train, name, n_endpoints, end, group, *where, trains=True)
            submitted.append((group, task))
        training.append((cells, submitted))
    return training


def align_pairs(
    work: Work, pairings: Sequence[Pairing], trained: Sequence[Submitted], store: Store, data_dir: Folder
) -> list[Submitted]:
    """Submits a cell's missing alignments, all that see the same images in one task: they come from one pass."""
    # A matcher that needs no data makes one permutation for all samples, and is asked for it once.
    missing = {pairing.id: pairing for pairing in pairings if not has_match(store, pairing)}
    submitted: list[Submitted] = []
    for samples in dict.fromkeys(pairing.samples for pairing in missing.values()):
        wanted = [pairing for pairing in missing.values() if pairing.samples == samples]
        name = f"align {wanted[0].cell.label}, {len(wanted)} pairs"
        submitted.append(work.submit(align, name, len(wanted), wanted, store, data_dir, after=trained))
    return submitted


def measure_paths(
    work: Work, paths: Sequence[Path], seconds: float, aligned: Sequence[Submitted], store: Store, data_dir: Folder
) -> list[Submitted]:
    """Submits a cell's missing paths, by method, correction and measurement, as many to a task as fill `seconds`."""
    groups: dict[tuple[str, str, Measurement], list[Path]] = {}
    # Measurements that differ in their statistics alone share their ensembles and logit shifts.
    for path in {path.id: path for path in paths}.values():
        if not has_path(store, path):
            groups.setdefault((path.method, path.correction, path.measurement), []).append(path)
    measuring: list[Submitted] = []
    for (method, correction, measurement), missing in groups.items():
        verb, cell = PATH_TASKS[method, correction], missing[0].pairing.cell
        size = group_size(path_seconds(cell, measurement), seconds)
        for start in range(0, len(missing), size):
            chunk = missing[start : start + size]
            done = verb.name if correction == "none" else correction
            name = f"{done} {cell.label}, paths {start + 1}-{start + len(chunk)} of {len(missing)}"
            measuring.append(work.submit(verb, name, len(chunk), chunk, store, data_dir, after=aligned))
    return measuring


def run_study(options: StudyOptions, settings: Settings) -> StudyResult:
    """The flow, on the runner that the settings name. Raises ServerError where what it needs does not answer."""
    check_runner(settings)
    with safe_path(), prefect_api():
        configured = study.with_options(task_runner=make_runner(settings), flow_run_name=options.study)
        with telling_of_the_api():
            # Prefect takes the state apart that a flow returns: its result is returned, its error raised.
            result: Any = configured(options, settings.anchored())
            return result


def label_seeds(seeds: Sequence[int]) -> str:
    """`seed 4`, `seeds 0-3`, or, with gaps, `seeds 0, 2, 3`."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]}-{seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"
