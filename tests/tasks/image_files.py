"""Writes small folders of images in ImageNet's layout, and decodes them as torchvision does, one after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from tasks.science.data.crops import crop_boxes

MODES = ("RGB", "L", "CMYK", "RGB", "RGB", "RGBA", "P")
"""Of the images of a class, in turn."""

CLASSES = ("n01", "n02", "n03")


def write_folders(data_dir: Path, n_train: int = 8, n_val: int = 3, classes: tuple[str, ...] = CLASSES) -> Path:
    """`data_dir`/imagenet with so many images per class and split, of various sizes and modes; each class is of one
    colour with noise on it, so that there is something to learn."""
    place = data_dir / "imagenet"
    rng = np.random.default_rng(0)
    for split, n_each in (("train", n_train), ("val", n_val)):
        for label, name in enumerate(classes):
            folder = place / split / name
            folder.mkdir(parents=True)
            for number in range(n_each):
                size = rng.integers(20, 60, 2)
                colour = 40 + 170 * (np.arange(3) == label % 3)
                pixels = colour + rng.normal(0, 25, (*size, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(MODES[number % len(MODES)])
                suffix = "png" if image.mode in ("RGBA", "P") else ("JPEG", "jpg")[number % 2]
                image.save(folder / f"{name}_{number}.{suffix}")
    return place


def paths_of(place: Path, split: str) -> list[Path]:
    return [
        path for folder in sorted((place / split).iterdir()) for path in sorted(folder.iterdir(), key=lambda p: p.name)
    ]


def centre_of(path: Path, side: int) -> Tensor:
    """(3, side, side) uint8: the largest centred square."""
    image = Image.open(path).convert("RGB")
    square = min(image.size)
    top, left = (image.height - square) // 2, (image.width - square) // 2
    return to_tensor(reference.crop(image, top, left, square, square), side)


def crop_of(path: Path, crop: Tensor, side: int) -> Tensor:
    image = Image.open(path).convert("RGB")
    ((top, left, height, width),) = crop_boxes(crop[None], image.height, image.width)
    return to_tensor(reference.crop(image, top, left, height, width), side)


def to_tensor(image: Image.Image, side: int) -> Tensor:
    resized = reference.resize(image, [side, side], InterpolationMode.BILINEAR)
    return reference.pil_to_tensor(resized)


@dataclass(frozen=True)
class PlainFiles:
    """What `FolderImages` is, as a plain loop."""

    paths: list[Path]

    def read(self, rows: Tensor, side: int, batch_size: int, crops: Tensor | None = None) -> Iterator[Tensor]:
        seen = [
            centre_of(self.paths[row], side) if crops is None else crop_of(self.paths[row], crops[position], side)
            for position, row in enumerate(rows.tolist())
        ]
        yield from torch.stack(seen).split(batch_size)
