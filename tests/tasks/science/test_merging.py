"""Merging networks that users write, with weights from anywhere."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from infra.weights import read_weights, write_weights
from tasks.science.correction.correction import correct
from tasks.science.evaluation.functional import compute
from tasks.science.merging import merge_networks
from tasks.science.networks.fitting import MergeError, fit_state, in_float32, renamed
from tasks.science.paths.curves import measure_side
from tasks.science.specs.corrections import CORRECTIONS
from tasks.science.specs.state import State
from tasks.science.symmetry.permutation import Axis, PermutationSpec, Reading, Slot
from tasks.science.symmetry.proof import FUNCTION_TOLERANCE
from tasks.science.symmetry.tracing import TraceError, trace_permutation_spec
from tests.tasks.science.permuting import inverse

IMAGES = torch.randn(120, 2, 6, 6, generator=torch.Generator().manual_seed(5))


class Block(nn.Module):
    def __init__(self, n: int, norm: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(n, n, 3, padding=1, bias=not norm) for _ in range(2))
        self.norm1, self.norm2 = (nn.BatchNorm2d(n) if norm else nn.Identity() for _ in range(2))
        self.relu = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.relu(self.norm1(self.conv1(maps)))
        return self.relu(self.norm2(self.conv2(inner)) + maps)


class Net(nn.Module):
    """A small residual network, with BatchNorm or without any norm; `biased` is for the stem of the latter."""

    def __init__(self, norm: bool, biased: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=biased and not norm)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.block = Block(8, norm)
        self.hidden, self.logits = nn.Linear(8, 12), nn.Linear(12, 4)
        self.relu, self.tanh = nn.ReLU(), nn.Tanh()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.block(self.relu(self.norm(self.stem(images))))
        return self.logits(self.tanh(self.hidden(maps.mean((2, 3)))))


def with_norm() -> nn.Module:
    return Net(norm=True)


def norm_free() -> nn.Module:
    return Net(norm=False)


def drawn(build: Callable[[], nn.Module], seed: int) -> State:
    """Random weights of a size that keeps activations alive, every norm's parameters and statistics included."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for key, tensor in build().state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if not tensor.is_floating_point():
            state[key] = tensor + 3 + seed
        elif tensor.ndim > 1:
            state[key] = noise * (2 / tensor[0].numel()) ** 0.5
        else:
            state[key] = 0.5 + noise.abs() if key.endswith(("running_var", "norm.weight")) else 0.3 * noise
    return state


@functools.cache
def spec_of(build: Callable[[], nn.Module]) -> PermutationSpec:
    """Traced once: that takes longer than all the rest."""
    return trace_permutation_spec(build(), (IMAGES[:2],))


def outputs(network: nn.Module, state: State) -> Tensor:
    with torch.no_grad():
        return compute(network.eval(), state, IMAGES)


def close(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("build", [with_norm, norm_free])
def test_a_network_and_a_shuffled_copy_of_itself_merge_into_the_network(build: Callable[[], nn.Module]):
    network, a = build(), drawn(build, 0)
    if build is with_norm:
        # Its BatchNorm statistics are those of these images, as a corrected network's are.
        side = measure_side(network, a, IMAGES)
        a = correct(network, side.layout, a, "reset", side.moments, IMAGES).state
    spec = trace_permutation_spec(network, (IMAGES[:2],))
    shuffle = spec.random(torch.Generator().manual_seed(1))
    merged = merge_networks(network, a, spec.apply(a, shuffle), IMAGES)
    assert merged.permutation == inverse(spec, shuffle)
    assert merged.function_error < FUNCTION_TOLERANCE
    for key, tensor in a.items():
        torch.testing.assert_close(merged.aligned[key], tensor, rtol=1e-6, atol=1e-7)
    assert close(outputs(merged.network, merged.corrected), outputs(network, a)) < 1e-4
    assert close(outputs(network, merged.direct), outputs(network, a)) > 0.1


@pytest.mark.parametrize("correction", list(CORRECTIONS))
@pytest.mark.parametrize("build", [with_norm, norm_free])
def test_every_correction_gives_weights_that_the_own_class_loads_or_says_why_not(
    build: Callable[[], nn.Module], correction: str
):
    a, b = drawn(build, 0), drawn(build, 1)
    row = CORRECTIONS[correction]
    if build is norm_free and "none" not in row.normalizations:
        with pytest.raises(MergeError, match=f"correction {correction} needs a network with BatchNorm, and this one"):
            merge_networks(build(), a, b, IMAGES, correction=correction, spec=spec_of(build))
        return
    if row.blocks:
        with pytest.raises(MergeError, match=r"own class lacks \(block\.block_correction\.weight, block\.block_corr"):
            merge_networks(build(), a, b, IMAGES, correction=correction, spec=spec_of(build))
    spec = spec_of(build)
    merged = merge_networks(build(), a, b, IMAGES, correction=correction, allow_extra_layers=row.blocks, spec=spec)
    fresh = build()
    fresh.load_state_dict({k: v for k, v in merged.corrected.items() if k not in merged.extra}, strict=True)
    assert list(merged.corrected)[: len(a)] == list(a)
    if row.blocks:
        assert merged.extra == ("block.block_correction.weight", "block.block_correction.bias")
        assert close(outputs(merged.network, merged.corrected), fresh.eval()(IMAGES).detach()) > 1e-3
    else:
        assert merged.extra == ()
        torch.testing.assert_close(fresh.eval()(IMAGES).detach(), outputs(merged.network, merged.corrected))
    assert merged.n_layers == (4 if row.layers else 0)


def test_a_layer_that_cannot_take_a_shift_gets_a_bias_only_where_that_is_allowed():
    def build() -> nn.Module:
        return Net(norm=False, biased=False)

    a, b = drawn(build, 0), drawn(build, 1)
    network = build()
    with pytest.raises(MergeError) as refused:
        merge_networks(network, a, b, IMAGES)
    assert str(refused.value) == (
        "correction repair needs tensors that the network's own class lacks (stem.bias): take another correction, or "
        "allow extra layers and load the result into a class that has them"
    )
    merged = merge_networks(network, a, b, IMAGES, allow_extra_layers=True)
    assert merged.extra == ("stem.bias",)
    assert merged.network is not network
    assert not hasattr(network.stem, "bias") or network.stem.bias is None
    biased = norm_free()
    biased.load_state_dict(merged.corrected, strict=True)
    torch.testing.assert_close(biased.eval()(IMAGES).detach(), outputs(merged.network, merged.corrected))


def test_at_alpha_0_and_1_the_endpoints_come_back_to_the_bit():
    network, a, b = with_norm(), drawn(with_norm, 0), drawn(with_norm, 1)
    at_a, at_b = (
        merge_networks(network, a, b, IMAGES, alpha=alpha, correction="none", spec=spec_of(with_norm))
        for alpha in (0, 1)
    )
    for key in a:
        assert torch.equal(at_a.direct[key], a[key])
        assert torch.equal(at_a.aligned[key], a[key])
        assert torch.equal(at_b.direct[key], b[key])
        assert torch.equal(at_b.aligned[key], at_b.spec.apply(b, at_b.permutation)[key])
    assert close(outputs(network, at_b.aligned), outputs(network, b)) < 1e-5


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_correction_at_alpha_0_or_1_leaves_the_endpoint_where_its_statistics_are_exact(alpha: float):
    a, b = drawn(norm_free, 0), drawn(norm_free, 1)
    merged = merge_networks(norm_free(), a, b, IMAGES, alpha=alpha, spec=spec_of(norm_free))
    assert close(outputs(merged.network, merged.corrected), outputs(norm_free(), b if alpha else a)) < 1e-4


@pytest.mark.parametrize("matcher", ["none", "activation/reading=pre", "activation-published/batch=40", "weight"])
def test_every_matcher_is_understood(matcher: str):
    a, b, spec = drawn(norm_free, 0), drawn(norm_free, 1), spec_of(norm_free)
    merged = merge_networks(norm_free(), a, b, IMAGES, matcher=matcher, correction="none", spec=spec)
    if matcher == "none":
        assert all(torch.equal(merged.aligned[key], merged.direct[key]) for key in merged.direct)
    assert merged.function_error < FUNCTION_TOLERANCE


def test_an_attention_network_is_merged():
    def build() -> nn.Module:
        return torchvision.models.VisionTransformer(
            image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=4
        )

    images = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    a = drawn(build, 0)
    network = build()
    spec = trace_permutation_spec(network, (images[:2],))
    b = spec.apply(a, spec.random(torch.Generator().manual_seed(3)))
    merged = merge_networks(network, a, b, images)
    fresh = build()
    fresh.load_state_dict(merged.corrected, strict=True)
    expected = compute(network.eval(), a, images).detach()
    # The patches' convolution, the packed projections, that of the heads together, and both of the MLP.
    assert merged.n_layers == 5
    assert merged.left_out == ()
    assert close(fresh.eval()(images).detach(), expected) < 1e-3


# Types


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_with_in_float32_and_written_in_its_own_type(half: torch.dtype):
    a, b = ({k: t.to(half) if t.is_floating_point() else t for k, t in drawn(with_norm, s).items()} for s in (0, 1))
    network = with_norm()
    merged = merge_networks(network.to(half), a, b, IMAGES, spec=spec_of(with_norm))
    plain = merge_networks(with_norm(), in_float32(a), in_float32(b), IMAGES, spec=spec_of(with_norm))
    for key, tensor in merged.corrected.items():
        assert tensor.dtype == a[key].dtype
        assert torch.equal(tensor, plain.corrected[key].to(tensor.dtype))
        assert torch.equal(merged.direct[key], plain.direct[key].to(tensor.dtype))
    assert network.stem.weight.dtype == half


def test_of_two_types_the_wider_is_written():
    a, b = drawn(norm_free, 0), drawn(norm_free, 1)
    a = {k: t.half() for k, t in a.items()}
    spec = spec_of(norm_free)
    merged = merge_networks(norm_free(), a, {k: t.bfloat16() for k, t in b.items()}, IMAGES, spec=spec)
    assert {t.dtype for t in merged.corrected.values()} == {torch.float32}
    b = {k: t.double() for k, t in b.items()}
    merged = merge_networks(norm_free().double(), a, b, IMAGES, alpha=1.0, spec=spec)
    assert {t.dtype for t in merged.corrected.values()} == {torch.float64}
    assert all(torch.equal(merged.direct[k], b[k]) for k in b)


def test_a_value_that_half_precision_cannot_hold_is_told():
    a, b = ({k: t.half() for k, t in drawn(norm_free, seed).items()} for seed in (0, 1))
    with pytest.raises(MergeError, match=r"of the merged network has values that float16 cannot hold"):
        merge_networks(norm_free(), a, b, IMAGES * 1e6, spec=spec_of(norm_free))


# Weights that do not fit


def without(state: State, key: str) -> State:
    return {name: tensor for name, tensor in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda s: without(s, "stem.weight"),
            "B lacks stem.weight of the network's tensors: give weights of this very",
        ),
        (
            lambda s: {f"old.{k}": t for k, t in s.items()},
            "B lacks stem.weight, norm.weight, norm.bias and 19 more of",
        ),
        (
            lambda s: {f"old.{k}": t for k, t in s.items()},
            "and has old.stem.weight, old.norm.weight, old.norm.bias and",
        ),
        (lambda s: s | {"head.bias": torch.zeros(3)}, "B has head.bias, which the network lacks: give weights of this"),
        (
            lambda s: s | {"stem.weight": torch.zeros(8, 3, 3, 3)},
            "stem.weight has shape (8, 3, 3, 3) in B and (8, 2, 3, 3) in the network: give weights",
        ),
        (
            lambda s: s | {"logits.bias": torch.tensor([0, 1, float("nan"), 3])},
            "logits.bias of B has values that are not finite: its training has diverged, take other weights",
        ),
        (
            lambda s: s | {"logits.bias": torch.tensor([0, 1, float("inf"), 3])},
            "logits.bias of B has values that are not finite",
        ),
        (
            lambda s: s | {"logits.bias": torch.zeros(4, dtype=torch.int8)},
            "logits.bias of B is int8, and the network has float64, float32, bfloat16 or float16 there",
        ),
        (
            lambda s: s | {"logits.bias": torch.zeros(4, dtype=torch.complex64)},
            "logits.bias of B is complex64, and the network has",
        ),
        (
            lambda s: s | {"norm.num_batches_tracked": torch.tensor(3.0)},
            "norm.num_batches_tracked of B is float32, and the network has whole numbers there",
        ),
        (lambda s: s | {"logits.bias": torch.zeros(4).to_sparse()}, "logits.bias of B is no plain tensor: give the"),
        (lambda s: s | {"logits.bias": 3.0}, "logits.bias of B is no plain tensor: give the network's state dict"),
    ],
)
def test_weights_that_do_not_fit_the_network_are_refused_in_a_sentence(change: Callable[[State], State], sentence: str):
    a, b = drawn(with_norm, 0), change(drawn(with_norm, 1))
    with pytest.raises(MergeError, match=re.escape(sentence)):
        merge_networks(with_norm(), a, b, IMAGES)
    with pytest.raises(MergeError, match=re.escape(sentence.replace("B", "A", 1).replace("in B", "in A"))):
        merge_networks(with_norm(), b, a, IMAGES)


class Tied(nn.Module):
    """Two layers share a weight, behind one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(72, 12)
        self.first, self.second, self.last = nn.Linear(12, 9), nn.Linear(12, 9, bias=False), nn.Linear(9, 4)
        self.second.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        flat = torch.tanh(self.before(images.flatten(1)))
        return self.last(torch.tanh(self.first(flat)) + torch.tanh(2 * self.second(flat)))


def test_tied_tensors_stay_tied_and_are_found_under_either_name():
    a, b = drawn(Tied, 0), drawn(Tied, 1)
    for state in (a, b):
        state["second.weight"] = state["first.weight"].clone()
    merged = merge_networks(Tied(), a, b, IMAGES)
    assert {one.name: one.reason for one in merged.left_out} == dict.fromkeys(
        ("first", "second"), "its weight has more than one place in the state dict"
    )
    assert torch.equal(merged.corrected["first.weight"], merged.corrected["second.weight"])
    fresh = Tied()
    fresh.load_state_dict(merged.corrected, strict=True)
    torch.testing.assert_close(fresh(IMAGES).detach(), outputs(merged.network, merged.corrected))
    spec = merged.spec
    alone = merge_networks(Tied(), without(a, "second.weight"), without(b, "first.weight"), IMAGES, spec=spec)
    assert all(torch.equal(alone.corrected[key], merged.corrected[key]) for key in merged.corrected)
    b["second.weight"] = b["second.weight"] + 1
    with pytest.raises(
        MergeError, match=r"first\.weight and second\.weight are one tensor in the network, and differ in B"
    ):
        merge_networks(Tied(), a, b, IMAGES)


# Specs


class TwoNames(nn.Module):
    """One layer under two names, and run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.logits, self.relu = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6, 4), nn.ReLU()
        self.first = nn.Conv2d(6, 6, 3, padding=1)
        self.again = self.first

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.first(self.relu(self.stem(images))))
        return self.logits(self.relu(self.again(maps)).mean((2, 3)))


@pytest.mark.parametrize("correction", ["none", "repair"])
def test_a_layer_under_two_names_stays_one_layer(correction: str):
    def weights(seed: int) -> State:
        state = drawn(TwoNames, seed)
        return state | {key.replace("first", "again"): tensor for key, tensor in state.items() if "first" in key}

    a = weights(0)
    spec = trace_permutation_spec(TwoNames(), (IMAGES[:2],))
    shuffled = spec.apply(weights(1), spec.random(torch.Generator().manual_seed(1)))
    merged = merge_networks(TwoNames(), a, shuffled, IMAGES, correction=correction)
    assert merged.function_error < FUNCTION_TOLERANCE
    for name in ("weight", "bias"):
        assert torch.equal(merged.corrected[f"first.{name}"], merged.corrected[f"again.{name}"])
    fresh = TwoNames()
    fresh.load_state_dict(merged.corrected, strict=True)
    assert fresh.again is fresh.first
    assert torch.equal(outputs(fresh, merged.corrected), fresh.eval()(IMAGES).detach())


def plain() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 4))


def axis(name: str, layer: int, module: str) -> Axis:
    each = np.arange(10)[:, None]
    slots = (Slot(f"{layer}.weight", 0, each), Slot(f"{layer}.bias", 0, each), Slot(f"{layer + 2}.weight", 1, each))
    return Axis(name, 10, slots, (Reading("", module, 0, 1, each, "nonlinearity", 2),), name)


FIRST, SECOND = axis("first", 1, "2"), axis("second", 3, "4")


def test_a_right_spec_written_by_hand_is_used():
    a = drawn(plain, 0)
    spec = PermutationSpec((FIRST, SECOND))
    merged = merge_networks(plain(), a, spec.apply(a, spec.random(torch.Generator().manual_seed(0))), IMAGES, spec=spec)
    assert merged.spec is spec
    assert close(outputs(plain(), merged.corrected), outputs(plain(), a)) < 1e-4


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            dataclasses.replace(SECOND, slots=SECOND.slots[:2]),
            "changes what the network computes: axis 'second' at fault",
        ),
        (
            dataclasses.replace(SECOND, slots=SECOND.slots[1:]),
            "changes what the network computes: axis 'second' at fault",
        ),
        (
            dataclasses.replace(SECOND, slots=(*SECOND.slots[:2], Slot("4.weight", 1, np.arange(10)[:, None]))),
            "axis 'second' of the permutation spec does not fit the network: there is no tensor 4.weight",
        ),
        (
            dataclasses.replace(SECOND, slots=(*SECOND.slots[:2], Slot("5.weight", 0, np.arange(10)[:, None]))),
            "axis 'second' of the permutation spec does not fit the network: 5.weight of shape (4, 10) lacks some",
        ),
        (
            dataclasses.replace(SECOND, slots=(*SECOND.slots[:2], Slot("5.weight", 2, np.arange(10)[:, None]))),
            "5.weight of shape (4, 10) has no dimension 2",
        ),
        (
            dataclasses.replace(SECOND, slots=(*SECOND.slots[:2], Slot("5.weight", 1, np.arange(5)[:, None]))),
            "5.weight has positions of shape (5, 1) for 10 units",
        ),
        (axis("second", 3, "relu2"), "axis 'second' of the permutation spec is read at relu2: no module"),
        (
            dataclasses.replace(SECOND, parent="heads"),
            "axis 'second' of the permutation spec lies in 'heads', which it",
        ),
    ],
)
def test_a_wrong_spec_is_never_used_and_the_axis_at_fault_is_named(wrong: Axis, sentence: str):
    with pytest.raises(MergeError, match=re.escape(sentence)):
        merge_networks(plain(), drawn(plain, 0), drawn(plain, 1), IMAGES, spec=PermutationSpec((FIRST, wrong)))


# Networks that cannot be merged


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(72, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.layer(images.flatten(1))
        return logits if logits.sum() > 0 else -logits


class Hidden(nn.Module):
    """A layer, and whatever `then` makes of what it puts out."""

    def __init__(self, then: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer, self.then = nn.Linear(72, 4), then

    def forward(self, images: Tensor) -> object:
        return self.then(self.layer(images.flatten(1)))


def test_a_forward_pass_that_branches_on_data_is_named_with_its_place():
    with pytest.raises(
        TraceError, match=r"Branching cannot be traced: its forward pass branches on data .*test_merging"
    ):
        merge_networks(Branching(), drawn(Branching, 0), drawn(Branching, 1), IMAGES)


@pytest.mark.parametrize(
    ("then", "sentence"),
    [
        (lambda x: (x, x), "the network must put out one tensor with a row per image, got tuple of 16 images"),
        (lambda x: x.sum(), "the network must put out one tensor with a row per image, got shape () of 16 images"),
        (lambda x: x @ torch.zeros(3, 3), "the network cannot compute images of shape (2, 6, 6): RuntimeError: mat1"),
        (lambda x: x / 0, "A puts out values that are not finite on these images: are they normalised?"),
        (lambda x: x.half(), "the network puts out float16 for weights of float32: let its forward pass keep to the"),
        (
            lambda x: x * len(torch.empty(0 if x.dtype == torch.float32 else -1)),
            "the network cannot compute images of shape (2, 6, 6) in float64, in which permutations are proved: Run",
        ),
        (lambda x: {"first": x, "second": x}, "let its forward pass return the logits alone"),
        (lambda x: {"first": x, "second": x, "past_key_values": None}, "call it with use_cache=False"),
    ],
)
def test_a_network_that_does_not_do_its_part_is_refused_in_a_sentence(then: Callable[[Tensor], object], sentence: str):
    state = drawn(lambda: Hidden(then), 0)
    with pytest.raises(MergeError, match=re.escape(sentence)):
        merge_networks(Hidden(then), state, drawn(lambda: Hidden(then), 1), IMAGES)


def test_a_network_without_shapes_is_refused_in_a_sentence():
    with pytest.raises(MergeError, match=r"0\.weight of the network has no shape yet: let the function that builds it"):
        merge_networks(nn.Sequential(nn.LazyLinear(3)), {}, {}, IMAGES)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (IMAGES[:1], "statistics need at least 2 images, got 1"),
        (
            IMAGES.byte(),
            "images must be a tensor of floats (n_examples, ...), normalised as in training, or of token ids",
        ),
        (IMAGES / 0, "the images have values that are not finite"),
    ],
)
def test_images_that_cannot_be_are_refused_in_a_sentence(images: Tensor, sentence: str):
    with pytest.raises(MergeError, match=re.escape(sentence)):
        merge_networks(norm_free(), drawn(norm_free, 0), drawn(norm_free, 1), images)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"alpha": 1.5}, "alpha must lie in [0, 1], got 1.5"),
        ({"matcher": "magic"}, "there is no matcher 'magic'"),
        ({"correction": "magic"}, "there is no correction 'magic'"),
        ({"matcher": "activation-published/batch=7"}, "a batch of a single sample has no deviation"),
    ],
)
def test_wrong_words_are_told(words: dict, sentence: str):
    a, b = drawn(plain, 0), drawn(plain, 1)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        merge_networks(plain(), a, b, IMAGES[:113], spec=spec_of(plain), **words)


class Rotated(nn.Module):
    """A matrix that no state dict holds, and a norm that stays in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(72, 9), nn.BatchNorm1d(9), nn.Linear(9, 4)
        self.register_buffer("fixed", torch.eye(72).roll(1, 0), persistent=False)
        self.norm.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(images.flatten(1) @ self.fixed))))


def test_the_network_is_left_as_it_was_buffers_and_modes_included():
    network = Rotated()
    before = copy.deepcopy(network)
    merged = merge_networks(network, drawn(Rotated, 0), drawn(Rotated, 1), IMAGES)
    assert merged.network is network
    assert [m.training for m in network.modules()] == [m.training for m in before.modules()]
    assert network.training
    assert not network.norm.training
    assert all(torch.equal(t, before.state_dict()[k]) for k, t in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_what_was_given_is_left_as_it_was():
    a, b = drawn(with_norm, 0), drawn(with_norm, 1)
    before = [{k: t.clone() for k, t in state.items()} for state in (a, b)]
    merge_networks(with_norm(), a, b, IMAGES, spec=spec_of(with_norm))
    for state, was in zip((a, b), before, strict=True):
        assert all(torch.equal(state[key], was[key]) for key in was)


class TiedHead(nn.Module):
    """A head whose weight is also the first layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 9, bias=False), nn.Linear(4, 9, bias=False)
        self.inner, self.back = nn.Linear(9, 4), nn.Linear(72, 4)
        self.head.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.inner(self.first(self.back(images.flatten(1))).relu()))


WRAPPED = ["module.", "model.", "net.", "_orig_mod.", "module._orig_mod.", "model.net.", "network.module."]


@pytest.mark.parametrize("prefix", WRAPPED)
def test_names_of_a_wrapped_network_are_made_to_fit(prefix: str):
    network = TiedHead()
    state = dict(network.state_dict())
    alone = {prefix + key: tensor for key, tensor in state.items() if key != "head.weight"}
    assert all(torch.equal(tensor, state[key]) for key, tensor in fit_state(network, alone, "A").items())
    whole, how = renamed(network, {prefix + key: tensor for key, tensor in state.items()})
    assert list(whole) == list(state)
    plain = prefix.replace("_orig_mod.", "")
    assert how == (f"{plain} is taken off the name of every tensor" if plain else "")


def test_names_are_left_alone_where_they_fit_and_where_nothing_would_make_them_fit():
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(3, 2)

    state = Wrapper().state_dict()
    assert renamed(Wrapper(), state) == (state, "")
    bare = nn.Linear(3, 2).state_dict()
    assert list(renamed(Wrapper(), bare)[0]) == list(state)
    assert renamed(Wrapper(), bare)[1] == "module. is put before the name of every tensor"
    other = {"model.weight": torch.zeros(2, 3), "model.other": torch.zeros(2)}
    assert renamed(nn.Linear(3, 2), other) == (other, "")
    with pytest.raises(MergeError, match=r"^A lacks weight, bias .* and has model\.weight, model\.other, which"):
        fit_state(nn.Linear(3, 2), other, "A")
    middle = nn.Sequential(nn.Linear(3, 2))
    compiled = {"0._orig_mod.weight": torch.zeros(2, 3), "0._orig_mod.bias": torch.zeros(2)}
    assert list(renamed(middle, compiled)[0]) == ["0.weight", "0.bias"]


def test_a_tied_head_that_one_checkpoint_has_twice_and_the_other_once_merges_and_loads(tmp_path: Path):
    torch.manual_seed(0)
    a, b = ({key: tensor.clone() for key, tensor in TiedHead().state_dict().items()} for _ in range(2))
    del b["head.weight"]
    for correction in ("none", "repair"):
        merged = merge_networks(TiedHead(), a, b, IMAGES, correction=correction)
        path = tmp_path / f"{correction}.safetensors"
        write_weights(path, merged.corrected)
        network = TiedHead()
        network.load_state_dict(read_weights(path), strict=True)
        assert torch.equal(network.head.weight, merged.corrected["first.weight"])
        assert close(outputs(network, dict(network.state_dict())), outputs(TiedHead(), merged.corrected)) < 1e-6


class Told(nn.Module):
    """Does in its forward pass what cannot be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.logits = nn.Linear(72, 9), nn.Linear(9, 4)
        self.recurrent = nn.GRU(12, 9, batch_first=True)
        self.scale = nn.Parameter(torch.tensor(2.0))


class ReadsNumber(Told):
    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.hidden(images.flatten(1)).relu() * self.scale.item())


class Packs(Told):
    def forward(self, images: Tensor) -> Tensor:
        lengths = torch.full((len(images),), 6)
        _, last = self.recurrent(nn.utils.rnn.pack_padded_sequence(images.reshape(-1, 6, 12), lengths, True))
        return self.logits(last[-1])


class LeavesTorch(Told):
    def forward(self, images: Tensor) -> Tensor:
        return self.logits(torch.from_numpy(np.tanh(self.hidden(images.flatten(1)).numpy())))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            ReadsNumber,
            r"ReadsNumber cannot be traced: its forward pass reads a tensor's value as a number \(test_merging\.py:"
            r"\d+: return .*self\.scale\.item\(\)\)\); let it compute with the tensor itself",
        ),
        (
            Packs,
            r"Packs cannot be traced: its forward pass packs sequences, whose sizes depend on data, where padded ones "
            r"are needed \(test_merging\.py:\d+: _, last = self\.recurrent.*\)",
        ),
        (
            LeavesTorch,
            r"LeavesTorch cannot be traced: its forward pass hands a tensor to NumPy, where it must compute in torch "
            r"throughout \(test_merging\.py:\d+: return .*numpy\(\)\)\)\)\)",
        ),
    ],
)
def test_what_cannot_be_followed_is_one_sentence_with_the_line_and_the_way_out(
    build: Callable[[], nn.Module], sentence: str
):
    state = build().state_dict()
    with pytest.raises(TraceError) as refused:
        merge_networks(build(), state, state, IMAGES)
    assert re.fullmatch(sentence, str(refused.value))


class InTwoPlaces(nn.Module):
    """A layer of a container and of an attribute, taken from the latter before the container is looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 9))
        self.last = self.layers[2]
        self.logits = nn.Linear(9, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(torch.relu(self.last(torch.relu(self.layers[0](images.flatten(1))))))


def test_a_layer_of_a_container_and_of_an_attribute_is_merged():
    a, b = InTwoPlaces().state_dict(), InTwoPlaces().state_dict()
    merged = merge_networks(InTwoPlaces(), a, b, IMAGES)
    assert {axis.axis for axis in merged.match.axes} == {"layers.0", "layers.2"}
    assert torch.equal(merged.corrected["layers.2.weight"], merged.corrected["last.weight"])


class Squeezed(nn.Module):
    """Drops the batch itself where it is of a single image."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.logits = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(torch.relu(self.hidden(images))).mean((2, 3), keepdim=True).squeeze()


@pytest.mark.parametrize("n", [2, 17, 33])
def test_a_network_that_ends_in_a_squeeze_is_never_given_one_image_alone(n: int):
    merged = merge_networks(Squeezed(), drawn(Squeezed, 0), drawn(Squeezed, 1), IMAGES[:n])
    assert merged.function_error < FUNCTION_TOLERANCE
    assert [axis.axis for axis in merged.match.axes] == ["hidden"]


class Complex(nn.Module):
    """A product of complex numbers, whose second factor is a complex parameter or, as real numbers, a real one."""

    def __init__(self, *, real: bool) -> None:
        super().__init__()
        self.hidden, self.logits = nn.Linear(72, 16), nn.Linear(10, 4)
        numbers = torch.randn(8, 10, 2, generator=torch.Generator().manual_seed(0))
        self.factor = nn.Parameter(numbers if real else torch.view_as_complex(numbers))

    def forward(self, images: Tensor) -> Tensor:
        left = torch.view_as_complex(self.hidden(images.flatten(1)).view(-1, 8, 2))
        right = self.factor if self.factor.is_complex() else torch.view_as_complex(self.factor)
        return self.logits((left @ right).abs())


def test_units_are_not_read_where_they_are_complex():
    build = functools.partial(Complex, real=True)
    merged = merge_networks(build(), drawn(build, 0), drawn(build, 1), IMAGES, correction="none")
    assert merged.function_error < FUNCTION_TOLERANCE
    assert [axis.axis for axis in merged.match.axes] == ["hidden"]


def test_a_complex_parameter_is_refused_in_a_sentence():
    state = Complex(real=False).state_dict()
    with pytest.raises(MergeError, match="factor of the network is complex64, and complex tensors cannot be merged: "):
        merge_networks(Complex(real=False), state, state, IMAGES)


class InParts(nn.Module):
    """Computes a batch in parts, so that their number depends on the batch."""

    def __init__(self, *, functional: bool) -> None:
        super().__init__()
        self.hidden, self.logits = nn.Linear(72, 16), nn.Linear(16, 4)
        self.active = torch.relu if functional else nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        parts = images.flatten(1).split(50)
        return torch.cat([self.logits(self.active(self.hidden(part))) for part in parts])


@pytest.mark.parametrize("functional", [False, True])
def test_a_network_that_computes_a_batch_in_parts_is_not_observed_on_one_of_them(functional: bool):
    build = functools.partial(InParts, functional=functional)
    a, b = drawn(build, 0), drawn(build, 1)
    with pytest.raises(MergeError, match="gives 50 samples of a batch of 120 images, where one image gives 1: "):
        merge_networks(build(), a, b, IMAGES)
    assert merge_networks(build(), a, b, IMAGES[:50]).function_error < FUNCTION_TOLERANCE
    assert merge_networks(build(), a, b, IMAGES, matcher="weight").function_error < FUNCTION_TOLERANCE
