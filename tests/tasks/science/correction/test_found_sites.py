from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from tasks.science.correction.correction import correct, goal_moments, load_model, preactivation_moments
from tasks.science.correction.models import Estimation, Target
from tasks.science.correction.preactivations import report_layers
from tasks.science.correction.sites import CorrectionSites, find_sites
from tasks.science.networks import build_network, initial_state
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import stream
from tasks.science.specs.recipe import Recipe


def sites_of(architecture: str, normalization: str, depth: int, width: int = 1) -> CorrectionSites:
    data = DataSpec("noise", "", 8, 8, 10, (1, 28, 28))
    network = build_network(Cell(data, architecture, normalization, width, depth, Recipe("none", 1, 1, 1.0, 0.0)))
    return find_sites(network, initial_state(network, stream("sites")), torch.randn(2, 1, 28, 28))


@pytest.mark.parametrize(
    ("architecture", "normalization", "depth", "n_layers", "n_blocks", "follows", "bias"),
    [
        ("mlp", "none", 3, 3, 0, False, True),
        ("mlp", "batch", 3, 3, 0, True, False),
        ("vgg11", "none", 11, 8, 0, False, True),
        ("vgg11", "batch", 11, 8, 0, True, True),
        ("resnet20", "batch", 20, 21, 9, True, False),
        ("resnet20", "layer", 20, 21, 9, False, True),
        ("resnet20", "fixup", 20, 21, 9, False, False),
        ("resnet18", "batch", 18, 20, 8, True, False),
    ],
)
def test_our_networks_are_found_as_they_are_written(
    architecture: str, normalization: str, depth: int, n_layers: int, n_blocks: int, follows: bool, bias: bool
):
    sites = sites_of(architecture, normalization, depth)
    assert len(sites.layers) == n_layers
    assert "output" not in [site.name for site in sites.all]
    assert len(sites.blocks) == n_blocks
    assert {site.norm is not None for site in sites.layers} == {follows}
    assert {site.shift is not None for site in sites.layers} == {bias}
    assert sites.left_out == ()
    assert not [site for site in sites.all if site.kind == "norm"]
    assert sites.dense == (architecture == "mlp")
    for site in sites.layers:
        if site.norm is not None:
            assert site.norm == site.name.replace("linear", "norm").replace("conv", "norm")
    for site in sites.blocks:
        assert site.order is not None
        last = (f"{site.name}.conv2", f"{site.name}.shortcut.conv", f"{site.name}.shortcut")
        assert site.order.key.removesuffix(".weight") in last


class Odd(nn.Module):
    """What users write: BatchNorm in front, a convolution that two read, one that runs twice, one whose weight another
    shares, an addition outside of any block, ReLUs in place, and a normalization behind the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(3)
        self.plain = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.plain_norm = nn.BatchNorm2d(6)
        self.read_twice = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.read_twice_norm = nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(6, 6, 1)
        self.tied_a, self.tied_b = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.tied_b.weight = self.tied_a.weight
        self.changed = nn.Conv2d(6, 6, 1, bias=False)
        self.changed_norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 5)
        self.logits = nn.Linear(5, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.relu(self.plain_norm(self.plain(self.before(images))))
        two = self.read_twice(maps)
        maps = self.relu(self.read_twice_norm(two)) + two.shape[1] * two
        maps = self.twice(self.twice(maps))
        maps = self.tied_b(self.tied_a(maps))
        changed = self.changed(maps)
        changed.mul_(2)
        maps = self.relu(self.changed_norm(changed))
        return F.log_softmax(self.logits(F.relu(self.head(maps.mean((2, 3))))), 1)


def test_what_users_write_is_corrected_where_one_rescaling_can():
    torch.manual_seed(0)
    network = Odd().double().eval()
    state, images = network.state_dict(), torch.randn(40, 3, 8, 8, dtype=torch.float64)
    sites = find_sites(network, state, images)
    assert {site.name: (site.norm, site.shift is not None) for site in sites.layers} == {
        "plain": ("plain_norm", False),
        "read_twice": (None, False),
        "changed": (None, False),
        "head": (None, True),
    }
    assert [site.name for site in sites.all if site.kind == "norm"] == ["before", "read_twice_norm", "changed_norm"]
    assert sites.blocks == ()
    other = {name: tensor * 1.5 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    ends = [preactivation_moments(network, s, images) for s in (state, other)]
    goal = goal_moments(*ends, 0.5)
    result = correct(load_model(network, state, images), "repair", Target(goal, images), Estimation("layerwise"))
    assert result.extra == ("read_twice.bias", "changed.bias")
    assert result.network is not network
    assert network.read_twice.bias is None
    reports = report_layers(result.achieved, goal, *ends)
    # A layer that is doubled in place behind its own output counts as it is put out.
    assert max(max(report.mean_error, report.sd_error) for report in reports) < 1e-9


@pytest.mark.parametrize(
    ("name", "n_layers", "n_blocks", "n_free_norms"),
    [
        ("resnet18", 20, 8, 0),
        ("mobilenet_v2", 52, 10, 0),
        pytest.param("densenet121", 120, 0, 62, marks=pytest.mark.slow),
        ("squeezenet1_1", 25, 0, 0),
    ],
)
def test_networks_of_torchvision(name: str, n_layers: int, n_blocks: int, n_free_norms: int):
    """By hand: ResNet18 has 20 convolutions; MobileNetV2 has 52 and 10 inverted residuals with a shortcut; DenseNet121
    has 120, and 62 of its 121 BatchNorms read a concatenation, a pool or a stream of maps; SqueezeNet has 26, the last
    of which makes the logits."""
    network = torchvision.models.get_model(name, weights=None).eval()
    sites = find_sites(network, network.state_dict(), torch.randn(2, 3, 64, 64))
    assert len(sites.layers) == n_layers
    assert len(sites.blocks) == n_blocks
    assert sum(site.kind == "norm" for site in sites.all) == n_free_norms
    assert len(sites.norms) == sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
