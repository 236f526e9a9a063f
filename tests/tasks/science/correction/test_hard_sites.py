"""Networks in which a site, its statistics or its parameters are easily taken for what they are not.

What the merged weights do is measured by hooks of the test's own, in a fresh network of the same class.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from tasks.science.correction.sites import find_sites
from tasks.science.merging import Merged, merge_networks

State = dict[str, Tensor]
VECTORS, IMAGES, TOKENS = (
    torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in ((64, 12), (48, 3, 8, 8), (24, 7, 12))
)


def drawn(build: Callable[[], nn.Module], seed: int) -> State:
    torch.manual_seed(seed)
    network = build()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim <= 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}


def moments_at(build: Callable[[], nn.Module], state: State, inputs: Tensor, path: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n_units,) of what a module of a fresh network puts out."""
    network = build().eval()
    network.load_state_dict(state, strict=True)
    seen: list[Tensor] = []
    network.get_submodule(path).register_forward_hook(lambda _m, _i, output: seen.append(output.double().clone()))
    with torch.no_grad():
        network(inputs)
    units = seen[0].movedim(1 if seen[0].ndim == 4 else -1, 0).flatten(1)
    return units.mean(1), units.std(1, correction=0)


def reaches_its_goal(
    build: Callable[[], nn.Module],
    inputs: Tensor,
    path: str,
    correction: str = "repair",
    states: list[State] | None = None,
) -> Merged:
    a, b = states or [drawn(build, seed) for seed in (1, 2)]
    merged = merge_networks(build(), a, b, inputs, correction=correction)
    ends = [moments_at(build, state, inputs, path) for state in (a, merged.spec.apply(b, merged.permutation))]
    for found, one, other in zip(moments_at(build, merged.corrected, inputs, path), *ends, strict=True):
        torch.testing.assert_close(found, (one + other) / 2, rtol=1e-3, atol=1e-3)
    return merged


class Normed(nn.Module):
    """Two convolutions with a BatchNorm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)
        self.b, self.logits = nn.Conv2d(12, 9, 3), nn.Linear(9, 5)

    def first(self, images: Tensor) -> Tensor:
        return self.n(self.a(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(F.relu(self.b(F.relu(self.first(images)))).mean((2, 3)))


class PrunedBias(Normed):
    def __init__(self) -> None:
        super().__init__()
        prune.l1_unstructured(self.a, "bias", 0.3)


class AddedBuffer(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, bias=False)
        self.register_buffer("offset", torch.ones(12, 1, 1))

    def first(self, images: Tensor) -> Tensor:
        return self.n(self.a(images) + self.offset)


@pytest.mark.parametrize("build", [PrunedBias, AddedBuffer])
def test_a_layer_whose_bias_is_no_parameter_of_its_own_is_left_to_the_norm_behind_it(build: Callable[[], nn.Module]):
    merged = reaches_its_goal(build, IMAGES, "b")
    assert [one.name for one in merged.left_out] == ["a"]


class TwoNames(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.alias = self.n
        self.z = self.n


def test_statistics_of_a_norm_of_several_names_are_written_under_all():
    merged = reaches_its_goal(TwoNames, IMAGES, "b")
    assert torch.equal(merged.corrected["n.running_var"], merged.corrected["z.running_var"])


class Twice(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.b, self.logits = nn.Conv2d(12, 12, 3), nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(F.relu(self.n(self.b(F.relu(self.n(self.a(images)))))).mean((2, 3)))


def test_a_norm_that_runs_twice_keeps_its_statistics_and_is_named():
    merged = reaches_its_goal(Twice, IMAGES, "b")
    assert [(one.name, one.reason[:22]) for one in merged.left_out] == [("n", "it runs more than once")]


class InTheRoot(Normed):
    def __init__(self) -> None:
        super().__init__()
        del self.n
        self.register_buffer("running_mean", torch.zeros(12))
        self.register_buffer("running_var", torch.ones(12))

    def first(self, images: Tensor) -> Tensor:
        return F.batch_norm(self.a(images), self.running_mean, self.running_var)


def test_a_norm_without_a_module_keeps_its_statistics_and_is_named():
    merged = reaches_its_goal(InTheRoot, IMAGES, "b")
    assert "stay interpolated" in merged.left_out[0].reason


class OverTokens(nn.Module):
    """A BatchNorm whose units are the positions of a sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.n = nn.Linear(12, width), nn.BatchNorm1d(7)
        self.b, self.logits = nn.Linear(width, 9), nn.Linear(9, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits(F.relu(self.b(F.relu(self.n(self.a(tokens))))).mean(1))


@pytest.mark.parametrize("width", [7, 8])
def test_a_norm_over_positions_is_no_norm_of_the_layer_before_it(width: int):
    reaches_its_goal(lambda: OverTokens(width), TOKENS, "b")


class Computed(nn.Module):
    """A computed weight, read by an identity that hooks can see."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.read, self.logits = nn.Linear(12, 16), nn.Identity(), nn.Linear(16, 5)
        self.down, self.up = nn.Parameter(torch.randn(3, 12)), nn.Parameter(torch.randn(16, 3))
        self.factor = 1.0

    def weight(self) -> Tensor:
        return self.w.weight + self.up @ self.down

    def forward(self, vectors: Tensor) -> Tensor:
        return self.logits(F.relu(self.read(F.linear(vectors * self.factor, self.weight(), self.w.bias))))


class MaxNorm(Computed):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(12, 12)

    def weight(self) -> Tensor:
        return self.w.weight / self.w.weight.norm(dim=1, keepdim=True).clamp(min=1)

    def forward(self, vectors: Tensor) -> Tensor:
        return super().forward(F.relu(self.other(vectors)))


class OneLevel(MaxNorm):
    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(1))

    def forward(self, vectors: Tensor) -> Tensor:
        hidden = F.linear(F.relu(self.other(vectors)), self.w.weight, self.level.expand(16))
        return self.logits(F.relu(self.read(hidden)))


def test_an_update_that_is_0_in_a_is_scaled_with_the_weight_all_the_same():
    states = [drawn(Computed, seed) for seed in (1, 2)]
    states[0]["up"].zero_()
    assert reaches_its_goal(Computed, VECTORS, "read", states=states).n_layers == 1


@pytest.mark.parametrize("build", [MaxNorm, OneLevel])
def test_what_scales_or_shifts_for_some_values_alone_is_left_out(build: Callable[[], nn.Module]):
    states = [drawn(build, seed) for seed in (1, 2)]
    states[0]["w.weight"].mul_(0.5)
    merged = merge_networks(build(), *states, VECTORS)
    assert [one.name for one in merged.left_out] == ["w"]


class SharedMemory(MaxNorm):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 12)
        self.second.weight.data = self.first.weight.data.t()

    def forward(self, vectors: Tensor) -> Tensor:
        return super().forward(F.relu(self.second(F.relu(self.first(vectors)))))


def test_weights_that_share_memory_are_not_scaled():
    network = SharedMemory()
    sites = find_sites(network, network.state_dict(), VECTORS)
    reasons = {one.name: one.reason for one in sites.left_out}
    assert reasons["first"] == reasons["second"] == "its weight has more than one place in the state dict"


def test_a_network_is_traced_anew_once_an_attribute_has_changed():
    states = [drawn(Computed, seed) for seed in (1, 2)]
    used, fresh = Computed(), Computed()
    merge_networks(used, *states, VECTORS)
    used.factor = fresh.factor = 3.0
    one, other = (merge_networks(network, *states, VECTORS) for network in (used, fresh))
    assert all(torch.equal(one.corrected[key], other.corrected[key]) for key in one.corrected)


@pytest.mark.parametrize("inplace", [False, True])
def test_the_closed_form_is_exact_in_the_first_layer_whatever_is_done_in_place_behind_it(inplace: bool):
    def build() -> nn.Module:
        convolutions = nn.Conv2d(3, 12, 3), nn.ReLU(inplace), nn.Conv2d(12, 9, 3), nn.ReLU(inplace)
        return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 5))

    # The hook copies what it sees before anything is overwritten.
    reaches_its_goal(build, IMAGES, "0", "repair-closed-form")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.conv(maps)


def test_the_units_of_a_block_are_those_of_its_last_layer_where_two_sizes_agree():
    network = nn.Sequential(nn.Conv1d(3, 8, 1), Block(), nn.Flatten(), nn.Linear(64, 4)).eval()
    sites = find_sites(network, network.state_dict(), torch.randn(4, 3, 8))
    assert [(site.name, site.dim) for site in sites.blocks] == [("1", 1)]


class WrittenOut(MaxNorm):
    def __init__(self) -> None:
        super().__init__()
        self.two = nn.Bilinear(12, 12, 12)
        self.rows, self.vector = nn.Parameter(torch.randn(12, 12)), nn.Parameter(torch.randn(12))

    def forward(self, vectors: Tensor) -> Tensor:
        both = self.two(vectors, vectors)
        products = (both[:, None] * self.rows).sum(-1)
        return super().forward(products + (both @ self.vector)[:, None])


def test_products_that_are_written_out_are_named():
    network = WrittenOut()
    sites = find_sites(network, network.state_dict(), VECTORS)
    reasons = sorted(one.reason for one in sites.left_out)
    assert sum("written out" in reason for reason in reasons) >= 2
    assert sum("with a vector" in reason for reason in reasons) == 1
