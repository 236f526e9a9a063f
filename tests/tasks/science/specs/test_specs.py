from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import canonical_json
from tasks.science.specs.measurement import Measurement, Samples, statistics_set
from tasks.science.specs.overrides import override
from tasks.science.specs.pairing import Member, Pairing
from tasks.science.specs.path import EnsemblePath, JointPath, LogitShiftPath, Path, ShiftChoice, WeightPath
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


@pytest.mark.parametrize("field", ["width", "depth", "architecture", "normalization"])
def test_every_field_of_a_cell_enters_its_id(cell: Cell, field: str):
    changed = {"width": 17, "depth": 4, "architecture": "other", "normalization": "other"}[field]
    assert dataclasses.replace(cell, **{field: changed}).id != cell.id


def test_what_derives_from_weights_is_keyed_by_the_weights(cell: Cell):
    a, b, other = (Member(seed, f"e{seed}", f"digest-{seed}") for seed in (0, 1, 2))
    pairing = Pairing(cell, a, b, "activation")
    assert pairing.id == Pairing(cell, dataclasses.replace(a, seed=7, endpoint_id="x"), b, "activation").id
    assert len({pairing.id, Pairing(cell, a, other, "activation").id, Pairing(cell, a, b, "none").id}) == 3


def test_more_alphas_are_another_path_of_the_same_merge(cell: Cell):
    pairing = Pairing(cell, Member(0, "a", "1"), Member(1, "b", "2"), "activation")
    few, many = (WeightPath(pairing, "none", Measurement("m", alphas)) for alphas in (11, 25))
    assert few.id != many.id
    assert few.pairing.id == many.pairing.id


def test_fewer_statistics_images_are_other_permutations_and_all_of_them_are_the_same_ones(cell: Cell):
    a, b, n_train = Member(0, "a", "1"), Member(1, "b", "2"), cell.data.n_train
    everything = Pairing(cell, a, b, "activation")
    few = Pairing(cell, a, b, "activation", samples=Samples(n_train // 2))
    assert few.id != everything.id
    assert (few.n_statistics, everything.n_statistics) == (n_train // 2, n_train)
    assert Pairing(cell, a, b, "activation", samples=Samples(n_train + 5)).id == everything.id
    assert Pairing(cell, a, b, "weight", samples=Samples(5)).id == Pairing(cell, a, b, "weight").id
    assert Pairing(cell, a, b, "weight").n_statistics is None
    with pytest.raises(ValueError, match=f"the same images: all of draw 0, got {n_train // 2} of draw 0"):
        WeightPath(few, "none", Measurement("m"))
    again = Pairing(cell, a, b, "activation", samples=Samples(draw=1))
    assert again.id != everything.id
    other, usual = WeightPath(again, "none", Measurement("m", draw=1)), WeightPath(everything, "none", Measurement("m"))
    assert other.id != usual.id


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


def test_an_unknown_matcher_or_correction_names_those_there_are(cell: Cell):
    a, b = Member(0, "a", "1"), Member(1, "b", "2")
    with pytest.raises(ValueError, match="there is no matcher 'magic'; known: none, activation"):
        Pairing(cell, a, b, "magic")
    with pytest.raises(ValueError, match="there is no correction 'magic'; known: none, repair"):
        WeightPath(Pairing(cell, a, b, "none"), "magic", Measurement("m"))


def test_an_override_tells_what_it_changed_and_nothing_else():
    recipe = Recipe("mlp", 2000, 100, 0.1, 0.05)
    assert override(recipe, epochs=5).name == "mlp/epochs=5"
    assert override(recipe, epochs=100) is recipe
    assert override(Measurement("default"), alphas=25).name == "default/alphas=25"
    with pytest.raises(ValueError, match=r"recipe has no field 'epoch'; known: batch_size, .*, epochs, "):
        override(recipe, epoch=5)


@pytest.mark.parametrize("alphas", [2, 10, 1, 0, -3, True, 11.0])
def test_a_number_of_alphas_without_a_midpoint_is_refused(alphas):
    with pytest.raises(ValueError, match="must be odd and at least 3"):
        Measurement("m", alphas)


def test_the_midpoint_is_exactly_a_half():
    for alphas in range(3, 102, 2):
        grid = Measurement("m", alphas).grid
        assert grid[alphas // 2] == 0.5
        assert (grid[0], grid[-1]) == (0, 1)


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


@pytest.mark.parametrize(
    "changes",
    [
        {"warmup_from": 1e-6}, {"cutout": 2}, {"label_smoothing": 0.1}, {"decayed_norms": "none"},
        {"skip_nonfinite": True}, {"resized_crop": 5}, {"schedule": "cosine"}, {"optimizer": "adam"},
    ],
    ids=str,
)  # fmt: skip
def test_another_recipe_is_another_endpoint(cell: Cell, changes: dict):
    changed = dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, **changes))
    assert Endpoint(changed, 0).id != Endpoint(cell, 0).id


def test_statistics_of_images_with_a_cutout_are_others(cell: Cell):
    a, b = Member(0, "a", "1"), Member(1, "b", "2")
    cut = dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, cutout=2))
    smoothed = dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, label_smoothing=0.1))
    assert Pairing(cut, a, b, "activation").id != Pairing(cell, a, b, "activation").id
    assert Pairing(smoothed, a, b, "activation").id == Pairing(cell, a, b, "activation").id


def test_a_cutout_larger_than_the_image_is_refused(cell: Cell):
    with pytest.raises(ValueError, match="cutout must be at most 6 pixels for the images of blobs, got 7"):
        dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, cutout=7))


def test_a_data_set_in_halves_has_endpoints_of_its_own(cell: Cell):
    halved = dataclasses.replace(cell, data=dataclasses.replace(cell.data, halves=True))
    assert Endpoint(halved, 0).id != Endpoint(cell, 0).id
    assert dataclasses.replace(cell, data=dataclasses.replace(cell.data, halves=False)).id == cell.id


def test_the_options_of_a_matcher_enter_ids_and_one_choice_has_one_text(cell: Cell):
    a, b = Member(0, "a", "1"), Member(1, "b", "2")

    def merge(matcher: str) -> Pairing:
        return Pairing(cell, a, b, matcher)

    assert merge("activation/reading=post").matcher == "activation"
    assert merge("activation/reading=post").id == merge("activation").id
    assert merge("activation-published/solver=lapx,batch=100").matcher == "activation-published/batch=100,solver=lapx"
    texts = ["none", "activation", "activation/reading=pre", "activation-published", "weight", "weight/restarts=5"]
    assert len({merge(text).id for text in texts}) == len(texts)
    assert merge("weight/restarts=5").choice.options == {"restarts": 5, "solver": "scipy"}


def test_what_needs_no_data_is_not_keyed_by_them(cell: Cell):
    a, b = Member(0, "a", "1"), Member(1, "b", "2")
    shifted = dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, translate=2))
    assert Pairing(cell, a, b, "weight").id == Pairing(shifted, a, b, "weight").id
    assert Pairing(cell, a, b, "activation").id != Pairing(shifted, a, b, "activation").id


def test_the_ids_of_merges_do_not_change_from_one_release_to_the_next():
    data = DataSpec("digits", "f" * 64, 1437, 360, 10, (1, 8, 8))
    cell = Cell(data, "mlp", "none", 128, 4, Recipe("digits", 128, 60, 0.01, 0.05))
    a, b = Member(0, "a", "1"), Member(1, "b", "2")
    assert Pairing(cell, a, b, "none").id == "8e287320ea593e496dd3afbe80ae3794"
    assert Pairing(cell, a, b, "activation").id == "b239c6a500b5c1c2a43b9311222767b6"


@pytest.mark.parametrize(
    ("matcher", "text"),
    [
        ("activation/", "matcher activation: '' sets no option; known: reading, solver"),
        ("activation/reading", "matcher activation: 'reading' sets no option"),
        ("activation/restarts=2", "'restarts=2' sets no option; known: reading, solver"),
        ("activation/reading=middle", "reading must be one of post, pre, published, got 'middle'"),
        ("activation/reading=pre,reading=pre", "reading is given twice"),
        ("weight/restarts=0", "restarts must be a positive whole number, got '0'"),
        ("weight/restarts=two", "restarts must be a positive whole number, got 'two'"),
        ("activation-published/batch=1", "a batch of 1 image has no deviation"),
        ("none/reading=pre", "matcher none: 'reading=pre' sets no option; known: it has none"),
    ],
)
def test_an_option_that_there_is_not_is_refused(cell: Cell, matcher: str, text: str):
    with pytest.raises(ValueError, match=text):
        Pairing(cell, Member(0, "a", "1"), Member(1, "b", "2"), matcher)


def test_an_ensemble_is_shared_by_all_choices_of_statistics(cell: Cell):
    a, b = Member(0, "a", "1"), Member(1, "b", "2")

    def ensemble(measurement: Measurement) -> EnsemblePath:
        return EnsemblePath(cell, a, b, measurement)

    every = ensemble(Measurement("m"))
    assert ensemble(Measurement("few", statistics=20, draw=3)).id == every.id
    assert ensemble(Measurement("fine", 25)).id != every.id
    assert ensemble(Measurement("part", evaluation=10)).id != every.id
    assert WeightPath(every.pairing, "none", every.measurement).id != every.id


def test_a_logit_shift_is_of_the_endpoints_alone_whatever_alphas_and_statistics_there_are(cell: Cell):
    a, b = Member(0, "a", "1"), Member(1, "b", "2")
    halved = dataclasses.replace(cell, data=dataclasses.replace(cell.data, halves=True))

    def shifted(measurement: Measurement, of: Cell = halved, on: ShiftChoice = "train") -> LogitShiftPath:
        return LogitShiftPath(of, a, b, measurement, on)

    every = shifted(Measurement("m"))
    assert shifted(Measurement("few", 25, statistics=20, draw=3)).id == every.id
    others: list[Path] = [shifted(Measurement("part", evaluation=10)), shifted(Measurement("m"), on="test")]
    others += [WeightPath(every.pairing, "none", every.measurement), EnsemblePath(halved, a, b, every.measurement)]
    assert len({path.id for path in [every, *others]}) == 5
    with pytest.raises(ValueError, match="the method logit-shift needs data in halves, and blobs is not"):
        shifted(Measurement("m"), of=cell)


def test_a_joint_cell_is_on_the_same_images_whole_and_trains_other_endpoints(cell: Cell):
    halved = dataclasses.replace(cell, data=dataclasses.replace(cell.data, halves=True))
    assert halved.joint == cell
    assert [Endpoint(halved.joint, seed).train_subset for seed in (0, 1)] == ["all", "all"]
    assert Endpoint(halved.joint, 0).id != Endpoint(halved, 0).id


def test_what_is_set_beside_a_pair_of_joint_training_is_keyed_by_its_weights_and_has_the_pairs_seeds(cell: Cell):
    halved = dataclasses.replace(cell, data=dataclasses.replace(cell.data, halves=True))
    a, b, c, d = (Member(seed, name, name) for seed, name in ((0, "a"), (1, "b"), (0, "c"), (1, "d")))
    every = JointPath(halved, a, b, Measurement("m"), c, d)
    assert dataclasses.replace(every, measurement=Measurement("few", 25, statistics=20)).id == every.id
    assert dataclasses.replace(every, measurement=Measurement("part", evaluation=10)).id != every.id
    assert dataclasses.replace(every, joint_b=Member(1, "d", "other")).id != every.id
    with pytest.raises(ValueError, match=r"joint training beside seeds \(0, 1\) needs endpoints of these seeds, got"):
        JointPath(halved, a, b, Measurement("m"), d, c)
    with pytest.raises(ValueError, match="the method joint needs data in halves, and blobs is not"):
        dataclasses.replace(every, cell=cell)
