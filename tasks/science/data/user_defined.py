"""User-defined data sets, loaded by a function at a place `package.module:function`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tasks.science.data.examples import Dataset, Examples, are_ids
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import weights_digest
from tasks.science.specs.user_code import UserCodeError, call_function

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def call_loader(load: Callable[[], Any], place: str) -> Dataset:
    """Return the data set of a user-defined loader, which returns ((train images, labels), (test images, labels)).

    Images (n, channels, height, width) are normalised floats, or token ids (n, length) in their place; labels (n,) are
    whole numbers from 0. UserCodeError where they are not. The number of classes is the largest label plus one, and
    black is the smallest value of each channel among the train images, or 0 for token ids.
    """
    found = call_function(load, place)
    try:
        (train_images, train_labels), (test_images, test_labels) = found
    except (TypeError, ValueError) as error:
        raise UserCodeError(
            f"{place} must return ((train images, train labels), (test images, test labels)), "
            f"got {type(found).__name__}"
        ) from error
    train = _check_split(train_images, train_labels, f"{place}: train")
    test = _check_split(test_images, test_labels, f"{place}: test")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserCodeError(
            f"{place}: train images have shape {tuple(train.images.shape[1:])}, test images "
            f"{tuple(test.images.shape[1:])}: give both one shape"
        )
    n_classes = int(torch.cat([train.labels, test.labels]).max()) + 1
    if n_classes < 2:
        raise UserCodeError(f"{place}: all labels are 0, and a network tells classes apart: there must be at least 2")
    tensors = {"train": train.images, "train_labels": train.labels, "test": test.images, "test_labels": test.labels}
    shape = tuple(train.images.shape[1:])
    spec = DataSpec(place, weights_digest(tensors), len(train), len(test), n_classes, shape)
    black = 0.0 if spec.holds_ids else tuple(train.images.amin((0, 2, 3)).tolist())
    return Dataset(spec, train, test, black)


def _check_split(images: Any, labels: Any, what: str) -> Examples:
    is_image = _is_plain(images) and images.is_floating_point() and images.ndim == 4 and images.numel() > 0
    if not is_image and not (_is_plain(images) and are_ids(images)):
        raise UserCodeError(
            f"{what} images must be a tensor of floats, normalised, of shape (n, channels, height, width), or of token "
            f"ids (n, length), got {_described(images)}"
        )
    if not _is_plain(labels) or labels.dtype not in _WHOLE or labels.shape != images.shape[:1]:
        raise UserCodeError(
            f"{what} labels must be a tensor of whole numbers of shape ({len(images)},), got {_described(labels)}"
        )
    if int(labels.min()) < 0:
        raise UserCodeError(f"{what} labels must be counted from 0, got {int(labels.min())}")
    if not bool(torch.isfinite(images).all()):
        raise UserCodeError(f"{what} images have values that are not finite")
    images = images.detach().cpu()
    return Examples(images.float() if is_image else images.long(), labels.detach().cpu().long())


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return type(value).__name__
