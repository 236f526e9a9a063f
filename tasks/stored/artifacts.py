"""What tasks store and in which form: endpoints, permutations, rows. The verbs load and save through these."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

import torch

from infra.paths import endpoint_key, moments_key, permutation_key, row_key
from infra.storage import Store
from infra.tables import Table, pack_rows, read_rows
from tasks.science.alignment.matching import Match
from tasks.science.correction.preactivations import LayerMoments
from tasks.science.evaluation.metrics import Evaluation
from tasks.science.evaluation.moments import Moments
from tasks.science.networks import build_network
from tasks.science.paths.curves import Splits
from tasks.science.specs.bounds import MAX_DRAW
from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.specs.checks import is_whole, shown
from tasks.science.specs.pairing import Member, Pairing, Path
from tasks.science.specs.request import Request
from tasks.science.specs.state import State
from tasks.science.symmetry.permutation import Permutation, PermutationSpec
from tasks.science.training.training import Status, Training
from tasks.stored.checkpoints import pack, read_checkpoint, read_header
from tasks.tables.schema import AXIS_ROWS, END_ROWS, MERGE_ROWS


def _is_count(value: Any) -> bool:
    return is_whole(value, 0, MAX_DRAW)


def _is_number(value: Any) -> bool:
    return isinstance(value, float)


def _is_share(value: Any) -> bool:
    return _is_number(value) and (math.isnan(value) or 0 <= value <= 1)


def _is_duration(value: Any) -> bool:
    return _is_number(value) and not value < 0


def _is_text(value: Any) -> bool:
    """Whether `value` is text that a table can hold: half a surrogate pair has no bytes."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


_RECORD: Mapping[str, Callable[[Any], bool]] = {
    "status": lambda value: value in get_args(Status),
    "message": _is_text,
    "train_loss": _is_number,
    "train_accuracy": _is_share,
    "test_loss": _is_number,
    "test_accuracy": _is_share,
    "n_train_examples": _is_count,
    "n_parameters": _is_count,
    # Imported endpoints have none of the last three.
    "n_skipped_steps": lambda value: value is None or _is_count(value),
    "train_seconds": lambda value: value is None or _is_duration(value),
    "device": lambda value: value is None or _is_text(value),
}
"""The fields of an endpoint's record, and what each may hold."""

KEPT_BYTES = 2**29
"""Weights that a task keeps in memory beside those that it works with."""


def has_endpoint(store: Store, endpoint: Endpoint) -> bool:
    return store.exists(endpoint_key(endpoint.id))


def save_endpoint(store: Store, endpoint: Endpoint, trained: Training, device: str, *, anew: bool = False) -> None:
    """Stores a trained seed, unless somebody has in the meantime: then theirs stands, or, where it is to be stored
    `anew`, is replaced. Of one that was brought in nobody knows how long it took, and how many steps were skipped."""
    is_ours = endpoint.cell.origin is None
    header = {
        "kind": "endpoint",
        "spec": dataclasses.asdict(endpoint),
        "record": {
            "status": trained.status,
            "message": trained.message,
            "train_loss": trained.train.loss,
            "train_accuracy": trained.train.accuracy,
            "test_loss": trained.test.loss,
            "test_accuracy": trained.test.accuracy,
            "n_train_examples": trained.train.n_examples,
            "n_parameters": sum(parameter.numel() for parameter in build_network(endpoint.cell).parameters()),
            "n_skipped_steps": trained.n_skipped_steps if is_ours else None,
            "train_seconds": trained.seconds if is_ours else None,
            "device": device if is_ours else None,
        },
        "versions": {"repairlab": importlib.metadata.version("repairlab"), "torch": torch.__version__},
    }
    key = endpoint_key(endpoint.id)
    write = store.replace if anew else store.create
    write(key, pack(key, trained.state, header))


def read_endpoint(store: Store, endpoint: Endpoint) -> dict[str, Any] | None:
    """The endpoint's record and `weights_sha256`, without its weights; None where it is not there yet."""
    key = endpoint_key(endpoint.id)
    return read_record(store, key) if store.exists(key) else None


def read_record(store: Store, key: str) -> dict[str, Any]:
    """Return what `read_endpoint` does, by the key of the endpoint. Raises DamagedError where a field has a value that
    it cannot have."""
    header = read_header(store, key)
    try:
        # What was stored before recipes could skip a step has skipped none.
        record = {"n_skipped_steps": 0, **header["record"]}
    except (KeyError, TypeError) as error:
        raise store.damaged(key, "its header has no record") from error
    if strange := sorted(_RECORD.keys() ^ record.keys(), key=str):
        verb = "has no" if strange[0] in _RECORD else "may not have"
        raise store.damaged(key, f"its record {verb} {shown(strange[0])}")
    if wrong := [name for name, may_hold in _RECORD.items() if not may_hold(record[name])]:
        raise store.damaged(key, f"{wrong[0]} in its record cannot be {shown(record[wrong[0]])}")
    return {**record, "weights_sha256": header["tensors_sha256"]}


def as_member(endpoint: Endpoint, record: Mapping[str, Any]) -> Member:
    return Member(endpoint.seed, endpoint.id, record["weights_sha256"])


def load_weights(store: Store, members: Iterable[Member]) -> dict[Member, State]:
    """The weights of each member, checked against the digest that everything derived from them is keyed by."""
    states: dict[Member, State] = {}
    for member in sorted(set(members), key=lambda member: member.seed):
        key = endpoint_key(member.endpoint_id)
        state, header = read_checkpoint(store, key)
        if header["tensors_sha256"] != member.weights_sha256:
            raise store.damaged(key, "its weights are not those that the pair was asked for with")
        states[member] = state
    return states


class LazyStates:
    """States by position, each made by `load` when it is asked for; those asked for last are kept, as many as take
    `kept_bytes`, and at least one."""

    def __init__(self, load: Callable[[int], State], kept_bytes: int = KEPT_BYTES) -> None:
        self.load, self.kept_bytes = load, kept_bytes
        self.kept: dict[int, State] = {}

    def __getitem__(self, index: int) -> State:
        state = self.kept.pop(index, None)
        if state is None:
            n_bytes = [_n_bytes(kept) for kept in self.kept.values()]
            # The next one takes as much as these, whose networks it shares: it needs their memory while it is read.
            while self.kept and sum(n_bytes) + max(n_bytes) > self.kept_bytes:
                del self.kept[next(iter(self.kept))], n_bytes[0]
            state = self.load(index)
        self.kept[index] = state
        return state


def _n_bytes(state: State) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def save_match(store: Store, pairing: Pairing, match: Match, function_error: float, exact: bool) -> None:
    """Stores what matching found; the permutation itself only where it is `exact`, that is, may be used."""
    rows = [{"merge_id": pairing.id, **dataclasses.asdict(axis)} for axis in match.axes]
    row = {
        "merge_id": pairing.id,
        "matcher_options": pairing.choice.options_json,
        "objective": match.objective,
        "function_error": function_error,
        "match_seconds": match.seconds,
    }
    save_rows(store, AXIS_ROWS, pairing.id, rows)
    save_rows(store, MERGE_ROWS, pairing.id, [row])
    if exact:
        header: dict[str, Any] = {
            "kind": "permutation",
            "pair": [dataclasses.asdict(pairing.a), dataclasses.asdict(pairing.b)],
            "matcher": pairing.matcher,
            "objective": match.objective,
        }
        if match.restarts:
            header["restarts"] = list(match.restarts)
        vectors = {axis: torch.from_numpy(vector) for axis, vector in match.permutation.items()}
        key = permutation_key(pairing.id)
        store.create(key, pack(key, vectors, header))


def has_match(store: Store, pairing: Pairing) -> bool:
    """Whether the merge's permutation can be used; a pairing without a matcher needs none."""
    if pairing.matcher == "none":
        return True
    return store.exists(permutation_key(pairing.id)) and has_match_rows(store, pairing)


def has_match_rows(store: Store, pairing: Pairing) -> bool:
    """Whether matching was tried: true also for a pair that was stopped, whose permutation is not kept."""
    return store.exists(row_key("merges", pairing.id)) and store.exists(row_key("axes", pairing.id))


def load_permutation(store: Store, pairing: Pairing, spec: PermutationSpec) -> Permutation:
    """Return a merge's permutation. Raises DamagedError where what is stored permutes no network of this `spec`."""
    key = permutation_key(pairing.id)
    permutation = read_permutation(store, key)
    try:
        spec.check(permutation)
    except ValueError as error:
        raise store.damaged(key, str(error)) from error
    return permutation


def read_permutation(store: Store, key: str) -> Permutation:
    """Return the permutation stored under `key`. Raises DamagedError where it is not what was written, or has an axis
    whose vector is no row of whole numbers."""
    vectors, _ = read_checkpoint(store, key)
    for axis, vector in vectors.items():
        if vector.ndim != 1 or vector.dtype != torch.int64:
            shape = tuple(vector.shape)
            raise store.damaged(key, f"the vector of axis {shown(axis)} is of {vector.dtype} and shape {shape}")
    return Permutation({axis: vector.numpy() for axis, vector in vectors.items()})


def save_moments(store: Store, moments_id: str, moments: LayerMoments) -> None:
    """Stores an endpoint's moments, in the type that they were measured in."""
    tensors = {f"{part}/{name}": getattr(of, part) for name, of in moments.items() for part in ("mean", "sd")}
    key = moments_key(moments_id)
    store.create(key, pack(key, tensors, {"kind": "moments", "layers": list(moments)}))


def load_moments(store: Store, moments_id: str) -> LayerMoments | None:
    """What was stored, to the bit and in its order; None where nothing was."""
    key = moments_key(moments_id)
    if not store.exists(key):
        return None
    tensors, header = read_checkpoint(store, key)
    try:
        return {name: Moments(tensors[f"mean/{name}"], tensors[f"sd/{name}"]) for name in header["layers"]}
    except (KeyError, TypeError) as error:
        raise store.damaged(key, "its moments are not those its header names") from error


def save_evaluation(store: Store, evaluation_id: str, splits: Splits) -> None:
    """Stores what was seen of an endpoint as it was trained."""
    rows = [{"split": split, **dataclasses.asdict(evaluation)} for split, evaluation in splits.items()]
    save_rows(store, END_ROWS, evaluation_id, rows)


def load_evaluation(store: Store, evaluation_id: str) -> Splits | None:
    """What was stored, to the bit; None where nothing was."""
    key = row_key(END_ROWS.name, evaluation_id)
    if not store.exists(key):
        return None
    rows, _ = read_rows(store, [key], END_ROWS)
    splits: Splits = {row.pop("split"): Evaluation(**row) for row in rows.to_pylist()}
    if splits.keys() != {"train", "test"}:
        raise store.damaged(key, "it is not of a train and a test split")
    return splits


def has_path(store: Store, path: Path) -> bool:
    return all(store.exists(row_key(table, path.id)) for table in ("paths", "layers"))


def save_rows(store: Store, table: Table, row_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    key = row_key(table.name, row_id)
    store.create(key, pack_rows(key, table, rows))


def missing_seeds(store: Store, cell: Cell, seeds: Iterable[int]) -> list[int]:
    """The seeds whose endpoints are still to be trained: none where they were brought in."""
    if cell.origin is not None:
        return []
    return [seed for seed in seeds if not has_endpoint(store, Endpoint(cell, seed))]


def missing_checkpoints(
    store: Store, cell: Cell, seeds: Iterable[int], epochs: Iterable[int | None]
) -> dict[int, list[int]]:
    """By seed the epochs among `epochs`, at which endpoints of `cell` are wanted, that are still to be trained, as in
    `missing_seeds`; without the seeds that lack none."""
    if cell.origin is not None:
        return {}
    at_epochs = [cell.at(epoch) for epoch in epochs]
    missing = {
        seed: [at.last_epoch for at in at_epochs if not has_endpoint(store, Endpoint(at, seed))] for seed in seeds
    }
    return {seed: lacking for seed, lacking in missing.items() if lacking}


def trained_members(store: Store, request: Request, cell: Cell) -> list[Member]:
    """The endpoints of a cell that may take part in pairs."""
    found = ((endpoint, read_endpoint(store, endpoint)) for endpoint in request.endpoints(cell))
    return [as_member(endpoint, record) for endpoint, record in found if record and record["status"] == "trained"]


def joint_members(store: Store, request: Request, cell: Cell) -> list[Member]:
    """The endpoints trained on both halves of the data of a cell, where it has halves and such were asked for."""
    joint = request.joint_cell(cell)
    return [] if joint is None else trained_members(store, request, joint)
