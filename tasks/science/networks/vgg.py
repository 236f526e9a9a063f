"""VGG for small images: 3x3 convolutions and five max-pools down to one pixel, then one Linear to the classes."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from tasks.science.networks.initialization import InitialDraw
from tasks.science.networks.normalization import norm2d

STAGES = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    19: ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512)),
}
"""Channels of each convolution by depth, at width 1; a max-pool ends each stage."""

MAX_SIDE = 2 ** len(STAGES[11])


class VGG(nn.Module):
    """A VGG whose `width` multiplies the channels of every convolution, for images (n, n_channels, 1..32, 1..32).

    `hidden.{i}` is convolution (with bias, before BatchNorm as well), BatchNorm where there is one, ReLU, and at the
    end of a stage the pool. Pools round up: 32 pixels halve to 1 exactly as published, and 28, which become 7 and
    would vanish when rounded down, end at 1 too.
    Source: Simonyan and Zisserman 2015, arXiv 1409.1556; the single Linear is customary at 32x32.
    """

    initialization: InitialDraw = "torch"

    def __init__(self, n_channels: int, depth: int, width: int, n_out: int, normalization: str = "none") -> None:
        super().__init__()
        if depth not in STAGES:
            raise ValueError(f"there is no VGG of depth {depth}; known: {', '.join(map(str, STAGES))}")
        blocks: list[nn.Sequential] = []
        n_in = n_channels
        for stage in STAGES[depth]:
            for position, channels in enumerate(stage):
                layers: OrderedDict[str, nn.Module] = OrderedDict()
                layers["conv"] = nn.Conv2d(n_in, channels * width, 3, padding=1)
                if normalization != "none":
                    layers["norm"] = norm2d(normalization, channels * width)
                layers["relu"] = nn.ReLU()
                if position == len(stage) - 1:
                    layers["pool"] = nn.MaxPool2d(2, ceil_mode=True)
                blocks.append(nn.Sequential(layers))
                n_in = channels * width
        self.hidden = nn.Sequential(*blocks)
        self.output = nn.Linear(n_in, n_out)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.hidden(images).flatten(1))
