"""Random networks that know which of their axes are free.

`networks()` is a Hypothesis strategy. A network is a list of blocks; each block says, from its own construction and
not from the tracer, which axes it makes and what it does to the one that flows through. An axis is *known to be free*
where that is plain from the construction; where blocks interact in ways that take thought, it is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn


@dataclass
class Known:
    """`copies` free axes of this size, moving dimension `dim` of `key`."""

    key: str
    dim: int
    size: int
    copies: int = 1


@dataclass
class Stream:
    """An axis that flows through the network; `plain` until a block gives it groups."""

    size: int
    known: list[Known]
    plain: bool = True


@dataclass
class Plan:
    """What has been built so far: blocks, the shape of one example, and the axes along its channel dimension."""

    shape: tuple[int, ...]  # (channels, height, width), (tokens, channels) or (channels,)
    streams: list[Stream]
    blocks: list[nn.Module] = field(default_factory=list[nn.Module])
    names: list[str] = field(default_factory=list[str])
    known: list[Known] = field(default_factory=list[Known])
    ended: list[Stream] = field(default_factory=list[Stream])

    @property
    def channels(self) -> int:
        return self.shape[0] if len(self.shape) != 2 else self.shape[1]

    @property
    def here(self) -> str:
        return f"blocks.{len(self.blocks)}"

    def add(self, block: nn.Module, name: str, channels: int | None = None) -> None:
        """Append a block; `channels` is the new number of channels where it changes."""
        self.blocks.append(block)
        self.names.append(name)
        if channels is not None:
            self.shape = (self.shape[0], channels) if len(self.shape) == 2 else (channels, *self.shape[1:])

    def replace(self, *streams: Stream) -> None:
        """The present axes have been read for the last time; these flow on."""
        self.ended += self.streams
        self.streams = list(streams)

    def make(self, key: str, size: int, dim: int = 0) -> Stream:
        """A new free axis."""
        return Stream(size, [Known(key, dim, size)])

    def forget(self) -> None:
        """Do not count the present axes."""
        for stream in self.streams:
            stream.known = []
            stream.plain = False

    def group(self, groups: int) -> None:
        """The present axis falls into groups: they move as wholes, and the units within each."""
        if len(self.streams) == 1 and self.streams[0].plain and len(self.streams[0].known) == 1:
            stream = self.streams[0]
            key, dim = stream.known[0].key, stream.known[0].dim
            stream.known = [Known(key, dim, groups), Known(key, dim, stream.size // groups, groups)]
            stream.plain = False
        else:
            self.forget()

    def all_known(self) -> list[Known]:
        """Every axis that is known to be free; one unit alone is no axis."""
        found = self.known + [k for s in self.ended + self.streams for k in s.known]
        unique = {id(k): k for k in found}
        return [k for k in unique.values() if k.size > 1]


def _dense(n_in: int, n_out: int, shape: tuple[int, ...], style: int) -> tuple[nn.Module, str, int]:
    """A map over channels in one of the ways people write it; the entry and dimension of its output channels."""
    if len(shape) == 3:
        if style % 3 == 1:
            return nn.ConvTranspose2d(n_in, n_out, 3, padding=1), "weight", 1
        return nn.Conv2d(n_in, n_out, (1, 3)[style % 2], padding=(0, 1)[style % 2], bias=style % 4 > 1), "weight", 0
    return (_Functional(n_in, n_out, style), "weight", 0 if style in (0, 3) else 1) if style < 5 else (
        nn.Linear(n_in, n_out), "weight", 0)  # fmt: skip


class _Functional(nn.Module):
    def __init__(self, n_in: int, n_out: int, style: int) -> None:
        super().__init__()
        self.style = style
        self.weight = nn.Parameter(torch.randn((n_out, n_in) if style in (0, 3) else (n_in, n_out)) / n_in**0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.style == 0:
            return F.linear(x, self.weight)
        if self.style == 1:
            return x @ self.weight
        if self.style == 2:
            return torch.einsum("...i,io->...o", x, self.weight)
        if self.style == 3:
            return torch.einsum("oi,...i->...o", self.weight, x)
        return torch.tensordot(x, self.weight, dims=([x.dim() - 1], [0]))


class Apply(nn.Module):
    """A function with submodules."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module | nn.Parameter | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            if isinstance(module, Tensor) and not isinstance(module, nn.Parameter):
                self.register_buffer(name, module, persistent=False)
            else:
                setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def channel_dim(x: Tensor) -> int:
    """Where the channels of images, tokens or vectors are."""
    return 1 if x.dim() == 4 else x.dim() - 1


def _spread(vector: Tensor, x: Tensor) -> Tensor:
    return vector[:, None, None] if x.dim() == 4 else vector


ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    torch.relu, torch.tanh, F.gelu, F.silu, F.hardswish, F.softplus, lambda x: F.leaky_relu(x, 0.1), F.elu, torch.sin,
    lambda x: x.clone().relu_(), lambda x: x * x.sigmoid(), torch.abs, lambda x: x.clamp(-1, 2) + x,
]  # fmt: skip

Draw = Any
Block = Callable[[Draw, Plan], bool]
BLOCKS: dict[str, Block] = {}


def block(function: Block) -> Block:
    """Register a block: it draws its options, changes the plan, and tells whether it could be placed."""
    BLOCKS[function.__name__.strip("_")] = function
    return function


def draw_size(draw: Draw, low: int = 3, high: int = 9) -> int:
    """A number of units."""
    return draw(st.integers(low, high))


@block
def _dense_layer(draw: Draw, plan: Plan) -> bool:
    n, style = draw_size(draw), draw(st.integers(0, 5))
    module, entry, dim = _dense(plan.channels, n, plan.shape, style)
    made = plan.make(f"{plan.here}.{entry}", n, dim)
    plan.replace(made)
    plan.add(module, "dense", n)
    return True


@block
def _activation(draw: Draw, plan: Plan) -> bool:
    f = draw(st.sampled_from(ACTIVATIONS))
    plan.add(Apply(lambda _, x: f(x)), "activation")
    return True


@block
def _residual(draw: Draw, plan: Plan) -> bool:
    n, style, calls = draw_size(draw), draw(st.integers(0, 5)), draw(st.integers(1, 2))
    up, entry, dim = _dense(plan.channels, n, plan.shape, style)
    down, _, _ = _dense(n, plan.channels, plan.shape, draw(st.integers(0, 5)))
    f = draw(st.sampled_from(ACTIVATIONS))
    plan.known.append(Known(f"{plan.here}.up.{entry}", dim, n))

    def run(m: Any, x: Tensor) -> Tensor:
        for _ in range(calls):
            x = x + m.down(f(m.up(x)))
        return x

    plan.add(Apply(run, up=up, down=down), "residual")
    return True


@block
def _normalise(draw: Draw, plan: Plan) -> bool:
    n, kind = plan.channels, draw(st.integers(0, 4))
    if kind == 0 and len(plan.shape) == 3:
        plan.add(nn.BatchNorm2d(n), "batch norm")
    elif kind == 1 and len(plan.shape) == 1:
        plan.add(nn.BatchNorm1d(n), "batch norm")
    elif kind <= 2:
        norm = nn.LayerNorm(n)
        plan.add(Apply(lambda m, x: m.norm(x.movedim(channel_dim(x), -1)).movedim(-1, channel_dim(x)), norm=norm),
                 "layer norm")  # fmt: skip
    elif kind == 3:
        plan.add(Apply(lambda _, x: F.normalize(x, dim=channel_dim(x)) + 0.1 * x), "unit norm")
    else:
        plan.add(Apply(lambda _, x: x - x.amax(channel_dim(x), keepdim=True) + x.softmax(channel_dim(x))), "softmax")
    return True


@block
def _group_norm(draw: Draw, plan: Plan) -> bool:
    options = [g for g in (2, 3, 4) if plan.channels % g == 0 and plan.channels > g]
    if len(plan.shape) == 2 or not options:
        return False
    groups = draw(st.sampled_from(options))
    plan.group(groups)
    plan.add(nn.GroupNorm(groups, plan.channels), "group norm")
    return True


@block
def _heads_softmax(draw: Draw, plan: Plan) -> bool:
    options = [g for g in (2, 3, 4) if plan.channels % g == 0 and plan.channels > g]
    if not options or len(plan.shape) == 3:
        return False
    groups = draw(st.sampled_from(options))
    plan.group(groups)
    plan.add(Apply(lambda _, x: x.unflatten(-1, (groups, -1)).softmax(-1).flatten(-2)), "softmax within groups")
    return True


@block
def _channel_parameter(draw: Draw, plan: Plan) -> bool:
    kind, n = draw(st.integers(0, 2)), plan.channels
    if kind == 0 and len(plan.shape) != 2:
        plan.add(nn.PReLU(n), "prelu")
    elif kind == 1:
        scale = nn.Parameter(torch.randn(n))
        plan.add(Apply(lambda m, x: x * _spread(m.scale, x) + 1, scale=scale), "scale")
    else:
        shift = nn.Parameter(torch.randn(1, n, 1, 1) if len(plan.shape) == 3 else torch.randn(n))
        plan.add(Apply(lambda m, x: (x + m.shift).relu(), shift=shift), "shift")
    return True


@block
def _concatenate(draw: Draw, plan: Plan) -> bool:
    n, order, style = draw_size(draw), draw(st.integers(0, 2)), draw(st.integers(0, 5))
    if plan.channels > 24:
        return False
    module, entry, dim = _dense(plan.channels, n, plan.shape, style)
    made = plan.make(f"{plan.here}.f.{entry}", n, dim)
    if order == 2:
        plan.ended.append(made)
        made.known = []
        plan.streams = plan.streams * 2
        plan.add(
            Apply(lambda _, x: torch.cat([x.relu(), (-x).relu()], channel_dim(x))), "both signs", 2 * plan.channels
        )
        return True
    parts = [*plan.streams, made] if order else [made, *plan.streams]
    plan.streams = parts

    def run(m: Any, x: Tensor) -> Tensor:
        y = m.f(x).tanh()
        return torch.cat([x, y] if order else [y, x], channel_dim(x))

    plan.add(Apply(run, f=module), "concatenate", plan.channels + n)
    return True


@block
def _gate(draw: Draw, plan: Plan) -> bool:
    n, kind, style = draw_size(draw), draw(st.integers(0, 2)), draw(st.integers(0, 5))
    module, entry, dim = _dense(plan.channels, 2 * n, plan.shape, style)
    made = plan.make(f"{plan.here}.f.{entry}", n, dim)

    def run(m: Any, x: Tensor) -> Tensor:
        y = m.f(x)
        d = channel_dim(y)
        if kind == 0:
            a, b = y.chunk(2, d)
            return a * b.sigmoid()
        if kind == 1:
            return F.glu(y, d)
        a, b = y.unflatten(d, (n, 2)).unbind(d + 1)
        return a * b.tanh()

    plan.replace(made)
    plan.add(Apply(run, f=module), "gate", n)
    return True


@block
def _grouped(draw: Draw, plan: Plan) -> bool:
    if len(plan.shape) != 3:
        return False
    g, a, b = draw(st.integers(2, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    first = nn.Conv2d(plan.channels, g * a, 1)
    second = (nn.ConvTranspose2d if transposed else nn.Conv2d)(g * a, g * b, 3, padding=1, groups=g)
    # The groups flow on with the outputs; the inputs within each group end here.
    inside = [Known(f"{plan.here}.a.weight", 0, a, g), Known(f"{plan.here}.b.bias", 0, b, g)]
    plan.replace(Stream(g * b, [Known(f"{plan.here}.a.weight", 0, g), *inside], plain=False))
    plan.add(Apply(lambda m, x: m.b(m.a(x).relu()), a=first, b=second), "grouped", g * b)
    return True


@block
def _grouped_residual(draw: Draw, plan: Plan) -> bool:
    options = [g for g in (2, 3, 4) if plan.channels % g == 0 and plan.channels > g]
    if len(plan.shape) != 3 or not options:
        return False
    groups = draw(st.sampled_from(options))
    f = draw(st.sampled_from(ACTIVATIONS))
    plan.group(groups)
    plan.add(
        Apply(lambda m, x: x + f(m.g(x)), g=nn.Conv2d(plan.channels, plan.channels, 3, padding=1, groups=groups)),
        "grouped residual",
    )
    return True


@block
def _depthwise(draw: Draw, plan: Plan) -> bool:
    if len(plan.shape) != 3 or plan.channels > 16:
        return False
    times = draw(st.integers(1, 2))
    n = plan.channels
    module = nn.Conv2d(n, n * times, 3, padding=1, groups=n)
    if times > 1:
        before = [k for s in plan.streams for k in s.known]
        plan.streams = [Stream(n * times, [*before, Known(f"{plan.here}.weight", 0, times, n)], plain=False)]
    plan.add(module, "depthwise", n * times)
    return True


@block
def _pixel_shuffle(draw: Draw, plan: Plan) -> bool:
    if len(plan.shape) != 3 or plan.shape[1] > 4:
        return False
    n = draw(st.integers(2, 4))
    made = plan.make(f"{plan.here}.f.weight", n)
    f = nn.Conv2d(plan.channels, 4 * n, 1)
    plan.replace(made)
    plan.add(Apply(lambda m, x: F.pixel_shuffle(m.f(x), 2), f=f), "pixel shuffle", n)
    plan.shape = (n, plan.shape[1] * 2, plan.shape[2] * 2)
    return True


@block
def _pool(draw: Draw, plan: Plan) -> bool:
    if len(plan.shape) != 3 or plan.shape[1] < 4:
        return False
    kind = draw(st.sampled_from([F.max_pool2d, F.avg_pool2d]))
    plan.add(Apply(lambda _, x: kind(x, 2)), "pool")
    plan.shape = (plan.shape[0], plan.shape[1] // 2, plan.shape[2] // 2)
    return True


@block
def _flatten(draw: Draw, plan: Plan) -> bool:
    if len(plan.shape) == 1 or math.prod(plan.shape) > 400:
        return False
    n = draw_size(draw)
    f = nn.Linear(math.prod(plan.shape), n)
    made = plan.make(f"{plan.here}.f.weight", n)
    plan.replace(made)
    plan.add(Apply(lambda m, x: m.f(x.flatten(1)), f=f), "flatten")
    plan.shape = (n,)
    return True


@block
def _to_tokens(draw: Draw, plan: Plan) -> bool:
    if len(plan.shape) != 3 or plan.shape[1] > 4:
        return False
    c, h, w = plan.shape
    position = nn.Parameter(torch.randn(1, h * w, c))
    plan.add(Apply(lambda m, x: x.flatten(2).transpose(1, 2) + m.position, position=position), "to tokens")
    plan.shape = (h * w, c)
    return True


@block
def _attention(draw: Draw, plan: Plan) -> bool:
    if len(plan.shape) != 2:
        return False
    heads, d, n, t = draw(st.integers(1, 3)), draw(st.integers(1, 3)), plan.channels, plan.shape[0]
    kind = draw(st.integers(0, 3))
    at = plan.here
    if kind == 0:
        options = [h for h in (1, 2, 3) if n % h == 0]
        heads = draw(st.sampled_from(options))
        d = n // heads
        attend = nn.MultiheadAttention(n, heads, batch_first=True)
        plan.known += [
            Known(f"{at}.attend.in_proj_weight", 0, heads),
            Known(f"{at}.attend.in_proj_weight", 0, d, 2 * heads),
        ]
        plan.add(Apply(lambda m, x: x + m.attend(x, x, x, need_weights=False)[0], attend=attend), "attention")
        return True
    qkv, out = nn.Linear(n, 3 * heads * d), nn.Linear(heads * d, n)
    bias = nn.Parameter(torch.randn(heads, t, t))
    plan.known += [Known(f"{at}.qkv.weight", 0, heads), Known(f"{at}.qkv.weight", 0, d, 2 * heads)]

    def run(m: Any, x: Tensor) -> Tensor:
        b = x.shape[0]
        q, k, v = m.qkv(x).reshape(b, t, 3, heads, d).permute(2, 0, 3, 1, 4)
        if kind == 1:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=m.bias)
        elif kind == 2:
            y = ((q @ k.transpose(-1, -2)) * d**-0.5 + m.bias).softmax(-1) @ v
        else:
            scores = torch.einsum("bhid,bhjd->bhij", q, k) + m.bias + torch.full((t, t), -9.0).triu(1)
            y = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
        return x + m.out(y.transpose(1, 2).reshape(b, t, -1))

    plan.add(Apply(run, qkv=qkv, out=out, bias=bias), "attention")
    return True


@block
def _squeeze_excite(draw: Draw, plan: Plan) -> bool:
    if len(plan.shape) != 3:
        return False
    n, r = plan.channels, draw_size(draw, 2, 5)
    down, up = nn.Conv2d(n, r, 1), nn.Conv2d(r, n, 1)
    plan.known.append(Known(f"{plan.here}.down.weight", 0, r))
    plan.add(Apply(lambda m, x: x * m.up(m.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid(), down=down, up=up),
             "squeeze-excite")  # fmt: skip
    return True


@block
def _shuffle(draw: Draw, plan: Plan) -> bool:
    kind, n = draw(st.integers(0, 2)), plan.channels
    if len(plan.streams) > 1:
        # Parts of several axes interleave: still free, but a later cut would take thought.
        for stream in plan.streams:
            stream.plain = False
    if kind == 0 and n % 2 == 0:
        plan.streams[0].plain = False

        def run(_: Any, x: Tensor) -> Tensor:
            d = channel_dim(x)
            return x.unflatten(d, (2, n // 2)).transpose(d, d + 1).flatten(d, d + 1)

        plan.add(Apply(run), "channel shuffle")
        return True
    if kind == 1:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
        plan.add(Apply(lambda m, x: x.index_select(channel_dim(x), m.order), order=order), "index")
    else:
        plan.add(Apply(lambda _, x: x.flip(channel_dim(x)).roll(1, channel_dim(x))), "flip")
    for stream in plan.streams:
        stream.plain = False
    return True


@block
def _cut(draw: Draw, plan: Plan) -> bool:
    if len(plan.streams) > 1 or not plan.streams[0].plain or len(plan.streams[0].known) != 1 or plan.channels < 4:
        return False
    n = draw(st.integers(2, plan.channels - 1))
    stream = plan.streams[0]
    old = stream.known[0]
    stream.known = [Known(old.key, old.dim, n)]
    stream.size = n
    stream.plain = False
    plan.add(Apply(lambda _, x: x.narrow(channel_dim(x), 0, n)), "cut", n)
    return True


@block
def _recurrent(draw: Draw, plan: Plan) -> bool:
    if len(plan.streams) > 1 or len(plan.shape) == 3 or not plan.streams[0].plain:
        return False
    n = plan.channels
    step = nn.Linear(n, n)

    def run(m: Any, x: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.tanh(m.step(x)) + x
        return x

    plan.add(Apply(run, step=step), "recurrent")
    return True


@block
def _constant(draw: Draw, plan: Plan) -> bool:
    kind, n = draw(st.integers(0, 3)), plan.channels
    plan.forget()
    if kind == 0:
        plan.add(Apply(lambda _, x: x * _spread(torch.linspace(0.5, 2, n), x)), "constant per channel")
    elif kind == 1:
        plan.add(Apply(lambda _, x: x.cumsum(channel_dim(x))), "cumulative sum")
    elif kind == 2:
        plan.add(Apply(lambda _, x: torch.fft.fft(x, dim=channel_dim(x)).abs()), "fft")
    else:
        plan.add(Apply(lambda _, x: x + x.sort(channel_dim(x))[0]), "sort")
    return True


@block
def _tied(draw: Draw, plan: Plan) -> bool:
    """A weight that is used forth and back: x + f(x W) W^T."""
    if len(plan.shape) == 3:
        return False
    n = draw_size(draw)
    plan.known.append(Known(f"{plan.here}.w", 1, n))
    w = nn.Parameter(torch.randn(plan.channels, n))
    plan.add(Apply(lambda m, x: x + (x @ m.w).relu() @ m.w.T, w=w), "tied")
    return True


@block
def _zero_pad(draw: Draw, plan: Plan) -> bool:
    if len(plan.shape) == 3 or plan.channels > 20:
        return False
    n, k = plan.channels, draw(st.integers(2, 4))
    f = nn.Linear(n, n + k)
    for stream in plan.streams:
        stream.plain = False
    plan.streams = [*plan.streams, Stream(k, [Known(f"{plan.here}.f.weight", 0, k)], plain=False)]
    plan.add(Apply(lambda m, x: F.pad(x, (0, k)) + m.f(x).relu(), f=f), "zero pad", n + k)
    return True


class RandomNetwork(nn.Module):
    """Blocks in order, then a mean over positions and a linear map to two logits."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(plan.blocks)
        self.names = plan.names
        self.head = nn.Linear(plan.channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.blocks:
            x = module(x)
        if x.dim() == 4:
            x = x.mean((2, 3))
        return self.head(x if x.dim() == 2 else x.mean(1))

    def extra_repr(self) -> str:
        return " -> ".join(self.names)


@st.composite
def networks(draw: Draw, max_blocks: int = 8) -> tuple[RandomNetwork, tuple[Tensor, ...], list[Known]]:
    """A network, its inputs and the axes known to be free."""
    torch.manual_seed(draw(st.integers(0, 999)))
    start = draw(st.sampled_from([(3, 4, 4), (5, 3), (4,)]))
    plan = Plan(start, [])
    module, entry, dim = _dense(plan.channels, 6, plan.shape, draw(st.integers(0, 5)))
    plan.streams = [plan.make(f"blocks.0.{entry}", 6, dim)]
    plan.add(module, "dense", 6)
    for _ in range(draw(st.integers(0, max_blocks))):
        BLOCKS[draw(st.sampled_from(sorted(BLOCKS)))](draw, plan)
    inputs = (torch.randn(2, *start),)
    network = RandomNetwork(plan)
    return network, inputs, plan.all_known()
