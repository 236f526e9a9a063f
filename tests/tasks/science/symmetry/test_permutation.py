"""Permutations form a group that acts on state dicts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.science.symmetry.permutation import Axis, Permutation, PermutationSpec, Slot
from tasks.science.symmetry.tracing import trace_permutation_spec
from tests.tasks.science.handwritten import CASES
from tests.tasks.science.permuting import inverse

NESTED = ["Attention", "GroupedConv", "GroupedQueries", "GroupNormed", "HandMadeAttention", "DepthwiseMultiplier"]


@pytest.fixture(scope="module", params=["Dense", "Flattened", "TiedWeights", "OuterOfTwo", *NESTED])
def traced(request: pytest.FixtureRequest) -> tuple[PermutationSpec, dict[str, Tensor]]:
    build, shape, _ = CASES[request.param]
    network = build()
    return trace_permutation_spec(network, (torch.randn(*shape),), check=False), network.state_dict()


def draw(spec: PermutationSpec, number: int) -> Permutation:
    return spec.random(torch.Generator().manual_seed(number))


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_identity_changes_nothing(traced: tuple[PermutationSpec, dict[str, Tensor]]) -> None:
    spec, state = traced
    assert equal(spec.apply(state, spec.identity()), dict(state))


def test_inverse_undoes_from_either_side(traced: tuple[PermutationSpec, dict[str, Tensor]]) -> None:
    spec, state = traced
    p = draw(spec, 1)
    q = inverse(spec, p)
    assert not equal(spec.apply(state, p), dict(state))
    assert equal(spec.apply(spec.apply(state, p), q), dict(state))
    assert equal(spec.apply(spec.apply(state, q), p), dict(state))
    assert spec.compose(p, q) == spec.identity() == spec.compose(q, p)


def test_composition_does_one_after_the_other(traced: tuple[PermutationSpec, dict[str, Tensor]]) -> None:
    spec, state = traced
    p, q, r = draw(spec, 1), draw(spec, 2), draw(spec, 3)
    assert equal(spec.apply(spec.apply(state, p), q), spec.apply(state, spec.compose(p, q)))
    assert spec.compose(spec.compose(p, q), r) == spec.compose(p, spec.compose(q, r))


def test_apply_is_pure_and_keeps_every_key(traced: tuple[PermutationSpec, dict[str, Tensor]]) -> None:
    spec, state = traced
    before = {k: v.clone() for k, v in state.items()}
    extra = {**state, "extra": torch.ones(3)}
    out = spec.apply(extra, draw(spec, 1))
    assert list(out) == list(extra)
    assert out["extra"] is extra["extra"]
    assert equal(before, dict(state))


def mlp() -> PermutationSpec:
    """4 -> 3 -> 2 by hand."""
    positions = np.arange(3)[:, None]
    slots = (Slot("a.weight", 0, positions), Slot("b.weight", 1, positions))
    return PermutationSpec((Axis("a", 3, slots, (), "a"),), shapes={"a.weight": (3, 4), "b.weight": (2, 3)})


def test_position_i_of_the_permuted_network_takes_unit_perm_i() -> None:
    spec = mlp()
    state = {"a.weight": torch.arange(12.0).view(3, 4), "b.weight": torch.arange(6.0).view(2, 3)}
    out = spec.apply(state, Permutation({"a": np.array([2, 0, 1])}))
    assert torch.equal(out["a.weight"], state["a.weight"][[2, 0, 1]])
    assert torch.equal(out["b.weight"], state["b.weight"][:, [2, 0, 1]])


@pytest.mark.parametrize(
    ("state", "vectors", "message"),
    [
        ({"a.weight": torch.ones(3, 4)}, {"a": [0, 1, 2]}, "the state dict lacks 'b.weight'"),
        ({"a.weight": torch.ones(4, 3)}, {"a": [0, 1, 2]}, r"'a.weight' has shape \(4, 3\), the traced network has"),
        ({}, {"a": [0, 1, 1]}, r"the vector of axis 'a' is not a permutation of 0\.\.2"),
        ({}, {"a": [0, 1]}, r"the vector of axis 'a' is not a permutation of 0\.\.2"),
        ({}, {}, "the permutation lacks 1 axes of the spec, the first is 'a'"),
        ({}, {"a": [0, 1, 2], "b": [0]}, "the permutation has an axis that the spec lacks: 'b'"),
    ],
)
def test_what_cannot_be_applied_is_refused_with_its_reason(
    state: dict[str, Tensor], vectors: dict[str, list[int]], message: str
) -> None:
    permutation = Permutation({k: np.array(v) for k, v in vectors.items()})
    with pytest.raises(ValueError, match=message):
        mlp().apply(state, permutation)


def test_tied_entries_stay_one_tensor_and_must_agree() -> None:
    build, shape, _ = CASES["SharedModule"]
    network = build()
    spec = trace_permutation_spec(network, (torch.randn(*shape),), check=False)
    assert ("b.weight", "same.weight") in spec.tied
    state = network.state_dict(keep_vars=True)
    out = spec.apply(state, draw(spec, 0))
    assert out["b.weight"] is out["same.weight"]
    copied = {k: v.detach().clone() for k, v in state.items()}
    assert equal(spec.apply(copied, draw(spec, 0)), {k: v.detach() for k, v in out.items()})
    copied["same.weight"] += 1
    with pytest.raises(ValueError, match="are one tensor in the traced network, here they differ"):
        spec.apply(copied, draw(spec, 0))


def test_random_draws_from_the_given_generator_alone() -> None:
    spec = mlp()
    assert draw(spec, 3) == draw(spec, 3)
    state = torch.get_rng_state()
    draw(spec, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_table_names_every_axis_once() -> None:
    build, shape, _ = CASES["Attention"]
    spec = trace_permutation_spec(build(), (torch.randn(*shape),), check=False)
    lines = repr(spec).splitlines()
    assert lines[0].split() == ["axis", "size", "moves", "read", "at"]
    assert any(line.startswith("attend.in_proj_weight.heads") for line in lines)
    assert sum("2 x 6" in line for line in lines) == 2
