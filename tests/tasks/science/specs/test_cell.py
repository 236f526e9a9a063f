from __future__ import annotations

import dataclasses

import pytest

from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import canonical_json
from tasks.science.specs.recipe import Recipe


def test_the_id_of_an_endpoint_does_not_change_from_one_release_to_the_next():
    """Fails when identity changes by accident; a wanted change raises SCHEMA_VERSION and this figure together."""
    data = DataSpec("digits", "f" * 64, 1437, 360, 10, (1, 8, 8))
    cell = Cell(data, "mlp", "none", 128, 4, Recipe("digits", 128, 60, 0.01, 0.05))
    assert canonical_json({"cell": cell, "seed": 0}) == (
        '{"cell":{"architecture":"mlp","data":{"fingerprint":"' + "f" * 64 + '","n_classes":10,"n_test":360,'
        '"n_train":1437,"name":"digits","shape":[1,8,8]},"depth":4,"normalization":"none","recipe":{"batch_size":128,'
        '"epochs":60,"learning_rate":0.01,"warmup":0.05},"width":128},"seed":0}'
    )
    assert Endpoint(cell, 0).id == "905ee11b305c2ed671fabef4aeb5b20e"


def test_labels_and_number_types_do_not_enter_an_id(cell: Cell):
    renamed = dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, name="other"))
    assert renamed.id == cell.id
    one = dataclasses.replace(cell.recipe, learning_rate=1)
    assert canonical_json(one) == canonical_json(dataclasses.replace(cell.recipe, learning_rate=1.0))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"width": -3}, "width must be a positive whole number, got -3"),
        ({"depth": 0}, "depth must be a positive whole number, got 0"),
        ({"width": 2.5}, "width must be a positive whole number, got 2.5"),
    ],
)
def test_an_impossible_cell_is_refused(cell: Cell, changes: dict, text: str):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(cell, **changes)


def test_a_cutout_larger_than_the_image_is_refused(cell: Cell):
    with pytest.raises(ValueError, match="cutout must be at most 6 pixels for the images of blobs, got 7"):
        dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, cutout=7))


def test_a_data_set_in_halves_has_endpoints_of_its_own(cell: Cell):
    halved = dataclasses.replace(cell, data=dataclasses.replace(cell.data, halves=True))
    assert Endpoint(halved, 0).id != Endpoint(cell, 0).id
    assert dataclasses.replace(cell, data=dataclasses.replace(cell.data, halves=False)).id == cell.id


def test_a_joint_cell_is_on_the_same_images_whole_and_trains_other_endpoints(cell: Cell):
    halved = dataclasses.replace(cell, data=dataclasses.replace(cell.data, halves=True))
    assert halved.joint == cell
    assert [Endpoint(halved.joint, seed).train_subset for seed in (0, 1)] == ["all", "all"]
    assert Endpoint(halved.joint, 0).id != Endpoint(halved, 0).id
