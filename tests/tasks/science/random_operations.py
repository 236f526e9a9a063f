"""Blocks of random networks around operations that choose, name positions, resample, transform or share heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.tasks.science.random_networks import Apply, Draw, Known, Plan, block, channel_dim, draw_size

VALUES = [
    lambda x, d: torch.max(x, d, keepdim=True)[0],
    lambda x, d: x.min(d, keepdim=True).values,
    lambda x, d: x.median(d, keepdim=True)[0],
    lambda x, d: x.kthvalue(2, d, keepdim=True)[0],
    lambda x, d: x.topk(2, d)[0].sum(d, keepdim=True),
    lambda x, d: x.sort(d)[0].narrow(d, 1, 1),
]  # fmt: skip


def _untied(plan: Plan) -> bool:
    """Whether order is safe from rounding: a transform of real values has each of them twice."""
    return not {"fft", "transform of positions"} & set(plan.names)


@block
def _values(draw: Draw, plan: Plan) -> bool:
    f = draw(st.sampled_from(VALUES))
    plan.add(Apply(lambda _, x: x - f(x, channel_dim(x))), "values over channels")
    return True


@block
def _indices(draw: Draw, plan: Plan) -> bool:
    """Where indices are read the channels stay."""
    if not _untied(plan):
        return False
    kind = draw(st.integers(0, 2))
    plan.forget()

    def run(_: Any, x: Tensor) -> Tensor:
        d = channel_dim(x)
        if kind == 0:
            values, indices = x.max(d, keepdim=True)
            return x * values + indices
        if kind == 1:
            return x + x.argsort(d)
        return x * x.gather(d, x.argmax(d, keepdim=True)) + x.topk(2, d)[1].sum(d, keepdim=True)

    plan.add(Apply(run), "indices over channels")
    return True


@block
def _values_over_positions(draw: Draw, plan: Plan) -> bool:
    if len(plan.shape) != 2 or not _untied(plan):
        return False
    kind = draw(st.integers(0, 3))

    def run(_: Any, x: Tensor) -> Tensor:
        if kind == 0:
            values, indices = x.max(1, keepdim=True)
            return x - values + indices
        if kind == 1:
            return x.sort(1)[0] + x.argsort(1)
        if kind == 2:
            return x.cummax(1)[0] + x.median(1, keepdim=True)[0]
        return x + x.gather(1, x.argmin(1, keepdim=True)).tanh()

    plan.add(Apply(run), "values over positions")
    return True


def _words(x: Tensor, n: int) -> Tensor:
    """Numbers below n that do not depend on hidden units: where each token stands."""
    return (torch.arange(x.shape[1]) * 2 + torch.arange(x.shape[0])[:, None]) % n


@block
def _named_tokens(draw: Draw, plan: Plan) -> bool:
    if len(plan.shape) != 2:
        return False
    kind, t = draw(st.integers(0, 4)), plan.shape[0]

    def run(_: Any, x: Tensor) -> Tensor:
        at = _words(x, t)
        if kind == 0:
            return x + x[torch.arange(x.shape[0]), at[:, 0]][:, None]
        if kind == 1:
            return x * x.gather(1, at[..., None].expand_as(x)).sigmoid()
        if kind == 2:
            return x[torch.arange(x.shape[0])[:, None], at].tanh() + x
        if kind == 3:
            return x + x.take_along_dim(at[:, :1, None], 1)
        return x.index_put((torch.arange(x.shape[0]), at[:, 0]), x.mean(1))

    plan.add(Apply(run), "named tokens")
    return True


@block
def _graph_layer(draw: Draw, plan: Plan) -> bool:
    if len(plan.shape) != 2:
        return False
    kind, t = draw(st.integers(0, 3)), plan.shape[0]
    senders = torch.tensor(draw(st.lists(st.integers(0, t - 1), min_size=2, max_size=6)))
    receivers = (senders * 3 + 1) % t

    def run(m: Any, x: Tensor) -> Tensor:
        sent, empty = x[:, m.senders].tanh(), torch.zeros_like(x)
        rows = m.receivers[None, :, None].expand_as(sent)
        if kind == 0:
            return x + empty.index_add(1, m.receivers, sent)
        if kind == 1:
            return x + empty.scatter_add(1, rows, sent)
        if kind == 2:
            return x.scatter_reduce(1, rows, sent, "amax")
        return x + empty.index_put((torch.arange(x.shape[0])[:, None], m.receivers[None]), sent, accumulate=True)

    plan.add(Apply(run, senders=senders, receivers=receivers), "graph layer")
    return True


@block
def _prototypes(draw: Draw, plan: Plan) -> bool:
    if len(plan.shape) != 2:
        return False
    n, p = draw_size(draw), draw(st.sampled_from([1.0, 2.0]))
    made = plan.make(f"{plan.here}.w", n)
    w = nn.Parameter(torch.randn(n, plan.channels))
    plan.replace(made)
    plan.add(Apply(lambda m, x: torch.cdist(x, m.w, p=p), w=w), "prototypes", n)
    return True


@block
def _resample(draw: Draw, plan: Plan) -> bool:
    if len(plan.shape) != 3:
        return False
    kind, (_, h, w) = draw(st.integers(0, 3)), plan.shape
    where = nn.Linear(3, 6)

    def run(m: Any, x: Tensor) -> Tensor:
        if kind == 0:
            return F.interpolate(x, size=(h, w + 1), mode="bicubic", antialias=True)[..., :w]
        if kind == 1:
            return F.interpolate(x, size=(h + 1, w), mode="bilinear", antialias=True)[..., :h, :]
        theta = m.where(torch.linspace(-1, 1, 3 * x.shape[0], dtype=x.dtype).view(-1, 3)).view(-1, 2, 3)
        if kind == 2:
            seen = x.mean((1, 2, 3), keepdim=True)[..., 0]
            theta = theta * seen.tanh()
        return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)

    plan.add(Apply(run, where=where), "resample")
    return True


@block
def _transform(draw: Draw, plan: Plan) -> bool:
    if len(plan.shape) == 1:
        return False
    kind = draw(st.integers(0, 2))

    def run(_: Any, x: Tensor) -> Tensor:
        dims = (2, 3) if x.dim() == 4 else (1,)
        if kind == 0:
            return torch.fft.fftn(x, dim=dims).abs()
        if kind == 1:
            return torch.fft.irfftn(torch.fft.rfftn(x, dim=dims) * 0.5j, s=[x.shape[d] for d in dims], dim=dims)
        return (torch.fft.fftn(x, dim=dims) * torch.polar(torch.ones_like(x), x)).imag

    plan.add(Apply(run), "transform of positions")
    return True


@block
def _masked_encoder(draw: Draw, plan: Plan) -> bool:
    if len(plan.shape) != 2:
        return False
    n, t, inner = plan.channels, plan.shape[0], draw_size(draw)
    heads = draw(st.sampled_from([h for h in (1, 2, 3) if n % h == 0]))
    layer = nn.TransformerEncoderLayer(n, heads, inner, batch_first=True)
    at = f"{plan.here}.encoder.layers.0"
    plan.known += [
        Known(f"{at}.self_attn.in_proj_weight", 0, heads),
        Known(f"{at}.self_attn.in_proj_weight", 0, n // heads, 2 * heads),
        Known(f"{at}.linear1.weight", 0, inner),
    ]
    causal = draw(st.booleans())

    def run(m: Any, x: Tensor) -> Tensor:
        mask = torch.ones(t, t, dtype=torch.bool).triu(1) if causal else torch.arange(t) > t // 2
        return m.encoder(x, mask.expand(t, t))

    plan.add(Apply(run, encoder=nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)), "masked encoder")
    return True


@block
def _shared_heads(draw: Draw, plan: Plan) -> bool:
    if len(plan.shape) != 2:
        return False
    groups, each, d, n = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3)), plan.channels
    t, at = plan.shape[0], plan.here
    q, k, v = nn.Linear(n, groups * each * d), nn.Linear(n, groups * d), nn.Linear(n, groups * d)
    plan.known += [
        Known(f"{at}.k.weight", 0, groups),
        Known(f"{at}.q.weight", 0, each, groups),
        Known(f"{at}.k.weight", 0, d, groups),
        Known(f"{at}.v.weight", 0, d, groups),
    ]

    def run(m: Any, x: Tensor) -> Tensor:
        parts = [f(x).view(x.shape[0], t, -1, d).transpose(1, 2) for f in (m.q, m.k, m.v)]
        y = F.scaled_dot_product_attention(*parts, enable_gqa=True)
        return x + m.out(y.transpose(1, 2).flatten(2))

    plan.add(Apply(run, q=q, k=k, v=v, out=nn.Linear(groups * each * d, n)), "shared heads")
    return True


@block
def _factors(draw: Draw, plan: Plan) -> bool:
    """Attention that multiplies keys and values first; queries scale the values where they share channels."""
    if len(plan.shape) != 2:
        return False
    heads, d, n, shared = draw(st.integers(1, 3)), draw(st.integers(1, 3)), plan.channels, draw(st.booleans())
    at, t = plan.here, plan.shape[0]
    plan.known += [Known(f"{at}.qkv.weight", 0, heads), Known(f"{at}.qkv.weight", 0, d, heads * (1 if shared else 2))]

    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).view(x.shape[0], t, 3, heads, d).permute(2, 0, 3, 1, 4)
        y = q @ (k.softmax(2).transpose(-1, -2) @ v)
        return x + m.out((y + q * v if shared else y).transpose(1, 2).flatten(2))

    plan.add(Apply(run, qkv=nn.Linear(n, 3 * heads * d), out=nn.Linear(heads * d, n)), "factors")
    return True


@block
def _tokens_as_channels(draw: Draw, plan: Plan) -> bool:
    """A one-dimensional convolution over tokens or over channels."""
    if len(plan.shape) != 2:
        return False
    t, n = plan.shape
    if draw(st.booleans()):
        inner = draw_size(draw)
        plan.known.append(Known(f"{plan.here}.f.weight", 0, inner))
        f, g = nn.Conv1d(t, inner, 1), nn.Conv1d(inner, t, 1)
        plan.add(Apply(lambda m, x: x + m.g(m.f(x).relu()), f=f, g=g), "mixing tokens")
        return True
    made = plan.make(f"{plan.here}.f.weight", n_out := draw_size(draw))
    plan.replace(made)
    f = nn.Conv1d(n, n_out, draw(st.sampled_from([1, 3])), padding="same")
    plan.add(Apply(lambda m, x: m.f(x.transpose(1, 2)).transpose(1, 2), f=f), "convolution over tokens", n_out)
    return True


@block
def _table(draw: Draw, plan: Plan) -> bool:
    """A learned vector for each token and example, read at two tensors or as words, from one table used twice."""
    if len(plan.shape) != 2:
        return False
    n, kind = plan.channels, draw(st.integers(0, 2))
    table = nn.Parameter(torch.randn(3, 4, n))

    def run(m: Any, x: Tensor) -> Tensor:
        if kind == 0:
            return x + m.table[_words(x, 3), _words(x, 4)]
        words = m.table.flatten(0, 1)
        if kind == 1:
            return x * words[_words(x, 12)] + F.embedding(_words(x, 7), words)
        return x + F.embedding_bag(_words(x, 12), words, mode="sum")[:, None]

    plan.add(Apply(run, table=table), "table")
    return True
