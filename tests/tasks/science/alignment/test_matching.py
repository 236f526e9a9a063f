from __future__ import annotations

import dataclasses
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tasks.science.alignment.assignment import assign, assign_lapjv, assign_lapx
from tasks.science.alignment.matching import match
from tasks.science.alignment.moments import _measure, _passes, observed_families, read_activations, unit_correlations  # pyright: ignore[reportPrivateUsage]
from tasks.science.alignment.reading import make_reader
from tasks.science.alignment.weight_matching import match_weights
from tasks.science.data.examples import Dataset
from tasks.science.evaluation.functional import lay_out
from tasks.science.networks import build_network
from tasks.science.networks.permutation_spec import cell_permutation_spec
from tasks.science.networks.resnet import RESNET18_READINGS, RESNET20_READINGS, ResNet
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import stream
from tasks.science.specs.matchers import MATCHERS, published_modules
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State
from tasks.science.symmetry.permutation import Axis, Permutation, PermutationSpec, Reading
from tasks.science.symmetry.proof import FUNCTION_TOLERANCE, function_error
from tasks.science.symmetry.tracing import trace_permutation_spec
from tasks.science.training.training import train_group
from tests.tasks.science.permuting import inverse

SEEING = [
    *(name for name in MATCHERS if name not in ("none", "random")),
    "activation/reading=pre",
    "activation-published/batch=16",
]
"""Every matcher that aligns, a new one too."""


@pytest.fixture(scope="module")
def states(blobs: Dataset, cell: Cell):
    return [trained.state for trained in train_group(cell, [0, 1, 2], blobs)]


@pytest.fixture(scope="module")
def network(cell: Cell):
    return build_network(cell)


@pytest.fixture(scope="module")
def spec(cell: Cell):
    return cell_permutation_spec(cell)


def correlate_plainly(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlations of columns in float64; 0 where a column is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    norms = np.outer(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=0))
    return np.divide(a.T @ b, norms, out=np.zeros_like(norms), where=norms > 0)


def in_double(state: State) -> State:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def randomise(network: nn.Module, seed: int = 0) -> State:
    """Random weights that keep a deep network's activations of one size, nothing at its initial constant."""
    rng = stream("test", "randomise", seed)
    state: State = {}
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
            continue
        drawn = torch.tensor(rng.standard_normal(tensor.shape), dtype=torch.float32)
        if tensor.ndim >= 2:
            state[name] = drawn * (2 / (tensor.numel() / tensor.shape[0])) ** 0.5
        elif name.endswith(("running_var", "norm.weight", "norm1.weight", "norm2.weight", "scale")):
            state[name] = 0.5 + 0.3 * drawn.abs()
        else:
            state[name] = 0.3 * drawn
    return state


def dead_units(network: nn.Module, spec: PermutationSpec, state: State, images: Tensor) -> dict[str, np.ndarray]:
    """Per axis that is observed itself, which units are constant where it is read, or which these images do not tell
    from another one: two that fire for the same single sample have correlation 1."""
    dead: dict[str, np.ndarray] = {}
    for found in unit_correlations(network, [state], [(0, 0)], observed_families(spec), images):
        first = 0
        twin = (found.correlations - 2 * np.eye(found.family.n_units)).max(1) > 1 - 1e-6
        for axis in found.family.axes:
            dead[axis.name] = (found.dead_a | twin)[first : first + axis.size]
            first += axis.size
    return dead


# Correlations


def test_correlations_are_those_of_a_float64_reference(network, spec, states, blobs: Dataset):
    families = observed_families(spec)
    images = blobs.train.images.repeat(9, 1, 1, 1)  # more than one batch, and a last one that is not full
    plain = [read_activations(network, in_double(state), images.double(), families) for state in states]
    for found in unit_correlations(network, states, [(0, 1), (1, 2)], families, images):
        a, b = found.pair
        name = found.family.name
        reference = correlate_plainly(plain[a][name].numpy(), plain[b][name].numpy())
        assert np.abs(found.correlations - reference).max() < 1e-5


SIDE = 16
"""Pixels of the images that convolutional networks see here: half of the published side takes a quarter of the time."""


def paper_cell(architecture: str, normalization: str, width: int = 1, depth: int = 0) -> Cell:
    data = DataSpec("toy", "0" * 64, 100, 100, 10, (3, SIDE, SIDE))
    depth = depth or int(architecture.removeprefix("vgg").removeprefix("resnet"))
    return Cell(data, architecture, normalization, width, depth, Recipe("plain", 8, 1, 0.1, 0.1))


def draw_images(n: int, shape: tuple[int, ...] = (3, SIDE, SIDE)) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("reading", ["post", "pre"])
def test_every_pixel_of_a_map_is_a_sample(reading: str):
    cell = paper_cell("resnet20", "batch")
    network, spec = build_network(cell), cell_permutation_spec(cell)
    families = observed_families(spec, reading)
    states, images = [randomise(network, seed) for seed in (0, 1)], draw_images(40)
    plain = [read_activations(network, in_double(state), images.double(), families) for state in states]
    n_pixels = {16: SIDE**2, 32: SIDE**2 // 4, 64: SIDE**2 // 16}
    for found in unit_correlations(network, states, [(0, 1)], families, images):
        a, b = (of_one[found.family.name].numpy() for of_one in plain)
        assert a.shape == (40 * n_pixels[found.family.n_units], found.family.n_units)
        assert np.abs(found.correlations - correlate_plainly(a, b)).max() < 1e-5


def test_before_the_nonlinearity_units_are_negative_too(network, spec, states, blobs: Dataset):
    after, before = (
        read_activations(network, states[0], blobs.train.images, observed_families(spec, reading))
        for reading in ("post", "pre")
    )
    for name in after:
        assert torch.equal(after[name], before[name].relu())
        assert bool((before[name] < 0).any())


def test_a_unit_of_several_channels_has_the_mean_of_their_correlations():
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))
            self.read = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            return self.read(images.flatten(1) * self.scale)

    images = draw_images(500, (1, 2, 4))
    reading = Reading("read", "read", 0, 1, np.arange(8).reshape(4, 2), "other", 2)
    spec = PermutationSpec((Axis("x", 4, (), (reading,), "x"),))
    one = {"scale": torch.tensor([1.0, 1, 1, 1, 1, 1, 0, 0])}
    other = {"scale": torch.tensor([1.0, 1, -1, 1, 1, 0, 1, 1])}
    (found,) = unit_correlations(Pairs(), [one, other], [(0, 1)], observed_families(spec), images)
    flat = images.flatten(1).double()
    plain = correlate_plainly((flat * one["scale"]).numpy(), (flat * other["scale"]).numpy())
    assert np.abs(found.correlations - (plain[::2, ::2] + plain[1::2, 1::2]) / 2).max() < 1e-5
    assert found.dead_a.tolist() == [False, False, False, True]
    assert found.correlations[2, 2] == pytest.approx(0.5, abs=1e-5)


def test_large_means_cost_no_accuracy():
    """Without the shift, float32 sums of squares around a mean of 1000 would leave nothing of a deviation of 1."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))
            self.read = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            return self.read(images.flatten(1) * self.scale + 1000)

    images = torch.randn(3000, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    reading = Reading("read", "read", 0, 1, np.arange(8)[:, None], "other", 2)
    families = observed_families(PermutationSpec((Axis("x", 8, (), (reading,), "x"),)))
    one, other = {"scale": torch.ones(8)}, {"scale": torch.arange(1.0, 9.0)}
    (found,) = unit_correlations(Shifted(), [one, other], [(0, 1)], families, images)
    flat = images.flatten(1).double().numpy()
    assert np.abs(found.correlations - correlate_plainly(flat, flat)).max() < 1e-4


def published_plainly(a: np.ndarray, b: np.ndarray, rows: int) -> np.ndarray:
    """The authors' estimator in float64, from batches of `rows` samples."""
    parts = [(a[i : i + rows], b[i : i + rows]) for i in range(0, len(a), rows)]
    mean_a, mean_b = (np.mean([part[side].mean(0) for part in parts], axis=0) for side in (0, 1))
    sd_a, sd_b = (np.mean([part[side].std(0, ddof=1) for part in parts], axis=0) for side in (0, 1))
    products = np.mean([x.T @ y / len(x) for x, y in parts], axis=0)
    return (products - np.outer(mean_a, mean_b)) / (np.outer(sd_a, sd_b) + 1e-4)


@pytest.mark.parametrize("batch", [50, 240])
def test_the_published_estimator_is_the_mean_over_batches(network, spec, states, blobs: Dataset, batch: int):
    families, images = observed_families(spec), blobs.train.images
    plain = [read_activations(network, in_double(state), images.double(), families) for state in states]
    for found in unit_correlations(network, states, [(0, 1)], families, images, published_batch=batch):
        a, b = (of_one[found.family.name].numpy() for of_one in plain[:2])
        live = np.outer(~found.dead_a, ~found.dead_b)
        gap = np.abs(found.correlations - published_plainly(a, b, batch))
        assert gap[live].max() < 1e-5


def test_a_published_batch_of_maps_may_take_several_forward_passes():
    cell = paper_cell("resnet20", "layer")
    network, spec = build_network(cell), cell_permutation_spec(cell)
    families, images = observed_families(spec)[-1:], draw_images(150)
    states = [randomise(network, seed) for seed in (0, 1)]
    plain = [read_activations(network, in_double(state), images.double(), families) for state in states]
    (found,) = unit_correlations(network, states, [(0, 1)], families, images, published_batch=100)
    a, b = (of_one[found.family.name].numpy() for of_one in plain)
    assert np.abs(found.correlations - published_plainly(a, b, 100 * (SIDE // 4) ** 2)).max() < 1e-5


@pytest.mark.parametrize("published_batch", [None, 60])
def test_how_axes_and_pairs_are_grouped_changes_no_bit(network, spec, states, blobs: Dataset, published_batch):
    pairs = [(0, 1), (0, 2), (1, 2)]

    def measure(pairs: list[tuple[int, int]], **options):
        found = unit_correlations(
            network, states, pairs, observed_families(spec), blobs.train.images, published_batch, **options
        )
        return {(one.family.name, one.pair): one.correlations for one in found}

    together = measure(pairs)
    assert len(together) == 9
    one_by_one = measure(pairs, memory_bytes=1)
    a_few = measure(pairs[::-1], memory_bytes=2**15)
    one_pair = {key: value for pair in pairs for key, value in measure([pair]).items()}
    for key, correlations in together.items():
        assert np.array_equal(correlations, one_by_one[key])
        assert np.array_equal(correlations, a_few[key])
        assert np.array_equal(correlations, one_pair[key])


@pytest.mark.parametrize("memory_bytes", [1, 2**15, 2**17, 2**20, 2**24])
def test_passes_take_every_job_once_and_keep_to_their_memory(network, spec, states, blobs: Dataset, memory_bytes: int):
    families, images = observed_families(spec), blobs.train.images
    reader = make_reader(network, [r for family in families for r in family.readings])
    with torch.no_grad():
        sizes = _measure(reader, states[0], families, images, None)
    pairs = [(a, b) for b in range(9) for a in range(b)]
    passes = list(_passes(families, pairs, sizes, memory_bytes))
    jobs = [(family.name, pair) for jobs in passes for family, pair in jobs]
    assert sorted(jobs) == sorted((family.name, pair) for family in families for pair in pairs)
    for group in passes:
        members = {(family.name, k) for family, pair in group for k in pair}
        n_bytes = sum(sizes.product_bytes[family.name] for family, _ in group)
        n_bytes += sum(sizes.activation_bytes[name] for name, _ in members)
        assert n_bytes <= memory_bytes or len(group) == 1
    if memory_bytes == 2**24:
        assert len(passes) == 1


def test_activations_between_modules_are_read_from_the_graph(blobs: Dataset):
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(36, 10), nn.Linear(10, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(images.flatten(1))))

    network = Functional()
    spec = trace_permutation_spec(network, (torch.zeros(2, 1, 6, 6),))
    assert spec.axes[0].readings[0].module is None
    state = randomise(network)
    (seen,) = read_activations(network, state, blobs.train.images, observed_families(spec)).values()
    plain = (blobs.train.images.flatten(1) @ state["first.weight"].T + state["first.bias"]).relu()
    torch.testing.assert_close(seen, plain)


# The assignment


def test_the_assignment_is_the_best_of_all_on_six_units():
    rng = np.random.default_rng(0)
    for _ in range(20):
        correlation = rng.uniform(-1, 1, (6, 6))
        best = max(permutations(range(6)), key=lambda p: sum(correlation[i, j] for i, j in enumerate(p)))
        assert assign(correlation).tolist() == list(best)


OPTIONAL = {"lapx": ("lap", assign_lapx, "fast", 1e-9), "lapjv": ("lapjv", assign_lapjv, "compiled", 1e-5)}
"""By solver: its module, the function, the extra that installs it, and how far its total may lie below the largest,
relative to it: lapjv reckons in float32."""


@pytest.mark.parametrize("name", OPTIONAL)
@pytest.mark.parametrize("size", [1, 2, 64, 300])
def test_the_faster_solvers_reach_the_same_objective(size: int, name: str):
    module, solve, _, tolerance = OPTIONAL[name]
    pytest.importorskip(module, reason="needs an extra")
    rng = np.random.default_rng(size)
    scores = rng.uniform(-1, 1, (size, size))
    scores[rng.random(size) < 0.2] = 0  # dead units
    rows = np.arange(size)
    for of_scores in (scores, scores.T):
        partners = solve(of_scores)
        assert sorted(partners.tolist()) == rows.tolist()
        largest = of_scores[rows, assign(of_scores)].sum()
        assert of_scores[rows, partners].sum() == pytest.approx(largest, rel=tolerance, abs=1e-9)


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_solver_that_is_not_installed_names_its_extra(network, spec, states, blobs: Dataset, name: str):
    module, _, extra, _ = OPTIONAL[name]
    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"the extra `{extra}` is installed")
    with pytest.raises(
        ModuleNotFoundError, match=rf"solver {name} is not installed: pip install 'repairlab\[{extra}\]'"
    ):
        match(network, spec, states, [(0, 1)], f"activation/solver={name}", blobs.train.images)


def test_correlations_that_are_not_finite_never_reach_the_solver():
    with pytest.raises(ValueError, match="must be finite"):
        assign(np.array([[1.0, np.nan], [0.0, 1.0]]))


# Matchers on the MLP


def test_one_pass_finds_what_layer_by_layer_alignment_finds(network, spec, states, blobs: Dataset):
    """The published schedule: align a layer, permute B, run it again, align the next."""
    (found,) = match(network, spec, states[:2], [(0, 1)], "activation", blobs.train.images)
    a, b = in_double(states[0]), in_double(states[1])
    images = blobs.train.images.double()
    for family in observed_families(spec):
        seen_a, seen_b = (read_activations(network, state, images, [family])[family.name].numpy() for state in (a, b))
        correlation = correlate_plainly(seen_a, seen_b)
        partners = assign(correlation)
        b = spec.apply(b, Permutation({**spec.identity(), family.name: partners}))
        rows = np.arange(family.n_units)
        ours = correlation[rows, found.permutation[family.name]].sum()
        assert ours == pytest.approx(correlation[rows, partners].sum(), abs=1e-4)


def test_dead_units_reach_the_solver_as_zeros(network, spec, states, blobs: Dataset):
    dying = {name: tensor.clone() for name, tensor in states[1].items()}
    dying["hidden.1.linear.bias"][:4] = -1e4
    for matcher in ("activation", "activation-published"):
        (found,) = match(network, spec, [states[0], dying], [(0, 1)], matcher, blobs.train.images)
        assert found.axes[1].n_dead >= 4
        assert np.isfinite(found.objective)
        assert all(np.isfinite(axis.matched_correlation) for axis in found.axes)


@pytest.mark.parametrize("matcher", SEEING)
def test_matching_raises_the_similarity_over_the_identity(network, spec, states, blobs: Dataset, matcher: str):
    for found in match(network, spec, states, [(0, 1), (1, 2)], matcher, blobs.train.images):
        for axis in found.axes:
            assert axis.matched_correlation > axis.identity_correlation


@pytest.mark.parametrize("matcher", ["none", *SEEING])
def test_a_pair_is_matched_the_same_alone_or_among_others(network, spec, states, blobs: Dataset, matcher: str):
    pairs = [(0, 1), (0, 2), (1, 2)]
    together = match(network, spec, states, pairs, matcher, blobs.train.images)
    for pair, found in zip(pairs, together, strict=True):
        (alone,) = match(network, spec, states, [pair], matcher, blobs.train.images)
        assert alone.permutation == found.permutation
        assert (alone.objective, alone.restarts) == (found.objective, found.restarts)


def test_the_matcher_none_moves_nothing(network, spec, states):
    (found,) = match(network, spec, states, [(0, 1)], "none")
    assert found.permutation == spec.identity()


def test_what_cannot_be_matched_is_refused_with_the_reason(network, spec, states, blobs: Dataset):
    with pytest.raises(ValueError, match="matcher activation needs images"):
        match(network, spec, states, [(0, 1)], "activation")
    sick = {**states[1], "hidden.1.linear.bias": torch.full((16,), torch.nan)}
    for matcher in MATCHERS:
        with pytest.raises(ValueError, match=r"endpoint 1 cannot be matched: hidden\.1\.linear\.bias has values"):
            match(network, spec, [states[0], sick], [(0, 1)], matcher, blobs.train.images)
    with pytest.raises(ValueError, match="there is no image"):
        match(network, spec, states, [(0, 1)], "activation", blobs.train.images[:0])


# Weight matching


def descend_plainly(a: State, b: State, depth: int, order_of: np.random.Generator) -> tuple[list[np.ndarray], float]:
    """Git Re-Basin on an MLP as the paper writes it, in float64."""
    weights_a, weights_b = (
        [s[f"{name}.weight"].double().numpy() for name in [*(f"hidden.{i}.linear" for i in range(depth)), "output"]]
        for s in (a, b)
    )
    biases_a, biases_b = ([s[f"hidden.{i}.linear.bias"].double().numpy() for i in range(depth)] for s in (a, b))
    order = [np.arange(len(bias)) for bias in biases_b]
    changed = True
    while changed:
        changed = False
        for i in order_of.permutation(depth).tolist():
            below = weights_b[i] if i == 0 else weights_b[i][:, order[i - 1]]
            above = weights_b[i + 1] if i == depth - 1 else weights_b[i + 1][order[i + 1]]
            scores = weights_a[i] @ below.T + np.outer(biases_a[i], biases_b[i]) + weights_a[i + 1].T @ above
            partners = assign(scores)
            rows = np.arange(len(partners))
            if scores[rows, partners].sum() > scores[rows, order[i]].sum() + 1e-5:
                order[i], changed = partners, True
    objective = 0.0
    for i in range(depth + 1):
        moved = weights_b[i] if i == 0 else weights_b[i][:, order[i - 1]]
        moved = moved if i == depth else moved[order[i]]
        objective += float((weights_a[i] * moved).sum())
        objective += 0.0 if i == depth else float(biases_a[i] @ biases_b[i][order[i]])
    return order, objective


def test_weight_matching_is_the_descent_of_the_paper(network, spec, states):
    names = {name for name, _ in network.named_parameters()}
    ours = match_weights(spec, states[0], states[1], names, n_restarts=4)
    plain = [descend_plainly(states[0], states[1], 3, stream("weight matching", restart)) for restart in range(4)]
    assert ours.objectives == pytest.approx([objective for _, objective in plain], rel=1e-6)
    assert ours.objective == max(ours.objectives)
    best = int(np.argmax(ours.objectives))
    assert all(np.array_equal(ours.permutation[f"hidden.{i}"], plain[best][0][i]) for i in range(3))


def test_weight_matching_needs_no_data_and_tells_what_every_restart_reached(network, spec, states):
    (found,) = match(network, spec, states, [(0, 1)], "weight/restarts=5")
    assert len(found.restarts) == 5
    assert found.objective == max(found.restarts)
    (once,) = match(network, spec, states, [(0, 1)], "weight/restarts=1")
    assert once.restarts == found.restarts[:1]


# Permuted copies


def wide(architecture: str, normalization: str):
    """A cell whose networks take too long for every run of the tests."""
    return pytest.param(paper_cell(architecture, normalization), marks=pytest.mark.slow)


PAPER = [
    paper_cell("mlp", "none", 12, 4),
    paper_cell("mlp", "batch-fused", 12, 4),
    paper_cell("mlp", "batch", 12, 4),
    wide("vgg11", "none"),
    wide("vgg11", "batch"),
    paper_cell("resnet20", "batch"),
    paper_cell("resnet20", "layer"),
    paper_cell("resnet20", "fixup"),
    wide("resnet18", "batch"),
]


def assert_recovered(network: nn.Module, spec: PermutationSpec, state: State, images: Tensor, matcher: str) -> None:
    """A shuffled copy of `state` is put back, dead units aside, and computes what it did."""
    shuffle = spec.random(torch.Generator().manual_seed(3))
    shuffled = spec.apply(state, shuffle)
    (found,) = match(network, spec, [state, shuffled], [(0, 1)], matcher, images)
    back = inverse(spec, shuffle)
    pre = "pre" in matcher or matcher.startswith("weight")
    dead = {} if pre else dead_units(network, spec, state, images)
    n_live = 0
    for name, wanted in back.items():
        live = ~dead.get(name, np.zeros(len(wanted), dtype=bool))
        n_live += int(live.sum())
        assert np.array_equal(found.permutation[name][live], wanted[live]), name
    assert n_live >= (1 if pre else 0.8) * sum(axis.size for axis in spec.axes)
    restored = spec.apply(shuffled, found.permutation)
    assert function_error(network, state, restored, images) < FUNCTION_TOLERANCE
    if pre:
        assert all(torch.equal(restored[name], state[name]) for name in state)


@pytest.mark.parametrize("matcher", ["activation", "activation/reading=pre", "weight/restarts=1"])
@pytest.mark.parametrize("cell", PAPER, ids=lambda cell: f"{cell.architecture}-{cell.normalization}")
def test_a_permuted_copy_is_recovered_exactly(cell: Cell, matcher: str):
    network, spec = build_network(cell), cell_permutation_spec(cell)
    # Of an MLP's units some fire for one image in a hundred: two such cannot be told apart by fewer.
    n_images = 1000 if cell.architecture == "mlp" else 100
    assert_recovered(network, spec, randomise(network), draw_images(n_images), matcher)


@pytest.mark.parametrize("cell", PAPER, ids=lambda cell: f"{cell.architecture}-{cell.normalization}")
def test_the_spec_of_a_cell_passes_the_numerical_check_that_it_leaves_out(cell: Cell):
    network = build_network(cell).to_empty(device="cpu")
    network.load_state_dict(randomise(network))
    checked = trace_permutation_spec(network, (torch.zeros(2, 3, SIDE, SIDE),))
    ours = cell_permutation_spec(cell)
    assert [axis.size for axis in ours.axes] == [axis.size for axis in checked.axes]
    for one, other in zip(ours.axes, checked.axes, strict=True):
        slots = [[(slot.key, slot.dim) for slot in axis.slots] for axis in (one, other)]
        assert slots[0] == slots[1]
        for reading in ("post", "pre"):
            kinds = ("linear",) if reading == "pre" else ()
            chosen = [next((r for r in a.readings if r.kind in kinds), a.reading) for a in (one, other)]
            places = [(r.module, r.call, r.dim) for r in chosen if r is not None]
            assert places[0] == places[1]
            assert places[0][0] is not None


# Where the authors read


def narrow_resnet(name: str) -> ResNet:
    """The published form of few channels: `stages.0` is the axis of the first stream."""
    kernel, channels = (3, [4, 6, 8]) if name == "resnet20" else (1, [4, 6, 8, 10])
    return ResNet(
        3, channels, 3 if name == "resnet20" else 2, 5,
        normalization="batch", shortcut_kernel=kernel, initialization="torch",
        published_readings=RESNET20_READINGS if name == "resnet20" else RESNET18_READINGS,
    ).eval()  # fmt: skip


READ_AT = {
    "resnet20": {
        **{f"stages.{i}.blocks.{j}.conv1": f"stages.{i}.blocks.{j}.relu1" for i in range(3) for j in range(3)},
        **{"stages.0": "stages.0.blocks.2", "stages.1": "stages.1.blocks.2", "stages": "stages.2.blocks.1"},
    },
    "resnet18": {
        **{f"stages.{i}.blocks.{j}.conv1": f"stages.{i}.blocks.{j}.conv1" for i in range(4) for j in range(2)},
        **{"stages.0": "stem.conv", "stages.1": "stages.1.blocks.0.conv2"},
        **{"stages.2": "stages.2.blocks.0.conv2", "stages": "stages.3.blocks.0.conv2"},
    },
}
"""Spec, section 3: ResNet20's last stream at its second block, all else after its nonlinearity; ResNet18 before the
norm, its streams at the stem or at their first block."""


@pytest.mark.parametrize("name", READ_AT)
def test_published_units_are_read_at_the_modules_that_the_authors_named(name: str):
    network, images = narrow_resnet(name), draw_images(5)
    spec = trace_permutation_spec(network, (images[:2],), check=False)
    families = observed_families(spec, "published", published=published_modules(network))
    assert {family.name for family in families} == set(READ_AT[name]) == {axis.name for axis in spec.axes}
    state = randomise(network)
    seen = read_activations(network, state, images, families)
    outputs: dict[str, Tensor] = {}
    network.load_state_dict(state)
    for module in READ_AT[name].values():
        network.get_submodule(module).register_forward_hook(
            lambda _module, _inputs, output, module=module: outputs.update({module: output.clone()})
        )
    with torch.no_grad():
        network(lay_out(network, images))
    for axis, module in READ_AT[name].items():
        assert torch.equal(seen[axis], outputs[module].movedim(1, -1).flatten(0, -2)), axis


@pytest.mark.parametrize("matcher", ["activation/reading=published", "activation-published/reading=published"])
@pytest.mark.parametrize("name", READ_AT)
def test_a_permuted_copy_is_recovered_where_the_authors_read(name: str, matcher: str):
    network, images = narrow_resnet(name), draw_images(200)
    spec, state = trace_permutation_spec(network, (images[:2],), check=False), randomise(network)
    shuffle = spec.random(torch.Generator().manual_seed(3))
    (found,) = match(network, spec, [state, spec.apply(state, shuffle)], [(0, 1)], matcher, images)
    assert sum(axis.n_dead for axis in found.axes) == 0
    assert found.permutation == inverse(spec, shuffle)


@pytest.mark.parametrize("cell", [paper_cell("resnet20", "layer"), paper_cell("mlp", "none", 5, 2)])
def test_a_network_that_was_not_published_so_has_no_published_reading(cell: Cell):
    network, spec = build_network(cell), cell_permutation_spec(cell)
    with pytest.raises(ValueError, match="reading=published is for ResNet20 with BatchNorm and ResNet18 for small im"):
        match(network, spec, [randomise(network)] * 2, [(0, 1)], "activation/reading=published", draw_images(2))


def test_a_network_of_a_user_has_no_published_reading():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 5), nn.ReLU(), nn.Linear(5, 2))
    spec = trace_permutation_spec(network, (draw_images(2),))
    with pytest.raises(ValueError, match="this Sequential is neither: take reading=post or reading=pre"):
        match(network, spec, [randomise(network)] * 2, [(0, 1)], "activation/reading=published", draw_images(2))


def test_the_published_networks_of_a_cell_have_their_readings():
    for architecture, modules in (("resnet20", RESNET20_READINGS), ("resnet18", RESNET18_READINGS)):
        assert published_modules(build_network(paper_cell(architecture, "batch"))) == modules


# Planted permutations


@pytest.mark.parametrize("matcher", ["activation", "activation-published", "weight"])
def test_noise_costs_recovery(network, spec, states, blobs: Dataset, matcher: str):
    """A planted permutation is found whole without noise, in part with it, and by chance in the end."""
    shuffle = spec.random(torch.Generator().manual_seed(3))
    back = inverse(spec, shuffle)
    dead = dead_units(network, spec, states[0], blobs.train.images)
    rates: list[float] = []
    for noise in (0.0, 0.5, 100.0):
        rng = stream("test", "noise")
        noisy = {
            name: tensor + noise * float(tensor.std()) * torch.tensor(rng.standard_normal(tensor.shape)).float()
            for name, tensor in states[0].items()
        }
        planted = spec.apply(noisy, shuffle)
        (found,) = match(network, spec, [states[0], planted], [(0, 1)], matcher, blobs.train.images)
        live = {name: ~dead[name] for name in back}
        n_found = sum(int((found.permutation[name] == back[name])[live[name]].sum()) for name in back)
        rates.append(n_found / sum(int(mask.sum()) for mask in live.values()))
    assert rates[0] == 1
    assert rates[0] >= rates[1] > rates[2]
    assert rates[2] < 0.4


# The function error


def test_the_function_error_sees_what_is_no_symmetry(network, spec, states, blobs: Dataset):
    shuffled = spec.apply(states[0], spec.random(torch.Generator().manual_seed(3)))
    assert function_error(network, states[0], shuffled, blobs.train.images) < FUNCTION_TOLERANCE / 1e3
    axes = tuple(dataclasses.replace(axis, slots=axis.slots[:1] + axis.slots[2:]) for axis in spec.axes)
    forgetful = dataclasses.replace(spec, axes=axes)  # leaves biases where they are
    wrong = forgetful.apply(states[0], spec.random(torch.Generator().manual_seed(3)))
    assert function_error(network, states[0], wrong, blobs.train.images) > FUNCTION_TOLERANCE * 1e3


@pytest.mark.parametrize("cell", PAPER, ids=lambda cell: f"{cell.architecture}-{cell.normalization}")
def test_the_function_error_is_that_of_whole_states_in_float64(cell: Cell):
    network, images = build_network(cell), draw_images(20)
    one, other = randomise(network, 0), randomise(network, 1)
    plain = [functional_call(network, in_double(state), (images.double(),)) for state in (one, other)]
    wanted = float((plain[0] - plain[1]).abs().max() / plain[0].abs().max())
    assert function_error(network, one, other, images) == pytest.approx(wanted, rel=1e-12)


def test_outputs_without_a_scale_or_a_value_are_no_symmetry(network, states, blobs: Dataset):
    images = blobs.train.images
    zero = {name: torch.zeros_like(tensor) for name, tensor in states[0].items()}
    huge = {name: tensor * 1e200 for name, tensor in in_double(states[0]).items()}
    sick = {name: torch.full_like(tensor, torch.nan) for name, tensor in states[0].items()}
    assert function_error(network, zero, zero, images) == 0
    assert function_error(network, zero, states[0], images) == np.inf
    for bad in (huge, sick):
        assert function_error(network, states[0], bad, images) == np.inf
        assert function_error(network, bad, states[0], images) == np.inf


def test_several_threads_may_ask_for_specs_at_once():
    cells = [paper_cell("mlp", "none", width, 2) for width in (5, 6, 7, 8)]
    with ThreadPoolExecutor(4) as pool:
        specs = list(pool.map(cell_permutation_spec, cells))
    assert [axis.size for spec in specs for axis in spec.axes] == [5, 5, 6, 6, 7, 7, 8, 8]
