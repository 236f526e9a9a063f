"""Networks and data of a person's own, by the names of the functions that make them: `package.module:function`.

A name comes from whoever gives a command, or is trusted by them, never from a file or a store alone: importing a module
runs it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks.science.data.examples import Dataset, Examples
from tasks.science.evaluation.modes import NetworkError, check_modes
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import weights_digest

OUR_PACKAGES = ("flows", "tasks", "infra")


_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class OwnCodeError(Exception):
    """A person's own function does not do what is asked of it; the message says which, and what."""


def one_line(error: BaseException) -> str:
    """The kind of an error of somebody else's code, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def split_place(place: str, option: str) -> tuple[str, str]:
    """The module and the function of `package.module:name`. ValueError where it is no place of that form."""
    module_name, colon, name = place.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise ValueError(f"{option} takes package.module:function, got {place!r}")
    return module_name, name


def find_function(place: str, option: str) -> Callable[..., Any]:
    """The function at `package.module:name`, from the current folder or what is installed; `option` asked for it.

    Raises ValueError where there is no such place, OwnCodeError where importing it raises.
    """
    module_name, name = split_place(place, option)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise OwnCodeError(f"{option} {place}: importing it raised {one_line(error)}") from error
        package = error.name.partition(".")[0]
        ours = f"; {package} is a package of repairlab itself" if package in OUR_PACKAGES else ""
        raise ValueError(
            f"{option} {place}: there is no module {error.name} in this folder or among what is installed{ours}"
        ) from error
    except (Exception, SystemExit) as error:  # Whatever a person's module raises; a script without a guard may exit.
        raise OwnCodeError(f"{option} {place}: importing it raised {one_line(error)}") from error
    function: Any = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{option} {place}: module {module_name} has no function {name}")
    return function


def parameters_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The names that a function takes by name, each with its default: `inspect.Parameter.empty` where it has none."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # Some that are not written in Python have none.
        return {}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: each.default for name, each in signature.parameters.items() if each.kind in by_name}


def build_own_network(build: Callable[..., Any], place: str, **arguments: Any) -> nn.Module:
    """The network that a person's function makes of `arguments`, on the CPU, in float32 (which its weights need not
    be in)."""
    network = _call(functools.partial(build, **arguments), place)
    if not isinstance(network, nn.Module):
        raise OwnCodeError(f"{place} must return a torch.nn.Module, got {type(network).__name__}")
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        raise OwnCodeError(
            f"{place} makes a network on the meta device, which has no weights: let it make one on the CPU"
        )
    try:
        check_modes(network)
    except NetworkError as error:
        raise OwnCodeError(f"{place}: {error}") from error
    return network.cpu().float()


def load_own_data(load: Callable[[], Any], place: str) -> Dataset:
    """The data that a person's function returns: ((train images, labels), (test images, labels)).

    Images (n, channels, height, width) are of floats, normalised, or token ids (n, length) in their place, whole
    numbers; labels (n,) whole numbers from 0. OwnCodeError where they are not. There are as many classes as the
    largest label says, and black is a channel's smallest value among the train images, of ids 0.
    """
    found = _call(load, place)
    try:
        (train_images, train_labels), (test_images, test_labels) = found
    except (TypeError, ValueError) as error:
        raise OwnCodeError(
            f"{place} must return ((train images, train labels), (test images, test labels)), "
            f"got {type(found).__name__}"
        ) from error
    train = _examples(train_images, train_labels, f"{place}: train")
    test = _examples(test_images, test_labels, f"{place}: test")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise OwnCodeError(
            f"{place}: train images have shape {tuple(train.images.shape[1:])}, test images "
            f"{tuple(test.images.shape[1:])}"
        )
    tensors = {"train": train.images, "train_labels": train.labels, "test": test.images, "test_labels": test.labels}
    n_classes = int(torch.cat([train.labels, test.labels]).max()) + 1
    if n_classes < 2:
        raise OwnCodeError(f"{place}: all labels are 0, and a network tells classes apart: there must be at least 2")
    shape = tuple(train.images.shape[1:])
    spec = DataSpec(place, weights_digest(tensors), len(train), len(test), n_classes, shape)
    black = 0.0 if spec.holds_ids else tuple(train.images.amin((0, 2, 3)).tolist())
    return Dataset(spec, train, test, black)


def _call(function: Callable[[], Any], place: str) -> Any:
    try:
        return function()
    except (Exception, SystemExit) as error:  # Whatever a person's function raises.
        raise OwnCodeError(f"{place} raised {one_line(error)}") from error


def are_ids(images: Tensor) -> bool:
    """Whether these are token ids (n, length), whole numbers, and no images."""
    return images.dtype in (torch.int32, torch.int64) and images.ndim == 2 and images.numel() > 0


def _examples(images: Any, labels: Any, what: str) -> Examples:
    is_image = _is_plain(images) and images.is_floating_point() and images.ndim == 4 and images.numel() > 0
    if not is_image and not (_is_plain(images) and are_ids(images)):
        raise OwnCodeError(
            f"{what} images must be a tensor of floats, normalised, of shape (n, channels, height, width), or of token "
            f"ids (n, length), got {_described(images)}"
        )
    if not _is_plain(labels) or labels.dtype not in _WHOLE or labels.shape != images.shape[:1]:
        raise OwnCodeError(
            f"{what} labels must be a tensor of whole numbers of shape ({len(images)},), got {_described(labels)}"
        )
    if int(labels.min()) < 0:
        raise OwnCodeError(f"{what} labels must be at least one, counted from 0")
    if not bool(torch.isfinite(images).all()):
        raise OwnCodeError(f"{what} images have values that are not finite")
    images = images.detach().cpu()
    return Examples(images.float() if is_image else images.long(), labels.detach().cpu().long())


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return type(value).__name__
