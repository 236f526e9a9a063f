from __future__ import annotations

import dataclasses
import json

import pytest

from tasks.science.specs.cell import Cell
from tasks.science.specs.identity import safe_name
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.pairing import Member, Pairing
from tasks.science.specs.path import JointPath
from tasks.science.specs.request import Request


def make_request(cell: Cell, **changes) -> Request:
    given = {
        "study": "test",
        "cells": (cell,),
        "seeds": (0, 1, 2),
        "matchers": ("none", "activation"),
        "corrections": ("none", "repair"),
        "measurements": (Measurement("default"),),
    }
    return Request(**{**given, **changes})


def test_a_request_hands_its_statistics_images_to_its_merges(cell: Cell):
    request = make_request(cell, measurements=(Measurement("few", statistics=20, evaluation=10),))
    pairings = request.pairings(cell, [Member(0, "a", "1"), Member(1, "b", "2")])
    assert [pairing.samples.statistics for pairing in pairings] == [20, 20]
    assert len(request.paths(pairings)) == 4
    assert Request.from_fields(dataclasses.asdict(request)) == request


def test_a_correction_is_measured_where_it_is_defined_and_the_rest_is_told(cell: Cell):
    normalized = dataclasses.replace(cell, normalization="batch")
    request = make_request(cell, cells=(cell, normalized), corrections=("none", "reset"))
    assert request.corrections_of(cell) == ("none",)
    assert request.corrections_of(normalized) == ("none", "reset")
    pairings = [Pairing(one, Member(0, "a", "1"), Member(1, "b", "2"), "none") for one in (cell, normalized)]
    assert [(path.correction, path.pairing.cell.normalization) for path in request.paths(pairings)] == [
        ("none", "none"), ("none", "batch"), ("reset", "batch"),
    ]  # fmt: skip
    assert request.left_out() == ["correction reset is not defined for mlp with normalization none, and left out there"]
    assert make_request(normalized, corrections=("none", "reset")).left_out() == []


def test_a_request_of_before_a_field_was_added_means_its_default(cell: Cell):
    request = make_request(cell)
    fields = dataclasses.asdict(request)
    for name in ("warmup_from", "cutout", "label_smoothing", "decayed_norms", "skip_nonfinite", "resized_crop"):
        del fields["cells"][0]["recipe"][name]
    assert Request.from_fields(fields) == request


@pytest.mark.parametrize("halves", [False, True])
def test_a_request_survives_its_json(cell: Cell, halves: bool):
    request = make_request(dataclasses.replace(cell, data=dataclasses.replace(cell.data, halves=halves)))
    again = Request.from_fields(json.loads(json.dumps(dataclasses.asdict(request))))
    assert (again, again.id) == (request, request.id)


@pytest.mark.parametrize("fields", [{}, [], {"study": "x"}, {"cells": [3], "measurements": []}])
def test_a_damaged_request_is_refused(fields: dict[str, object]):
    with pytest.raises(ValueError, match=r".+"):
        Request.from_fields(fields)


def test_a_request_pairs_every_two_seeds_the_smaller_first(cell: Cell):
    request = make_request(cell)
    members = [Member(seed, f"e{seed}", str(seed)) for seed in (2, 0, 1)]
    pairings = request.pairings(cell, members)
    assert [(m.a.seed, m.b.seed, m.matcher) for m in pairings] == [
        (0, 1, "none"), (0, 2, "none"), (1, 2, "none"), (0, 1, "activation"), (0, 2, "activation"), (1, 2, "activation")
    ]  # fmt: skip
    assert len(request.paths(pairings)) == 12


def test_pairs_of_a_data_set_in_halves_lie_across_with_a_of_the_first(cell: Cell):
    halved = dataclasses.replace(cell, data=dataclasses.replace(cell.data, halves=True))
    request = make_request(halved, seeds=(0, 1, 2, 3), matchers=("none",))
    assert [endpoint.train_subset for endpoint in request.endpoints(halved)] == ["first", "second", "first", "second"]
    pairings = request.pairings(halved, [Member(seed, f"e{seed}", str(seed)) for seed in (3, 2, 0, 1)])
    assert [(pairing.a.seed, pairing.b.seed) for pairing in pairings] == [(0, 1), (0, 3), (2, 1), (2, 3)]
    assert request.n_pairs == 4
    assert [endpoint.train_subset for endpoint in make_request(cell).endpoints(cell)] == ["all"] * 3
    with pytest.raises(ValueError, match=r"blobs: seeds \(0, 2\) are all of one half, and pairs lie across"):
        make_request(halved, seeds=(0, 2))


def test_logit_shifts_are_asked_for_where_data_are_in_halves_alone(cell: Cell):
    halved = dataclasses.replace(cell, data=dataclasses.replace(cell.data, halves=True))
    request = make_request(halved, cells=(cell, halved), logit_shifts=True)
    members = [Member(seed, f"e{seed}", str(seed)) for seed in (0, 1)]
    paths = [path for each in request.cells for path in request.paths(request.pairings(each, members))]
    shifted = [path for path in paths if path.method != "weights"]
    assert [path.method for path in shifted] == ["logit-shift", "logit-shift/chosen=test"]
    assert {path.pairing.cell for path in shifted} == {halved}
    plain = make_request(halved, cells=(cell, halved))
    assert [path.id for each in plain.cells for path in plain.paths(plain.pairings(each, members))] == [
        path.id for path in paths if path.method == "weights"
    ]


def test_joint_training_is_set_beside_those_pairs_whose_seeds_both_learned_on_whole_data(cell: Cell):
    halved = dataclasses.replace(cell, data=dataclasses.replace(cell.data, halves=True))
    request = make_request(halved, seeds=(0, 1, 2, 3), joint_training=True)
    assert request.trained_cells == (halved, halved.joint)
    members = [Member(seed, f"e{seed}", str(seed)) for seed in range(4)]
    joint = [Member(seed, f"j{seed}", f"j{seed}") for seed in (0, 1, 3)]
    pairings = request.pairings(halved, members)
    beside = [path for path in request.paths(pairings, joint) if path.method == "joint"]
    ends = [path.ends for path in beside if isinstance(path, JointPath)]
    assert [[member.endpoint_id for member in each] for each in ends] == [["j0", "j1"], ["j0", "j3"]]
    assert all(path.method != "joint" for path in request.paths(pairings))
    assert make_request(halved).trained_cells == (halved,)
    # A cell of whole data is the joint cell of the halved one.
    assert make_request(cell, cells=(cell, halved), joint_training=True).trained_cells == (cell, halved)


@pytest.mark.parametrize("name", ["logit_shifts", "joint_training"])
def test_what_is_of_data_in_halves_alone_is_refused_elsewhere(name: str, cell: Cell):
    with pytest.raises(ValueError, match="are of data in halves, which blobs has not: take --no-logit-shifts"):
        make_request(cell, **{name: True})


def test_one_choice_of_a_matcher_has_one_text(cell: Cell):
    assert make_request(cell, matchers=("weight/restarts=3",)).matchers == ("weight",)


def test_one_seed_makes_no_pair(cell: Cell):
    with pytest.raises(ValueError, match="at least 2 seeds"):
        make_request(cell, seeds=(0,))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a..b", "a b"])
def test_a_name_that_could_leave_its_folder_is_refused(name: str, cell: Cell):
    with pytest.raises(ValueError, match="is no name"):
        safe_name(name)
    with pytest.raises(ValueError, match="is no name"):
        make_request(cell, study=name)
