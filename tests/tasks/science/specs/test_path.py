from __future__ import annotations

import dataclasses

import pytest

from tasks.science.specs.cell import Cell
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.pairing import Member, Pairing
from tasks.science.specs.path import EnsemblePath, JointPath, LogitShiftPath, Path, ShiftChoice, WeightPath


def test_more_alphas_are_another_path_of_the_same_merge(cell: Cell):
    pairing = Pairing(cell, Member(0, "a", "1"), Member(1, "b", "2"), "activation")
    few, many = (WeightPath(pairing, "none", Measurement("m", alphas)) for alphas in (11, 25))
    assert few.id != many.id
    assert few.pairing.id == many.pairing.id


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
