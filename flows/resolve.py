"""The request that the user's options make on a store, imported networks included."""

from __future__ import annotations

from collections.abc import Callable

from flows.options import StudyOptions
from flows.presets.preset import Preset
from infra.storage import Store
from tasks.data.datasets import UNKNOWN_FINGERPRINT
from tasks.science.networks import find_architecture
from tasks.science.networks.architecture import Factors
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.request import Request
from tasks.stored.artifacts import read_endpoint
from tasks.stored.imports import read_imports
from tasks.stored.requests import read_requests
from tasks.user_code import count_layers


def resolve(options: StudyOptions, store: Store, describe: Callable[[str], DataSpec]) -> Request:
    """Return the request that `options` make on `store`, which may hold networks imported under the study's name.

    Raises ValueError for options that cannot be, and where a network or data set has changed since it was imported; and
    StoreError where an earlier request or import of the study cannot be read, since all of them are gathered.
    """
    request = options.resolve(describe, lambda study: imported_preset(store, study))
    read_requests(store, request.study)
    for cell in request.cells:
        if cell.origin is not None:
            _check_unchanged(request.study, cell, describe)
    return request


def imported_preset(store: Store, study: str) -> Preset | None:
    """Return the study of the networks imported under a name, which trains none; None where there are none.

    Raises ValueError where some of them are no longer in the store.
    """
    endpoints = read_imports(store, study)
    if not endpoints:
        return None
    if n_missing := sum(read_endpoint(store, endpoint) is None for endpoint in endpoints):
        raise ValueError(
            f"{n_missing} of the {len(endpoints)} endpoints that were imported as {study} are not in {store.url}: "
            "import them again"
        )
    return Preset(
        name=study,
        question=f"How large is the barrier between the networks that were imported as {study}?",
        grids=(),
        n_seeds=len({endpoint.seed for endpoint in endpoints}),
        imported=tuple(endpoints),
    )


def _check_unchanged(study: str, cell: Cell, describe: Callable[[str], DataSpec]) -> None:
    data = describe(cell.data.name)
    if data.fingerprint not in (cell.data.fingerprint, UNKNOWN_FINGERPRINT):
        raise ValueError(f"{cell.data.name} holds other data than when {study} was imported: import under another name")
    if cell.user_defined:
        wanted = Factors(cell.width, cell.depth, cell.normalization)
        now = find_architecture(cell.architecture).describe(cell.data, wanted, count_layers)
        if now["graph"] != cell.graph:
            raise ValueError(
                f"{cell.architecture} makes another network than when {study} was imported: import under another name"
            )
