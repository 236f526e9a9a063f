from __future__ import annotations

import pytest
import torch

from tasks.science.interpolation import interpolate

A = {"w": torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), "b": torch.zeros(5)}
B = {"w": torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), "b": torch.ones(5)}


def test_alpha_0_and_1_are_the_endpoints_to_the_bit():
    for alpha, end in ((0.0, A), (1.0, B)):
        assert all(torch.equal(interpolate(A, B, alpha)[name], end[name]) for name in A)


def test_alpha_weighs_b():
    assert torch.allclose(interpolate(A, B, 0.25)["b"], torch.full((5,), 0.25))
    assert torch.equal(interpolate(A, B, 0.5)["w"], (A["w"] + B["w"]) / 2)


def test_what_is_no_line_between_two_networks_is_refused():
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], got 1.5"):
        interpolate(A, B, 1.5)
    with pytest.raises(ValueError, match="different tensors: b"):
        interpolate(A, {"w": B["w"]}, 0.5)
    with pytest.raises(ValueError, match=r"w has shape \(5, 4\) in A and \(4, 5\) in B"):
        interpolate(A, {**B, "w": B["w"].T}, 0.5)
