"""Fitting of imported weights to a network: every tensor under the network's name, of its shape, and finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tasks.science.specs.state import State

FLOAT_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

WRAPPERS = ("module.", "model.", "net.", "network.")
"""Prefixes that wrappers (DataParallel, Lightning's modules) put in front of every name."""

_WAY_OUT = "give weights of this very network, or the function that builds theirs"


class MergeError(ValueError):
    """Weights, a network or a spec that cannot be merged; the message says why, and the way out."""


def fit_state(network: nn.Module, state: Mapping[str, Tensor], owner: str) -> State:
    """Return `state` with the names and order of `network`, on the CPU, in its own type; `owner` is its name (A, B).

    A tensor that the network has under several names may be given under one of them, as some writers do; names may be
    those of a wrapped network, as `renamed` says.
    Raises MergeError for a tensor that is missing, unknown, of another shape, not of numbers, or not finite.
    """
    expected, groups = entries_of(network), shared_tensors(network)
    given = dict(renamed(network, state)[0])
    for group in groups:
        present = [key for key in group if key in given]
        given |= {key: given[present[0]] for key in group if present and key not in given}
    _check_names(expected, given, owner)
    fitted = {key: _fit_tensor(key, place, given[key], owner) for key, place in expected.items()}
    for first, *others in groups:
        for other in others:
            if not torch.equal(fitted[first], fitted[other]):
                raise MergeError(
                    f"{first} and {other} are one tensor in the network, and differ in {owner}: {_WAY_OUT}"
                )
            fitted[other] = fitted[first]
    return fitted


def _check_names(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], owner: str) -> None:
    """Raise MergeError for a tensor that is missing or unknown."""
    missing, unknown = [k for k in expected if k not in given], [k for k in given if k not in expected]
    if missing:
        more = f" and has {some(unknown)}, which the network lacks" if unknown else ""
        raise MergeError(f"{owner} lacks {some(missing)} of the network's tensors{more}: {_WAY_OUT}")
    if unknown:
        raise MergeError(f"{owner} has {some(unknown)}, which the network lacks: {_WAY_OUT}")


def _fit_tensor(key: str, place: Tensor, tensor: Tensor, owner: str) -> Tensor:
    """Return `tensor` on the CPU where it can take the `place` of the network's own. MergeError where it cannot."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
        raise MergeError(f"{key} of {owner} is no plain tensor: give the network's state dict, dense, not quantized")
    if tensor.shape != place.shape:
        raise MergeError(
            f"{key} has shape {tuple(tensor.shape)} in {owner} and {tuple(place.shape)} in the network: {_WAY_OUT}"
        )
    if place.is_complex():
        raise MergeError(
            f"{key} of the network is {word_of(place.dtype)}, and complex tensors cannot be merged: keep real and "
            "imaginary parts in a real tensor, and let the forward pass take it for complex (torch.view_as_complex)"
        )
    if place.is_floating_point() != (tensor.dtype in FLOAT_TYPES):
        wanted = "float64, float32, bfloat16 or float16" if place.is_floating_point() else "whole numbers"
        raise MergeError(f"{key} of {owner} is {word_of(tensor.dtype)}, and the network has {wanted} there")
    if not bool(torch.isfinite(tensor).all()):
        raise MergeError(
            f"{key} of {owner} has values that are not finite: its training has diverged, take other weights"
        )
    return tensor.detach().cpu()


def renamed(network: nn.Module, state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], str]:
    """Return `state` under the names of `network`, and how its names were changed: empty where they were not.

    Prefixes of wrappers are taken off or put before every name, where that alone makes the names fit.
    """
    expected = entries_of(network)
    twins = {key: set(group) for group in shared_tensors(network) for key in group}

    def fit(names: Sequence[str]) -> bool:
        given = set(names)
        return given <= expected.keys() and all(key in given or twins.get(key, set()) & given for key in expected)

    plain = {_plain(key): key for key in expected}
    bare = [_plain(key) for key in state]
    if fit(list(state)) or len(plain) < len(expected) or len(set(bare)) < len(bare):
        return state, ""
    trials = [("", bare), *((f"{p} is put before", [p + name for name in bare]) for p in WRAPPERS)]
    stripped, names = "", bare
    while prefix := next((p for p in WRAPPERS if names and all(name.startswith(p) for name in names)), None):
        stripped, names = stripped + prefix, [name.removeprefix(prefix) for name in names]
        trials.append((f"{stripped} is taken off", names))
    for what, names in trials:
        found = [plain.get(name, name) for name in names]
        if fit(found):
            return dict(zip(found, state.values(), strict=True)), f"{what} the name of every tensor" if what else ""
    return state, ""


def _plain(key: str) -> str:
    """Return a name without the parts that torch.compile adds."""
    return ".".join(part for part in key.split(".") if part != "_orig_mod")


def in_float32(state: Mapping[str, Tensor]) -> State:
    """Return `state` with every floating-point tensor in float32."""
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def entries_of(network: nn.Module) -> State:
    """Return the parameters and buffers of a network by name, without copies."""
    entries = network.state_dict(keep_vars=True)
    for key, value in entries.items():
        if not isinstance(value, Tensor):
            raise MergeError(f"the network keeps {key} in its state dict, which is no tensor and cannot be merged")
        if is_lazy(value):
            raise MergeError(f"{key} of the network has no shape yet: let the function that builds it run it once")
    return dict(entries)


def shared_tensors(network: nn.Module) -> list[list[str]]:
    """Return the groups of names that are one tensor."""
    groups: dict[int, list[str]] = {}
    for key, tensor in entries_of(network).items():
        groups.setdefault(id(tensor), []).append(key)
    return [keys for keys in groups.values() if len(keys) > 1]


def some(names: Sequence[str]) -> str:
    """Return the first three of `names`, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def word_of(dtype: torch.dtype) -> str:
    """Return the name of a type as it is written in code, without `torch.`."""
    return str(dtype).removeprefix("torch.")
