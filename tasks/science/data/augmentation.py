"""Random flips, translations and cutouts of whole batches, as index arithmetic on images that lie in memory.

Where a recipe asks for random resized crops, or images lie in files, these come first, batch by batch (`crops`): all
else happens to what is then seen.

A translation by (dy, dx) reads the image, padded by black, at shifted rows and columns; a mirror image reads its
columns backwards. Both fold into one gather per batch, 25 to 78 times as fast as transforming one image after another.
A cutout comes last: a square that lies within the image, every place equally likely, is filled with the mean.
Deviates: the authors fill with the mean's whole part before normalisation, which is within .02 deviations of the mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.science.data.crops import draw_crops, resize_crops
from tasks.science.data.examples import Dataset, Examples, FileExamples, subset
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import stream
from tasks.science.specs.measurement import Samples
from tasks.science.specs.recipe import NO_AUGMENTATION, Augmentation, Recipe

EVERYTHING = Samples()
"""The whole train split, once."""

MEAN = 0.0
"""The mean of a data set, in every channel, once it is normalised: what a cutout is filled with."""

LARGEST_STATISTICS_BYTES = 64 * 10**9
"""What the statistics samples may take in memory at most."""

_DECODED_BATCH = 100


@dataclass(frozen=True)
class Views:
    """How each of n_examples images is seen: `offsets` (n_examples, 2) int64, 0..2 * translate; `mirrored` bool;
    `corners` (n_examples, 2) int64, the first row and column that a cutout takes from the image as it is then seen;
    `crops` (n_examples, N_CROP_DRAWS), always on the CPU, the part that is seen at all, None where all of it is."""

    offsets: Tensor
    mirrored: Tensor
    corners: Tensor
    crops: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor) -> Views:
        crops = None if self.crops is None else self.crops[rows]
        return Views(self.offsets[rows], self.mirrored[rows], self.corners[rows], crops)


def draw_views(rng: np.random.Generator, n_examples: int, size: tuple[int, int], augmentation: Augmentation) -> Views:
    """Return one view per image that is seen at `size` (height, width).

    Every shift of at most `translate` pixels and every place of the cutout is equally likely, half of the images are
    mirrored if the augmentation flips, and crops are drawn by `draw_crops`.
    """
    offsets = rng.integers(0, 2 * augmentation.translate + 1, size=(n_examples, 2))
    mirrored = rng.random(n_examples) < 0.5 if augmentation.flip else np.zeros(n_examples, dtype=bool)
    corners = np.zeros((n_examples, 2), dtype=np.int64)
    if augmentation.cutout:
        corners = rng.integers(0, [side - augmentation.cutout + 1 for side in size], size=(n_examples, 2))
    crops = draw_crops(rng, n_examples) if augmentation.resized_crop else None
    return Views(torch.from_numpy(offsets), torch.from_numpy(mirrored), torch.from_numpy(corners), crops)


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
    columns = torch.arange(width, device=flat.device).expand(len(flat), width)
    columns = torch.where(views.mirrored[:, None], width - 1 - columns, columns) + views.offsets[:, 1:]
    rows = torch.arange(height, device=flat.device) + views.offsets[:, :1]
    pixels = (rows[:, :, None] * padded_width + columns[:, None, :]).reshape(len(flat), 1, height * width)
    seen = padded.index_select(0, flat).flatten(2).gather(2, pixels.expand(-1, n_channels, -1))
    seen = seen.reshape(len(flat), n_channels, height, width)
    if cutout:
        cut_out(seen, views.corners, cutout)
    return seen.reshape(*indices.shape, n_channels, height, width)


def cut_out(images: Tensor, corners: Tensor, side: int) -> None:
    """Fills, in place, the square of `side` pixels that begins at each image's corner; `images` (n, channels, height,
    width), `corners` (n, 2) the row and column."""
    n_images, n_channels, height, width = images.shape
    image, channel, row, column = images.stride()
    # A view of every square there is, by where it begins: what is written is those squares alone, not a mask of all.
    shape = (n_images, height - side + 1, width - side + 1, n_channels, side, side)
    squares = images.as_strided(shape, (image, row, column, channel, row, column))
    squares[torch.arange(n_images, device=images.device), corners[:, 0], corners[:, 1]] = MEAN


class TrainImages:
    """The train images of `dataset` as `recipe` shows them, batch by batch, on `device`. Images in memory that are not
    cropped are copied there once; else a batch is decoded and cropped on the CPU when it is wanted."""

    def __init__(self, dataset: Dataset, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> None:
        self._examples, self._recipe, self._black = dataset.train, recipe, dataset.black
        self._device, self._dtype = device, dtype
        self._images = None
        if not (recipe.resized_crop or isinstance(dataset.train, FileExamples)):
            self._images = pad(dataset.train.images.to(device, dtype), recipe.translate, dataset.black)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image as it is seen."""
        side = self._recipe.resized_crop
        return (side, side) if side else self._examples.size

    def batches(self, orders: Tensor, views: Views | None, batch_size: int) -> Iterator[Tensor]:
        """The images at `orders` (n_seeds, n_examples) in batches (n_seeds, batch_size, channels, height, width), those
        beyond the last whole batch left out. `views` has one entry per index, an order after another; None where the
        recipe does not augment."""
        n_seeds, n_examples = orders.shape
        places = torch.arange(n_seeds * n_examples, device=orders.device).reshape(n_seeds, n_examples)
        shown = [places[:, start : start + batch_size] for start in range(0, n_examples - batch_size + 1, batch_size)]
        flat, translate, cutout = orders.flatten(), self._recipe.translate, self._recipe.cutout
        if self._images is not None:
            for at in shown:
                chosen = flat[at]
                yield (
                    self._images.index_select(0, chosen.flatten()).reshape(*chosen.shape, *self._images.shape[1:])
                    if views is None
                    else take(self._images, chosen, views[at.flatten()], translate, cutout)
                )
            return
        shown = [at.cpu() for at in shown]
        parts, crops = [at.flatten() for at in shown], None if views is None else views.crops
        every = torch.arange(parts[0].numel(), device=self._device).reshape(n_seeds, batch_size)
        for part, decoded in zip(parts, _decode(self._examples, flat.cpu(), crops, self.size, parts), strict=True):
            images = pad(decoded.to(self._device, self._dtype), translate, self._black)
            yield images[every] if views is None else take(images, every, views[part], translate, cutout)


def check_statistics(spec: DataSpec, samples: Samples) -> None:
    """ValueError, with the way out, where the statistics samples of a data set do not fit into memory."""
    n_images = min(samples.statistics or spec.n_train, spec.n_train)
    n_bytes = n_images * int(np.prod(spec.shape)) * 4
    if n_bytes > LARGEST_STATISTICS_BYTES:
        raise ValueError(
            f"activations of {spec.name} would be measured on {n_images} images at once, which take "
            f"{n_bytes / 1e9:.0f} GB: ask for fewer, as by --statistics 5000"
        )


def statistics_images(dataset: Dataset, augmentation: Augmentation, samples: Samples = EVERYTHING) -> Tensor:
    """Return the samples that activations are measured on: the train split, in order, once, under an augmentation.

    `samples` may ask for so many of them, at most, as `subset` chooses; each is seen as it is among all. Another draw
    chooses and augments anew. Where it crops, the crops are seen at the size that the data set's spec has, 224
    pixels on ImageNet, whatever training sees them at; images in files that are not cropped, as they are evaluated.
    The draws are named by the data set alone: every network of a cell sees the same images, so that one pass serves
    all pairs. Returns (n_images, channels, height, width) float32. ValueError where they do not fit into memory.
    Source: REPAIR, section 3 (augmented statistics).
    """
    examples, draw = dataset.train, samples.draw
    check_statistics(dataset.spec, samples)
    chosen = subset(dataset.spec.fingerprint, "train", len(examples), samples.statistics, draw)
    if not (samples.augmented and augmentation != NO_AUGMENTATION):
        return (examples if chosen is None else examples.chosen(chosen)).images
    _, height, width = dataset.spec.shape
    size = (height, width) if augmentation.resized_crop else examples.size
    rng = stream("statistics", dataset.spec.fingerprint, *([draw] if draw else []))
    views = draw_views(rng, len(examples), size, augmentation)
    if chosen is None:
        chosen = torch.arange(len(examples))
    views = views[chosen]
    if views.crops is None and not isinstance(examples, FileExamples):
        padded = pad(examples.images[chosen], augmentation.translate, dataset.black)
        return take(padded, torch.arange(len(chosen)), views, augmentation.translate, augmentation.cutout)
    parts = torch.arange(len(chosen)).split(_DECODED_BATCH)
    images = torch.empty((len(chosen), dataset.spec.shape[0], *size))
    for rows, part in zip(parts, _decode(examples, chosen, views.crops, size, parts), strict=True):
        padded = pad(part, augmentation.translate, dataset.black)
        images[rows] = take(padded, torch.arange(len(rows)), views[rows], augmentation.translate, augmentation.cutout)
    return images


def _decode(
    examples: Examples, rows: Tensor, crops: Tensor | None, size: tuple[int, int], parts: Sequence[Tensor]
) -> Iterator[Tensor]:
    """For each of `parts`, places in `rows` of which only the last may hold fewer, the images there: read from files,
    and where there are `crops`, those of them at `size`."""
    if isinstance(examples, FileExamples):
        order = torch.cat(list(parts))
        cut = None if crops is None else crops[order]
        for pixels in examples.files.read(examples.rows[rows[order]], size[0], len(parts[0]), cut):
            yield examples.scaling(pixels)
    elif crops is not None:
        for part in parts:
            yield resize_crops(examples.images[rows[part]], crops[part], size)
