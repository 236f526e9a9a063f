"""Random flips, translations and cutouts of whole batches, as index arithmetic on images that lie in memory.

A translation by (dy, dx) reads the image, padded by black, at shifted rows and columns; a mirror image reads its
columns backwards. Both fold into one gather per batch, 19 to 60 times as fast as transforming one image after another.
A cutout comes last: a square that lies within the image, every place equally likely, is filled with the mean.
Deviates: the authors fill with the mean's whole part before normalisation, which is within .02 deviations of the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.science.examples import Dataset, subset
from tasks.science.identity import stream
from tasks.science.recipe import Recipe
from tasks.science.specs import Samples

EVERYTHING = Samples()
"""The whole train split, once."""

MEAN = 0.0
"""The mean of a data set, in every channel, once it is normalised: what a cutout is filled with."""


@dataclass(frozen=True)
class Views:
    """How each of n_examples images is seen: `offsets` (n_examples, 2) int64, 0..2 * translate; `mirrored` bool;
    `corners` (n_examples, 2) int64, the first row and column that a cutout takes from the image as it is then seen."""

    offsets: Tensor
    mirrored: Tensor
    corners: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Views:
        return Views(self.offsets[rows], self.mirrored[rows], self.corners[rows])


def draw_views(rng: np.random.Generator, n_examples: int, size: tuple[int, int], recipe: Recipe) -> Views:
    """One view per image of `size` (height, width): each shift of at most the recipe's `translate` pixels equally
    likely, mirrored half the time where it flips, and each place of its cutout equally likely."""
    offsets = rng.integers(0, 2 * recipe.translate + 1, size=(n_examples, 2))
    mirrored = rng.random(n_examples) < 0.5 if recipe.flip else np.zeros(n_examples, dtype=bool)
    corners = np.zeros((n_examples, 2), dtype=np.int64)
    if recipe.cutout:
        corners = rng.integers(0, [side - recipe.cutout + 1 for side in size], size=(n_examples, 2))
    return Views(torch.from_numpy(offsets), torch.from_numpy(mirrored), torch.from_numpy(corners))


def pad(images: Tensor, translate: int, black: float | tuple[float, ...]) -> Tensor:
    """`images` (n, channels, height, width) with `translate` pixels of black around each; see `Dataset.black`."""
    if not translate:
        return images
    n_images, n_channels, height, width = images.shape
    shape = (n_images, n_channels, height + 2 * translate, width + 2 * translate)
    padded = images.new_tensor(black).reshape(-1, 1, 1).expand(shape).clone(memory_format=torch.contiguous_format)
    padded[..., translate : translate + height, translate : translate + width] = images
    return padded


def take(padded: Tensor, indices: Tensor, views: Views, translate: int, cutout: int = 0) -> Tensor:
    """The images at `indices` (any shape), each through its view: (*indices.shape, channels, height, width).

    `padded` comes from `pad` with the same `translate`; `views` has one entry per index, flattened; a square of
    `cutout` pixels a side is cut out of every image.
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
    if cutout:
        down, across = (
            (torch.arange(side, device=flat.device) - views.corners[:, axis, None])
            for axis, side in enumerate((height, width))
        )
        hidden = ((down >= 0) & (down < cutout))[:, :, None] & ((across >= 0) & (across < cutout))[:, None, :]
        seen.masked_fill_(hidden[:, None], MEAN)
    return seen.reshape(*indices.shape, n_channels, height, width)


def statistics_images(dataset: Dataset, recipe: Recipe, samples: Samples = EVERYTHING) -> Tensor:
    """The samples that activations are measured on: the train split, in order, once, under the recipe's augmentation.

    `samples` may ask for so many of them, at most, as `subset` chooses; each is seen as it is among all. Another draw
    chooses and augments anew.
    The draws are named by the data set alone: every network of a cell sees the same images, so that one pass serves
    all pairs. Returns (n_images, channels, height, width) float32. Source: REPAIR, section 3 (augmented statistics).
    """
    images = dataset.train.images
    draw = samples.draw
    chosen = subset(dataset.spec.fingerprint, "train", len(images), samples.statistics, draw)
    if not (recipe.augments and samples.augmented):
        return images if chosen is None else images[chosen]
    rng = stream("statistics", dataset.spec.fingerprint, *([draw] if draw else []))
    views = draw_views(rng, len(images), (images.shape[2], images.shape[3]), recipe)
    if chosen is None:
        chosen = torch.arange(len(images))
    padded = pad(images[chosen], recipe.translate, dataset.black)
    return take(padded, torch.arange(len(chosen)), views[chosen], recipe.translate, recipe.cutout)
