from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tasks.science.specs.cell import Cell
from tasks.science.specs.identity import canonical_json
from tasks.science.specs.measurement import Measurement, Samples, statistics_set
from tasks.science.specs.overrides import override
from tasks.science.specs.pairing import Member, Pairing
from tasks.science.specs.path import EnsemblePath, WeightPath


@pytest.mark.parametrize("change", [{"flip_averaged": True}, {"evaluated_in": "bfloat16"}])
def test_another_view_of_images_is_other_paths_of_the_same_merges_and_the_default_no_part_of_an_id(
    cell: Cell, change: dict[str, Any]
):
    plain, averaged = Measurement("m"), Measurement("m", **change)
    assert canonical_json(plain) == "{}"
    assert plain.samples == averaged.samples
    pairing = Pairing(cell, Member(0, "a", "1"), Member(1, "b", "2"), "none")
    member = pairing.a
    assert WeightPath(pairing, "none", plain).id != WeightPath(pairing, "none", averaged).id
    ensembles = [EnsemblePath(cell, member, pairing.b, measurement) for measurement in (plain, averaged)]
    assert ensembles[0].id != ensembles[1].id
    assert member.evaluation_id(cell, plain) != member.evaluation_id(cell, averaged)
    (word,) = change.values()
    assert override(plain, **change).name == f"m/{next(iter(change))}={word}"
    with pytest.raises(ValueError, match="flip_averaged must be True or False, got 1"):
        Measurement("m", flip_averaged=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="evaluated_in must be one of float32, bfloat16, got 'float16'"):
        Measurement("m", evaluated_in="float16")  # type: ignore[arg-type]


def test_statistics_of_crops_are_another_set_whatever_size_training_sees_them_at(cell: Cell):
    small, large = (
        dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, resized_crop=side)) for side in (4, 5)
    )
    assert statistics_set(small, Samples()) == statistics_set(large, Samples()) != statistics_set(cell, Samples())
    still = Samples(augmented=False)
    assert statistics_set(small, still) == statistics_set(cell, still)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"statistics": 0}, "the number of images for statistics must be a positive whole number, got 0"),
        ({"statistics": 1}, "the number of images for statistics must be at least 2, so that they have a spread"),
        ({"draw": -1}, "the draw of statistics must be a whole number of at least 0, got -1"),
        ({"evaluation": -5}, "the number of images for evaluation must be a positive whole number, got -5"),
    ],
)
def test_a_number_of_images_that_cannot_be_is_refused(changes, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        Measurement("m", **changes)


@pytest.mark.parametrize("alphas", [2, 10, 1, 0, -3, True, 11.0])
def test_a_number_of_alphas_without_a_midpoint_is_refused(alphas):
    with pytest.raises(ValueError, match="must be odd and at least 3"):
        Measurement("m", alphas)


def test_the_midpoint_is_exactly_a_half():
    for alphas in range(3, 102, 2):
        grid = Measurement("m", alphas).grid
        assert grid[alphas // 2] == 0.5
        assert (grid[0], grid[-1]) == (0, 1)
