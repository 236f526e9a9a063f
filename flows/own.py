"""A person's own network and data, by the names of the functions that make them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks.datasets import load_dataset
from tasks.science.examples import Examples
from tasks.science.identity import weights_digest
from tasks.science.merging import one_line

OUR_PACKAGES = ("flows", "tasks", "infra")


class OwnCodeError(Exception):
    """A person's own function does not do what is asked of it; the message says which, and what."""


@dataclass(frozen=True)
class Data:
    """What a merge sees: images to measure on, examples to test on. `n_classes` is the least there can be where
    `exact` is not set: it is then read off the labels."""

    name: str
    fingerprint: str
    train_images: Tensor
    test: Examples
    n_classes: int
    exact: bool


def find_function(place: str, option: str) -> Callable[[], Any]:
    """The function at `package.module:name`, from the current folder or what is installed.

    Raises ValueError where there is no such place, OwnCodeError where importing it raises.
    """
    module_name, colon, name = place.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise ValueError(f"{option} takes package.module:function, got {place!r}")
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


def build_own_network(build: Callable[[], Any], place: str) -> nn.Module:
    """The network that a person's function makes, on the CPU, in float32 (which its weights need not be in)."""
    network = _call(build, place)
    if not isinstance(network, nn.Module):
        raise OwnCodeError(f"{place} must return a torch.nn.Module, got {type(network).__name__}")
    return network.cpu().float()


def load_own_data(load: Callable[[], Any], place: str) -> Data:
    """The data that a person's function returns: ((train images, labels), (test images, labels)).

    Images (n, channels, height, width) are of floats, normalised; labels (n,) whole numbers from 0. OwnCodeError
    where they are not.
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
    return Data(place, weights_digest(tensors), train.images, test, n_classes, exact=False)


def load_known_data(name: str, data_dir: Path) -> Data:
    """A data set that repairlab knows. Raises as `load_dataset` does."""
    dataset = load_dataset(name, data_dir)
    return Data(name, dataset.spec.fingerprint, dataset.train.images, dataset.test, dataset.spec.n_classes, exact=True)


def _call(function: Callable[[], Any], place: str) -> Any:
    try:
        return function()
    except (Exception, SystemExit) as error:  # Whatever a person's function raises.
        raise OwnCodeError(f"{place} raised {one_line(error)}") from error


def _examples(images: Any, labels: Any, what: str) -> Examples:
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4:
        raise OwnCodeError(
            f"{what} images must be a tensor of floats, normalised, of shape (n, channels, height, width), "
            f"got {_described(images)}"
        )
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != images.shape[:1]:
        raise OwnCodeError(
            f"{what} labels must be a tensor of whole numbers of shape ({len(images)},), got {_described(labels)}"
        )
    if not len(labels) or int(labels.min()) < 0:
        raise OwnCodeError(f"{what} labels must be at least one, counted from 0")
    if not bool(torch.isfinite(images).all()):
        raise OwnCodeError(f"{what} images have values that are not finite")
    return Examples(images.detach().cpu().float(), labels.detach().cpu().long())


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return type(value).__name__
