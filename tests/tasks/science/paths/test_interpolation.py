from __future__ import annotations

import pytest
import torch

from tasks.science.paths.interpolation import interpolate

A = {"w": torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), "b": torch.zeros(5)}
B = {"w": torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), "b": torch.ones(5)}


def test_alpha_0_and_1_are_the_endpoints_to_the_bit():
    for alpha, end in ((0.0, A), (1.0, B)):
        assert all(torch.equal(interpolate(A, B, alpha)[name], end[name]) for name in A)


def test_alpha_weighs_b():
    assert torch.allclose(interpolate(A, B, 0.25)["b"], torch.full((5,), 0.25))
    assert torch.equal(interpolate(A, B, 0.5)["w"], (A["w"] + B["w"]) / 2)


def test_whole_numbers_are_as_in_a_and_running_statistics_on_the_line():
    a = {"norm.running_var": torch.tensor([1.0]), "norm.num_batches_tracked": torch.tensor(7)}
    b = {"norm.running_var": torch.tensor([3.0]), "norm.num_batches_tracked": torch.tensor(12)}
    for alpha, count, variance in ((0.0, 7, 1.0), (0.25, 7, 1.5), (1.0, 12, 3.0)):
        state = interpolate(a, b, alpha)
        assert state["norm.num_batches_tracked"].dtype == torch.int64
        assert int(state["norm.num_batches_tracked"]) == count
        assert float(state["norm.running_var"]) == variance


def test_what_is_no_line_between_two_networks_is_refused():
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], got 1.5"):
        interpolate(A, B, 1.5)
    with pytest.raises(ValueError, match="different tensors: b"):
        interpolate(A, {"w": B["w"]}, 0.5)
    with pytest.raises(ValueError, match=r"w has shape \(5, 4\) in A and \(4, 5\) in B"):
        interpolate(A, {**B, "w": B["w"].T}, 0.5)
