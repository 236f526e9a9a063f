"""What follows from the weights is made anew after interpolation; what cannot be is refused by name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from tasks.science.data.examples import Examples
from tasks.science.evaluation.metrics import evaluate, logits_of
from tasks.science.merging import merge_networks
from tasks.science.networks.fitting import MergeError
from tasks.science.paths.curves import CorrectedPath, measure_side
from tasks.science.paths.networks import averaged_buffers, interpolate_network
from tasks.science.specs.state import State
from tasks.science.symmetry.permutation import PermutationSpec
from tasks.science.symmetry.tracing import trace_permutation_spec

Wrap = Callable[[nn.Module], nn.Module]

GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(240) % 4
IMAGES = torch.randn(240, 6, generator=GENERATOR) * 0.5 + torch.eye(4, 6)[LABELS] * 2
EXAMPLES = Examples(IMAGES[:, :, None, None], LABELS)


def network_of(wrap: Wrap, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The older functions are deprecated.
        layers = [wrap(nn.Linear(*sizes)) for sizes in ((6, 16), (16, 16), (16, 4))]
    return nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def trained(wrap: Wrap, seed: int) -> State:
    network = network_of(wrap, seed)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(4 * network(IMAGES), LABELS).backward()
        optimizer.step()
    for _ in range(300):  # Until the singular vectors are those of the last weights.
        network(IMAGES)
    return {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}


NEW, OLD = parametrizations.spectral_norm, spectral_norm
"""Both ways in which torch normalises by a weight's largest singular value."""


def norms(network: nn.Module, state: State) -> list[float]:
    """The largest singular value of every weight that the network computes with."""
    network = copy.deepcopy(network_of(NEW if "1.parametrizations.weight.original" in state else OLD))
    network.load_state_dict(state)
    with torch.no_grad():
        network.eval()(IMAGES)
        return [float(torch.linalg.matrix_norm(network[i].weight, 2)) for i in (1, 3, 5)]


@pytest.mark.parametrize("wrap", [NEW, OLD])
def test_spectral_norms_of_a_merge_are_1_and_its_vectors_have_length_1(wrap: Wrap):
    network = network_of(wrap)
    a, b = trained(wrap, 0), trained(wrap, 1)
    merged = merge_networks(network, a, b, IMAGES, correction="none")
    for state in (merged.direct, merged.aligned):
        assert np.allclose(norms(network, state), 1, atol=1e-5)
        vectors = [t for key, t in state.items() if key.endswith(("_u", "_v"))]
        assert len(vectors) == 6
        assert np.allclose([float(t.norm()) for t in vectors], 1, atol=1e-6)
    assert merged.averaged == ()
    assert merged.function_error < 1e-12
    # A network is its own middle, whichever way its singular vectors point.
    flipped = {key: -t if key.endswith(("_u", "_v")) else t for key, t in a.items()}
    same = interpolate_network(network, a, flipped, 0.5)
    assert torch.allclose(logits_of(network, same, EXAMPLES), logits_of(network, a, EXAMPLES), rtol=1e-3, atol=1e-4)


def test_the_middle_of_a_path_of_spectral_norms_is_measured_with_norms_of_1():
    network = network_of(NEW)
    a, b = trained(NEW, 0), trained(NEW, 1)
    sides = measure_side(network, a, IMAGES), measure_side(network, b, IMAGES)
    path = CorrectedPath(sides, "none", IMAGES)
    assert np.allclose(norms(network, path.at(0.5).state), 1, atol=1e-5)
    seen = path.interpolated(0.5).evaluate(EXAMPLES)
    assert seen.loss == pytest.approx(evaluate(network, path.at(0.5).state, EXAMPLES).loss)
    assert all(torch.equal(path.at(alpha).state[key], end[key]) for alpha, end in ((0.0, a), (1.0, b)) for key in a)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight.transpose(0, 1).contiguous().transpose(0, 1) + 1


def test_a_spectral_norm_behind_another_parametrization_is_of_what_it_is_given():
    def wrap(layer: nn.Module) -> nn.Module:
        nn.utils.parametrize.register_parametrization(layer, "weight", Doubled(), unsafe=True)
        return NEW(layer)

    network = network_of(wrap)
    states = [network_of(wrap, seed).state_dict() for seed in (0, 1)]
    middle = interpolate_network(network, *states, 0.5)
    network.load_state_dict(middle)
    network.eval()
    assert np.allclose(
        [float(torch.linalg.matrix_norm(network[i].weight, 2).detach()) for i in (1, 3, 5)], 1, atol=1e-5
    )


def test_weights_of_0_have_vectors_of_length_1():
    network = network_of(NEW)
    zeros = {key: torch.zeros_like(t) if "original" in key else t for key, t in network.state_dict().items()}
    middle = interpolate_network(network, zeros, zeros, 0.5)
    assert all(float(t.norm()) == pytest.approx(1) for key, t in middle.items() if key.endswith(("_u", "_v")))


def pruned(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, "weight", 0.4)
    return layer


@pytest.mark.parametrize("alpha", [0.5, 0.25])
def test_a_pruned_weight_is_0_where_both_are_and_else_on_the_line_between_what_they_compute_with(alpha: float):
    network = network_of(pruned)
    a, b = (network_of(pruned, seed).state_dict() for seed in (0, 1))
    merged = merge_networks(network, a, b, IMAGES, alpha=alpha, correction="none")
    permuted = merged.spec.apply(b, merged.permutation)
    for state, end in ((merged.direct, b), (merged.aligned, permuted)):
        for layer in ("1", "3", "5"):
            weight, mask = f"{layer}.weight_orig", f"{layer}.weight_mask"
            assert torch.equal(state[mask].bool(), a[mask].bool() | end[mask].bool())
            line = (1 - alpha) * a[weight] * a[mask] + alpha * end[weight] * end[mask]
            assert torch.allclose(state[weight] * state[mask], line)
    assert merged.averaged == ()


@pytest.mark.parametrize(
    ("wrap", "names"),
    [(NEW, [".original", ".0._u", ".0._v"]), (OLD, ["_orig", "_u", "_v"]), (pruned, ["_orig", "_mask"])],
)
def test_derived_entries_move_with_their_weights(wrap: Wrap, names: list[str]):
    spec: PermutationSpec = trace_permutation_spec(network_of(wrap), (IMAGES[:2],))
    first, second = (
        ("1.parametrizations.weight", "3.parametrizations.weight") if wrap is NEW else ("1.weight", "3.weight")
    )
    (axis,) = (a for a in spec.axes if any(slot.key == "1.bias" for slot in a.slots))
    slots = {(slot.key, slot.dim) for slot in axis.slots}
    for name in names:
        rows, columns = (0, None) if name.endswith("_u") else (None, 0) if name.endswith("_v") else (0, 1)
        assert rows is None or (first + name, rows) in slots
        assert columns is None or (second + name, columns) in slots


@pytest.mark.parametrize("wrap", [weight_norm, parametrizations.weight_norm])
def test_the_parts_of_a_weight_norm_lie_on_the_line(wrap: Wrap):
    network = network_of(wrap)
    a, b = ({k: t.detach() for k, t in network_of(wrap, seed).state_dict().items()} for seed in (0, 1))
    middle = interpolate_network(network, a, b, 0.5)
    assert all(torch.equal(middle[key], 0.5 * a[key] + 0.5 * b[key]) for key in a)


def test_orthogonal_weights_are_refused_by_name():
    network = network_of(parametrizations.orthogonal)
    a, b = (network_of(parametrizations.orthogonal, seed).state_dict() for seed in (0, 1))
    sentence = r"^1\.parametrizations\.weight\.0\.base is an orthogonal matrix that differs .* remove the parametrizati"
    with pytest.raises(ValueError, match=sentence):
        interpolate_network(network, a, b, 0.5)
    with pytest.raises(MergeError, match=sentence):
        merge_networks(network, a, b, IMAGES, matcher="none", correction="none")


class Buffered(nn.Linear):
    """A layer that multiplies its weight by a buffer."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.register_buffer("factor", torch.ones(n_out, n_in))

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight * self.factor, self.bias)


def buffered(_: nn.Module) -> nn.Module:
    return Buffered(_.in_features, _.out_features)  # pyright: ignore[reportArgumentType]


def test_masks_of_an_unknown_kind_are_refused_and_other_buffers_named():
    network = network_of(buffered)
    a, b = (dict(network_of(buffered, seed).state_dict()) for seed in (0, 1))
    assert averaged_buffers(network, a, b) == ()
    assert torch.equal(interpolate_network(network, a, b, 0.5)["1.factor"], torch.ones(16, 6))
    b["1.factor"] = torch.full((16, 6), 0.5)
    merged = merge_networks(network, a, b, IMAGES, correction="none")
    assert merged.averaged == ("1.factor",)
    assert torch.equal(merged.aligned["1.factor"], torch.full((16, 6), 0.75))
    b["1.factor"] = (torch.rand(16, 6, generator=GENERATOR) > 0.5).float()
    with pytest.raises(MergeError, match=r"^1\.factor is a mask of 0 and 1 that differs .*: multiply the w"):
        merge_networks(network, a, b, IMAGES, correction="none")
    whole = nn.Sequential(nn.BatchNorm1d(6))
    ends = [{k: t + n for k, t in whole.state_dict().items()} for n in (0, 1)]
    assert averaged_buffers(whole, *ends) == ()
    assert torch.equal(interpolate_network(whole, *ends, 0.5)["0.running_var"], torch.full((6,), 1.5))
