"""Runs the verbs one after another on a store, without Prefect: what the flow does, for tests that look at one step."""

from __future__ import annotations

from pathlib import Path

from infra.storage import Store
from tasks.align import align
from tasks.ensemble import ensemble
from tasks.gather import gather
from tasks.interpolate import interpolate
from tasks.joint import evaluate_joint
from tasks.repair import repair
from tasks.science.specs.cell import Cell
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.pairing import Pairing
from tasks.science.specs.path import Path as Curve
from tasks.science.specs.request import Request
from tasks.shift import shift
from tasks.stored.expansion import Expansion
from tasks.stored.requests import save_request
from tasks.train import train

NOWHERE = Path("/nonexistent")


def make_request(*cells: Cell, n_seeds: int = 3, alphas: int = 5) -> Request:
    return Request(
        study="test",
        cells=cells,
        seeds=tuple(range(n_seeds)),
        matchers=("none", "activation"),
        corrections=("none", "repair"),
        measurements=(Measurement("default", alphas),),
    )


def merges_of(store: Store, request: Request) -> list[Pairing]:
    expansion = Expansion.of(request, store)
    return [match.pairing for cell in request.cells for match in expansion.matches(cell)]


def paths_of(store: Store, request: Request) -> list[Curve]:
    return [measured.path for measured in Expansion.of(request, store).all_paths()]


def train_all(store: Store, request: Request) -> None:
    save_request(store, request)
    for cell in request.trained_cells:
        train.fn(cell, request.seeds, store, NOWHERE)


def align_all(store: Store, request: Request) -> list[str]:
    stopped: list[str] = []
    for cell in request.cells:
        wanted = [
            pairing for pairing in merges_of(store, request) if pairing.matcher != "none" and pairing.cell == cell
        ]
        stopped += align.fn(wanted, store, NOWHERE)
    return stopped


def measure_all(store: Store, request: Request, paths: list[Curve] | None = None) -> None:
    paths = paths_of(store, request) if paths is None else paths
    for cell in request.cells:
        for measured, verb in (
            (("weights", "none"), interpolate),
            (("weights", "repair"), repair),
            (("ensemble", "none"), ensemble),
            (("joint", "none"), evaluate_joint),
            (("logit-shift", "none"), shift),
            (("logit-shift/chosen=test", "none"), shift),
        ):
            wanted = [
                path for path in paths if (path.method, path.correction) == measured and path.pairing.cell == cell
            ]
            verb.fn(wanted, store, NOWHERE)


def run_all(store: Store, request: Request) -> None:
    train_all(store, request)
    align_all(store, request)
    measure_all(store, request)
    gather.fn(request.study, store, {})
