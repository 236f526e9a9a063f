"""Random resized crops: parts of images of random area, shape and place, resized to one size.

A crop is drawn before its image is known, as uniform numbers, from which `crop_boxes` makes a box for the image's size.
So the order of draws depends on no file, and a process that decodes images needs no generator.
Source: Szegedy et al. 2015 (arXiv 1409.4842), as torchvision's `RandomResizedCrop` has it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

LEAST_AREA = 0.08
"""The smallest share of the image's area that a crop has."""

LARGEST_RATIO = 4 / 3
"""The largest ratio of a crop's width to its height; its inverse is the smallest."""

_N_ATTEMPTS = 10

N_CROP_DRAWS = 2 * _N_ATTEMPTS + 2
"""Uniform numbers per crop: ten areas and ten shapes, of which the first that fits is used, and a place."""


def draw_crops(rng: np.random.Generator, n_crops: int) -> Tensor:
    """Return the draws of crops: (n_crops, N_CROP_DRAWS) float32, uniform in [0, 1)."""
    return torch.from_numpy(rng.random((n_crops, N_CROP_DRAWS), dtype=np.float32))


def crop_boxes(crops: Tensor, heights: ArrayLike, widths: ArrayLike) -> list[tuple[int, int, int, int]]:
    """Return the top, left, height and width in pixels of each of `crops` (n, N_CROP_DRAWS) in its image.

    `heights` and `widths` of the images are (n,), or one number for all. Areas are uniform in [.08, 1] of the image,
    and the logarithms of width / height in that of [3/4, 4/3]. Where none of ten attempts fits into the image, the crop
    is the largest centred box of a shape that is allowed.
    """
    draws = crops.double().numpy()
    height, width = (np.broadcast_to(np.asarray(side, np.int64), len(draws)) for side in (heights, widths))
    area = (height * width)[:, None] * (LEAST_AREA + (1 - LEAST_AREA) * draws[:, :_N_ATTEMPTS])
    ratio = np.exp(math.log(LARGEST_RATIO) * (2 * draws[:, _N_ATTEMPTS : 2 * _N_ATTEMPTS] - 1))
    tried_heights, tried_widths = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (tried_heights > 0) & (tried_heights <= height[:, None])
    fits &= (tried_widths > 0) & (tried_widths <= width[:, None])
    first, rows = fits.argmax(1), np.arange(len(draws))
    whole_height = np.minimum(height, np.rint(width * LARGEST_RATIO))
    whole_width = np.minimum(width, np.rint(height * LARGEST_RATIO))
    found = fits.any(1)
    crop_height = np.where(found, tried_heights[rows, first], whole_height).astype(np.int64)
    crop_width = np.where(found, tried_widths[rows, first], whole_width).astype(np.int64)
    free_height, free_width = height - crop_height, width - crop_width
    top = np.where(found, draws[:, -2] * (free_height + 1), free_height // 2).astype(np.int64)
    left = np.where(found, draws[:, -1] * (free_width + 1), free_width // 2).astype(np.int64)
    boxes = np.stack([top, left, crop_height, crop_width], 1).tolist()
    return [(int(top), int(left), int(height), int(width)) for top, left, height, width in boxes]


def resize_crops(images: Tensor, crops: Tensor, size: tuple[int, int]) -> Tensor:
    """Return one crop of each of `images` (n, channels, height, width), resized to `size`: (n, channels, *size).

    Images are resized one after another, by antialiased bilinear interpolation.
    """
    boxes = crop_boxes(crops, images.shape[2], images.shape[3])
    parts = [
        image[None, :, top : top + height, left : left + width]
        for image, (top, left, height, width) in zip(images, boxes, strict=True)
    ]
    return torch.cat([F.interpolate(part, size, mode="bilinear", antialias=True) for part in parts])
