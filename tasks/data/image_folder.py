"""Data sets whose images lie in files, a folder per class: found, checked, and decoded on demand.

Nothing is fetched and nothing unpickled: images are decoded by Pillow, in this process or in some of its own.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from infra.cores import usable_cores
from tasks.data.published import DataError
from tasks.science.data.crops import crop_boxes
from tasks.science.data.examples import EVALUATION_SIDE, Dataset, FileExamples, Scaling
from tasks.science.specs.data import DataSpec

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of files that are images, in any case; others are left aside, as torchvision leaves them."""

MOST_PIXELS = 2**26
"""More than any photograph of a data set: an image of more is not decoded."""

MOST_WORKERS = 8

WORTH_IMAGES = 4_000
"""Fewer are decoded in this process: a worker takes seconds to start."""

_CHUNK = 16
"""Images that a worker decodes at a time."""

_PREFETCHED = 8
"""Chunks that each worker is ahead: eight workers hold a batch of 1,024 while the one before it is trained on."""

_SPLITS = ("train", "val")


@dataclass(frozen=True)
class ImageFolders:
    """ImageNet's layout, as torchvision has it: `<data_dir>/<name>/train/<class>/*.JPEG` and likewise `val`, which is
    the test split. Classes are the sorted names of the folders. Of what is published fewer classes or images may be
    there: the counts are those found."""

    name: str
    scaling: Scaling
    shape: tuple[int, int, int]
    """Of an image where statistics are measured; it is evaluated at `EVALUATION_SIDE`, trained on as a recipe says."""

    def find(self, data_dir: Path) -> Path | None:
        place = data_dir.expanduser() / self.name
        return place if all((place / split).is_dir() for split in _SPLITS) else None

    def fetch(self, data_dir: Path) -> Path:
        """Raises DataError: who wants these images has to agree to their terms."""
        raise DataError(
            f"{self.name}: its images were not found, and are not fetched: put them into {data_dir / self.name} as "
            "train/<class>/*.JPEG and val/<class>/*.JPEG, or set REPAIRLAB_DATA_DIR to a folder that has them in a "
            f"folder {self.name}"
        )

    def read(self, place: Path, n_workers: int | None = None) -> Dataset:
        """Both splits; no image is decoded yet. `n_workers` as in `FolderImages`.

        The fingerprint is of the relative paths of all images with their sizes in bytes, of the normalisation and of
        the sizes that images are evaluated and measured at. Not of their contents, which are 140 GB that every process
        would have to read first: so an image that is exchanged for one of as many bytes goes unnoticed.
        Raises DataError for a class without images, and for one that is in one split alone.
        """
        scaling = self.scaling
        views = f"{scaling.mean!r}:{scaling.deviation!r}:{EVALUATION_SIDE}:{self.shape!r}"
        digest = hashlib.sha256(f"{self.name}:{views}".encode())
        found = {split: _list_classes(place / split) for split in _SPLITS}
        for here, there in (_SPLITS, _SPLITS[::-1]):
            if alone := sorted(found[here].keys() - found[there].keys()):
                raise DataError(f"{place / here / alone[0]} is a class that {place / there} lacks: both need the same")
        examples: list[FileExamples] = []
        for split, classes in found.items():
            digest.update(f";{split}".encode())
            paths: list[str] = []
            counts: list[int] = []
            for name, files in classes.items():
                counts.append(len(files))
                for file, n_bytes in files:
                    paths.append(f"{name}/{file}")
                    digest.update(f"\n{paths[-1]}:{n_bytes}".encode(errors="surrogateescape"))
            labels = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
            images = FolderImages(place / split, tuple(paths), n_workers)
            examples.append(FileExamples(images, torch.arange(len(labels)), labels, scaling))
        train, test = examples
        spec = DataSpec(self.name, digest.hexdigest(), len(train), len(test), len(found["train"]), self.shape)
        mean, deviation = np.asarray(scaling.mean), np.asarray(scaling.deviation)
        return Dataset(spec, train, test, black=tuple((-mean / deviation).tolist()))


def _list_classes(folder: Path) -> dict[str, list[tuple[str, int]]]:
    """The images of each class, by its name, all sorted: file name and size in bytes."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        classes = {name: _list_images(folder / name) for name in names}
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read ({error.strerror})") from error
    for name, images in classes.items():
        if not images:
            raise DataError(f"{folder / name} is a class without images: put some there, or remove it")
    if not classes:
        raise DataError(f"{folder} holds no folders of images: put one per class there")
    return classes


def _list_images(folder: Path) -> list[tuple[str, int]]:
    with os.scandir(folder) as entries:
        return sorted(
            (entry.name, entry.stat().st_size)
            for entry in entries
            if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") and entry.is_file()
        )


@dataclass(frozen=True)
class FolderImages:
    """The images at `paths`, relative to `folder`: what `FileExamples` reads.

    `n_workers` processes decode them, which changes no bit; with 0, this one does. By default it does for fewer than
    `WORTH_IMAGES`, else as many do as there are cores, at most `MOST_WORKERS`; one where this process is itself a
    worker, which shares the cores with others. Where it may have no child processes it decodes by itself.
    """

    folder: Path
    paths: tuple[str, ...]
    n_workers: int | None = None

    def __post_init__(self) -> None:
        if self.n_workers is not None and self.n_workers < 0:
            raise ValueError(f"the number of decoding processes must be at least 0, got {self.n_workers}")

    def read(self, rows: Tensor, side: int, batch_size: int, crops: Tensor | None = None) -> Iterator[Tensor]:
        """As `ImageFiles` has it. Raises DataError, naming the file, for one that is no image."""
        decoder = _Decoder(self.folder, side)
        chunks = _Chunks(self.paths, rows, crops)
        decoded: list[NDArray[np.uint8]] = []
        for images in _decode(decoder, chunks, self._n_workers(len(rows))):
            if isinstance(images, DataError):
                raise images
            decoded += images
            while len(decoded) >= batch_size:
                yield torch.from_numpy(np.stack(decoded[:batch_size]))
                del decoded[:batch_size]
        if decoded:
            yield torch.from_numpy(np.stack(decoded))

    def _n_workers(self, n_images: int) -> int:
        if multiprocessing.current_process().daemon:
            return 0
        if self.n_workers is not None:
            return self.n_workers
        if n_images < WORTH_IMAGES:
            return 0
        return 1 if multiprocessing.parent_process() is not None else min(MOST_WORKERS, usable_cores())


Chunk = tuple[list[str], NDArray[np.float32] | None]
"""Paths of a few images, and the crop of each. No tensor, which would pass through shared memory."""


@dataclass(frozen=True)
class _Chunks:
    """What is to be decoded, a chunk at a time."""

    paths: tuple[str, ...]
    rows: Tensor
    crops: Tensor | None

    def __iter__(self) -> Iterator[Chunk]:
        for start in range(0, len(self.rows), _CHUNK):
            chosen = slice(start, start + _CHUNK)
            crops = None if self.crops is None else self.crops[chosen].numpy()
            yield [self.paths[row] for row in self.rows[chosen].tolist()], crops

    def __len__(self) -> int:
        return -(-len(self.rows) // _CHUNK)


Decoded = list[NDArray[np.uint8]] | DataError
"""Images (3, side, side); or what is wrong with one of them, for an error that passes between processes otherwise comes
with a traceback in its words."""


@dataclass(frozen=True)
class _Decoder(MapDataset[Decoded]):
    folder: Path
    side: int

    def __getitem__(self, index: Chunk) -> Decoded:
        paths, crops = index
        try:
            return [
                decode_image(self.folder / path, self.side, None if crops is None else crops[position])
                for position, path in enumerate(paths)
            ]
        except DataError as error:
            return error


def decode_image(path: Path, side: int, crop: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    """The image at `path` in RGB, (3, side, side): its largest centred square, or the part that `crop` (N_CROP_DRAWS,)
    chooses, resized by Pillow's antialiased bilinear filter. Raises DataError where it is no image."""
    try:
        with Image.open(path) as opened:
            # Told by the header: nothing is decoded yet.
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"it has {opened.width} x {opened.height} pixels")
            image = opened.convert("RGB")
    except Exception as error:  # Pillow raises nearly anything for a file that is none.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path} cannot be read as an image ({reason}): put the original there, or remove it"
        ) from error
    width, height = image.size
    if crop is None:
        square = min(width, height)
        top, left, box_height, box_width = (height - square) // 2, (width - square) // 2, square, square
    else:
        ((top, left, box_height, box_width),) = crop_boxes(torch.from_numpy(crop[None]), height, width)
    part = image.crop((left, top, left + box_width, top + box_height))
    return np.asarray(part.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def _decode(decoder: _Decoder, chunks: _Chunks, n_workers: int) -> Iterator[Decoded]:
    """The images of every chunk, in order."""
    n_workers = min(n_workers, len(chunks))
    if not n_workers:
        yield from map(decoder.__getitem__, chunks)
        return
    # Spawned, for a fork of a process with threads, as the flow's are, may hang. Arrays come back through pipes, where
    # tensors would take shared memory, of which a container has little. With a generator of its own the loader draws
    # nothing from the global one.
    yield from DataLoader(
        decoder,
        batch_size=None,
        sampler=chunks,
        num_workers=n_workers,
        prefetch_factor=_PREFETCHED,
        collate_fn=_as_they_are,
        worker_init_fn=_begin_worker,
        multiprocessing_context="spawn",
        generator=torch.Generator(),
    )


def _as_they_are(decoded: Decoded) -> Decoded:
    return decoded


def _begin_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C reaches every process of a terminal; the parent decides what it means, and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process once its parent is gone, however that ended: else it would wait for ever for somebody to take
    the images that it has decoded. Not by way of infra, without which data sets are read."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
