"""Networks that write into their own weights are refused by name, and the caller's tensors stay as they are."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tasks.science.alignment.matching import match
from tasks.science.correction.correction import preactivation_moments
from tasks.science.correction.layout import find_layout
from tasks.science.data.examples import Examples
from tasks.science.evaluation.functional import compute
from tasks.science.evaluation.metrics import evaluate, logits_of
from tasks.science.evaluation.modes import NetworkError, check_modes
from tasks.science.merging import merge_networks
from tasks.science.networks.fitting import MergeError
from tasks.science.networks.user_code import OwnCodeError, build_own_network
from tasks.science.paths.curves import measure_side
from tasks.science.specs.state import State
from tasks.science.symmetry.proof import function_error
from tasks.science.symmetry.tracing import TraceError, trace_permutation_spec

IMAGES = torch.randn(24, 6, generator=torch.Generator().manual_seed(3))
EXAMPLES = Examples(IMAGES[:, :, None, None], torch.arange(24) % 4)


class LowRank(nn.Linear):
    """A layer whose update of low rank, 0 at first, is merged by `eval()` and taken out again by `train()`."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.a = nn.Parameter(torch.randn(8, n_in))
        self.b = nn.Parameter(torch.zeros(n_out, 8))
        self.merged = False

    def train(self, mode: bool = True) -> LowRank:
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * self.b @ self.a
            self.merged = not mode
        return super().train(mode)

    def forward(self, input: Tensor) -> Tensor:
        values = super().forward(input)
        return values if self.merged else values + input @ self.a.T @ self.b.T


class Late(LowRank):
    """The same, merged by the first forward pass in evaluation mode."""

    def train(self, mode: bool = True) -> Late:
        nn.Module.train(self, mode)
        return self

    def forward(self, input: Tensor) -> Tensor:
        if not self.training and not self.merged:
            self.weight.data += self.b @ self.a
            self.merged = True
        return super().forward(input)


class Exchanging(Late):
    """The same, by another parameter."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.merged:
            self.weight = nn.Parameter((self.weight + self.b @ self.a).detach())
            self.merged = True
        return super().forward(input)


class Careful(nn.Linear):
    """A layer with a `train` of its own that leaves weights alone."""

    def train(self, mode: bool = True) -> Careful:
        torch.rand(1)
        return super().train(mode and self.weight.requires_grad)


class Counting(nn.Linear):
    """A layer that counts its passes in whole numbers."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.register_buffer("n_passes", torch.tensor(0))

    def forward(self, input: Tensor) -> Tensor:
        self.n_passes += 1
        return super().forward(input)


class Averaging(nn.Linear):
    """A layer that keeps a running mean, in evaluation mode as well."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.register_buffer("seen", torch.zeros(n_in))

    def forward(self, input: Tensor) -> Tensor:
        self.seen.mul_(0.9).add_(0.1 * input.mean(0))
        return super().forward(input - self.seen)


class Replacing(Averaging):
    """The same, by a new tensor each time."""

    def forward(self, input: Tensor) -> Tensor:
        self.seen = 0.9 * self.seen + 0.1 * input.mean(0)
        return nn.Linear.forward(self, input - self.seen)


class Caching(Averaging):
    """A layer that keeps in a buffer what it makes anew in each pass, and reads nothing of it."""

    def forward(self, input: Tensor) -> Tensor:
        self.seen.copy_(self.weight.mean(0))
        return nn.Linear.forward(self, input - self.seen)


def network_of(layer: Callable[[int, int], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Sequential(layer(6, 8), nn.ReLU()), nn.Linear(8, 4))


def trained(network: nn.Module) -> State:
    generator = torch.Generator().manual_seed(7)
    return {
        key: torch.randn(t.shape, generator=generator) if t.is_floating_point() else t.clone()
        for key, t in network.state_dict().items()
    }


Work = Callable[[nn.Module, State], object]

WORKS: dict[str, Work] = {
    "merge": lambda network, state: merge_networks(network, state, state, IMAGES),
    "evaluate": lambda network, state: evaluate(network, state, EXAMPLES),
    "logits": lambda network, state: logits_of(network, state, EXAMPLES),
    "trace": lambda network, _: trace_permutation_spec(network, (IMAGES[:2],)),
    "layout": lambda network, state: find_layout(network, state, IMAGES),
    "moments": lambda network, state: preactivation_moments(network, state, IMAGES),
    "side": lambda network, state: measure_side(network, state, IMAGES),
    "error": lambda network, state: function_error(network, state, state, IMAGES),
    "own": lambda network, _: build_own_network(lambda: network, "mine:build"),
}


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
@pytest.mark.parametrize("training", [True, False])
def test_weights_that_a_change_of_mode_rewrites_are_refused_by_module_and_left_alone(work: Work, training: bool):
    network = network_of(LowRank).train(training)
    state = trained(network)
    given, own = copy.deepcopy(state), copy.deepcopy(network.state_dict())
    with pytest.raises((NetworkError, MergeError, TraceError, OwnCodeError)) as refused:
        work(network, state)
    assert "train() and eval() of 1.0 (LowRank) rewrite its weights" in str(refused.value)
    assert "merge the update into the weights first and give a plain network" in str(refused.value)
    assert all(torch.equal(state[key], given[key]) for key in given)
    assert all(torch.equal(tensor, own[key]) for key, tensor in network.state_dict().items())
    assert network.training is training
    assert network[1][0].merged is not training


@pytest.mark.parametrize("name", ["merge", "evaluate", "logits", "layout", "moments", "side"])
@pytest.mark.parametrize("kind", [Late, Exchanging])
def test_weights_that_a_forward_pass_rewrites_are_refused_by_module_and_left_alone(
    name: str, kind: Callable[[int, int], nn.Module]
):
    network = network_of(kind).eval()
    state = trained(network)
    given = copy.deepcopy(state)
    with pytest.raises((NetworkError, MergeError), match=r"forward pass of 1\.0 changes weight in evaluation mode"):
        WORKS[name](network, state)
    assert all(torch.equal(state[key], given[key]) for key in given)


@pytest.mark.parametrize("kind", [Averaging, Replacing])
@pytest.mark.parametrize(("name", "error"), [("merge", MergeError), ("trace", TraceError), ("evaluate", NetworkError)])
def test_a_float_buffer_that_is_updated_in_evaluation_mode_is_one_sentence(
    kind: Callable[[int, int], nn.Module], name: str, error: type[Exception]
):
    network = network_of(kind)
    state = trained(network)
    with pytest.raises(error) as refused:
        WORKS[name](network, state)
    assert str(refused.value) == (
        "the forward pass of 1.0 changes seen in evaluation mode, so what it puts out depends on what it saw before: "
        "let it write in training mode alone"
    )


def test_a_buffer_that_is_written_before_it_is_read_is_taken_and_left_alone():
    network = network_of(Caching)
    state = trained(network)
    given = copy.deepcopy(state)
    spec = trace_permutation_spec(network, (IMAGES[:2],))
    assert [axis.size for axis in spec.axes] == [8]
    for _ in range(2):
        wanted = nn.functional.linear(IMAGES - given["1.0.weight"].mean(0), given["1.0.weight"], given["1.0.bias"])
        logits = nn.functional.linear(wanted.relu(), given["2.weight"], given["2.bias"])
        assert torch.allclose(logits_of(network, state, EXAMPLES), logits, atol=1e-4)
        assert all(torch.equal(state[key], given[key]) for key in given)


@pytest.mark.parametrize("kind", [Caching, Counting, Careful])
def test_a_function_error_is_measured_in_float64_the_first_time_too(kind: Callable[[int, int], nn.Module]):
    network = network_of(kind)
    state = trained(network)
    spec = trace_permutation_spec(network_of(nn.Linear), (IMAGES[:2],))
    moved = spec.apply(state, spec.random(torch.Generator().manual_seed(1)))
    assert function_error(network, state, moved, IMAGES) < 1e-12


def test_passes_that_are_counted_are_counted_in_no_state_of_the_caller():
    network = network_of(Counting)
    state = trained(network)
    for _ in range(2):
        evaluate(network, state, EXAMPLES)
    assert int(state["1.0.n_passes"]) == 0


def test_a_train_of_its_own_that_leaves_weights_alone_is_taken_and_draws_nothing():
    network = network_of(Careful)
    state = trained(network)
    state["1.0.weight"][0, 0] = float("nan")
    random_state = torch.get_rng_state()
    check_modes(network)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(logits_of(network, state, EXAMPLES)[:0], torch.zeros(0, 4))
    assert compute(network, trained(network), IMAGES).shape == (24, 4)


@pytest.mark.parametrize("inner", [False, True])
def test_torchscript_is_refused_with_the_way_out(inner: bool):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(6, 4))
    network = nn.Sequential(nn.Flatten(), scripted) if inner else scripted
    state = trained(network)
    where = "1 of the network" if inner else "the network"
    for work, kind in (("merge", MergeError), ("trace", TraceError), ("own", OwnCodeError), ("evaluate", NetworkError)):
        with pytest.raises(kind, match=rf"{where} is TorchScript, .* give the nn\.Module that was scripted or traced$"):
            WORKS[work](network, state)


def test_a_matching_of_such_a_network_is_refused():
    network = network_of(LowRank)
    state, spec = trained(network), trace_permutation_spec(network_of(nn.Linear), (IMAGES[:2],))
    with pytest.raises(NetworkError, match=r"1\.0 \(LowRank\)"):
        match(network, spec, [state, state], [(0, 1)], "activation", IMAGES)


@pytest.mark.filterwarnings("ignore")
def test_quantized_modules_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.quantized, "engine", torch.backends.quantized.supported_engines[-1])
    network = torch.ao.quantization.quantize_dynamic(network_of(nn.Linear), {nn.Linear}, dtype=torch.qint8)
    for name, kind in (("merge", MergeError), ("trace", TraceError), ("own", OwnCodeError), ("evaluate", NetworkError)):
        with pytest.raises(
            kind, match=r"1\.0 of the network is quantized, and weights in whole numbers cannot be merge"
        ):
            WORKS[name](network, {})
