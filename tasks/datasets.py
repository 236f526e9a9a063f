"""Finds, checks and reads data sets into normalised tensors.

`digits` comes with scikit-learn. MNIST and Fashion-MNIST are gzipped or plain idx files, looked for in the data folder
(in torchvision's layout too) and where Debian's package `dataset-fashion-mnist` puts them, and fetched by torchvision
where they are not found. Nothing here needs Prefect or settings: the data folder is an argument.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets
from numpy.typing import NDArray

from tasks.science.examples import Dataset, Examples
from tasks.science.specs import DataSpec, stream

UNKNOWN_FINGERPRINT = "unknown"
"""Stands in a plan for the fingerprint of data that were not found."""

_PREFIXES = {"train": "train", "test": "t10k"}


class DataError(Exception):
    """A data set is missing or damaged; the message says which file, and the ways to get it."""


@dataclass(frozen=True)
class IdxFiles:
    """How the images are normalised (on the scale of 0 to 255), which class fetches the files, and what holds them."""

    mean: float
    deviation: float
    fetcher: type[torchvision.datasets.MNIST]
    package: tuple[str, Path] | None = None
    """A Debian package that brings the files, and the folder it puts them in."""


@dataclass(frozen=True)
class Known:
    """What a plan may say of a data set before it is there."""

    n_train: int
    n_test: int
    n_classes: int
    shape: tuple[int, int, int]
    files: IdxFiles | None = None
    """None where the data come with a library."""


_DEBIAN_FASHION = ("dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist"))

DATASETS = {
    "digits": Known(1437, 360, 10, (1, 8, 8)),
    "digits32": Known(1437, 360, 10, (1, 32, 32)),
    "mnist": Known(60_000, 10_000, 10, (1, 28, 28), IdxFiles(33.3184, 78.5675, torchvision.datasets.MNIST)),
    "fashion_mnist": Known(
        60_000,
        10_000,
        10,
        (1, 28, 28),
        IdxFiles(72.9404, 90.0212, torchvision.datasets.FashionMNIST, _DEBIAN_FASHION),
    ),
}


def describe_dataset(name: str, data_dir: Path) -> DataSpec:
    """What `name` is, from its files where they are there, else from what is published, its fingerprint unknown."""
    known = _known(name)
    folder = None
    if known.files is not None and (folder := _find(name, data_dir, known.files)) is None:
        return published_shape(name)
    return _read(name, folder).spec


def published_shape(name: str) -> DataSpec:
    """What is published of `name`, without a look at any file: its fingerprint is unknown."""
    known = _known(name)
    return DataSpec(name, UNKNOWN_FINGERPRINT, known.n_train, known.n_test, known.n_classes, known.shape)


def load_dataset(name: str, data_dir: Path) -> Dataset:
    """Both splits of `name`, normalised, in memory; read once per process, fetched where the files are not found.

    Raises ValueError for a name that is not known, DataError where files are missing or damaged.
    """
    known = _known(name)
    if known.files is None:
        return _read(name, None)
    return _read(name, _find(name, data_dir, known.files) or _fetch(name, data_dir, known.files))


@functools.lru_cache(maxsize=2)
def _read(name: str, folder: Path | None) -> Dataset:
    known = DATASETS[name]
    if known.files is None or folder is None:
        return _read_digits(name, known)
    train_images, train_labels = _read_split(folder, "train", known)
    test_images, test_labels = _read_split(folder, "test", known)
    mean, deviation = known.files.mean, known.files.deviation
    return _assemble(name, known, train_images, train_labels, test_images, test_labels, mean, deviation)


def _known(name: str) -> Known:
    if name not in DATASETS:
        raise ValueError(f"there is no data set {name!r}; known: {', '.join(DATASETS)}")
    return DATASETS[name]


def _read_digits(name: str, known: Known) -> Dataset:
    """scikit-learn's 1,797 digits: every fifth of the images, shuffled within their classes, is a test image.

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
    return _assemble(name, known, images[train], labels[train], images[test], labels[test], mean, deviation)


def _assemble(
    name: str,
    known: Known,
    train_images: NDArray[np.uint8],
    train_labels: NDArray[np.int64],
    test_images: NDArray[np.uint8],
    test_labels: NDArray[np.int64],
    mean: float,
    deviation: float,
) -> Dataset:
    digest = hashlib.sha256(f"{name}:{mean!r}:{deviation!r}".encode())
    for array in (train_images, train_labels, test_images, test_labels):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    spec = DataSpec(
        name, digest.hexdigest(), len(train_labels), len(test_labels), known.n_classes, train_images.shape[1:]
    )

    def normalise(images: NDArray[np.uint8]) -> torch.Tensor:
        return (torch.from_numpy(images.astype(np.float32)) - mean) / deviation

    return Dataset(
        spec,
        Examples(normalise(train_images), torch.from_numpy(train_labels)),
        Examples(normalise(test_images), torch.from_numpy(test_labels)),
        black=-mean / deviation,
    )


def _folders(name: str, data_dir: Path, files: IdxFiles) -> list[Path]:
    """Where the four idx files of a data set may lie, the person's own folders first."""
    data_dir = data_dir.expanduser()
    folders = [data_dir / name, data_dir / name.replace("_", "-"), _fetched(data_dir, files)]
    return folders if files.package is None else [*folders, files.package[1]]


def _fetched(data_dir: Path, files: IdxFiles) -> Path:
    """Where torchvision puts the files it fetches."""
    return data_dir.expanduser() / files.fetcher.__name__ / "raw"


def _find(name: str, data_dir: Path, files: IdxFiles) -> Path | None:
    """The first folder that holds all four idx files of `name`."""
    for folder in _folders(name, data_dir, files):
        if all(_file(folder, split, kind) for split in _PREFIXES for kind in ("images", "labels")):
            return folder
    return None


def _fetch(name: str, data_dir: Path, files: IdxFiles) -> Path:
    """Lets torchvision fetch the files, which checks their published checksums. DataError where it cannot."""
    try:
        files.fetcher(str(data_dir.expanduser()), download=True)
    except (RuntimeError, OSError) as error:  # No mirror was reached, or a checksum differs.
        partial = [str(folder) for folder in _folders(name, data_dir, files) if any(folder.glob("*-ubyte*"))]
        found = f"{partial[0]} holds some of its files, not all," if partial else "its files were not found"
        package = f", install Debian's package {files.package[0]}" if files.package else ""
        raise DataError(
            f"{name}: {found} and they could not be fetched ({_first_line(error)}); run where there is a network, "
            f"put train-images-idx3-ubyte.gz and the other three into {data_dir / name}{package}, "
            f"or set REPAIRLAB_DATA_DIR to a folder that has them in a folder {name}"
        ) from error
    return _fetched(data_dir, files)


def _file(folder: Path, split: str, kind: str) -> Path | None:
    rank = 3 if kind == "images" else 1
    stem = f"{_PREFIXES[split]}-{kind}-idx{rank}-ubyte"
    return next((path for path in (folder / f"{stem}.gz", folder / stem) if path.is_file()), None)


def _read_split(folder: Path, split: str, known: Known) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    paths = [_file(folder, split, kind) for kind in ("images", "labels")]
    images_path, labels_path = (path for path in paths if path is not None)
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != known.shape[1:]:
        raise _damaged(images_path, f"images of {images.shape[1:]} pixels, expected {known.shape[1:]}")
    if len(images) != len(labels) or not len(labels):
        raise _damaged(labels_path, f"{len(labels)} labels for {len(images)} images")
    if labels.max() >= known.n_classes:
        raise _damaged(labels_path, f"a label of {labels.max()} among {known.n_classes} classes")
    return images[:, None], labels.astype(np.int64)


def read_idx(path: Path, rank: int) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes with `rank` dimensions, gzipped (its CRC is checked) or plain.

    Raises DataError where the file is cut short, damaged or of another kind. Format: MNIST's own page, LeCun et al.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, _first_line(error)) from error
    if len(data) < 4 + 4 * rank or data[:4] != bytes([0, 0, 8, rank]):
        raise _damaged(path, f"no idx file of bytes with {rank} dimensions")
    shape = tuple(np.frombuffer(data, ">u4", rank, offset=4).astype(int).tolist())
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if values.size != np.prod(shape):
        raise _damaged(path, f"{values.size} values where its header says {np.prod(shape)}")
    return values.reshape(shape)


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is damaged ({reason}): delete it and fetch it again")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".:")
