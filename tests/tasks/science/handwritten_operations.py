"""Networks around one operation each, with the sizes of the axes that a person would call free."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.tasks.science.handwritten import Net

OPERATIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[int]]] = {}
Function = Callable[["Between", Tensor, Tensor], Tensor]


def case(shape: tuple[int, ...], *sizes: int) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a network with the shape of its input and the sizes of its free axes."""

    def register(network: type[nn.Module]) -> type[nn.Module]:
        OPERATIONS[network.__name__] = (network, shape, sorted(sizes))
        return network

    return register


class Between(Net):
    """A function of six hidden units (`h`, last; second in images) and of the input `x`, then a linear map."""

    def __init__(self, function: Function, shape: tuple[int, ...], n_read: int) -> None:
        super().__init__()
        self.function = function
        self.a = nn.Conv2d(3, 6, 1) if len(shape) == 4 else nn.Linear(shape[-1], 6)
        self.c = nn.Linear(n_read, 2)
        self.w, self.table = self.p(7, 6), self.p(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self, self.a(x), x)
        return self.c(y.mean((2, 3)) if y.dim() == 4 else y)


TOKENS, IMAGE = (2, 5, 8), (2, 3, 4, 4)


def between(name: str, function: Function, shape: tuple[int, ...], n_read: int, *sizes: int) -> None:
    """Register a function between two layers."""
    OPERATIONS[name] = (lambda: Between(function, shape, n_read), shape, sorted(sizes))


def _word(x: Tensor) -> Tensor:
    """A number 0..7 for every token: the place of its largest input."""
    return x.argmax(-1)


def _at(x: Tensor) -> Tensor:
    """A token 0..4 for every sequence."""
    return x[..., 0].argmax(-1)


SENDERS, RECEIVERS = [0, 1, 1, 2, 3, 4, 4], [1, 0, 2, 2, 4, 3, 0]


def _edges() -> tuple[Tensor, Tensor]:
    return torch.tensor(SENDERS), torch.tensor(RECEIVERS)


# Values are the same in any order of what they are chosen from; their indices are not.

between("MaxValues", lambda _m, h, _: h.max(-1)[0], TOKENS, 5, 6)
between("MinValues", lambda _m, h, _: h.min(-1).values, TOKENS, 5, 6)
between("MaxValuesKept", lambda _m, h, _: h * torch.max(h, -1, keepdim=True)[0], TOKENS, 6, 6)
between("MedianValues", lambda _m, h, _: h.median(-1)[0] + h.nanmedian(-1)[0], TOKENS, 5, 6)
between("MedianOfTokens", lambda _m, h, _: h.median(1)[0], TOKENS, 6, 6)
between("KthValues", lambda _m, h, _: h.kthvalue(2, -1)[0] * h.kthvalue(3)[0], TOKENS, 5, 6)
between("ModeValues", lambda _m, h, _: h.round().mode(-1)[0], TOKENS, 5, 6)
between("SortValues", lambda _m, h, _: h.sort(-1)[0], TOKENS, 6, 6)
between("StableSortValues", lambda _m, h, _: h.sort(stable=True, dim=-1, descending=True)[0], TOKENS, 6, 6)
between("TopValues", lambda _m, h, _: h.topk(2, -1)[0], TOKENS, 2, 6)
between("Quantile", lambda _m, h, _: h.quantile(torch.tensor(0.3, dtype=h.dtype), -1), TOKENS, 5, 6)
between("MaxIndicesToo", lambda _m, h, _: sum(h.max(-1), torch.zeros(())), TOKENS, 5)
between("MaxIndicesOfTokens", lambda _m, h, _: sum(h.max(1), torch.zeros(())), TOKENS, 6, 6)
between("MedianIndices", lambda _m, h, _: h.median(-1)[0] * h.median(-1)[1], TOKENS, 5)
between("SortIndices", lambda _m, h, _: h.sort(-1)[0] * h.argsort(-1), TOKENS, 6)
between("TopIndices", lambda _m, h, _: sum(h.topk(2, -1), torch.zeros(())), TOKENS, 2)
between("TopUnsorted", lambda _m, h, _: h.topk(2, -1, sorted=False)[0], TOKENS, 2)
between("TopOfTokens", lambda _m, h, _: sum(h.topk(2, 1), torch.zeros(())).sum(1), TOKENS, 6, 6)
between("CumulativeMax", lambda _m, h, _: h.cummax(-1)[0] + h.logcumsumexp(-1), TOKENS, 6)
between("CumulativeMaxOfTokens", lambda _m, h, _: h.cummax(1)[0] + h.logcumsumexp(1), TOKENS, 6, 6)

# Positions that a tensor names.

between("TokenByTwoTensors", lambda _, h, x: h[torch.arange(2), _at(x)], TOKENS, 6, 6)
between("PixelsByTwoTensors", lambda _m, h, _: h[:, :, torch.tensor([[0], [2]]), torch.arange(3)], IMAGE, 6, 6)
between("IndicesApart", lambda _, h, x: h[_at(x[..., 0]), :, torch.arange(2)].mean(-1), IMAGE, 6, 6)
between("UnitsByTwoTensors", lambda _, h, x: h[:, _at(x), _at(x)], TOKENS, 2)
between("GatherToken", lambda _, h, x: h.gather(1, _at(x)[:, None, None].expand(-1, 1, 6))[:, 0], TOKENS, 6, 6)
between("TakeToken", lambda _, h, x: h.take_along_dim(_at(x)[:, None, None], 1), TOKENS, 6, 6)
between("GatherUnit", lambda _, h, x: h.gather(2, _word(x)[..., None] % 6)[..., 0], TOKENS, 5)
between("GatherByHidden", lambda _, h, x: x.gather(2, h.argmax(1, keepdim=True).expand(-1, 5, -1)), TOKENS, 6, 6)
between("PutToken", lambda m, h, x: h.index_put((torch.arange(2), _at(x)), m.w[0]), TOKENS, 6, 6)
between("PutMasked", lambda m, h, x: _put(h, x[..., 0] > 0, m.w[0]), TOKENS, 6, 6)
between("PutNegative", lambda _m, h, _: _put(h, h < 0, torch.zeros((), dtype=h.dtype)), TOKENS, 6, 6)
between("ScatterUnits", lambda _, h, x: torch.zeros_like(h).scatter(2, _word(x)[..., None] % 6, h), TOKENS, 6)
between("UnfoldedTokens", lambda _m, h, _: h.unfold(1, 2, 1).mean(-1), TOKENS, 6, 6)
between("WordsTwice", lambda m, h, x: h + m.table[_word(x)] + F.embedding(_word(-x), m.table), TOKENS, 6, 6)
between("TiedHead", lambda m, h, x: (F.embedding(_word(x), m.table) * h) @ m.table.t(), TOKENS, 8, 6)
between("BagOfWords", lambda m, h, x: h[:, 0] * F.embedding_bag(_word(x), m.table), TOKENS, 6, 6)
between("FoldedWindows", lambda _m, h, _: F.fold(F.unfold(h, 2), (4, 4), 2), IMAGE, 6, 6)


def _put(x: Tensor, where: Tensor, value: Tensor) -> Tensor:
    x = x.clone()
    x[where] = value
    return x


def _receive(kind: str) -> Function:
    def function(_m: Between, h: Tensor, _x: Tensor) -> Tensor:
        senders, receivers = _edges()
        sent, empty = h[:, senders].tanh(), torch.zeros_like(h)
        rows = receivers[None, :, None].expand(2, -1, 6)
        if kind == "add":
            return empty.index_add(1, receivers, sent)
        if kind == "copy":
            return empty.index_copy(1, receivers[:3], sent[:, :3])
        if kind == "scatter":
            return empty.scatter_add(1, rows, sent)
        return h.scatter_reduce(1, rows, sent, kind)

    return function


for _kind in ("add", "copy", "scatter", "amax", "prod"):
    between(f"Received_{_kind}", _receive(_kind), TOKENS, 6, 6)


@case((2, 5, 8), 6, 4)
class GraphLayers(Net):
    """Two rounds of messages along the edges that the input's words name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        senders, receivers = _word(x[0]) % 5, _word(x[1]) % 5
        h = self.a(x).relu()
        h = h + torch.zeros_like(h).index_add(1, receivers, h[:, senders])
        h = self.b(h).relu()
        rows = receivers[None, :, None].expand(2, 5, 4)
        return self.c(torch.zeros_like(h).scatter_reduce(1, rows, h[:, senders], "sum"))


@case((2, 5, 8), 3, *[4] * 6)
class RelativeBias(Net):
    """A table of biases by row and column, read at two tensors of indices."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o, self.table = nn.Linear(8, 36), nn.Linear(12, 8), self.p(5, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
        far = (torch.arange(5)[:, None] - torch.arange(5)).abs()
        bias = self.table[far, (far > 1).long()].permute(2, 0, 1)
        return self.o(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))


# Distances, grids, resizing and transforms.

between("Prototypes", lambda m, h, _: torch.cdist(h, m.w), TOKENS, 7, 6, 7)
between("PrototypesInL1", lambda m, h, _: torch.cdist(h, m.w, p=1.0), TOKENS, 7, 6, 7)
between("BicubicAntialiased", lambda _m, h, _: _resize(h, "bicubic"), IMAGE, 6, 6)
between("BilinearAntialiased", lambda _m, h, _: _resize(h, "bilinear"), IMAGE, 6, 6)
between("FourierOfTokens", lambda _m, h, _: torch.fft.fft(h, dim=1).abs(), TOKENS, 6, 6)
between("FourierOfUnits", lambda _m, h, _: torch.fft.fft(h, dim=-1).real, TOKENS, 6)
between("FourierOfPixels", lambda _m, h, _: torch.fft.irfft2(torch.fft.rfft2(h) * 1j), IMAGE, 6, 6)
between("Phases", lambda _m, h, _: (torch.polar(h, h) * torch.complex(h, -h).conj()).imag, TOKENS, 6, 6)


def _resize(x: Tensor, mode: str) -> Tensor:
    return F.interpolate(x, size=(3, 3), mode=mode, antialias=True)


@case((2, 3, 4, 4), 6, 4)
class SpectralConvolution(Net):
    """A Fourier layer; complex weights are kept as pairs of real numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(4, 2, 1)
        self.w = self.p(6, 4, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        low = torch.fft.rfft2(self.a(x).relu())[:, :, :2, :2]
        low = torch.einsum("bixy,ioxy->boxy", low, torch.view_as_complex(self.w))
        return self.c(torch.fft.irfft2(low, s=(4, 4)).tanh())


@case((2, 3, 4, 4))
class ComplexParameter(Net):
    """A complex entry of the state dict stays, and so does what meets it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.w = nn.Parameter(torch.randn(6, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return self.c((self.a(x).relu() * self.w[:, None, None]).real.to(x.dtype))


@case((2, 3, 4, 4), 6, 5)
class SpatialTransformer(Net):
    """Where to look is computed from the image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.look, self.where = nn.Conv2d(3, 6, 1), nn.Linear(3, 5), nn.Linear(5, 6)
        self.c = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.where(self.look(x.mean((2, 3))).relu()).view(-1, 2, 3)
        grid = F.affine_grid(theta, [2, 6, 3, 3], align_corners=False)
        return self.c(F.grid_sample(self.a(x), grid, align_corners=False).relu())


@case((2, 5, 8), 6, 4)
class BilinearForm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 6), nn.Bilinear(6, 8, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu(), x).relu())


# Attention.


@case((2, 3, 4, 4), 8, 4)
class ChannelAndSpatialGates(Net):
    """CBAM: gates from the largest and the mean value over positions, then over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.mlp = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))
        self.gate = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        gate = self.mlp(x.flatten(2).max(2)[0]) + self.mlp(x.mean((2, 3)))
        x = x * gate.sigmoid()[:, :, None, None]
        seen = torch.cat([torch.max(x, 1, keepdim=True)[0], x.mean(1, keepdim=True)], 1)
        return self.c(x * self.gate(seen).sigmoid())


@case((2, 5, 8), 12, *[2, *[6] * 4, 16] * 2)
class MaskedEncoder(Net):
    """torch's encoder is given a mask and compares it with a causal one by itself."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
        self.embed, self.encoder, self.head = nn.Linear(8, 12), nn.TransformerEncoder(layer, 2), nn.Linear(12, 3)

    def mask(self, x: Tensor) -> Tensor:
        return nn.Transformer.generate_square_subsequent_mask(5, dtype=x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x), self.mask(x)))


@case((2, 5, 8), 12, *[2, *[6] * 4, 16] * 2)
class EncoderOfAnyMask(MaskedEncoder):
    """The mask is no causal one."""

    def mask(self, x: Tensor) -> Tensor:
        at = torch.arange(x.shape[1])
        return (at[:, None] - at).abs() > 1


@case((2, 5, 8), 12, *[2, *[6] * 4, 16] * 2)
class PaddedEncoder(MaskedEncoder):
    """Which tokens are padding depends on the example and is the same for all heads."""

    def forward(self, x: Tensor) -> Tensor:
        padding = F.pad(x[:, 1:, 0] > 1, (1, 0))
        return self.head(self.encoder(self.embed(x), self.mask(x).isinf(), padding))


@case((2, 5, 8), 12, *[2, *[6] * 4, 16] * 2)
class WindowedEncoder(MaskedEncoder):
    """The mask is no causal one, and is a number for each pair of tokens."""

    def mask(self, x: Tensor) -> Tensor:
        return self.distance(x).masked_fill(self.distance(x) > 2, float("-inf"))

    def distance(self, x: Tensor) -> Tensor:
        """How far tokens stand from one another."""
        at = torch.arange(x.shape[1], dtype=x.dtype)
        return (at[:, None] - at).abs()


@case((2, 5, 8), 12, *[2, *[6] * 4] * 3, 16, 16)
class MaskedTransformer(Net):
    """Queries of one stream and keys of the other have one packed weight: the streams are one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.again, self.head = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 3)
        self.transformer = nn.Transformer(12, 2, 1, 1, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(4, dtype=x.dtype)
        return self.head(self.transformer(self.embed(x), self.again(x[:, 1:]), tgt_mask=mask))


@case((2, 5, 8), 2, *[2] * 2, *[4] * 4)
class SharedHeads(Net):
    """Four query heads on two key-value heads, which attention repeats by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(2, 5, -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


@case((2, 5, 8), 4)
class RotaryPairs(Net):
    """Rotary positions on neighbouring channels as complex numbers: only whole heads move."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(20, 8)

    def forward(self, x: Tensor) -> Tensor:
        angle = torch.arange(5, dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=x.dtype)
        turn = torch.polar(torch.ones_like(angle), angle)

        def turned(z: Tensor) -> Tensor:
            pairs = torch.view_as_complex(z.view(2, 5, 4, 2, 2))
            return torch.view_as_real(pairs * turn[:, None]).flatten(3).transpose(1, 2)

        q, k = turned(self.q(x)), turned(self.k(x))
        return self.o((q @ k.transpose(-1, -2)).softmax(-1).transpose(1, 2).flatten(2))


@case((2, 5, 8), 4)
class RotaryNeighbours(Net):
    """The same on neighbouring channels, without complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(20, 8)

    def forward(self, x: Tensor) -> Tensor:
        angle = torch.arange(5, dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=x.dtype)
        cos, sin = (f(angle).repeat_interleave(2, -1) for f in (torch.cos, torch.sin))

        def turned(z: Tensor) -> Tensor:
            z = z.view(2, 5, 4, 4).transpose(1, 2)
            return z * cos + torch.stack([-z[..., 1::2], z[..., ::2]], -1).flatten(-2) * sin

        q, k = turned(self.q(x)), turned(self.k(x))
        return self.o((q @ k.transpose(-1, -2)).softmax(-1).transpose(1, 2).flatten(2))


@case((2, 5, 8), 2, 3, 3)
class FactorisedAttention(Net):
    """CoaT: keys times values first; queries also scale the values, so that both have one order of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(8, 18), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(2, 5, 3, 2, 3).permute(2, 0, 3, 1, 4)
        mixed = q @ (k.softmax(2).transpose(-1, -2) @ v)
        return self.o((mixed + q * v).transpose(1, 2).flatten(2))


@case((2, 5, 8), 8)
class FlatFactors(FactorisedAttention):
    """The same factors read as features: each belongs to two channels of one head, and they stay."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(18, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(2, 5, 3, 2, 3).permute(2, 0, 3, 1, 4)
        factors = k.transpose(-1, -2) @ v
        return self.o((q @ factors + q * v).transpose(1, 2).flatten(2)).sum() + self.features(factors.flatten(1))


# Convolutions that see one position at a time.


@case((2, 5, 8), 6, 3)
class TokensAsChannels(Net):
    """A convolution of kernel size 1 mixes tokens; what it takes for positions are units, and they move."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mix, self.c = nn.Linear(8, 6), nn.Conv1d(5, 3, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.mix(self.a(x)).relu().mean(1))


@case((2, 5, 8), 3)
class WindowsOverUnits(TokensAsChannels):
    """The same with kernel size 3: neighbours among units."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(5, 3, 3, padding=1)


@case((2, 5, 8), 3)
class PaddedUnits(TokensAsChannels):
    """Kernel size 1, but with padding and a stride: not every unit is read."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(5, 3, 1, stride=2, padding=1)
        self.c = nn.Linear(4, 2)
