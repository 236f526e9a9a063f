"""Networks as users write them, each with the sizes of the axes that a person would call free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[int]]] = {}


def case(shape: tuple[int, ...], *sizes: int) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a network with the shape of its input and the sizes of its free axes."""

    def register(network: type[nn.Module]) -> type[nn.Module]:
        CASES[network.__name__] = (network, shape, sorted(sizes))
        return network

    return register


class Net(nn.Module):
    """Makes parameters by name: `self.p(3, 4)`."""

    def p(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape))


@case((2, 5), 7, 6)
class FunctionalWeights(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.p(7, 5), self.p(7, 6), self.p(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(F.linear(x, self.a))
        x = torch.tanh(x @ self.b)
        return torch.einsum("bi,io->bo", x, self.c)


@case((2, 5), 6, 4)
class CalledTwice(Net):
    """A module called twice on one stream: its inner axis is free, the stream is one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
        self.block = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = x + self.block(x)
        x = x + self.block(x)
        return self.last(x)


@case((2, 5), 6)
class Recurrent(Net):
    """The same square weight over and over: its rows and columns are one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.step, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(3):
            x = torch.tanh(self.step(x))
        return self.last(x)


@case((2, 5), 6, 4)
class ConcatEitherOrder(Net):
    """Concatenated one way and then the other: halves of the readers' columns swap roles."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(5, 4)
        self.c, self.d = nn.Linear(10, 3), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).relu(), self.b(x).relu()
        return self.c(torch.cat([a, b], 1)) + self.d(torch.cat([b, a], 1))


@case((2, 5), 6)
class ConcatWithItself(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(5, 6), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.c(torch.cat([a.relu(), a.neg().relu()], 1))


@case((2, 5), 6)
class ChunkAndGate(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(5, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, gate = self.a(x).chunk(2, -1)
        return self.c(a * torch.sigmoid(gate))


@case((2, 5), 6)
class GLU(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(5, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.glu(self.a(x), -1))


@case((2, 5), 6)
class InterleavedGate(Net):
    """Even channels gate odd ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(5, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.c(a[:, ::2] * a[:, 1::2].sigmoid())


@case((2, 3, 6, 6), 8, 4)
class Transposed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.c = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.up(self.a(x).relu()).relu())


@case((2, 3, 6, 6), 4, *[2] * 4, *[3] * 4)
class GroupedConv(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.g(self.a(x).relu()).relu())


class _Grouped(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)
        self.g, self.h = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ConvTranspose2d(8, 8, 1, groups=4)


@case((2, 3, 6, 6), 2, 4, 4)
class GroupedResidual(_Grouped):
    """Rows and columns of one group are one axis."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.c(x + self.g(x))


@case((2, 3, 6, 6), 2, *[2] * 2, *[2] * 4)
class NestedGroupsResidual(_Grouped):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = x + self.g(x).tanh()
        return self.c(x + self.h(x))


@case((2, 3, 6, 6), 4, 4)
class GroupedFlipped(_Grouped):
    """Each group reads the channels of the other in reverse: the groups stay."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.c(x + self.g(x.flip(1)))


@case((2, 3, 6, 6), 2, 4, 4, 4)
class GroupedFlatWeight(_Grouped):
    """The weight of a grouped convolution is kept flat."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8 * 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.c(F.conv2d(x, self.w.view(8, 4, 1, 1), groups=2).relu())


@case((2, 3, 6, 6), 2, 3, 4, 4, 4)
class GroupedMixture(_Grouped):
    """The weight of a grouped convolution is a mixture of experts' weights."""

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.share = nn.Parameter(torch.randn(3, 8, 4, 3, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        w = torch.einsum("e,eoikl->oikl", self.share.softmax(0), self.experts)
        return self.c(F.conv2d(self.a(x).relu(), w, groups=2).relu())


@case((2, 8, 6, 6), 4, 4)
class GroupedInput(Net):
    """Groups that read the data stay; their outputs move."""

    def __init__(self) -> None:
        super().__init__()
        self.g, self.c = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.g(x).relu())


@case((2, 3, 6, 6), 4, *[2] * 4, *[3] * 4)
class GroupedTransposed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.g = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 12, 2, groups=4)
        self.c = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.g(self.a(x).relu()).relu())


@case((2, 3, 6, 6), 8, *[2] * 8)
class DepthwiseMultiplier(Net):
    """Two outputs per depthwise channel: the pairs move with their channel, and within themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.g(self.a(x).relu()).relu())


@case((2, 3, 4, 4), 5)
class PixelShuffle(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.pixel_shuffle(self.a(x), 2).relu())


@case((2, 3, 4, 4), 4, 6)
class PixelShuffleConcat(Net):
    """What comes out of the shuffle is concatenated with plain channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b, self.c = nn.Conv2d(3, 16, 1), nn.PReLU(4), nn.Conv2d(4, 6, 1), nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n(F.pixel_shuffle(self.a(x), 2))
        return self.c(torch.cat([self.b(x).tanh(), x], 1))


@case((2, 3, 4, 4), 5, 6)
class PixelUnshuffle(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(20, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(F.pixel_unshuffle(self.a(x).relu(), 2)).relu())


@case((2, 3, 4, 4), 6, 5)
class Flattened(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Linear(24, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu().flatten(1)).relu())


@case((2, 3, 4, 4), 6)
class FlattenedChannelsLast(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().permute(0, 2, 3, 1).reshape(x.shape[0], -1))


@case((2, 3, 6, 6), 4, *[3] * 4, 5)
class GroupNormed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(3, 12, 3), nn.GroupNorm(4, 12), nn.Conv2d(12, 5, 3)
        self.c = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.n(self.a(x)).relu()).relu())


@case((2, 3, 6, 6), 8, 6)
class PReLUs(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b, self.m = nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 6, 3), nn.PReLU()
        self.c = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.m(self.b(self.n(self.a(x)))))


@case((2, 3, 6, 6), 8)
class ChannelScale(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.scale, self.shift = self.p(8, 1, 1), self.p(1, 8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c((self.a(x) * self.scale + self.shift).relu())


@case((2, 3, 6, 6), 8, 4)
class SqueezeExcite(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.s, self.e, self.c = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(4, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        gate = self.e(self.s(x.mean((2, 3))).relu()).sigmoid()
        return self.c(x * gate[:, :, None, None]).mean((2, 3))


@case((2, 3, 6, 6), 6, 4, 5)
class Dense(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(9, 4, 1), nn.Conv2d(13, 5, 1)
        self.n, self.d = nn.BatchNorm2d(18), nn.Linear(18, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.a(x).relu()], 1)
        x = torch.cat([x, self.b(x).relu()], 1)
        x = torch.cat([self.c(x).relu(), x], 1)
        return self.d(self.n(x).mean((2, 3)))


@case((2, 5, 8), 12, 2, *[6] * 4, 16)
class Attention(Net):
    """nn.MultiheadAttention with a learned position embedding, pre-norm, and a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(8, 12), self.p(1, 5, 12)
        self.n1, self.attend = nn.LayerNorm(12), nn.MultiheadAttention(12, 2, batch_first=True)
        self.n2, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 16), nn.Linear(16, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        n = self.n1(x)
        x = x + self.attend(n, n, n, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(self.n2(x))))
        return self.head(x[:, 0])


@case((2, 5, 8), 12, 2, *[6] * 4, 16)
class EncoderLayer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 12)
        self.layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


@case((2, 5, 8), 3, *[4] * 6)
class HandMadeAttention(Net):
    """q, k, v from separate layers, scores by einsum, causal mask made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 12) for _ in range(4))
        self.o = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, 3, 4) for layer in (self.q, self.k, self.v))
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / 2
        mask = torch.ones(t, t).tril().bool()
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        return self.o(torch.einsum("bhij,bjhd->bihd", weights, v).reshape(b, t, 12))


@case((2, 5, 8), 3, 4, *[4] * 3)
class NormedQueries(Net):
    """Query and key are normalised within each head by one shared scale: their channels move alike in all heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o, self.scale = nn.Linear(8, 36), nn.Linear(12, 8), self.p(4)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = (F.rms_norm(z, (4,)) * self.scale for z in (q, k))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@case((2, 5, 8), 2, *[2] * 2, *[4] * 4)
class GroupedQueries(Net):
    """Two key-value heads, each shared by two query heads, repeated by expand and reshape.

    Free: the key-value heads, the query heads of each, its query-key channels and its value channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, 4, 4).transpose(1, 2)
        k, v = (
            layer(x).view(b, t, 2, 1, 4).expand(b, t, 2, 2, 4).reshape(b, t, 4, 4).transpose(1, 2)
            for layer in (self.k, self.v)
        )
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@case((2, 5, 8), 4)
class Rotary(Net):
    """Rotary positions: each channel is turned with its partner by its own angle; only whole heads move."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(20, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k = (layer(x).view(b, t, 4, 4).transpose(1, 2) for layer in (self.q, self.k))
        angle = torch.arange(t)[:, None] * torch.tensor([1.0, 0.1])
        cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))
        q, k = (z * cos + torch.cat([-z[..., 2:], z[..., :2]], -1) * sin for z in (q, k))
        return self.o((q @ k.transpose(-1, -2)).softmax(-1).transpose(1, 2).flatten(2))


@case((2, 5), 6)
class TiedWeights(Net):
    """An autoencoder whose decoder is the encoder's transpose, plus a bias that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = self.p(6, 5), self.p(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.w.T + self.b) @ self.w + self.b.sum()


@case((2, 5), 6, 6)
class SharedModule(Net):
    """Two names for one layer between two streams of one size that do not mix."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 6)
        self.same = self.b
        self.c = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu()) + self.c(self.same(self.a(-x).tanh()).tanh())


@case((2, 5), 6, 6, 6)
class SameSizeUntied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x).relu()).relu()).relu())


@case((2, 5), 8)
class ConstantPerChannel(Net):
    """Scales made in forward differ from channel to channel: nothing moves in the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) * torch.linspace(1, 2, 6)
        return self.c((self.b(x.relu()) * torch.full((8,), 2.0)).relu())


@case((2, 5), 3, 3)
class SlicedAxis(Net):
    """The first half goes one way, the second another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.b(x[:, :3]) * self.c(x[:, 3:])


@case((2, 5))
class Flipped(Net):
    """Channel i is added to channel n - 1 - i: no single order serves both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.c(x + x.flip(1))


@case((2, 5))
class CumulativeSum(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x).cumsum(1))


@case((2, 5), 6, 7)
class Sorted(Net):
    """Sorting along an axis hides the order of what comes in; the sorted positions stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu()) / self.a(x).norm(dim=1, keepdim=True)


@case((2, 5), 8)
class ArgMax(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(x).relu()) + self.a(x).argmax(1, keepdim=True)


@case((2, 5), 6, 4)
class SoftmaxOverUnits(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.log_softmax(self.b(self.a(x).softmax(-1)), -1))


@case((2, 3, 6, 6), 6, 10)
class ZeroPaddedShortcut(Net):
    """ResNet's option A: the shortcut is padded with zero channels; padded units mix among themselves only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 16, 3, 2, 1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        y = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 5, 5)) + self.b(x)
        return self.c(y.relu().mean((2, 3)))


@case((2, 3, 6, 6), 2, 6, 6)
class ChannelShuffle(Net):
    """Grouped convolutions around a shuffle: after it each group holds channels of both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.channel_shuffle(self.a(x).relu(), 2)
        return self.c(F.group_norm(x, 2).relu())


@case((2, 5), 6)
class WeightNormed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Linear(5, 6))
        self.c = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x).relu())


@case((2, 5), 6, 4)
class LowRank(Net):
    """A weight that is a product: its inner axis carries no activation, yet it is free."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.u, self.v, self.c = nn.Linear(5, 6), self.p(6, 4), self.p(4, 2), self.p(2)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.a(x).relu(), (self.u @ self.v).T, self.c)


@case((2, 7, 5), 6)
class LSTM(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x)[0][:, -1])


@case((2, 5), 6)
class InPlace(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x.relu_().mul_(2)
        y = x.clone()
        y += x
        return self.c(y)


@case((2, 5), 5)
class OneUnitRead(Net):
    """One unit has a role of its own, the others are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.c(x) * x[:, 2:3]


@case((2, 3, 6, 6), 4)
class UnknownOperation(Net):
    """A Bessel function has no rule: its channels stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.special.bessel_j0(self.a(x))
        return self.c(self.b(x).relu())


@case((2, 3, 6, 6), 8)
class Gram(Net):
    """Channel attention: a channel by channel matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        flat = x.flatten(2)
        mixed = (flat @ flat.transpose(1, 2)).softmax(-1) @ flat
        return self.c(mixed.view_as(x))


@case((2, 3, 6, 6))
class FlatGram(Net):
    """The same matrix flattened into features: each position belongs to two units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 4, 1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.a(x).flatten(2)
        return self.c((flat @ flat.transpose(1, 2)).flatten(1))


@case((2, 5), 6)
class BatchNormedMLP(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.c = nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.n(self.a(x)).relu())


@case((2, 3, 4, 4), 6)
class PixelLayerNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.w, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1), self.p(6), self.p(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)
        return self.c((x * self.w[:, None, None] + self.b[:, None, None]).relu())


@case((2, 3, 4, 4), 6)
class SpatialLayerNorm(Net):
    """LayerNorm over channels and positions at once: the weights have a spatial part, which stays."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.c = nn.Conv2d(3, 6, 1), nn.LayerNorm((6, 4, 4)), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.n(self.a(x)).relu())


@case((2, 3, 4, 4), 6, 5)
class InstanceNormed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(3, 6, 1), nn.InstanceNorm2d(6, affine=True), nn.Conv2d(6, 5, 1)
        self.c = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.instance_norm(self.b(self.n(self.a(x)).relu())).relu())


@case((2, 5), 4, 6)
class LearnedQueries(Net):
    """Latent vectors that are averaged in the end: their number is an axis as well."""

    def __init__(self) -> None:
        super().__init__()
        self.latents, self.key, self.c = self.p(4, 6), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.sigmoid(self.latents + self.key(x)[:, None])
        return self.c(scores.mean(1))


@case((2, 5), 6)
class StackedBranches(Net):
    """Two readings of one layer, stacked and summed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.stack([self.a(x).relu(), self.a(-x).relu()]).sum(0))


@case((2, 5), 6)
class BufferScale(Net):
    """A persistent buffer per channel moves with it; a constant outside the state dict holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 2)
        self.register_buffer("scale", torch.randn(6))
        self.register_buffer("hidden", torch.randn(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c((self.b((self.a(x) * self.scale).relu()) * self.hidden).relu())


@case((2, 5), 6)
class DictOutput(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(5, 4), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        return {"logits": self.c(self.a(x).relu()), "features": (self.b(x),)}


@case((2, 3, 5, 5), 4, *[3] * 4)
class HeadMix(Net):
    """Talking heads: a matrix mixes the heads while channels stay apart: channels move alike in all heads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(5, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.mean(1)).view(x.shape[0], 5, 4, 3)
        x = x / x.norm(dim=-1, keepdim=True)
        return self.c(x.flatten(2))


@case((2, 5), 4, *[3] * 4)
class MixAcrossHeads(Net):
    """A softmax across rows, each column on its own: columns move, and each column may order its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(5, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).view(x.shape[0], 3, 4).softmax(1)
        return self.c(x.flatten(1))


@case((2, 5), 12)
class ReshapedAndBack(Net):
    """A detour through another shape does not hold anything."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(5, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).view(-1, 3, 4).relu().transpose(1, 2).reshape(-1, 12)
        return self.c(x)


@case((2, 5))
class ReshapedAcross(Net):
    """(6, 4) read as (4, 6): rows of the second shape cross rows of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 24), nn.Linear(6, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x.view(-1, 4, 6)).sum(1) + self.c(x.view(-1, 6, 4)).sum(1)


@case((2, 5), 6)
class OuterProduct(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(5, 6), nn.Linear(30, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c((self.a(x)[:, :, None] * x[:, None, :]).flatten(1))


@case((2, 5), 6, 4)
class OuterOfTwo(Net):
    """Bilinear pooling: each feature belongs to a unit of either side, and both sides move."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(5, 4), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c((self.a(x)[:, :, None] * self.b(x)[:, None, :]).flatten(1))
