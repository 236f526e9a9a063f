"""Reading and writing of the files that verbs store: endpoints, permutations, moments and rows."""

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
from tasks.science.correction.preactivations import LayerMoments, Moments
from tasks.science.evaluation.metrics import Evaluation
from tasks.science.networks import build_network
from tasks.science.paths.curves import Splits
from tasks.science.specs.bounds import MAX_DRAW
from tasks.science.specs.cell import Endpoint
from tasks.science.specs.checks import is_whole, shown
from tasks.science.specs.pairing import Member, Pairing
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
    """Return whether `value` is text that a table can hold: half a surrogate pair has no bytes."""
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
"""The fields of an endpoint's record, each with a test of its values."""

KEPT_STATE_BYTES = 2**29
"""The size of the weights that a task keeps in memory beside those that it works with."""


def save_endpoint(store: Store, endpoint: Endpoint, trained: Training, device: str, *, anew: bool = False) -> None:
    """Store a trained seed unless somebody has in the meantime; with `anew`, replace what is there.

    The record of an imported endpoint has neither training time nor skipped steps.
    """
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
    """Return the endpoint's record and `weights_sha256`, without its weights; None where it is not there yet."""
    try:
        return read_record(store, endpoint_key(endpoint.id))
    except FileNotFoundError:
        return None


def read_record(store: Store, key: str) -> dict[str, Any]:
    """Return the same as `read_endpoint`, by the endpoint's key.

    Raises DamagedError where a field has an impossible value.
    """
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
    """Return the endpoint as a pair's member, by the weights that its record names."""
    return Member(endpoint.seed, endpoint.id, record["weights_sha256"])


def load_weights(store: Store, members: Iterable[Member]) -> dict[Member, State]:
    """Return the weights of each member, checked against the digest that all that derives from them is keyed by."""
    states: dict[Member, State] = {}
    for member in sorted(set(members), key=lambda member: member.seed):
        key = endpoint_key(member.endpoint_id)
        state, header = read_checkpoint(store, key)
        if header["tensors_sha256"] != member.weights_sha256:
            raise store.damaged(key, "its weights are not those that the pair was asked for with")
        states[member] = state
    return states


class LazyStates:
    """States by position, each made by `load` when it is asked for.

    The last ones asked for are kept, as many as take `kept_bytes`, and at least one.
    """

    def __init__(self, load: Callable[[int], State], kept_bytes: int = KEPT_STATE_BYTES) -> None:
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
    """Store the result of matching; the permutation itself only where it is `exact`, so that it may be used."""
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


def load_permutation(store: Store, pairing: Pairing, spec: PermutationSpec) -> Permutation:
    """Return a pairing's permutation. Raises DamagedError where it permutes no network of this `spec`."""
    key = permutation_key(pairing.id)
    permutation = read_permutation(store, key)
    try:
        spec.check(permutation)
    except ValueError as error:
        raise store.damaged(key, str(error)) from error
    return permutation


def read_permutation(store: Store, key: str) -> Permutation:
    """Return the permutation stored under `key`.

    Raises DamagedError where it is not as written, or the vector of an axis is not a row of whole numbers.
    """
    vectors, _ = read_checkpoint(store, key)
    for axis, vector in vectors.items():
        if vector.ndim != 1 or vector.dtype != torch.int64:
            shape = tuple(vector.shape)
            raise store.damaged(key, f"the vector of axis {shown(axis)} is of {vector.dtype} and shape {shape}")
    return Permutation({axis: vector.numpy() for axis, vector in vectors.items()})


def save_moments(store: Store, moments_id: str, moments: LayerMoments) -> None:
    """Store an endpoint's moments, in the type that they were measured in."""
    tensors = {f"{part}/{name}": getattr(of, part) for name, of in moments.items() for part in ("mean", "sd")}
    key = moments_key(moments_id)
    store.create(key, pack(key, tensors, {"kind": "moments", "layers": list(moments)}))


def load_moments(store: Store, moments_id: str) -> LayerMoments | None:
    """Return stored moments, to the bit and in their order; None where there are none."""
    key = moments_key(moments_id)
    if not store.exists(key):
        return None
    tensors, header = read_checkpoint(store, key)
    try:
        return {name: Moments(tensors[f"mean/{name}"], tensors[f"sd/{name}"]) for name in header["layers"]}
    except (KeyError, TypeError) as error:
        raise store.damaged(key, "its moments are not those its header names") from error


def save_evaluation(store: Store, evaluation_id: str, splits: Splits) -> None:
    """Store the evaluation of an endpoint as it was trained."""
    rows = [{"split": split, **dataclasses.asdict(evaluation)} for split, evaluation in splits.items()]
    save_rows(store, END_ROWS, evaluation_id, rows)


def load_evaluation(store: Store, evaluation_id: str) -> Splits | None:
    """Return a stored evaluation, to the bit; None where there is none."""
    key = row_key(END_ROWS.name, evaluation_id)
    if not store.exists(key):
        return None
    rows, _ = read_rows(store, [key], END_ROWS)
    splits: Splits = {row.pop("split"): Evaluation(**row) for row in rows.to_pylist()}
    if splits.keys() != {"train", "test"}:
        raise store.damaged(key, "it is not of a train and a test split")
    return splits


def save_rows(store: Store, table: Table, row_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store rows in the row file of this id, unless it is there."""
    key = row_key(table.name, row_id)
    store.create(key, pack_rows(key, table, rows))
