"""Endpoints that were trained elsewhere, brought into a store under a study's name.

Each is an endpoint like any other, under the id of its cell and seed. Beside it a small file under the study's name
says that it belongs there. That file may come from anybody: it names a person's own code, which is run only where that
person has named it as well.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection

from torch import nn

from infra.paths import endpoint_key, import_key, imports_prefix
from infra.sealing import NO_DIGEST, pack_document, read_document
from infra.storage import DamagedError, Store, StoreError
from tasks.science.data.examples import Dataset
from tasks.science.specs.bounds import BoundError
from tasks.science.specs.cell import Endpoint
from tasks.science.specs.checks import is_whole
from tasks.science.specs.identity import weights_digest
from tasks.science.specs.request import read_cell
from tasks.science.specs.state import State
from tasks.science.training.judging import Training, judge_endpoint
from tasks.science.training.progress import TrainingState
from tasks.stored.artifacts import read_endpoint, read_record, save_endpoint
from tasks.stored.checkpoints import compute_digest, read_checkpoint
from tasks.stored.requests import TooMuchError

MOST = 2**31 - 1
"""The largest seed, width or depth of what is imported."""

_IMPORT_AGAIN = "import the weights again"


def save_import(
    store: Store, study: str, endpoint: Endpoint, network: nn.Module, state: State, dataset: Dataset
) -> Training:
    """Measures weights and stores them as `endpoint`, of `study`. The same ones again change nothing that is whole, and
    replace what is damaged.

    Raises StoreError as `check_import`.
    """
    # A tensor under two names would be refused.
    state = {name: tensor.clone() for name, tensor in state.items()}
    digest = weights_digest(state)
    check_import(store, study, endpoint, digest)
    end = endpoint.cell.recipe.epochs
    reached = TrainingState(end, state, {}, end, 0, math.nan)
    found = judge_endpoint(network, endpoint.cell, endpoint.seed, reached, dataset)
    weights_key = endpoint_key(endpoint.id)
    is_damaged = _is_damaged(lambda: (read_record(store, weights_key), read_checkpoint(store, weights_key)))
    save_endpoint(store, endpoint, found, device="", anew=is_damaged)
    # Others may have stored theirs in the meantime.
    check_import(store, study, endpoint, digest)
    key = import_key(study, endpoint.id)
    write = store.replace if _is_damaged(lambda: read_import(store, study, endpoint.id)) else store.create
    write(key, pack_document(key, {"cell": dataclasses.asdict(endpoint.cell), "seed": endpoint.seed}))
    return found


def _is_damaged(read: Callable[[], object]) -> bool:
    """Whether what is there to `read` is not what was written; False where nothing is there."""
    try:
        read()
    except DamagedError:
        return True
    except FileNotFoundError:
        pass
    return False


def check_import(store: Store, study: str, endpoint: Endpoint, digest: str) -> None:
    """StoreError where the store has `endpoint` with weights of another `digest`: nobody overwrites those."""
    if imported_digest(store, endpoint) not in (None, digest):
        raise StoreError(
            f"seed {endpoint.seed} of {endpoint.cell.label} was imported as {study} already, with other weights: "
            "take another --study or --store for these"
        )


def imported_digest(store: Store, endpoint: Endpoint) -> str | None:
    """The digest of the weights that the store has as `endpoint`; None where it has none, or a file so damaged that
    nothing can be told of them."""
    try:
        record = read_endpoint(store, endpoint)
    except DamagedError as error:
        # A file that is not sealed may be of an earlier version, and whole.
        return compute_digest(store, endpoint_key(endpoint.id)) if NO_DIGEST in str(error) else None
    return None if record is None else record["weights_sha256"]


def read_imports(store: Store, study: str, replaced: Collection[str] = ()) -> list[Endpoint]:
    """What was brought into the store under the study's name, by cell and seed. DamagedError for a file that is none of
    those that `save_import` writes, unless it is of one of the ids `replaced`, which are about to be imported again."""
    names = [name for name in store.names(imports_prefix(study)) if name.endswith(".json")]
    endpoints: list[Endpoint] = []
    for endpoint_id in (name.removesuffix(".json") for name in names):
        try:
            endpoints.append(read_import(store, study, endpoint_id))
        except DamagedError:
            if endpoint_id not in replaced:
                raise
    return sorted(endpoints, key=lambda endpoint: (endpoint.cell.id, endpoint.seed))


def read_import(store: Store, study: str, endpoint_id: str) -> Endpoint:
    """Return one of `read_imports`. Raises DamagedError where the file is none that `save_import` writes."""
    key = import_key(study, endpoint_id)
    fields = read_document(store, key, _IMPORT_AGAIN)
    try:
        endpoint = Endpoint(read_cell(fields["cell"]), fields["seed"])
    except BoundError as error:
        raise TooMuchError(store, key, str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise store.damaged(key, f"it is no import: {error}", _IMPORT_AGAIN) from error
    cell = endpoint.cell
    is_import = cell.origin is not None and cell.origin.name == study and (cell.epoch, cell.spawn) == (None, None)
    if not is_import or not is_whole(endpoint.seed, 0, MOST) or endpoint.id != endpoint_id:
        raise store.damaged(key, f"it is of no endpoint of {study}", _IMPORT_AGAIN)
    return endpoint
