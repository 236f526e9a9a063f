"""The verb that imports endpoints trained elsewhere into a store, under a study's name.

Each becomes an endpoint like any other, under the id of its cell and seed, with a small file beside it that assigns it
to the study.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from torch import nn

from infra.paths import endpoint_key, import_key
from infra.sealing import NO_DIGEST, pack_document
from infra.storage import DamagedError, Store, StoreError
from tasks.science.data.examples import Dataset
from tasks.science.specs.cell import Endpoint
from tasks.science.specs.identity import weights_digest
from tasks.science.specs.state import State
from tasks.science.training.training import Training, TrainingState, judge
from tasks.stored.artifacts import read_endpoint, read_record, save_endpoint
from tasks.stored.checkpoints import compute_digest, read_checkpoint
from tasks.stored.imports import read_import


def save_import(
    store: Store, study: str, endpoint: Endpoint, network: nn.Module, state: State, dataset: Dataset
) -> Training:
    """Measure weights and store them as `endpoint`, of `study`.

    The same weights again replace a damaged file and leave a whole one as it is. Raises StoreError as `check_import`.
    """
    # A tensor under two names would be refused.
    state = {name: tensor.clone() for name, tensor in state.items()}
    digest = weights_digest(state)
    check_import(store, study, endpoint, digest)
    end = endpoint.cell.recipe.epochs
    reached = TrainingState(end, state, {}, end, 0, math.nan)
    found = judge(network, network, endpoint.cell, endpoint.seed, reached, dataset)
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
    """Return whether the file that `read` reads is there and damaged."""
    try:
        read()
    except DamagedError:
        return True
    except FileNotFoundError:
        pass
    return False


def check_import(store: Store, study: str, endpoint: Endpoint, digest: str) -> None:
    """Raise StoreError where the store has `endpoint` with weights of another `digest`, which stay."""
    if imported_digest(store, endpoint) not in (None, digest):
        raise StoreError(
            f"seed {endpoint.seed} of {endpoint.cell.label} was imported as {study} already, with other weights: "
            "take another --study or --store for these"
        )


def imported_digest(store: Store, endpoint: Endpoint) -> str | None:
    """Return the digest of the stored weights of `endpoint`; None where there are none or they cannot be read."""
    try:
        record = read_endpoint(store, endpoint)
    except DamagedError as error:
        # A file that is not sealed may be of an earlier version, and whole.
        return compute_digest(store, endpoint_key(endpoint.id)) if NO_DIGEST in str(error) else None
    return None if record is None else record["weights_sha256"]
