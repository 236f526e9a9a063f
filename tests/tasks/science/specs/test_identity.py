from __future__ import annotations

import dataclasses

import torch

from tasks.science.specs.identity import REVISIONS, USER_DEFINED_REVISIONS, spec_id, stream, weights_digest


def test_a_field_added_at_its_default_leaves_ids_as_they_are():
    @dataclasses.dataclass(frozen=True)
    class Old:
        width: int

    @dataclasses.dataclass(frozen=True)
    class New:
        width: int
        dropout: float = 0.0

    assert spec_id(("train",), Old(3)) == spec_id(("train",), New(3))
    assert spec_id(("train",), New(3)) != spec_id(("train",), New(3, dropout=0.1))


def test_a_digest_sees_every_name_shape_type_and_value():
    base = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    others = [
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"][:, None], "b": base["b"]},
        {"a": base["a"].double(), "b": base["b"]},
        {"a": torch.tensor([1.0, 2.0000002]), "b": base["b"]},
    ]
    digests = [weights_digest(state) for state in [base, *others]]
    assert len(set(digests)) == len(digests)
    assert weights_digest({"b": base["b"], "a": base["a"].clone()}) == digests[0]


def test_a_stream_draws_the_same_whatever_was_drawn_elsewhere():
    first = stream("order", 3, 0).integers(0, 10**9, 5)
    stream("order", 3, 1).random(100)
    assert (stream("order", 3, 0).integers(0, 10**9, 5) == first).all()
    assert (stream("order", 3, 1).integers(0, 10**9, 5) != first).any()
    assert (stream("order", 30).integers(0, 10**9, 5) != first).any()


def test_corrections_of_user_defined_networks_have_a_revision_of_their_own():
    """They are corrected at more places than they once were; nothing else of theirs was, and nothing of what ships."""
    changed = {verb for verb in REVISIONS if USER_DEFINED_REVISIONS[verb] != REVISIONS[verb]}
    assert changed == {"correct"}
    assert spec_id(("correct",), {"a": 1}) == spec_id(("correct",), {"a": 1}, REVISIONS)
    assert spec_id(("correct",), {"a": 1}) != spec_id(("correct",), {"a": 1}, USER_DEFINED_REVISIONS)
    assert spec_id(("train",), {"a": 1}) == spec_id(("train",), {"a": 1}, USER_DEFINED_REVISIONS)
