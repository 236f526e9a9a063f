from __future__ import annotations

import dataclasses

import pytest
import torch

from tasks.science.data.augmentation import Views, draw_views, pad, statistics_images, take
from tasks.science.data.examples import Dataset, half
from tasks.science.specs.identity import stream
from tasks.science.specs.measurement import Samples
from tasks.science.specs.recipe import NO_AUGMENTATION, Augmentation


def seen_plainly(image: torch.Tensor, dy: int, dx: int, mirrored: bool, translate: int, black: float) -> torch.Tensor:
    """One image at a time, pixel by pixel: read it `dy`, `dx` further on, black outside, then mirror what is seen."""
    height, width = image.shape[1:]
    out = torch.full_like(image, black)
    for y in range(height):
        for x in range(width):
            row, column = y + dy - translate, x + dx - translate
            if 0 <= row < height and 0 <= column < width:
                out[:, y, x] = image[:, row, column]
    return out.flip(-1) if mirrored else out


def cut_out_plainly(image: torch.Tensor, top: int, left: int, side: int) -> torch.Tensor:
    """Of one image as it is seen, one square of zeros."""
    out = image.clone()
    for y in range(top, top + side):
        for x in range(left, left + side):
            out[:, y, x] = 0.0
    return out


def plain_batch(images: torch.Tensor, views: Views, translate: int, black: float) -> torch.Tensor:
    rows = zip(images, views.offsets.tolist(), views.mirrored.tolist(), strict=True)
    return torch.stack([seen_plainly(image, dy, dx, m, translate, black) for image, (dy, dx), m in rows])


def test_a_batch_is_what_one_image_after_another_would_be():
    images = torch.randn(30, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    views = draw_views(stream("test"), 30, (7, 5), Augmentation(translate=2))
    assert torch.equal(take(pad(images, 2, -9.0), torch.arange(30), views, 2), plain_batch(images, views, 2, -9.0))


def test_a_cutout_is_what_one_image_after_another_would_be():
    images = torch.randn(40, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    for changes in ({}, {"translate": 2, "flip": True}):
        chosen = Augmentation(cutout=3, **changes)
        views = draw_views(stream("test"), 40, (7, 5), chosen)
        seen = take(pad(images, chosen.translate, -9.0), torch.arange(40), views, chosen.translate, 3)
        whole = plain_batch(images, views, chosen.translate, -9.0)
        rows = zip(whole, views.corners.tolist(), strict=True)
        assert torch.equal(seen, torch.stack([cut_out_plainly(image, *corner, 3) for image, corner in rows]))


def test_a_cutout_lies_within_the_image_and_covers_every_place():
    views = draw_views(stream("test"), 500, (6, 5), Augmentation(cutout=3))
    assert {tuple(corner) for corner in views.corners.tolist()} == {(y, x) for y in range(4) for x in range(3)}
    images = torch.ones(500, 2, 6, 5)
    seen = take(images, torch.arange(500), views, 0, 3)
    assert ((seen == 0).flatten(1).sum(1) == 2 * 3 * 3).all()
    assert torch.equal(images, torch.ones(500, 2, 6, 5))


def test_a_cutout_as_large_as_the_image_leaves_the_mean_alone():
    views = draw_views(stream("test"), 10, (4, 4), Augmentation(cutout=4))
    assert not take(torch.ones(10, 1, 4, 4), torch.arange(10), views, 0, 4).any()


def test_a_cutout_changes_neither_the_shifts_nor_the_flips():
    moved = Augmentation(translate=2, flip=True)
    without, cut = (
        draw_views(stream("test"), 50, (7, 5), one) for one in (moved, dataclasses.replace(moved, cutout=2))
    )
    assert torch.equal(without.offsets, cut.offsets)
    assert torch.equal(without.mirrored, cut.mirrored)


def test_black_may_differ_between_channels():
    images = torch.randn(30, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    views = draw_views(stream("test"), 30, (7, 5), Augmentation(flip=True, translate=2))
    seen = take(pad(images, 2, (-1.0, 0.5, 2.0)), torch.arange(30), views, 2)
    for channel, black in enumerate((-1.0, 0.5, 2.0)):
        alone = images[:, channel : channel + 1]
        assert torch.equal(seen[:, channel : channel + 1], plain_batch(alone, views, 2, black))
    assert torch.equal(pad(images, 2, (0.5,) * 3), pad(images, 2, 0.5))


def test_flips_without_translation_mirror_the_columns():
    images = torch.randn(20, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    views = draw_views(stream("test"), 20, (4, 6), Augmentation(flip=True))
    assert 0 < views.mirrored.sum() < 20
    assert torch.equal(take(images, torch.arange(20), views, 0), plain_batch(images, views, 0, 0.0))


def test_flip_and_translation_are_both_there_and_cover_their_range():
    images = torch.randn(200, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    views = draw_views(stream("test"), 200, (5, 5), Augmentation(flip=True, translate=1))
    assert {tuple(offset) for offset in views.offsets.tolist()} == {(y, x) for y in range(3) for x in range(3)}
    assert 60 < views.mirrored.sum() < 140
    seen = take(pad(images, 1, 0.5), torch.arange(200), views, 1)
    assert torch.equal(seen, plain_batch(images, views, 1, 0.5))


def test_images_are_taken_in_the_order_and_shape_of_their_indices():
    images = torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 2)
    nowhere = torch.zeros(6, 2, dtype=torch.int64)
    still = Views(nowhere, torch.zeros(6, dtype=torch.bool), nowhere)
    seen = take(images, torch.tensor([[4, 0, 2], [1, 1, 3]]), still, 0)
    assert seen[:, :, 0, 0, 0].tolist() == [[4, 0, 2], [1, 1, 3]]


def test_statistics_come_from_the_train_split_as_the_recipe_augments_it(blobs: Dataset):
    assert statistics_images(blobs, NO_AUGMENTATION) is blobs.train.images
    moved = Augmentation(translate=1)
    first = statistics_images(blobs, moved)
    assert first.shape == blobs.train.images.shape
    assert torch.equal(first, statistics_images(blobs, moved))
    assert not torch.equal(first, blobs.train.images)


def test_fewer_statistics_images_are_some_of_more_each_seen_the_same(blobs: Dataset):
    moved = Augmentation(translate=1, flip=True)
    for chosen in (NO_AUGMENTATION, moved, dataclasses.replace(moved, cutout=2), Augmentation(cutout=2)):
        everything, more, fewer = (statistics_images(blobs, chosen, Samples(n)) for n in (None, 50, 20))
        assert (len(more), len(fewer)) == (50, 20)
        assert torch.equal(fewer, more[:20])
        assert all((everything == image).flatten(1).all(1).any() for image in fewer)
        assert torch.equal(statistics_images(blobs, chosen, Samples(len(everything))), everything)


def test_another_draw_sees_other_images_otherwise(blobs: Dataset):
    moved = Augmentation(translate=1)
    assert not torch.equal(
        statistics_images(blobs, NO_AUGMENTATION, Samples(20)),
        statistics_images(blobs, NO_AUGMENTATION, Samples(20, draw=1)),
    )
    assert not torch.equal(statistics_images(blobs, moved), statistics_images(blobs, moved, Samples(draw=1)))
    assert statistics_images(blobs, NO_AUGMENTATION, Samples(draw=1)) is blobs.train.images
    assert statistics_images(blobs, moved, Samples(augmented=False)) is blobs.train.images


def test_a_reduced_data_set_keeps_images_and_labels_together(blobs: Dataset):
    small = blobs.reduced(30)
    assert (len(small.train), len(small.test)) == (30, min(30, len(blobs.test)))
    assert small.spec == blobs.spec
    for few, many in ((small.train, blobs.train), (small.test, blobs.test)):
        for image, label in zip(few.images, few.labels, strict=True):
            same = (many.images == image).flatten(1).all(1)
            assert label in many.labels[same]
    whole = blobs.reduced(None)
    assert whole.train is blobs.train
    assert whole.test is blobs.test


@pytest.fixture
def halved(blobs: Dataset) -> Dataset:
    return dataclasses.replace(blobs, spec=dataclasses.replace(blobs.spec, halves=True))


def test_two_halves_are_disjoint_and_all_of_the_train_split(halved: Dataset):
    first, second = (half(halved.train.labels, halved.spec, side) for side in ("first", "second"))
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(len(halved.train)))
    assert first.tolist() == sorted(first.tolist())


def test_each_half_has_four_fifths_of_its_own_classes_and_one_fifth_of_the_others(halved: Dataset):
    of_all = torch.bincount(halved.train.labels).tolist()
    first, second = (halved.trained_on(side).train for side in ("first", "second"))
    assert torch.bincount(first.labels).tolist() == [
        round((0.8 if label < 2 else 0.2) * n) for label, n in enumerate(of_all)
    ]
    assert (torch.bincount(first.labels) + torch.bincount(second.labels)).tolist() == of_all


def test_halves_are_drawn_at_random_and_always_the_same(halved: Dataset):
    first = half(halved.train.labels, halved.spec, "first")
    assert torch.equal(first, half(halved.train.labels, halved.spec, "first"))
    other = dataclasses.replace(halved.spec, fingerprint="blobs-2")
    assert not torch.equal(first, half(halved.train.labels, other, "first"))


def test_a_half_keeps_images_and_labels_together_and_the_test_split_whole(halved: Dataset):
    chosen = half(halved.train.labels, halved.spec, "second")
    second = halved.trained_on("second")
    assert torch.equal(second.train.images, halved.train.images[chosen])
    assert torch.equal(second.train.labels, halved.train.labels[chosen])
    assert second.test is halved.test
    assert halved.trained_on("all") is halved


def test_a_data_set_without_halves_has_none_to_train_on(blobs: Dataset):
    with pytest.raises(ValueError, match="blobs has no halves to train on"):
        blobs.trained_on("first")
