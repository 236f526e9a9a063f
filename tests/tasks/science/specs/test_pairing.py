from __future__ import annotations

import dataclasses

import pytest

from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.measurement import Measurement, Samples
from tasks.science.specs.pairing import Member, Pairing
from tasks.science.specs.path import WeightPath
from tasks.science.specs.recipe import Recipe


def test_what_derives_from_weights_is_keyed_by_the_weights(cell: Cell):
    a, b, other = (Member(seed, f"e{seed}", f"digest-{seed}") for seed in (0, 1, 2))
    pairing = Pairing(cell, a, b, "activation")
    assert pairing.id == Pairing(cell, dataclasses.replace(a, seed=7, endpoint_id="x"), b, "activation").id
    assert len({pairing.id, Pairing(cell, a, other, "activation").id, Pairing(cell, a, b, "none").id}) == 3


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


def test_an_unknown_matcher_or_correction_names_those_there_are(cell: Cell):
    a, b = Member(0, "a", "1"), Member(1, "b", "2")
    with pytest.raises(ValueError, match="there is no matcher 'magic'; known: none, activation"):
        Pairing(cell, a, b, "magic")
    with pytest.raises(ValueError, match="there is no correction 'magic'; known: none, repair"):
        WeightPath(Pairing(cell, a, b, "none"), "magic", Measurement("m"))


def test_statistics_of_images_with_a_cutout_are_others(cell: Cell):
    a, b = Member(0, "a", "1"), Member(1, "b", "2")
    cut = dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, cutout=2))
    smoothed = dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, label_smoothing=0.1))
    assert Pairing(cut, a, b, "activation").id != Pairing(cell, a, b, "activation").id
    assert Pairing(smoothed, a, b, "activation").id == Pairing(cell, a, b, "activation").id


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
        ("activation-published/batch=1", "a batch of 1 image has no standard deviation"),
        ("none/reading=pre", "matcher none: 'reading=pre' sets no option; known: it has none"),
    ],
)
def test_an_option_that_there_is_not_is_refused(cell: Cell, matcher: str, text: str):
    with pytest.raises(ValueError, match=text):
        Pairing(cell, Member(0, "a", "1"), Member(1, "b", "2"), matcher)
