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

import numpy as np
import torch
import torchvision.datasets
from numpy.typing import NDArray

from tasks.science.examples import Dataset, Examples
from tasks.science.specs import DataSpec, stream

UNKNOWN_FINGERPRINT = "unknown"
"""Stands in a plan for the fingerprint of data that were not found."""

_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
_PREFIXES = {"train": "train", "test": "t10k"}


class DataError(Exception):
    """A data set is missing or damaged; the message says which file, and the ways to get it."""


@dataclass(frozen=True)
class Known:
    """What a plan may say of a data set before it is there. `mean` and `deviation` on the scale of 0 to 255."""

    n_train: int
    n_test: int
    n_classes: int
    shape: tuple[int, int, int]
    mean: float | None = None
    deviation: float | None = None
    torchvision_class: type[torchvision.datasets.MNIST] | None = None


DATASETS = {
    "digits": Known(1437, 360, 10, (1, 8, 8)),
    "mnist": Known(60_000, 10_000, 10, (1, 28, 28), 33.3184, 78.5675, torchvision.datasets.MNIST),
    "fashion_mnist": Known(60_000, 10_000, 10, (1, 28, 28), 72.9404, 90.0212, torchvision.datasets.FashionMNIST),
}


def describe_dataset(name: str, data_dir: Path) -> DataSpec:
    """What `name` is, from its files where they are there, else from what is published, its fingerprint unknown."""
    known = _known(name)
    try:
        return load_dataset(name, data_dir, download=False).spec
    except DataError:
        return DataSpec(name, UNKNOWN_FINGERPRINT, known.n_train, known.n_test, known.n_classes, known.shape)


@functools.lru_cache(maxsize=2)
def load_dataset(name: str, data_dir: Path, download: bool = True) -> Dataset:
    """Both splits of `name`, normalised, in memory; read once per process.

    Raises ValueError for a name that is not known, DataError where files are missing or damaged.
    """
    known = _known(name)
    if name == "digits":
        return _read_digits(known)
    folder = _find(name, data_dir, known, download=download)
    train_images, train_labels = _read_split(folder, "train", known)
    test_images, test_labels = _read_split(folder, "test", known)
    assert known.mean is not None and known.deviation is not None
    return _assemble(
        name, known, train_images, train_labels, test_images, test_labels, known.mean, known.deviation
    )


def _known(name: str) -> Known:
    if name not in DATASETS:
        raise ValueError(f"there is no data set {name!r}; known: {', '.join(DATASETS)}")
    return DATASETS[name]


def _read_digits(known: Known) -> Dataset:
    """scikit-learn's 1,797 digits: every fifth of the images, shuffled within their classes, is a test image."""
    from sklearn.datasets import load_digits  # pyright: ignore # 0.5 s to import: only where digits are wanted

    bunch = load_digits()  # pyright: ignore
    images = np.asarray(bunch.images, dtype=np.uint8)[:, None]  # pyright: ignore
    labels = np.asarray(bunch.target, dtype=np.int64)  # pyright: ignore
    shuffled = stream("split", "digits").permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[by_class[::5]] = True
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    mean, deviation = float(images[train].mean()), float(images[train].std())
    return _assemble("digits", known, images[train], labels[train], images[test], labels[test], mean, deviation)


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


def _find(name: str, data_dir: Path, known: Known, *, download: bool) -> Path:
    """The folder that holds the four idx files of `name`."""
    data_dir = data_dir.expanduser()
    assert known.torchvision_class is not None
    theirs = data_dir / known.torchvision_class.__name__ / "raw"
    folders = [data_dir / name, data_dir / name.replace("_", "-"), theirs]
    if name == "fashion_mnist":
        folders.append(_DEBIAN_FASHION)
    for folder in folders:
        if all(_file(folder, split, kind) for split in _PREFIXES for kind in ("images", "labels")):
            return folder
    partial = [folder for folder in folders if any(folder.glob("*-ubyte*"))]
    reason = f"{partial[0]} holds some of its files, not all" if partial else "its files were not found"
    if download:
        try:
            known.torchvision_class(str(data_dir), download=True)
            return theirs
        except (RuntimeError, OSError) as error:  # torchvision: no mirror reached, or a checksum that differs
            reason += f" and could not be fetched ({_first_line(error)})"
    ways = f"put train-images-idx3-ubyte.gz and the other three into {data_dir / name}"
    if name == "fashion_mnist":
        ways += ", or install Debian's package dataset-fashion-mnist"
    raise DataError(
        f"{name}: {reason}; {ways}, or set REPAIRLAB_DATA_DIR to a folder that has them, "
        "or run where there is a network"
    )


def _file(folder: Path, split: str, kind: str) -> Path | None:
    rank = 3 if kind == "images" else 1
    stem = f"{_PREFIXES[split]}-{kind}-idx{rank}-ubyte"
    return next((path for path in (folder / f"{stem}.gz", folder / stem) if path.is_file()), None)


def _read_split(folder: Path, split: str, known: Known) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    paths = {kind: _file(folder, split, kind) for kind in ("images", "labels")}
    assert paths["images"] is not None and paths["labels"] is not None
    images, labels = read_idx(paths["images"], 3), read_idx(paths["labels"], 1)
    if images.shape[1:] != known.shape[1:]:
        raise _damaged(paths["images"], f"images of {images.shape[1:]} pixels, expected {known.shape[1:]}")
    if len(images) != len(labels) or not len(labels):
        raise _damaged(paths["labels"], f"{len(labels)} labels for {len(images)} images")
    if labels.max() >= known.n_classes:
        raise _damaged(paths["labels"], f"a label of {labels.max()} among {known.n_classes} classes")
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
