"""The states of trainings in the store, from which interrupted ones go on and children are spawned.

A state is named by the endpoint that it leads to: the end of a training, or the checkpoint that children start from,
whose own state stays. A state that cannot be read whole is ignored: training then starts over, to the same weights.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time
from collections.abc import Collection, Iterable

import torch

from infra.paths import training_key
from infra.runners import run_logger
from infra.storage import DamagedError, Store
from tasks.science.data.examples import Dataset
from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.training.training import TrainingState, train_states
from tasks.stored.checkpoints import pack, read_checkpoint, read_header

SAVE_SECONDS = 180.0
"""The seconds between saved states of a training, and so the most that an interrupted one loses."""

_WEIGHTS, _MEMORY = "weights/", "memory/"
_COUNTS = ("epoch", "last_finite", "n_skipped", "seconds")


class StoredProgress:
    """The states that trainings up to `cell` leave in the store, under the ids of its endpoints.

    Trainings may also go on from the state of a training to the end, and from states at the checkpoints `on_the_way`.
    """

    def __init__(self, store: Store, cell: Cell, on_the_way: Iterable[int] = ()) -> None:
        self._store, self._cell = store, cell
        self._sources = list(dict.fromkeys([cell, cell.at(None), *(cell.at(epoch) for epoch in on_the_way)]))
        self._saved = time.monotonic()

    def load(self, seed: int, latest: int) -> TrainingState | None:
        found = [load_state(self._store, Endpoint(source, seed)) for source in self._sources]
        usable = [state for state in found if state is not None and state.epoch <= latest]
        chosen = max(usable, key=lambda state: state.epoch, default=None)
        if chosen is not None:
            run_logger().info("%s, seed %d goes on after epoch %d", self._cell.label, seed, chosen.epoch)
        return chosen

    def is_due(self) -> bool:
        return time.monotonic() - self._saved >= SAVE_SECONDS

    def save(self, seed: int, state: TrainingState) -> None:
        save_state(self._store, Endpoint(self._cell, seed), state)
        self._saved = time.monotonic()

    def forget(self, seed: int) -> None:
        """Remove the states that the training of `seed` left, once it has ended."""
        self._store.remove(training_key(Endpoint(self._cell, seed).id))


def save_state(store: Store, endpoint: Endpoint, state: TrainingState) -> None:
    """Store the state of a training that leads to `endpoint`, in place of its last one."""
    tensors = {_WEIGHTS + name: tensor for name, tensor in state.weights.items()}
    tensors |= {_MEMORY + name: tensor for name, tensor in state.memory.items()}
    header = {
        "kind": "training",
        "spec": dataclasses.asdict(endpoint),
        "state": {name: getattr(state, name) for name in _COUNTS},
        "versions": {"repairlab": importlib.metadata.version("repairlab"), "torch": torch.__version__},
    }
    key = training_key(endpoint.id)
    store.replace(key, pack(key, tensors, header))


def load_state(store: Store, endpoint: Endpoint) -> TrainingState | None:
    """Return the state under the id of `endpoint`, at or before it; None where there is none.

    A damaged state is ignored, with a line in the log.
    """
    key = training_key(endpoint.id)
    if not store.exists(key):
        return None
    try:
        tensors, header = read_checkpoint(store, key)
        return TrainingState(
            weights={name.removeprefix(_WEIGHTS): t for name, t in tensors.items() if name.startswith(_WEIGHTS)},
            memory={name.removeprefix(_MEMORY): t for name, t in tensors.items() if name.startswith(_MEMORY)},
            **header["state"],
        )
    except (DamagedError, KeyError, TypeError, FileNotFoundError) as error:
        run_logger().warning("a training state is ignored: %s", error)
        return None


def has_arrived(store: Store, endpoint: Endpoint) -> bool:
    """Return whether the state at `endpoint` itself is there, not only one on the way to it."""
    key = training_key(endpoint.id)
    try:
        return store.exists(key) and read_header(store, key)["state"]["epoch"] == endpoint.cell.last_epoch
    except (DamagedError, KeyError, TypeError, FileNotFoundError):
        return False


def ensure_states(
    store: Store, endpoints: Collection[Endpoint], dataset: Dataset, device: torch.device | str = "cpu"
) -> dict[int, TrainingState]:
    """Return the states at `endpoints`, checkpoints of one seed's training, by epoch.

    Missing ones are trained and stored, in one run that goes on from the states that are there.
    """
    states = {endpoint.cell.last_epoch: load_state(store, endpoint) for endpoint in endpoints}
    found = {epoch: state for epoch, state in states.items() if state is not None and state.epoch == epoch}
    missing = states.keys() - found.keys()
    if missing:
        first = next(iter(endpoints))
        progress = StoredProgress(store, first.cell.at(max(missing)), found)
        for state in train_states(first.cell, first.seed, missing, dataset, device, progress=progress):
            save_state(store, Endpoint(first.cell.at(state.epoch), first.seed), state)
            found[state.epoch] = state
    return found
