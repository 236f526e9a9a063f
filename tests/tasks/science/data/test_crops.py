from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as reference

from tasks.science.data.augmentation import check_statistics, draw_views, pad, statistics_images, take
from tasks.science.data.crops import N_CROP_DRAWS, crop_boxes, draw_crops, resize_crops
from tasks.science.data.examples import Dataset, Examples
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import stream, weights_digest
from tasks.science.specs.measurement import Samples
from tasks.science.specs.recipe import Recipe
from tasks.science.training.training import train_group


def boxes(height: int, width: int, n: int = 4000) -> np.ndarray:
    return np.array(crop_boxes(draw_crops(stream("test"), n), height, width))


@pytest.mark.parametrize(("height", "width"), [(224, 224), (300, 500), (33, 20), (6, 6)])
def test_a_crop_lies_within_its_image_in_the_bounds_of_torchvision(height: int, width: int):
    top, left, tall, wide = boxes(height, width).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (tall > 0).all()
    assert (wide > 0).all()
    assert (top + tall <= height).all()
    assert (left + wide <= width).all()
    # Sides are rounded, so areas and shapes pass their bounds by as much as half a pixel a side makes.
    slack = (1 + 0.5 / tall) * (1 + 0.5 / wide)
    assert (tall * wide * slack >= 0.08 * height * width).all()
    assert (wide / tall <= 4 / 3 * slack).all()
    assert (wide / tall >= 3 / 4 / slack).all()


def test_crops_are_distributed_as_torchvisions_are():
    height, width = 150, 200
    ours = boxes(height, width)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(len(ours))])
    shares, ratios = ((b[:, 2] * b[:, 3] / (height * width) for b in (ours, theirs)), (
        np.log(b[:, 3] / b[:, 2]) for b in (ours, theirs)
    ))  # fmt: skip
    for mine, others in (tuple(shares), tuple(ratios), (ours[:, 0], theirs[:, 0]), (ours[:, 1], theirs[:, 1])):
        error = math.hypot(mine.std(), others.std()) / math.sqrt(len(ours))
        assert abs(mine.mean() - others.mean()) < 4 * error
        assert mine.std() == pytest.approx(others.std(), rel=0.06)


def test_where_no_attempt_fits_the_crop_is_the_largest_centred_box_of_an_allowed_shape():
    largest = torch.full((1, N_CROP_DRAWS), 0.999)
    assert crop_boxes(largest, 100, 1000) == [(0, 433, 100, 133)]
    assert crop_boxes(largest, 1000, 100) == [(433, 0, 133, 100)]
    # A pixel of a pixel: every smaller crop rounds to none.
    assert crop_boxes(torch.zeros(1, N_CROP_DRAWS), 1, 1) == [(0, 0, 1, 1)]


def test_each_crop_is_that_of_its_own_image_size():
    crops = draw_crops(stream("test"), 3)
    together = crop_boxes(crops, [40, 50, 60], [30, 90, 60])
    alone = [crop_boxes(crops[i : i + 1], h, w)[0] for i, (h, w) in enumerate([(40, 30), (50, 90), (60, 60)])]
    assert together == alone


def test_a_batch_of_crops_is_what_torchvision_makes_of_one_image_after_another():
    images, crops = torch.randn(20, 3, 17, 12), draw_crops(stream("test"), 20)
    seen = resize_crops(images, crops, (9, 9))
    for image, crop, ours in zip(images, crops, seen, strict=True):
        ((top, left, height, width),) = crop_boxes(crop[None], 17, 12)
        assert torch.equal(ours, reference.resized_crop(image, top, left, height, width, [9, 9], antialias=True))


@pytest.fixture
def cropping(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, resized_crop=4, flip=True, translate=1)


def test_crops_change_neither_the_shifts_nor_the_flips(cropping: Recipe):
    plain = dataclasses.replace(cropping, resized_crop=0)
    with_crops, without = (draw_views(stream("test"), 50, (4, 4), recipe.augmentation) for recipe in (cropping, plain))
    assert torch.equal(with_crops.offsets, without.offsets)
    assert torch.equal(with_crops.mirrored, without.mirrored)
    assert without.crops is None
    assert with_crops.crops is not None
    assert with_crops.crops.shape == (50, N_CROP_DRAWS)


def test_statistics_are_crops_at_the_size_of_the_data_shifted_and_mirrored_after(blobs: Dataset, cropping: Recipe):
    crops = cropping.augmentation
    seen = statistics_images(blobs, crops)
    views = draw_views(stream("statistics", "blobs-1"), 240, (6, 6), crops)
    assert views.crops is not None
    padded = pad(resize_crops(blobs.train.images, views.crops, (6, 6)), 1, blobs.black)
    assert torch.equal(seen, take(padded, torch.arange(240), views, 1))
    more, fewer = (statistics_images(blobs, crops, Samples(n)) for n in (150, 120))
    assert torch.equal(fewer, more[:120])
    assert torch.equal(seen, statistics_images(blobs, dataclasses.replace(crops, resized_crop=3)))
    assert statistics_images(blobs, crops, Samples(augmented=False)) is blobs.train.images


def test_statistics_that_memory_cannot_hold_are_refused_with_the_way_out():
    spec = DataSpec("imagenet", "f", 1_281_167, 50_000, 1_000, (3, 224, 224))
    with pytest.raises(ValueError, match="on 1281167 images at once, which take 771 GB: ask for fewer, as by --stat"):
        check_statistics(spec, Samples())
    check_statistics(spec, Samples(5_000))


def test_a_training_on_crops_sees_each_image_of_a_batch_as_drawn(blobs: Dataset, cell: Cell, cropping: Recipe):
    """Of an epoch in order, as a plain loop would make it."""
    small = dataclasses.replace(blobs, train=blobs.train.chosen(torch.arange(80)))
    crops = dataclasses.replace(cell, architecture="resnet20", normalization="batch", depth=20, width=1)
    crops = dataclasses.replace(crops, recipe=dataclasses.replace(cropping, epochs=1, translate=0))
    (trained,) = train_group(crops, [3], small)
    order = torch.from_numpy(stream("order", 3, 0).permutation(80))
    views = draw_views(stream("augmentation", 3, 0), 80, (4, 4), crops.recipe.augmentation)
    assert views.crops is not None
    seen = [
        image.flip(-1) if mirrored else image
        for image, mirrored in zip(
            resize_crops(small.train.images[order], views.crops, (4, 4)), views.mirrored, strict=True
        )
    ]
    # The same images, as they are, in the order that brings them back to where they were seen.
    shown = torch.empty(80, 1, 4, 4)
    shown[order] = torch.stack(seen)
    plain = dataclasses.replace(small, train=Examples(shown, small.train.labels))
    still = dataclasses.replace(crops, recipe=dataclasses.replace(crops.recipe, resized_crop=0, flip=False))
    (again,) = train_group(still, [3], plain)
    assert weights_digest(trained.state) == weights_digest(again.state)


def test_a_seed_on_crops_is_the_same_in_any_group(blobs: Dataset, cell: Cell, cropping: Recipe):
    crops = dataclasses.replace(cell, recipe=dataclasses.replace(cropping, resized_crop=6))
    together = {one.seed: weights_digest(one.state) for one in train_group(crops, [0, 1, 2], blobs)}
    (alone,) = train_group(crops, [1], blobs)
    assert together[1] == weights_digest(alone.state)
    stacked = list(train_group(crops, [0, 1, 2], blobs, dtype=torch.float64, group_size=3))
    solo = list(train_group(crops, [0, 1, 2], blobs, dtype=torch.float64))
    for ours, theirs in zip(stacked, solo, strict=True):
        for name in ours.state:
            assert torch.allclose(ours.state[name], theirs.state[name], rtol=0, atol=1e-8)
