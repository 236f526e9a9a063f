"""Normalization of feature maps (n, channels, height, width)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of each pixel: (x - mean) / standard deviation, then a weight and bias per channel.

    The standard deviation is the biased one. As published nothing is added to it, which leaves 0/0 at a pixel whose
    channels are all equal; 1e-30 added to the variance makes that pixel 0. It changes no bit of a float32 result where
    the variance is above 2e-23, and a float64 result by less than 1e-12 where it is above 1e-18: rounding error in
    channels of size 1 spreads further than that.
    """

    GUARD = 1e-30

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.weight = nn.Parameter(torch.ones(n_channels))
        self.bias = nn.Parameter(torch.zeros(n_channels))

    def forward(self, maps: Tensor) -> Tensor:
        channels_last = maps.permute(0, 2, 3, 1)
        normal = F.layer_norm(channels_last, (self.n_channels,), self.weight, self.bias, self.GUARD)
        return normal.permute(0, 3, 1, 2)


def norm2d(normalization: str, n_channels: int) -> nn.Module:
    """Return the norm of `normalization` batch or layer; ValueError for another word."""
    if normalization == "batch":
        return nn.BatchNorm2d(n_channels)
    if normalization == "layer":
        return LayerNorm2d(n_channels)
    raise ValueError(f"feature maps have normalization batch or layer, got {normalization!r}")
