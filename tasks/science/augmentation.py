"""Random flips and translations of whole batches, as index arithmetic on images that lie in memory.

A translation by (dy, dx) reads the image, padded by black, at shifted rows and columns; a mirror image reads its
columns backwards. Both fold into one gather per batch, 19 to 60 times as fast as transforming one image after another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.science.examples import Dataset, subset
from tasks.science.specs import Recipe, stream


@dataclass(frozen=True)
class Views:
    """How each of n_examples images is seen: `offsets` (n_examples, 2) int64, 0..2 * translate; `mirrored` bool."""

    offsets: Tensor
    mirrored: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Views:
        return Views(self.offsets[rows], self.mirrored[rows])


def draw_views(rng: np.random.Generator, n_examples: int, *, flip: bool, translate: int) -> Views:
    """One view per image: each shift of at most `translate` pixels equally likely, mirrored half the time."""
    offsets = rng.integers(0, 2 * translate + 1, size=(n_examples, 2))
    mirrored = rng.random(n_examples) < 0.5 if flip else np.zeros(n_examples, dtype=bool)
    return Views(torch.from_numpy(offsets), torch.from_numpy(mirrored))


def pad(images: Tensor, translate: int, black: float | tuple[float, ...]) -> Tensor:
    """`images` (n, channels, height, width) with `translate` pixels of black around each; see `Dataset.black`."""
    if not translate:
        return images
    n_images, n_channels, height, width = images.shape
    shape = (n_images, n_channels, height + 2 * translate, width + 2 * translate)
    padded = images.new_tensor(black).reshape(-1, 1, 1).expand(shape).clone(memory_format=torch.contiguous_format)
    padded[..., translate : translate + height, translate : translate + width] = images
    return padded


def take(padded: Tensor, indices: Tensor, views: Views, translate: int) -> Tensor:
    """The images at `indices` (any shape), each through its view: (*indices.shape, channels, height, width).

    `padded` comes from `pad` with the same `translate`; `views` has one entry per index, flattened.
    """
    _, n_channels, padded_height, padded_width = padded.shape
    height, width = padded_height - 2 * translate, padded_width - 2 * translate
    flat = indices.reshape(-1)
    rows = torch.arange(height, device=flat.device) + views.offsets[:, :1]
    columns = torch.arange(width, device=flat.device).expand(len(flat), width)
    columns = torch.where(views.mirrored[:, None], width - 1 - columns, columns) + views.offsets[:, 1:]
    channels = torch.arange(n_channels, device=flat.device)
    seen = padded[
        flat[:, None, None, None], channels[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]
    ]
    return seen.reshape(*indices.shape, n_channels, height, width)


def statistics_images(dataset: Dataset, recipe: Recipe, n_images: int | None = None, draw: int = 0) -> Tensor:
    """The samples that activations are measured on: the train split, in order, once, under the recipe's augmentation.

    `n_images`: only so many of them, at most, as `subset` chooses; each is seen as it is among all. Another `draw`
    chooses and augments anew.
    The draws are named by the data set alone: every network of a cell sees the same images, so that one pass serves
    all pairs. Returns (n_images, channels, height, width) float32. Source: REPAIR, section 3 (augmented statistics).
    """
    images = dataset.train.images
    chosen = subset(dataset.spec.fingerprint, "train", len(images), n_images, draw)
    if not (recipe.flip or recipe.translate):
        return images if chosen is None else images[chosen]
    rng = stream("statistics", dataset.spec.fingerprint, *([draw] if draw else []))
    views = draw_views(rng, len(images), flip=recipe.flip, translate=recipe.translate)
    if chosen is None:
        chosen = torch.arange(len(images))
    padded = pad(images[chosen], recipe.translate, dataset.black)
    return take(padded, torch.arange(len(chosen)), views[chosen], recipe.translate)
