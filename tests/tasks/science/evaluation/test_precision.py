"""Networks that cast to float32 on their way, that read token ids, and whose output holds more than logits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.science.data.examples import Examples
from tasks.science.evaluation.functional import lay_out
from tasks.science.evaluation.metrics import evaluate, logits_of
from tasks.science.evaluation.outputs import logits_in
from tasks.science.evaluation.precision import InFloat64
from tasks.science.merging import merge_networks
from tasks.science.networks.fitting import MergeError
from tasks.science.networks.user_code import OwnCodeError, load_own_data
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.measurement import Viewing
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State
from tasks.science.symmetry.permutation import Permutation, PermutationSpec
from tasks.science.symmetry.proof import FUNCTION_TOLERANCE, function_error
from tasks.science.symmetry.tracing import trace_permutation_spec
from tasks.science.symmetry.tracing.check import Check
from tasks.science.user_cells import describe_own
from tests.tasks.science.permuting import inverse

IDS = torch.randint(0, 16, (40, 6), generator=torch.Generator().manual_seed(3))


@dataclass
class Output:
    """What transformers returns: logits, and a cache that is no tensor."""

    logits: Tensor
    past_key_values: object = None


class Cache:
    """Keys of all calls, beginning with none."""

    def __init__(self) -> None:
        self.keys = torch.tensor([])

    def update(self, keys: Tensor) -> Tensor:
        self.keys = torch.cat([self.keys, keys], dim=-2)
        return self.keys


class RMSNorm(nn.Module):
    """Normalises in float32 whatever it is given."""

    def __init__(self, n: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.dtype = nn.Parameter(torch.ones(n)), dtype

    def forward(self, stream: Tensor) -> Tensor:
        wide = stream.to(self.dtype)
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(stream.dtype)


class Conv1D(nn.Module):
    """GPT-2's linear layer: its weight is (in, out)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(n_in, n_out) * 0.3), nn.Parameter(torch.randn(n_out) * 0.3)

    def forward(self, stream: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, stream.view(-1, stream.shape[-1]), self.weight)
        return flat.view(*stream.shape[:-1], -1)


class Block(nn.Module):
    def __init__(self, n: int, heads: int, causal: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = RMSNorm(n, dtype), RMSNorm(n, dtype)
        self.qkv, self.out = Conv1D(n, 3 * n), Conv1D(n, n)
        self.up, self.down = nn.Linear(n, 2 * n), nn.Linear(2 * n, n)

    def forward(self, stream: Tensor, cache: Cache) -> Tensor:
        n_rows, n_tokens, n = stream.shape
        parts = self.qkv(self.norm1(stream)).split(n, dim=2)
        shape = (n_rows, n_tokens, self.heads, n // self.heads)
        query, key, value = (part.view(shape).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(query, cache.update(key), value, is_causal=self.causal)
        stream = stream + self.out(seen.transpose(1, 2).reshape(n_rows, n_tokens, n))
        return stream + self.down(F.silu(self.up(self.norm2(stream))))


class Decoder(nn.Module):
    """Two blocks on token ids, with four classes of the last token for its logits."""

    def __init__(self, causal: bool = True, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.blocks = nn.ModuleList(Block(8, 4, causal, dtype) for _ in range(2))
        self.norm, self.head = RMSNorm(8, dtype), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Output:
        stream, caches = self.embedding(ids), [Cache() for _ in self.blocks]
        for block, cache in zip(self.blocks, caches, strict=True):
            stream = block(stream, cache)
        return Output(self.head(self.norm(stream)[:, -1]), caches)


def decoder(causal: bool = True, dtype: torch.dtype = torch.float32) -> Decoder:
    torch.manual_seed(0)
    return Decoder(causal, dtype).eval()


@functools.cache
def traced(causal: bool = True) -> PermutationSpec:
    return trace_permutation_spec(decoder(causal), (IDS[:2],))


def state_of(network: nn.Module) -> State:
    return {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_casts_on_the_way_hold_nothing_still(dtype: torch.dtype):
    spec = trace_permutation_spec(decoder(dtype=dtype), (IDS[:2],))
    # Per block the hidden layer, four heads, and in each the query-key and the value channels; and the stream.
    assert len(spec.axes) == 1 + 2 * (1 + 1 + 4 + 4)
    assert not [f for f in spec.fixed if "numerical" in f.reason]
    check = Check(decoder(dtype=dtype), (IDS[:2],), spec.axes)
    assert check.proof.tolerance == FUNCTION_TOLERANCE
    assert check.proof.error(spec, spec.random(torch.Generator().manual_seed(1))) < 1e-12
    assert spec.casts == ("blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm")


def test_a_spec_says_where_casts_were():
    assert "without the casts in: blocks.0.norm1" in repr(traced())
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert "casts" not in repr(trace_permutation_spec(plain, (torch.randn(2, 3),)))


@pytest.mark.parametrize("key", ["blocks.0.norm1.weight", "blocks.1.qkv.weight", "embedding.weight"])
def test_a_wrong_spec_of_a_casting_network_is_refused(key: str):
    network, spec = decoder(), traced()
    stream = next(axis for axis in spec.axes if any(slot.key == "embedding.weight" for slot in axis.slots))
    slots = tuple(slot for slot in stream.slots if slot.key != key)
    wrong = dataclasses.replace(
        spec, axes=tuple(dataclasses.replace(a, slots=slots) if a is stream else a for a in spec.axes)
    )
    assert Check(network, (IDS[:2],), ()).bad_axes(wrong) == [stream.name]
    # At initialisation all scales are one, and no order of theirs is wrong.
    state = {k: t * (1 + torch.rand(t.shape)) for k, t in state_of(network).items()}
    with pytest.raises(MergeError, match=f"axis {stream.name!r} at fault"):
        merge_networks(network, state, state, IDS, spec=wrong)


def test_an_error_of_the_size_of_float32_rounding_is_still_an_error():
    network, spec = decoder(), traced()
    state = state_of(network)
    assert function_error(network, state, spec.apply(state, spec.random(torch.Generator())), IDS) < FUNCTION_TOLERANCE
    nudged = {**state, "head.weight": state["head.weight"].double() * (1 + 1e-7)}
    assert function_error(network, state, nudged, IDS) > FUNCTION_TOLERANCE


def test_whole_numbers_stay_whole_where_casts_are_left_out():
    class Casting(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x.to(torch.int32), x.half(), torch.zeros(2, dtype=torch.float16)

    whole, *floats = InFloat64(Casting()).compute({}, torch.full((3,), 2.5))
    assert whole.dtype == torch.int32
    assert {x.dtype for x in floats} == {torch.float64}


@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("matcher", ["activation", "weight"])
def test_a_planted_swap_of_heads_in_a_fused_transposed_layer_is_found_on_token_ids(causal: bool, matcher: str):
    network, spec = decoder(causal), traced(causal)
    state = state_of(network)
    heads = next(a for a in spec.axes if a.size == 4 and any(s.key == "blocks.0.qkv.weight" for s in a.slots))
    assert {slot.dim for slot in heads.slots if slot.key == "blocks.0.qkv.weight"} == {1}
    swap = Permutation({**spec.identity(), heads.name: torch.tensor([2, 1, 0, 3]).numpy()})
    merged = merge_networks(network, state, spec.apply(state, swap), IDS, matcher=matcher, correction="none")
    assert merged.permutation == inverse(spec, swap)
    assert merged.function_error < FUNCTION_TOLERANCE
    assert merged.casts == spec.casts


def test_what_is_corrected_on_token_ids_computes_what_both_ends_compute():
    network, spec = decoder(), traced()
    state = state_of(network)
    shuffled = spec.apply(state, spec.random(torch.Generator().manual_seed(2)))
    merged = merge_networks(network, state, shuffled, IDS, correction="repair", allow_extra_layers=True)
    examples = Examples(IDS, torch.zeros(len(IDS), dtype=torch.int64))
    torch.testing.assert_close(
        logits_of(merged.network, merged.corrected, examples), logits_of(network, state, examples), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ({"logits": IDS, "loss": IDS[0]}, IDS),
        ({"out": IDS, "cache": Cache()}, IDS),
        (Output(IDS, Cache()), IDS),
        (IDS, IDS),
        ((IDS, IDS), None),
        ({"first": IDS, "second": IDS}, None),
    ],
)
def test_logits_are_told_by_name_or_by_being_alone(output: object, found: Tensor | None):
    assert logits_in(output) is (output if found is None else found)


def test_a_network_without_hidden_axes_merges():
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    state, images = state_of(network), torch.randn(8, 6)
    assert len(merge_networks(network, state, state, images, correction="none").permutation) == 0


# Data of token ids


def ids_data() -> object:
    labels = torch.arange(40) % 4
    return (IDS.int(), labels), (IDS, labels)


def test_own_data_may_be_token_ids_and_stay_whole_numbers():
    data = load_own_data(ids_data, "OWN:ids")
    assert data.train.images.dtype == torch.int64
    assert torch.equal(data.train.images, IDS)
    assert data.spec.shape == (6,)
    evaluation = evaluate(decoder(), state_of(decoder()), data.test)
    assert evaluation.n_examples == 40
    # A convolutional network lays out images, not ids.
    assert lay_out(nn.Conv2d(1, 1, 1), IDS) is IDS


def test_token_ids_of_one_dimension_are_no_examples():
    with pytest.raises(OwnCodeError, match=r"or of token ids \(n, length\), got int64 of shape \(40,\)"):
        load_own_data(lambda: ((IDS[:, 0], IDS[:, 0]), (IDS, IDS[:, 0])), "OWN:ids")


def _cell(data: DataSpec) -> Callable[[Recipe], Cell]:
    return lambda recipe: Cell(data, "my:build", "none", 1, 2, recipe, graph="0" * 64)


def test_token_ids_are_never_augmented():
    spec = load_own_data(ids_data, "OWN:ids").spec
    recipe = Recipe("plain", 20, 5, 0.01, 0.05)
    assert _cell(spec)(recipe).data.holds_ids
    with pytest.raises(ValueError, match=r"OWN:ids holds token ids: take a recipe with flip=False and translate"):
        _cell(spec)(dataclasses.replace(recipe, flip=True))
    with pytest.raises(ValueError, match="OWN:ids holds token ids, and studies flip, shift and train on images: merge"):
        describe_own("my:build", spec)
    examples = Examples(IDS, torch.zeros(40, dtype=torch.int64))
    with pytest.raises(ValueError, match="token ids have no mirror image"):
        evaluate(decoder(), state_of(decoder()), examples, viewing=Viewing(flip_averaged=True))
