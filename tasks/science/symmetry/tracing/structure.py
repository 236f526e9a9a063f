"""Descriptions of networks by value, so that networks built alike share one trace."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

_KNOWN = ("torch.nn.", "torchvision.models.", "tasks.science.")
"""Packages whose forward passes depend on the modules' own attributes, hooks and tensors, and on nothing else."""

_TENSORS = ("_parameters", "_buffers")
_BESIDE = frozenset({*_TENSORS, "_modules", "_forward_hooks", "training"})
_EMPTY = {name: value for name, value in vars(nn.Module()).items() if name not in _BESIDE}
"""Other attributes of every module, unchanged in networks that share a graph: other hooks, buffers outside the state
dict."""

_PLAIN = (bool, int, float, str, type(None), torch.dtype)


class _StrangeError(Exception):
    """Something that is known by its identity alone."""


def describe_structure(network: nn.Module, example: Tensor) -> Hashable | None:
    """Return a description of `network` in evaluation mode and of a batch like `example`.

    Networks of equal descriptions have equal graphs.
    None for a network with code or attributes whose equality cannot be told: modules of other classes, hooks, objects
    as attributes, buffers that are not in the state dict.
    """
    described = _Description()
    try:
        modules = described.of(network)
    except _StrangeError:
        return None
    return modules, _tensor(example), torch.get_default_dtype()


class _Description:
    """The modules and tensors seen of one network, numbered where they stand in several places."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def of(self, module: nn.Module) -> Hashable:
        known = id(module) in self._numbers
        number = self._number(module)
        if known:
            return number
        kind, attributes = type(module), vars(module)
        if not f"{kind.__module__}.".startswith(_KNOWN) or any(attributes.get(k) != v for k, v in _EMPTY.items()):
            raise _StrangeError
        held = {*_EMPTY, *_BESIDE}
        return (
            number,
            kind,
            tuple((name, _value(value)) for name, value in attributes.items() if name not in held),
            tuple(_hook(hook) for hook in attributes["_forward_hooks"].values()),
            tuple((name, self._tensor(tensor)) for part in _TENSORS for name, tensor in attributes[part].items()),
            tuple((name, child and self.of(child)) for name, child in attributes["_modules"].items()),
        )

    def _number(self, item: object) -> int:
        return self._numbers.setdefault(id(item), len(self._numbers))

    def _tensor(self, tensor: Tensor | None) -> Hashable:
        return None if tensor is None else (self._number(tensor), _tensor(tensor))


def _tensor(tensor: Tensor) -> Hashable:
    """Return the properties of a tensor that a trace reads. One on the meta device is traced on the CPU."""
    if type(tensor) not in (Tensor, nn.Parameter):
        raise _StrangeError
    device = "cpu" if tensor.is_meta else str(tensor.device)
    return type(tensor), tuple(tensor.shape), tensor.stride(), tensor.dtype, device


def _value(value: Any) -> Hashable:
    if isinstance(value, _PLAIN):
        return repr(value)  # as True and 1 are equal
    if isinstance(value, type):
        return value
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_value, value))
    if isinstance(value, frozenset | set):
        return type(value), frozenset(map(_value, value))
    raise _StrangeError


def _hook(hook: Any) -> Hashable:
    """Return a hook that is a function of a known package with its first arguments."""
    if isinstance(hook, functools.partial) and not hook.keywords:
        function: Any = hook.func
        if f"{getattr(function, '__module__', '')}.".startswith(_KNOWN):
            return function, tuple(map(_value, hook.args))
    raise _StrangeError
