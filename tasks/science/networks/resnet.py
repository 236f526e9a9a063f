"""Residual networks for small images: ResNet20 with BatchNorm or LayerNorm, and ResNet18."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from tasks.science.networks.initialization import InitialDraw
from tasks.science.networks.normalization import norm2d

RESNET20_READINGS = frozenset({"stages.2.blocks.1"})
"""Modules where the authors read their ResNet20 other than by default: the last stage's stream at the end of its second
block, by a slip in numbering the ends of stages."""

RESNET18_READINGS = frozenset(
    {
        "stem.conv",
        *(f"stages.{stage}.blocks.{block}.conv1" for stage in range(4) for block in range(2)),
        *(f"stages.{stage}.blocks.0.conv2" for stage in (1, 2, 3)),
    }
)
"""Modules where the authors read their ResNet18: before the norm, inner units at the convolution that makes them, a
stream at the stem's convolution or that of its stage's first block."""


class ResNet(nn.Module):
    """A residual network: stem, stages of residual blocks, mean over the map, and one Linear to the classes.

    Stage i has `n_blocks` blocks of `channels[i]`; all stages but the first halve the map. Where a block changes the
    shape its shortcut is a convolution of `shortcut_kernel` pixels and a norm, elsewhere the identity: every channel
    of a stage's residual stream keeps its meaning from block to block, so the stream can be permuted as one.
    Convolutions have a bias under LayerNorm and none before BatchNorm, as in the code behind the paper.
    `published_readings`: the modules at whose outputs the authors observed units, where that is known and differs from
    the default; an axis that none of them carries is read by default.
    """

    def __init__(
        self,
        n_channels: int,
        channels: Sequence[int],
        n_blocks: int,
        n_out: int,
        *,
        normalization: str,
        shortcut_kernel: int,
        initialization: InitialDraw,
        published_readings: frozenset[str] | None = None,
    ) -> None:
        super().__init__()
        self.initialization: InitialDraw = initialization
        self.published_readings = published_readings
        self.stem = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(n_channels, channels[0], 3, padding=1, bias=normalization == "layer"),
                norm=norm2d(normalization, channels[0]),
                relu=nn.ReLU(),
            )
        )
        stages: list[nn.Module] = []
        n_in = channels[0]
        for position, n_stage in enumerate(channels):
            blocks: list[nn.Module] = []
            for block in range(n_blocks):
                stride = 2 if position > 0 and block == 0 else 1
                blocks.append(ResidualBlock(n_in, n_stage, stride, normalization, shortcut_kernel))
                n_in = n_stage
            stages.append(nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks))))
        self.stages = nn.Sequential(*stages)
        self.output = nn.Linear(n_in, n_out)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.stages(self.stem(images)).mean((2, 3)))


class ResidualBlock(nn.Module):
    """A residual block of two 3x3 convolutions beside a shortcut; its output is that of `relu2`.

    A shortcut of a block that halves the map has stride 2.
    """

    def __init__(self, n_in: int, n_out: int, stride: int, normalization: str, shortcut_kernel: int) -> None:
        super().__init__()
        bias = normalization == "layer"
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=bias)
        self.norm1 = norm2d(normalization, n_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=bias)
        self.norm2 = norm2d(normalization, n_out)
        self.shortcut = nn.Identity()
        if stride != 1 or n_in != n_out:
            padding = shortcut_kernel // 2
            self.shortcut = nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(n_in, n_out, shortcut_kernel, stride, padding=padding, bias=bias),
                    norm=norm2d(normalization, n_out),
                )
            )
        self.relu2 = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.relu1(self.norm1(self.conv1(maps)))
        return self.relu2(self.norm2(self.conv2(inner)) + self.shortcut(maps))


def resnet20(n_channels: int, width: int, n_out: int, normalization: str) -> ResNet:
    """Return ResNet20: three stages of three blocks at 16, 32 and 64 channels times `width`.

    The shortcuts between stages are 3x3 convolutions with stride 2 and a norm. Weights are He-normal and biases torch's
    default, as in the code behind REPAIR (arXiv 2211.08403).
    """
    return ResNet(
        n_channels,
        [16 * width, 32 * width, 64 * width],
        3,
        n_out,
        normalization=normalization,
        shortcut_kernel=3,
        initialization="he-normal, torch biases",
        published_readings=RESNET20_READINGS if normalization == "batch" else None,
    )


def small_resnet18(n_channels: int, width: int, n_out: int) -> ResNet:
    """Return ResNet18 for small images: four stages of two blocks at 64 to 512 channels times `width`.

    It has BatchNorm, 1x1 shortcuts and no pool after the stem, as is customary at 32x32, and torch's default
    initialization.
    """
    return ResNet(
        n_channels,
        [64 * width, 128 * width, 256 * width, 512 * width],
        2,
        n_out,
        normalization="batch",
        shortcut_kernel=1,
        initialization="torch",
        published_readings=RESNET18_READINGS,
    )
