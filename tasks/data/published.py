"""Files of data sets as their authors publish them: found, fetched, checked and read.

Each class knows one format. torchvision fetches the files and holds the published checksums; a file whose format has no
checksum of its own is read only where it matches the published one.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import io
import math
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from tasks.data.pickles import read_batch

PixelScale = float | tuple[float, ...]
"""A mean or standard deviation of pixels from 0 to 255: of the one channel, or of each."""

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images (n_examples, channels, height, width) and labels (n_examples,) of a split."""

_SPLITS = ("train", "test")
_PIECE_BYTES = 2**20
_MOST_EXAMPLES = 1_000_000
_MOST_BYTES = 2**30
"""The most bytes of a file that is read into memory, and that it may inflate to: more than any data set has."""
_PREFIXES = {"train": "train", "test": "t10k"}


class DataError(Exception):
    """A data set that is missing or damaged; the message names the file and says how to get it."""


class Files(Protocol):
    """The files of one data set, and the normalisation of its images."""

    @property
    def mean(self) -> PixelScale: ...

    @property
    def deviation(self) -> PixelScale: ...

    def find(self, data_dir: Path) -> Path | None:
        """Return the folder or archive that has all files; None where there is none."""
        ...

    def fetch(self, data_dir: Path) -> Path:
        """Fetch the files and return their folder or archive. DataError where they cannot be fetched."""
        ...

    def read(self, place: Path, shape: tuple[int, int, int], n_classes: int) -> tuple[Arrays, Arrays]:
        """Return the train and the test split. DataError where images are not of `shape`, or a file is damaged."""
        ...


@dataclass(frozen=True)
class IdxFiles:
    """Files in MNIST's format: four idx files, each gzipped or plain."""

    name: str
    mean: PixelScale
    deviation: PixelScale
    fetcher: str
    """The name of torchvision's class."""
    package: tuple[str, Path] | None = None
    """A Debian package that brings the files, and the folder it puts them in."""

    def find(self, data_dir: Path) -> Path | None:
        for folder in self._folders(data_dir):
            if all(_idx_file(folder, split, kind) for split in _PREFIXES for kind in ("images", "labels")):
                return folder
        return None

    def fetch(self, data_dir: Path) -> Path:
        try:
            _torchvision(self.fetcher)(str(data_dir.expanduser()), download=True)
        except (RuntimeError, OSError) as error:  # No mirror was reached, or a checksum differs.
            partial = next((folder for folder in self._folders(data_dir) if any(folder.glob("*-ubyte*"))), None)
            package = f", install Debian's package {self.package[0]}" if self.package else ""
            what = "train-images-idx3-ubyte.gz and the other three"
            raise _missing(self.name, data_dir, error, what, partial, package) from error
        return self._fetched(data_dir)

    def read(self, place: Path, shape: tuple[int, int, int], n_classes: int) -> tuple[Arrays, Arrays]:
        def read_split(split: str) -> Arrays:
            paths = [_idx_file(place, split, kind) for kind in ("images", "labels")]
            images_path, labels_path = (path for path in paths if path is not None)
            images, labels = read_idx(images_path, 3, shape[1:]), read_idx(labels_path, 1)
            _check(images_path, labels_path, images[:, None], labels, shape, n_classes)
            return images[:, None], labels.astype(np.int64)

        return read_split("train"), read_split("test")

    def _folders(self, data_dir: Path) -> list[Path]:
        """Return the folders where the files may lie, those of the user first."""
        data_dir = data_dir.expanduser()
        folders = [data_dir / self.name, data_dir / self.name.replace("_", "-"), self._fetched(data_dir)]
        return folders if self.package is None else [*folders, self.package[1]]

    def _fetched(self, data_dir: Path) -> Path:
        """Return the folder into which torchvision fetches the files."""
        return data_dir.expanduser() / self.fetcher / "raw"


@dataclass(frozen=True)
class MatFiles:
    """Files in SVHN's format: a MATLAB file of cropped digits per split, whose label 10 is the digit 0."""

    name: str
    mean: PixelScale
    deviation: PixelScale
    fetcher: str

    def find(self, data_dir: Path) -> Path | None:
        return _folder_with(all, self._folders(data_dir), self._names)

    def fetch(self, data_dir: Path) -> Path:
        folder = data_dir.expanduser() / self.name
        published = [self._published(split) for split in _SPLITS]
        try:
            for url, name, md5 in published:
                _download(url, folder / name, md5)
        except (RuntimeError, OSError, HTTPException) as error:
            partial = _folder_with(any, self._folders(data_dir), self._names)
            raise _missing(self.name, data_dir, error, " and ".join(self._names), partial) from error
        return folder

    def read(self, place: Path, shape: tuple[int, int, int], n_classes: int) -> tuple[Arrays, Arrays]:
        def read_split(split: str) -> Arrays:
            _, name, md5 = self._published(split)
            path = place / name
            data = _matching(_contents(path), md5, path)
            try:
                found: dict[str, Any] = loadmat(io.BytesIO(data), variable_names=["X", "y"])
                images, labels = np.asarray(found["X"], np.uint8), np.asarray(found["y"], np.int64).ravel()
                images = np.ascontiguousarray(images.transpose(3, 2, 0, 1))
            except Exception as error:  # loadmat raises nearly anything for a file that is none.
                raise _damaged(path, f"no MATLAB file of images X and labels y: {_first_line(error)}") from error
            labels = np.where(labels == 10, 0, labels)
            _check(path, path, images, labels, shape, n_classes)
            return images, labels

        return read_split("train"), read_split("test")

    def _folders(self, data_dir: Path) -> list[Path]:
        data_dir = data_dir.expanduser()
        return [data_dir / self.name, data_dir]

    @property
    def _names(self) -> list[str]:
        return [self._published(split)[1] for split in _SPLITS]

    def _published(self, split: str) -> tuple[str, str, str]:
        """Return the URL, name and md5 of a split's file."""
        url, name, md5 = _torchvision(self.fetcher).split_list[split]
        return url, name, md5


@dataclass(frozen=True)
class PickleFiles:
    """Files in CIFAR's format: a tar archive of pickled batches, or the folder that it unpacks to.

    A batch is unpickled only after its md5 has matched the published one, and then by `tasks.data.pickles`, which calls
    nothing that the pickle names.
    """

    name: str
    mean: PixelScale
    deviation: PixelScale
    fetcher: str
    labels_key: str

    def find(self, data_dir: Path) -> Path | None:
        if folder := _folder_with(all, self._folders(data_dir), self._names):
            return folder
        homes = (data_dir.expanduser() / self.name, data_dir.expanduser())
        return next((path for home in homes if (path := home / self._published.filename).is_file()), None)

    def fetch(self, data_dir: Path) -> Path:
        path = data_dir.expanduser() / self.name / self._published.filename
        try:
            _download(self._published.url, path, self._published.tgz_md5)
        except (RuntimeError, OSError, HTTPException) as error:
            partial = _folder_with(any, self._folders(data_dir), self._names)
            raise _missing(self.name, data_dir, error, self._published.filename, partial) from error
        return path

    def read(self, place: Path, shape: tuple[int, int, int], n_classes: int) -> tuple[Arrays, Arrays]:
        if place.is_dir():
            return self._read(place, lambda name: _contents(place / name), shape, n_classes)
        # Before anything is inflated: the published archive is known not to fill the memory.
        _check_sum(place, self._published.tgz_md5)
        try:
            with tarfile.open(place, "r:gz") as archive:
                # Members are read one by one: nothing is unpacked, so nothing is written.
                return self._read(
                    place, lambda name: _member(archive, f"{self._published.base_folder}/{name}"), shape, n_classes
                )
        except (tarfile.TarError, OSError, EOFError, zlib.error, KeyError) as error:
            raise _damaged(place, _first_line(error)) from error

    def _folders(self, data_dir: Path) -> list[Path]:
        """Return the folders where the unpacked batches may lie."""
        data_dir = data_dir.expanduser()
        unpacked = self._published.base_folder
        return [data_dir / self.name, data_dir / self.name / unpacked, data_dir / unpacked]

    @property
    def _published(self) -> Any:
        return _torchvision(self.fetcher)

    @property
    def _names(self) -> list[str]:
        return [name for name, _ in [*self._published.train_list, *self._published.test_list]]

    def _read(
        self, place: Path, contents: Callable[[str], bytes], shape: tuple[int, int, int], n_classes: int
    ) -> tuple[Arrays, Arrays]:
        def read_split(batches: list[list[str]]) -> Arrays:
            read: list[Arrays] = []
            for name, md5 in batches:
                path = place / name if place.is_dir() else place
                data = _matching(contents(name), md5, path)
                try:
                    flat, labels = read_batch(data, self.labels_key)
                    images = flat.reshape(-1, *shape)
                except ValueError as error:
                    raise _damaged(path, str(error)) from error
                _check(path, path, images, labels, shape, n_classes)
                read.append((images, labels))
            return np.concatenate([images for images, _ in read]), np.concatenate([labels for _, labels in read])

        return read_split(self._published.train_list), read_split(self._published.test_list)


def read_idx(path: Path, rank: int, example: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
    """Return the array in an idx file of unsigned bytes with `rank` dimensions, gzipped (its CRC is checked) or plain.

    `example` is the shape of one of its examples, where that is known. Raises DataError where the file is cut short,
    damaged or of another kind. No more is read, or inflated, than its header says, and nothing where that is more than
    any data set has. Format: MNIST's own page, LeCun et al.
    """
    try:
        with cast("IO[bytes]", gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * rank)
            if len(header) < 4 + 4 * rank or header[:4] != bytes([0, 0, 8, rank]):
                raise _damaged(path, f"no idx file of bytes with {rank} dimensions")
            shape = tuple(np.frombuffer(header, ">u4", rank, offset=4).astype(int).tolist())
            n_values = math.prod(shape)
            if shape[0] > _MOST_EXAMPLES or n_values > _MOST_BYTES or (example is not None and shape[1:] != example):
                raise _damaged(path, f"its header says {' x '.join(map(str, shape))} values")
            data = _read_at_most(file, n_values + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, _first_line(error)) from error
    if len(data) != n_values:
        found = f"more than {n_values}" if len(data) > n_values else str(len(data))
        raise _damaged(path, f"{found} values where its header says {n_values}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_at_most(file: IO[bytes], n_bytes: int) -> bytes:
    """Return the next `n_bytes`, or as many as there are, without allocating more than that."""
    pieces: list[bytes] = []
    while n_bytes > 0 and (piece := file.read(min(n_bytes, _PIECE_BYTES))):
        pieces.append(piece)
        n_bytes -= len(piece)
    return b"".join(pieces)


def _torchvision(name: str) -> Any:
    """Return the class of one of torchvision's data sets, whose import takes nearly two seconds."""
    return getattr(importlib.import_module("torchvision.datasets"), name)


def _folder_with(
    quantity: Callable[[Iterable[bool]], bool], folders: Sequence[Path], names: Sequence[str]
) -> Path | None:
    """Return the first of `folders` that has all, or any, of the files."""
    return next((folder for folder in folders if quantity((folder / name).is_file() for name in names)), None)


def _idx_file(folder: Path, split: str, kind: str) -> Path | None:
    rank = 3 if kind == "images" else 1
    stem = f"{_PREFIXES[split]}-{kind}-idx{rank}-ubyte"
    return next((path for path in (folder / f"{stem}.gz", folder / stem) if path.is_file()), None)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    """Return the contents of a file in the archive; KeyError where it holds none of that name."""
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is no file")
    return file.read()


def _download(url: str, path: Path, md5: str) -> None:
    """Fetch a file by torchvision, which checks it; one that is cut short or wrong never lies at `path`.

    Raises RuntimeError where the checksum differs, OSError or HTTPException where it cannot be fetched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        from torchvision.datasets.utils import download_url

        download_url(url, folder, path.name, md5)
        (Path(folder) / path.name).replace(path)


def _contents(path: Path) -> bytes:
    """Return the contents of a file. DataError where it cannot be read, or is larger than any published one."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1) if path.stat().st_size <= _MOST_BYTES else None
    except OSError as error:
        raise _damaged(path, _first_line(error)) from error
    if data is None or len(data) > _MOST_BYTES:
        raise _damaged(path, f"it has more than {_MOST_BYTES:,} bytes")
    return data


def _check_sum(path: Path, md5: str) -> None:
    """Raise DataError where a file, read a piece at a time, is not the published one."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise _damaged(path, _first_line(error)) from error
    _compare(found, md5, path)


def _matching(data: bytes, md5: str, path: Path) -> bytes:
    """Return `data`. DataError where it is not what was published."""
    _compare(hashlib.md5(data, usedforsecurity=False).hexdigest(), md5, path)
    return data


def _compare(found: str, md5: str, path: Path) -> None:
    if found != md5:
        raise _damaged(path, f"its md5 is {found}, that of the published file {md5}")


def _check(
    images_path: Path,
    labels_path: Path,
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    shape: tuple[int, int, int],
    n_classes: int,
) -> None:
    if images.shape[1:] != shape:
        raise _damaged(images_path, f"images of {images.shape[1:]} values, expected {shape}")
    if len(images) != len(labels) or not len(labels):
        raise _damaged(labels_path, f"{len(labels)} labels for {len(images)} images")
    if not 0 <= labels.min() <= labels.max() < n_classes:
        wrong = labels.max() if labels.min() >= 0 else labels.min()
        raise _damaged(labels_path, f"a label of {wrong} among {n_classes} classes")


def _missing(
    name: str, data_dir: Path, error: Exception, what: str, partial: Path | None, other: str = ""
) -> DataError:
    """Return the error of files that were neither found nor fetched; `partial` is a folder that holds some of them."""
    found = f"{partial} holds some of its files, not all," if partial else "its files were not found"
    return DataError(
        f"{name}: {found} and they could not be fetched ({_first_line(error)}); run where there is a network, "
        f"put {what} into {data_dir / name}{other}, "
        f"or set REPAIRLAB_DATA_DIR to a folder that has them in a folder {name}"
    )


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is damaged ({reason}): delete it and fetch it again")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".:")
