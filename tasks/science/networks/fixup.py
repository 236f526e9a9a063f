"""ResNet20 without normalization layers, held together by its initialization and a few scalars (Fixup).

Source: Zhang, Dauphin and Ma 2019, arXiv 1901.09321.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from tasks.science.networks.initialization import InitialDraw

N_STAGES, N_BLOCKS = 3, 3


class FixupResNet20(nn.Module):
    """Three stages of three Fixup blocks at 16, 32 and 64 channels times `width`.

    Initialization (section 3 of the paper): He-normal, times L^(-1/2) in the first convolution of each of the L = 9
    residual branches, 0 in the second one and in the classifier: at first every branch puts out 0, and so do the
    logits. Convolutions have no bias but one scalar.
    Deviates: the authors' CIFAR code enters a stage by subsampling and appending zero channels; here a 3x3
    convolution with stride 2 does, as in the ResNet20 with norms, so that a stage's stream can be permuted as one.
    He's variance is 2 / fan-in throughout; that code takes fan-out, which differs at a stage's entry only, and leaves
    the stem at torch's default.
    """

    initialization: InitialDraw = "he-normal"

    def __init__(self, n_channels: int, width: int, n_out: int) -> None:
        super().__init__()
        n_in = 16 * width
        self.stem = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(n_channels, n_in, 3, padding=1, bias=False), shift=ScalarBias(), relu=nn.ReLU())
        )
        stages: list[nn.Module] = []
        for stage in range(N_STAGES):
            blocks: list[nn.Module] = []
            for block in range(N_BLOCKS):
                n_stage = 16 * width * 2**stage
                blocks.append(FixupBlock(n_in, n_stage, stride=2 if stage > 0 and block == 0 else 1))
                n_in = n_stage
            stages.append(nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks))))
        self.stages = nn.Sequential(*stages)
        self.shift = ScalarBias()
        self.output = nn.Linear(n_in, n_out)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.shift(self.stages(self.stem(images)).mean((2, 3))))

    @property
    def weight_scales(self) -> dict[str, float]:
        """The Fixup scales: factors of the He-normal draws of weights, where they are not 1."""
        scales = {"output.weight": 0.0}
        for stage in range(N_STAGES):
            for block in range(N_BLOCKS):
                scales[f"stages.{stage}.blocks.{block}.conv1.weight"] = (N_STAGES * N_BLOCKS) ** -0.5
                scales[f"stages.{stage}.blocks.{block}.conv2.weight"] = 0.0
        return scales


class FixupBlock(nn.Module):
    """Two 3x3 convolutions, a scalar bias before each and before each ReLU, and a scalar multiplier of the branch.

    The shortcut convolution reads what `conv1` reads, the input after its scalar bias; elsewhere the shortcut is the
    identity of the block's input.
    """

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.shift1a = ScalarBias()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.shift1b = ScalarBias()
        self.relu1 = nn.ReLU()
        self.shift2a = ScalarBias()
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.ones(1))
        self.shift2b = ScalarBias()
        self.shortcut = None if n_in == n_out else nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.relu2 = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        shifted = self.shift1a(maps)
        inner = self.relu1(self.shift1b(self.conv1(shifted)))
        branch = self.shift2b(self.conv2(self.shift2a(inner)) * self.scale)
        shortcut = maps if self.shortcut is None else self.shortcut(shifted)
        return self.relu2(branch + shortcut)


class ScalarBias(nn.Module):
    """A layer that adds one learned number to every value, the same for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, values: Tensor) -> Tensor:
        return values + self.bias
