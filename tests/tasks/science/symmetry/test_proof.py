from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tasks.science.evaluation.precision import InFloat64
from tasks.science.specs.state import State
from tasks.science.symmetry.permutation import PermutationSpec
from tasks.science.symmetry.proof import FUNCTION_TOLERANCE, FunctionProof, draw_moving, proof_batches, relative_error
from tasks.science.symmetry.tracing import trace_permutation_spec

IMAGES = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    widths = (6, 8, 7, 9, 5)
    layers = [part for n, m in itertools.pairwise(widths) for part in (nn.Linear(n, m), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(5, 3)).eval()


def proof_and_spec(without: tuple[str, ...]) -> tuple[FunctionProof, PermutationSpec]:
    """A proof on random weights, and a spec that leaves out where these keys are to move."""
    torch.manual_seed(0)
    built = network()
    spec = trace_permutation_spec(built, (IMAGES[:2],))
    axes = tuple(
        dataclasses.replace(axis, slots=tuple(slot for slot in axis.slots if slot.key not in without))
        for axis in spec.axes
    )
    state = {key: torch.randn(tensor.shape) for key, tensor in built.state_dict().items()}
    return FunctionProof(built, state, proof_batches(IMAGES)), dataclasses.replace(spec, axes=axes)


@pytest.mark.parametrize(
    ("without", "guilty"),
    [((), []), (("2.bias",), ["2"]), (("0.bias", "6.bias"), ["0", "6"]), (("4.weight",), ["2", "4"])],
)
def test_the_axes_that_change_the_function_are_named_and_no_others(without: tuple[str, ...], guilty: list[str]):
    proof, spec = proof_and_spec(without)
    moving = draw_moving(spec, torch.Generator().manual_seed(0))
    assert (proof.error(spec, moving) <= FUNCTION_TOLERANCE) == (not guilty)
    assert proof.axes_at_fault(spec, moving) == guilty


def test_every_axis_moves_in_a_permutation_that_is_drawn_to_move():
    built = nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3))
    spec = trace_permutation_spec(built, (IMAGES[:2],))
    for seed in range(8):
        drawn = draw_moving(spec, torch.Generator().manual_seed(seed))
        assert all(vector.tolist() == [1, 0] for vector in drawn.values())


def test_no_batch_holds_a_single_image_beside_others_and_at_most_128_are_shown():
    for n in (1, 2, 16, 17, 33, 128, 300):
        sizes = [len(batch) for (batch,) in proof_batches(torch.zeros(n, 3))]
        assert sum(sizes) == min(n, 128)
        assert 1 not in sizes or n == 1


class Recurrent(nn.Module):
    """An LSTM, which compares the type of its weights with that of its input; and a buffer that no state holds."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)
        self.register_buffer("scale", torch.rand(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.cells(x.view(len(x), 2, 3).to(self.out.weight.dtype))[0]
        self.scale = self.scale * 1  # As a cache that a pass makes anew.
        return self.out(hidden[:, -1]) * self.scale


def test_weights_are_converted_where_they_are_read_as_a_state_of_float64_is():
    torch.manual_seed(0)
    built = Recurrent().eval()
    state: State = {key: torch.randn(tensor.shape) for key, tensor in built.state_dict().items()}
    pass_in_float64 = InFloat64(built)
    found = pass_in_float64.compute(state, IMAGES)
    whole = {key: tensor.double() for key, tensor in {**state, "scale": built.scale}.items()}
    assert found.dtype == torch.float64
    assert torch.equal(found, functional_call(built, whole, (IMAGES.double(),)))
    assert pass_in_float64.casts == ()
    assert {tensor.dtype for tensor in (*state.values(), *built.buffers())} == {torch.float32}


def test_errors_are_relative_to_each_tensor_and_infinite_without_a_scale_or_a_value():
    ones, steps = torch.ones(3), torch.arange(3)
    assert relative_error([], []) == 0
    assert relative_error([4 * ones, ones], [5 * ones, ones]) == 0.25
    assert relative_error([0 * ones], [0 * ones]) == 0
    assert relative_error([steps], [steps]) == 0
    for before, after in ((0 * ones, ones), (ones, np.nan * ones), (np.inf * ones, np.inf * ones), (steps, steps + 1)):
        assert relative_error([before], [after]) == np.inf
