"""Where networks of every kind are corrected, and that the correction reaches its goal there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from tasks.science.correction.correction import (
    check_sites,
    correct,
    extra_tensors,
    goal_moments,
    load_model,
    preactivation_moments,
)
from tasks.science.correction.models import Estimation, Target
from tasks.science.correction.preactivations import report_layers
from tasks.science.correction.sites import find_sites
from tasks.science.evaluation.functional import compute
from tasks.science.paths.curves import measure_side
from tasks.science.symmetry.tracing import trace_permutation_spec


def pooled(*layers: nn.Module, width: int = 8) -> nn.Sequential:
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(1), nn.Linear(width, 4))


def conv1d() -> nn.Module:
    return pooled(nn.Flatten(2), nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=2))


def conv3d() -> nn.Module:
    return pooled(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 8, 2), nn.ReLU(), nn.Conv3d(8, 8, (1, 3, 3)))


def transposed() -> nn.Module:
    return pooled(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 12, 3, groups=2), width=12)


def weight_normed() -> nn.Module:
    normed = parametrizations.weight_norm
    return pooled(normed(nn.Conv2d(3, 8, 3)), nn.ReLU(), normed(nn.Conv2d(8, 8, 3)))


def weight_normed_by_a_hook() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return pooled(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.utils.weight_norm(nn.Conv2d(8, 8, 3)))


def spectral_normed() -> nn.Module:
    return pooled(parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 8, 3))


def pruned() -> nn.Module:
    network = pooled(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    for layer in (network[0], network[2]):
        prune.random_unstructured(layer, "weight", 0.3)
    return network


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head, self.logits = nn.GRU(24, 12, batch_first=True), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        rows, _ = self.gru(images.transpose(1, 2).flatten(2))
        return self.logits(F.relu(self.head(rows[:, -1])))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.embed, self.logits = nn.Linear(24, 16), nn.Linear(16, 4)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.encoder(self.embed(images.transpose(1, 2).flatten(2))).mean(1))


class Functional(nn.Module):
    """Products of parameters: with a bias behind it, of the parts of one parameter, by einsum, and the head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_bias = nn.Parameter(torch.randn(192, 16) / 14), nn.Parameter(torch.zeros(16))
        self.packed, self.packed_bias = nn.Parameter(torch.randn(48, 16) / 4), nn.Parameter(torch.zeros(48))
        self.mixed, self.head = nn.Parameter(torch.randn(16, 16) / 4), nn.Parameter(torch.randn(4, 16))

    def forward(self, images: Tensor) -> Tensor:
        values = F.relu(images.flatten(1) @ self.first + self.first_bias)
        parts = zip(self.packed.chunk(3), self.packed_bias.chunk(3), strict=True)
        query, key, value = (F.linear(values, weight, bias) for weight, bias in parts)
        values = values + torch.sigmoid(query * key) * value
        return F.linear(F.gelu(torch.einsum("bi,io->bo", values, self.mixed)), self.head)


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.full, self.logits = nn.Linear(192, 16), nn.Linear(16, 4)
        self.down, self.up = nn.Parameter(torch.randn(4, 192) / 14), nn.Parameter(torch.randn(16, 4))

    def forward(self, images: Tensor) -> Tensor:
        weight = self.full.weight + self.up @ self.down
        return self.logits(F.relu(F.linear(images.flatten(1), weight, self.full.bias)))


class Shared(nn.Module):
    """Units that share a row or a bias, in front of layers that are as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.row, self.bias = nn.Parameter(torch.randn(1, 192) / 14), nn.Parameter(torch.randn(8))
        self.weight, self.level = nn.Parameter(torch.randn(8, 192) / 14), nn.Parameter(torch.randn(1))
        self.hidden, self.logits = nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        one = F.linear(flat, self.row.expand(8, 192), self.bias)
        other = F.linear(flat, self.weight, self.level.expand(8))
        return self.logits(F.relu(self.hidden(F.relu(torch.cat([one, other], 1)))))


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    sites: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


CASES = [
    Case(conv1d, ("1", "3")),
    Case(conv3d, ("1", "3")),
    Case(transposed, ("0", "2")),
    Case(weight_normed, ("0", "2")),
    Case(weight_normed_by_a_hook, ("0", "2")),
    Case(spectral_normed, ("0", "2"), extra=("0.correction.weight", "0.correction.bias")),
    Case(pruned, ("0", "2")),
    Case(Recurrent, ("gru.weight_ih_l0", "head"), ("gru.weight_hh_l0",)),
    Case(
        Encoder,
        (
            "embed",
            "encoder.layers.0.self_attn.in_proj",
            "encoder.layers.0.self_attn.out_proj",
            "encoder.layers.0.linear1",
            "encoder.layers.0.linear2",
        ),
    ),
    Case(Functional, ("first", "packed", "packed:2", "packed:3"), ("mixed",)),
    Case(LowRank, ("full",)),
    Case(Shared, ("hidden",), ("row", "weight")),
]
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.build.__name__)
IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def built(build: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    network = build().double().eval()
    return network, {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}


def changed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other weights; masks and the vectors of a spectral norm are not weights."""
    generator = torch.Generator().manual_seed(2)
    derived = ("_mask", "._u", "._v")
    return {
        key: t if key.endswith(derived) else t * (1 + 0.3 * torch.randn(t.shape, generator=generator, dtype=t.dtype))
        for key, t in state.items()
    }


@by_name
def test_every_linear_map_but_the_logits_is_a_site_or_named_as_left_out(case: Case):
    network, state = built(case.build)
    sites = find_sites(network, state, IMAGES)
    assert tuple(site.name for site in sites.layers) == case.sites
    assert tuple(one.name for one in sites.left_out) == case.left_out
    assert all(one.reason for one in sites.left_out)
    assert extra_tensors(sites, "repair") == case.extra


@by_name
@pytest.mark.parametrize("estimator", ["one-pass", pytest.param("layerwise", marks=pytest.mark.slow)])
def test_the_correction_reaches_its_goal_at_every_site(case: Case, estimator):
    network, state = built(case.build)
    ends = [preactivation_moments(network, weights, IMAGES) for weights in (state, changed(state))]
    goal = goal_moments(*ends, 0.5)
    model = load_model(network, state, IMAGES)
    result = correct(model, "repair", Target(goal, IMAGES), Estimation(estimator))
    reports = report_layers(result.achieved, goal, *ends)
    assert [report.layer for report in reports] == list(case.sites)
    assert max(max(report.mean_error, report.sd_error) for report in reports) < 1e-12
    assert max(max(report.mean_error, report.sd_error) for report in report_layers(ends[0], goal, *ends)) > 1e-2
    # What was measured is what the written weights do.
    again = preactivation_moments(result.network, result.state, IMAGES)
    for name in case.sites:
        if f"{name}.correction.weight" not in case.extra:
            torch.testing.assert_close(again[name].sd, goal[name].sd)


@by_name
def test_moments_of_a_permuted_endpoint_are_those_of_the_endpoint_reordered(case: Case):
    network, state = built(case.build)
    spec = trace_permutation_spec(network, (IMAGES[:2],))
    assert spec.axes
    permutation = spec.random(torch.Generator().manual_seed(3))
    side = measure_side(network, state, IMAGES)
    moved = side.permuted(spec, permutation)
    measured = preactivation_moments(network, moved.state, IMAGES)
    for name in case.sites:
        torch.testing.assert_close(moved.moments[name].sd, measured[name].sd)
        torch.testing.assert_close(moved.moments[name].mean, measured[name].mean)


def test_a_network_of_conv1d_is_corrected_as_the_same_network_of_conv2d():
    narrow, state = built(lambda: pooled(nn.Flatten(2), nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3)))
    flat = nn.Unflatten(2, (1, 64))
    wide, _ = built(
        lambda: pooled(nn.Flatten(2), nn.Sequential(flat, nn.Conv2d(3, 8, (1, 3))), nn.ReLU(), nn.Conv2d(8, 8, (1, 3)))
    )
    renamed = {"1.weight": "1.1.weight", "1.bias": "1.1.bias"}

    def as_wide(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {renamed.get(k, k): t.unsqueeze(2) if t.ndim == 3 else t for k, t in weights.items()}

    outputs: list[Tensor] = []
    for network, convert in ((narrow, dict), (wide, as_wide)):
        ends = [convert(weights) for weights in (state, changed(state))]
        goal = goal_moments(*(preactivation_moments(network, weights, IMAGES) for weights in ends), 0.5)
        middle = {key: (ends[0][key] + ends[1][key]) / 2 for key in ends[0]}
        result = correct(load_model(network, middle, IMAGES), "repair", Target(goal, IMAGES))
        outputs += [compute(network, middle, IMAGES), compute(network, result.state, IMAGES)]
    torch.testing.assert_close(outputs[0], outputs[2])
    torch.testing.assert_close(outputs[1], outputs[3])
    assert not torch.allclose(outputs[0], outputs[1])


def test_a_correction_without_a_site_is_refused_with_the_reason():
    network, state = built(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))
    sites = find_sites(network, state, IMAGES)
    with pytest.raises(ValueError, match=r"repair finds no layer to correct .* take none"):
        check_sites(sites, "repair")
    check_sites(sites, "none")
    goal = preactivation_moments(network, state, IMAGES)
    with pytest.raises(ValueError, match="finds no layer"):
        correct(load_model(network, state, IMAGES), "repair", Target(goal, IMAGES))


class TwoHeads(nn.Module):
    """The mean of two heads, as in distilled vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.one, self.other = nn.Linear(192, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        values = F.relu(self.hidden(images.flatten(1)))
        return (self.one(values) + self.other(values)) / 2


def test_all_heads_that_make_the_logits_are_left_alone():
    network, state = built(TwoHeads)
    sites = find_sites(network, state, IMAGES)
    assert [site.name for site in sites.layers] == ["hidden"]
    assert sites.left_out == ()
