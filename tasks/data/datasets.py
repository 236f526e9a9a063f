"""Data sets by name: found, checked and read into normalised tensors, or ImageNet's files, decoded on demand.

`digits` comes with scikit-learn. The others are the files that their authors publish, looked for in the data folder
(also in torchvision's layout) and, except for ImageNet, fetched by torchvision where they are not found;
`tasks.data.published` and `tasks.data.image_folder` know their formats.
Nothing here needs Prefect or settings: the data folder is an argument.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.data.image_folder import ImageFolders
from tasks.data.published import Arrays, Files, IdxFiles, MatFiles, PickleFiles, PixelScale
from tasks.science.data.examples import Dataset, Examples, Scaling
from tasks.science.data.user_defined import call_loader
from tasks.science.specs.checks import shown
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import stream
from tasks.science.specs.user_code import UserCodeError, find_function, names_code

UNKNOWN_FINGERPRINT = "unknown"
"""The fingerprint, in a plan, of data that were not found."""


@dataclass(frozen=True)
class Known:
    """The published facts of a data set, which a plan may use before its files are there."""

    n_train: int
    n_test: int
    n_classes: int
    shape: tuple[int, int, int]
    files: Files | ImageFolders | None = None
    """None where the data come with a library."""
    halves: bool = False
    """Whether endpoints are trained on one of two halves of the train split, as in `DataSpec`."""
    chosen_of: str = ""
    """The data set whose images this one is a fixed random choice of; empty where it has all of its own."""


_DEBIAN_FASHION = ("dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist"))
_CIFAR_MEAN, _CIFAR_DEVIATION = (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255)
_SVHN_MEAN, _SVHN_DEVIATION = (111.6095, 113.1604, 120.5646), (50.4977, 51.2590, 50.2442)

_MNIST = IdxFiles("mnist", 33.3184, 78.5675, "MNIST")
_FASHION = IdxFiles("fashion_mnist", 72.9404, 90.0212, "FashionMNIST", _DEBIAN_FASHION)
_SVHN = MatFiles("svhn", _SVHN_MEAN, _SVHN_DEVIATION, "SVHN")
_CIFAR10 = PickleFiles("cifar10", _CIFAR_MEAN, _CIFAR_DEVIATION, "CIFAR10", "labels")
_CIFAR100 = PickleFiles("cifar100", _CIFAR_MEAN, _CIFAR_DEVIATION, "CIFAR100", "fine_labels")
_IMAGENET = ImageFolders("imagenet", Scaling((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)), (3, 224, 224))

DATASETS = {
    "digits": Known(1437, 360, 10, (1, 8, 8)),
    "digits32": Known(1437, 360, 10, (1, 32, 32)),
    "mnist": Known(60_000, 10_000, 10, (1, 28, 28), _MNIST),
    "fashion_mnist": Known(60_000, 10_000, 10, (1, 28, 28), _FASHION),
    "fashion_mnist_5k": Known(5_000, 1_000, 10, (1, 28, 28), _FASHION, chosen_of="fashion_mnist"),
    "fashion_mnist_5k_split": Known(5_000, 1_000, 10, (1, 28, 28), _FASHION, halves=True, chosen_of="fashion_mnist"),
    "svhn": Known(73_257, 26_032, 10, (3, 32, 32), _SVHN),
    "cifar10": Known(50_000, 10_000, 10, (3, 32, 32), _CIFAR10),
    "cifar100": Known(50_000, 10_000, 100, (3, 32, 32), _CIFAR100),
    "cifar100_split": Known(50_000, 10_000, 100, (3, 32, 32), _CIFAR100, halves=True),
    "imagenet": Known(1_281_167, 50_000, 1_000, (3, 224, 224), _IMAGENET),
}


def describe_dataset(name: str, data_dir: Path) -> DataSpec:
    """Return the spec of `name`, read from its files, or else as published, with its fingerprint unknown."""
    known = DATASETS.get(name)
    if known is not None and known.files is not None and known.files.find(data_dir) is None:
        return published_shape(name)
    return load_dataset(name, data_dir).spec


def find_dataset(name: str, data_dir: Path) -> Path | None:
    """Return the folder or archive with all files of `name`; None where there is none, or where it needs none.

    ValueError for an unknown name.
    """
    files = _known(name).files
    return None if files is None else files.find(data_dir)


def published_shape(name: str) -> DataSpec:
    """Return the spec of `name` as published, without reading any file: its fingerprint is unknown."""
    known = _known(name)
    return DataSpec(
        name, UNKNOWN_FINGERPRINT, known.n_train, known.n_test, known.n_classes, known.shape, halves=known.halves
    )


def load_dataset(name: str, data_dir: Path) -> Dataset:
    """Return both splits of `name`, normalised, in memory or, of ImageNet, in files.

    They are read once per process, and fetched where the files are not found. A name `package.module:function` is a
    user-defined function, which loads them. Raises ValueError for an unknown name, DataError where files are missing or
    damaged, UserCodeError where a user-defined function does not return data.
    """
    if names_code(name):
        return _load_user_data(name)
    known = _known(name)
    if known.files is None:
        return _read(name, None)
    return _read(name, known.files.find(data_dir) or known.files.fetch(data_dir))


def check_data(dataset: Dataset, asked: DataSpec) -> Dataset:
    """Return `dataset` where it is what a cell asks for.

    UserCodeError where a user-defined function returns other data than when the study was planned.
    """
    if asked.user_defined and dataset.spec.fingerprint != asked.fingerprint:
        raise UserCodeError(
            f"{asked.name} returns other data each time it is called: let what it draws come from a seed of its own"
        )
    return dataset


@functools.lru_cache(maxsize=2)
def _load_user_data(place: str) -> Dataset:
    return call_loader(find_function(place, "--data"), place)


@functools.lru_cache(maxsize=2)
def _read(name: str, place: Path | None) -> Dataset:
    known = DATASETS[name]
    if known.files is None or place is None:
        return _read_digits(name, known)
    if isinstance(known.files, ImageFolders):
        return known.files.read(place)
    train, test = known.files.read(place, known.shape, known.n_classes)
    if known.chosen_of:
        train = _choose(train, known.n_train, known.chosen_of, "train")
        test = _choose(test, known.n_test, known.chosen_of, "test")
    return _assemble(name, known, train, test, known.files.mean, known.files.deviation)


def _choose(arrays: Arrays, n_images: int, name: str, split: str) -> Arrays:
    """Return `n_images` of a split of the data set `name`, in their order there, drawn by a stream of its own."""
    images, labels = arrays
    chosen = np.sort(stream("choice", name, split).permutation(len(labels))[:n_images])
    return images[chosen], labels[chosen]


def _known(name: str) -> Known:
    if name not in DATASETS:
        raise ValueError(f"there is no data set {shown(name)}; known: {', '.join(DATASETS)}")
    return DATASETS[name]


def _read_digits(name: str, known: Known) -> Dataset:
    """Return scikit-learn's 1,797 digits; every fifth image, shuffled within the classes, is a test image.

    `digits32` repeats each pixel 4 x 4 times, for networks that need a larger map.
    """
    from sklearn.datasets import load_digits  # 0.5 s to import: only where digits are wanted

    bunch: Any = load_digits()
    times = known.shape[1] // 8
    images = np.asarray(bunch.images, dtype=np.uint8)[:, None].repeat(times, 2).repeat(times, 3)
    labels = np.asarray(bunch.target, dtype=np.int64)
    shuffled = stream("split", "digits").permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[by_class[::5]] = True
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    mean, deviation = float(images[train].mean()), float(images[train].std())
    return _assemble(name, known, (images[train], labels[train]), (images[test], labels[test]), mean, deviation)


def _assemble(name: str, known: Known, train: Arrays, test: Arrays, mean: PixelScale, deviation: PixelScale) -> Dataset:
    digest = hashlib.sha256(f"{name}:{mean!r}:{deviation!r}".encode())
    for array in (*train, *test):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    spec = DataSpec(
        name, digest.hexdigest(), len(train[1]), len(test[1]), known.n_classes, known.shape, halves=known.halves
    )

    def normalise(images: NDArray[np.uint8]) -> torch.Tensor:
        """Return normalised floats, computed in place: the larger sets take close to 1 GB."""
        as_floats = torch.from_numpy(images.astype(np.float32))
        return as_floats.sub_(_per_channel(mean)).div_(_per_channel(deviation))

    return Dataset(
        spec,
        Examples(normalise(train[0]), torch.from_numpy(train[1])),
        Examples(normalise(test[0]), torch.from_numpy(test[1])),
        black=_black(mean, deviation),
    )


def _per_channel(scale: PixelScale) -> torch.Tensor:
    """Return `scale` in the shape that images broadcast with: (channels, 1, 1), or (1, 1, 1) for all channels."""
    return torch.tensor(scale, dtype=torch.float32).reshape(-1, 1, 1)


def _black(mean: PixelScale, deviation: PixelScale) -> PixelScale:
    """Return a raw 0 after normalisation: one number, or one for each channel."""
    black: float | list[float] = (-np.asarray(mean) / np.asarray(deviation)).tolist()
    return tuple(black) if isinstance(black, list) else black
