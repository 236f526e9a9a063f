from __future__ import annotations

import dataclasses

import pytest

from tasks.science.networks import ARCHITECTURES
from tasks.science.specs.cell import Cell
from tasks.science.specs.corrections import CORRECTIONS, NORMALIZATIONS, RESIDUAL_ARCHITECTURES, check_correction
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.pairing import Member, Pairing
from tasks.science.specs.path import WeightPath
from tasks.science.specs.request import Request


def test_the_words_are_those_of_the_networks():
    assert {word for known in ARCHITECTURES.values() for word in known.normalizations} == set(NORMALIZATIONS)
    assert set(RESIDUAL_ARCHITECTURES) == {name for name in ARCHITECTURES if "resnet" in name}
    for row in CORRECTIONS.values():
        assert set(row.normalizations) <= set(NORMALIZATIONS)
        assert set(row.extra_layers) <= set(NORMALIZATIONS)


def test_every_correction_says_where_it_is_defined():
    anywhere = {"none", "repair", "repair-closed-form", "repair-block", "rescale", "reshift"}
    assert {name for name, row in CORRECTIONS.items() if row.normalizations == NORMALIZATIONS} == anywhere
    assert {name for name, row in CORRECTIONS.items() if row.normalizations == ("batch",)} == {"reset", "repair/frozen"}
    assert [name for name, row in CORRECTIONS.items() if "batch" in row.extra_layers] == ["repair-block"]


@pytest.mark.parametrize("normalization", ["none", "layer", "fixup", "batch-fused"])
def test_reset_without_batch_norm_is_refused_with_a_way_out(normalization: str):
    text = f"correction reset is not defined for normalization {normalization}: it needs BatchNorm.*can take repair"
    with pytest.raises(ValueError, match=text):
        check_correction("reset", normalization)


def test_block_outputs_need_blocks():
    check_correction("repair-block", "batch")
    check_correction("repair-block", "batch", "resnet50")
    with pytest.raises(ValueError, match="not defined for vgg11, which has no residual blocks; take repair"):
        check_correction("repair-block", "batch", "vgg11")


def test_a_study_that_asks_for_what_is_not_defined_is_refused_when_it_is_asked_for(cell: Cell):
    a, b = Member(0, "a", "1"), Member(1, "b", "2")
    pairing = Pairing(cell, a, b, "none")
    with pytest.raises(ValueError, match="reset is not defined for normalization none"):
        WeightPath(pairing, "reset", Measurement("m"))
    request = Request("test", (cell,), (0, 1), ("none",), ("none", "repair"), (Measurement("m"),))
    with pytest.raises(ValueError, match="reset is not defined for normalization none"):
        dataclasses.replace(request, corrections=("none", "reset"))


def test_paths_of_different_corrections_are_different(cell: Cell):
    pairing = Pairing(
        dataclasses.replace(cell, normalization="batch"), Member(0, "a", "1"), Member(1, "b", "2"), "none"
    )
    names = [name for name, row in CORRECTIONS.items() if not row.blocks]
    assert len({WeightPath(pairing, name, Measurement("m")).id for name in names}) == len(names)
