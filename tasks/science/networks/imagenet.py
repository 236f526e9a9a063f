"""Residual networks of torchvision for large images, with torchvision's names of parameters and buffers.

Only the ReLUs differ: torchvision's blocks call one module two or three times, so a hook sees the last call alone;
these have one module per activation. Weights trained with torchvision load as they are.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models import resnet as torchvision_resnet

from tasks.science.networks.initialization import InitialDraw


class BasicBlock(torchvision_resnet.BasicBlock):
    """The block of torchvision's ResNet18; its output is that of `relu2`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        del self.relu
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu1(self.bn1(self.conv1(x)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu2(self.bn2(self.conv2(inner)) + shortcut)


class Bottleneck(torchvision_resnet.Bottleneck):
    """The block of torchvision's ResNet50; its output is that of `relu3`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        del self.relu
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu1(self.bn1(self.conv1(x)))
        inner = self.relu2(self.bn2(self.conv2(inner)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu3(self.bn3(self.conv3(inner)) + shortcut)


class ImageNetResNet(torchvision_resnet.ResNet):
    """A ResNet of torchvision for images of `n_channels` channels.

    Deviates: the stem's ReLU does not overwrite its input, so that what comes before it can be read.
    """

    initialization: InitialDraw = "torchvision"

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: list[int],
        n_channels: int,
        n_out: int,
        width_per_group: int = 64,
    ) -> None:
        super().__init__(block, layers, num_classes=n_out, width_per_group=width_per_group)
        self.relu = nn.ReLU()
        if n_channels != 3:
            self.conv1 = nn.Conv2d(n_channels, 64, 7, stride=2, padding=3, bias=False)


def _resnet18(n_channels: int, n_out: int) -> ImageNetResNet:
    """Return ResNet18. Source: He et al. 2016, arXiv 1512.03385."""
    return ImageNetResNet(BasicBlock, [2, 2, 2, 2], n_channels, n_out)


def _resnet50(n_channels: int, n_out: int) -> ImageNetResNet:
    """Return ResNet50 with strides in 3x3 convolutions, as in torchvision. Source: He et al. 2016, arXiv 1512.03385."""
    return ImageNetResNet(Bottleneck, [3, 4, 6, 3], n_channels, n_out)


def _wide_resnet50_2(n_channels: int, n_out: int) -> ImageNetResNet:
    """Return ResNet50 with twice the inner width of blocks. Source: Zagoruyko and Komodakis 2016, arXiv 1605.07146."""
    return ImageNetResNet(Bottleneck, [3, 4, 6, 3], n_channels, n_out, width_per_group=128)


BUILDERS = {"resnet18": _resnet18, "resnet50": _resnet50, "wide-resnet50-2": _wide_resnet50_2}
"""The networks by the word of their architecture, from the channels of an image and the number of classes."""
