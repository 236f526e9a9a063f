"""Every correction on every kind of network, against the plain references in `wrapped.py`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from wrapped import Affine, corrected_plainly, endpoint_goal, layer_names, load, wrap

from tasks.science.correction.correction import Corrected, correct
from tasks.science.correction.preactivations import (
    LayerMoments,
    RunningMoments,
    goal_moments,
    matched_covariances,
    measure,
    predicted_moments,
    report_layers,
)
from tasks.science.data.examples import Dataset, Examples
from tasks.science.evaluation.metrics import Evaluation
from tasks.science.networks import build_network, initial_state
from tasks.science.paths.curves import measure_path, measure_side
from tasks.science.paths.interpolation import interpolate
from tasks.science.specs.cell import Cell
from tasks.science.specs.corrections import CORRECTIONS
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import stream
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State

ALPHA = 0.3
KINDS = [
    ("mlp", "none", 3, 24),
    ("mlp", "batch", 3, 24),
    ("vgg11", "none", 11, 1, 8, 28),
    ("vgg11", "batch", 11, 1, 8, 28),
    ("resnet20", "batch", 20, 1, 8),
    ("resnet20", "layer", 20, 1, 8),
    ("resnet20", "fixup", 20, 1, 8),
]


def mark(kind: tuple) -> list[pytest.MarkDecorator]:
    """VGG's millions of float64 weights take seconds in every test."""
    return [pytest.mark.slow] if kind[0] == "vgg11" else []


def kinds(normalization: str | None = None) -> list:
    return [
        pytest.param(kind, id=f"{kind[0]}-{kind[1]}", marks=mark(kind))
        for kind in KINDS
        if normalization in (None, kind[1])
    ]


def combinations(corrections) -> list:
    """Every kind with every one of `corrections` that is defined for it."""
    return [
        pytest.param(kind, name, id=f"{kind[0]}-{kind[1]}-{name}", marks=mark(kind))
        for kind in KINDS
        for name in corrections
        if name in defined(kind[0], kind[1])
    ]


def defined(architecture: str, normalization: str) -> list[str]:
    return [
        name
        for name, row in CORRECTIONS.items()
        if normalization in row.normalizations and not (row.blocks and architecture != "resnet20")
    ]


class Pair:
    """Two networks of a kind with random weights, norms and statistics included, in float64."""

    def __init__(
        self, architecture: str, normalization: str, depth: int, width: int, n_images: int = 12, side: int = 16
    ) -> None:
        self.architecture, self.normalization = architecture, normalization
        data = DataSpec("noise", "", n_images, n_images, 10, (1, side, side))
        self.cell = Cell(data, architecture, normalization, width, depth, Recipe("none", 1, 1, 1.0, 0.0))
        self.network = build_network(self.cell)
        self.states = [self.draw(seed) for seed in (0, 1)]
        rng = torch.Generator().manual_seed(7)
        self.images = torch.randn(n_images, 1, side, side, generator=rng, dtype=torch.float64)
        self.held_out = torch.randn(6, 1, side, side, generator=rng, dtype=torch.float64)

    def draw(self, seed: int) -> State:
        """Gammas of either sign; Fixup's zeros, which would make every block the identity, replaced."""
        rng = torch.Generator().manual_seed(seed)
        state = {
            name: tensor.double() if tensor.is_floating_point() else tensor + 3 + seed
            for name, tensor in initial_state(self.network, stream("correction", seed)).items()
        }
        for name, tensor in state.items():
            noise = torch.rand(tensor.shape, generator=rng, dtype=torch.float64)
            if name.endswith("running_var"):
                state[name] = 0.5 + noise
            elif tensor.ndim == 1 and tensor.is_floating_point():
                state[name] = tensor * torch.where(noise < 0.3, -1, 1) + 0.3 * (noise - 0.5)
            elif tensor.ndim > 1 and not tensor.any():
                state[name] = (noise - 0.5) * 0.2
        return state

    @property
    def fresh(self) -> nn.Module:
        return build_network(self.cell)


@pytest.fixture(scope="module", params=kinds())
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(*request.param)


@pytest.fixture(scope="module", params=kinds("batch"))
def batch_pair(request: pytest.FixtureRequest) -> Pair:
    pair = Pair(*request.param)
    for module in pair.network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 1e-30  # torch refuses 0
    return pair


def sides_of(pair: Pair, blocks: bool = False):
    return [measure_side(pair.network, state, pair.images, blocks=blocks) for state in pair.states]


def distance(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return float((ours - reference).abs().max() / reference.abs().max())


def corrected(pair: Pair, correction: str, alpha: float = ALPHA, **options):
    a, b = sides_of(pair, CORRECTIONS[correction].blocks)
    goal = goal_moments(a.moments, b.moments, alpha)
    state = interpolate(*pair.states, alpha)
    return correct(pair.network, a.layout, state, correction, goal, pair.images, **options)


def logits(result, images: torch.Tensor) -> torch.Tensor:
    return functional_call(result.network, result.state, (images,))


def reference(pair: Pair, correction: str, batches) -> nn.Module:
    row = CORRECTIONS[correction]
    ends = [endpoint_goal(pair.fresh, state, pair.images, blocks=row.blocks) for state in pair.states]
    goal = {n: tuple((1 - ALPHA) * x + ALPHA * y for x, y in zip(ends[0][n], ends[1][n], strict=True)) for n in ends[0]}
    state = interpolate(*pair.states, ALPHA)
    options = {"layers": row.layers, "blocks": row.blocks, "frozen": row.frozen, "part": row.part}
    return corrected_plainly(pair.fresh, state, goal, batches, **options)


@pytest.mark.parametrize(
    ("pair", "correction"),
    combinations([name for name, row in CORRECTIONS.items() if name != "none" and not row.closed_form]),
    indirect=["pair"],
)
def test_the_folded_network_computes_what_the_wrapped_float64_reference_does(pair: Pair, correction: str):
    """On images that no statistics were taken from. One batch of everything is exact, so both estimators are."""
    wanted = reference(pair, correction, [pair.images])(pair.held_out)
    for options in ({"batch_size": 10**6}, {"estimator": "layerwise"}):
        assert distance(logits(corrected(pair, correction, **options), pair.held_out), wanted) < 1e-9, options


@pytest.mark.parametrize(
    ("pair", "correction"),
    [case for case in combinations(["repair", "repair/frozen", "reset", "repair-block"]) if "mlp" not in case.id],
    indirect=["pair"],
)
def test_one_pass_standardises_each_batch_and_keeps_the_moments_of_all(pair: Pair, correction: str):
    wanted = reference(pair, correction, pair.images.split(4))(pair.held_out)
    assert distance(logits(corrected(pair, correction, batch_size=4), pair.held_out), wanted) < 1e-9


def test_corrections_keep_the_keys_where_the_table_says_so(pair: Pair):
    state = interpolate(*pair.states, ALPHA)
    before = {name: tensor.clone() for name, tensor in state.items()}
    a, b = sides_of(pair, pair.architecture == "resnet20")
    goal = goal_moments(a.moments, b.moments, ALPHA)
    for correction in defined(pair.architecture, pair.normalization):
        result = correct(pair.network, a.layout, state, correction, goal, pair.images, predicted=goal)
        kept = pair.normalization not in CORRECTIONS[correction].extra_layers
        assert (result.network is pair.network) == kept, correction
        assert (result.state.keys() == state.keys()) == kept, correction
        assert set(result.extra) == result.state.keys() - state.keys()
        # Strictly: every key, and no other, with the shapes that this network has.
        copy.deepcopy(result.network).load_state_dict(result.state, strict=True, assign=True)
        assert all(result.state[name].dtype == tensor.dtype for name, tensor in state.items())
        assert torch.equal(result.state["output.weight"], state["output.weight"])
    assert all(torch.equal(state[name], before[name]) for name in state)
    assert not any(module.training for module in pair.network.modules())


def test_goals_are_reached_and_what_is_reported_is_what_a_plain_pass_measures(pair: Pair):
    a, b = sides_of(pair)
    goal = goal_moments(a.moments, b.moments, ALPHA)
    state = interpolate(*pair.states, ALPHA)
    for correction, estimator in (("repair", "layerwise"), ("repair", "one-pass")):
        result = correct(pair.network, a.layout, state, correction, goal, pair.images, estimator=estimator)
        for report in report_layers(result.achieved, goal, a.moments, b.moments):
            assert max(report.mean_error, report.sd_error) < 1e-9, report
    ends = endpoint_goal(pair.fresh, pair.states[0], pair.images)
    assert list(ends) == list(a.moments)
    for name, (mean, sd) in ends.items():
        assert torch.allclose(a.moments[name].mean, mean, rtol=1e-9, atol=1e-9)
        assert torch.allclose(a.moments[name].sd, sd, rtol=1e-9, atol=1e-9)


def test_repair_of_a_network_with_itself_moves_no_weight(pair: Pair):
    """Where its BatchNorm statistics are those of these images; frozen ones may be any."""
    raw, _ = sides_of(pair)
    exact = raw.state
    if pair.normalization == "batch":
        exact = correct(
            pair.network, raw.layout, raw.state, "reset", raw.moments, pair.images, estimator="layerwise"
        ).state
    for correction in defined(pair.architecture, pair.normalization):
        row = CORRECTIONS[correction]
        if not row.layers or row.closed_form or row.blocks:
            continue
        a = measure_side(pair.network, raw.state if row.frozen else exact, pair.images)
        result = correct(pair.network, a.layout, a.state, correction, a.moments, pair.images)
        for name, tensor in result.state.items():
            before = a.state.get(name, torch.zeros_like(tensor))
            assert torch.allclose(tensor.double(), before.double(), rtol=1e-8, atol=1e-8), (correction, name)


def test_repair_and_reset_agree_for_any_sign_of_gamma(batch_pair: Pair):
    """Without eps to rounding, by either estimator, in batches too; at alpha 0 and 1 as between."""
    gammas = [batch_pair.states[0][f"{norm}.weight"] for norm in sides_of(batch_pair)[0].layout.norms]
    assert all((gamma < 0).any() and (gamma > 0).any() for gamma in gammas)
    for options in ({"batch_size": 4}, {"estimator": "layerwise"}):
        for alpha in (0.0, ALPHA, 1.0) if "batch_size" in options else (ALPHA,):
            one, other = (
                logits(corrected(batch_pair, name, alpha, **options), batch_pair.held_out)
                for name in ("repair", "reset")
            )
            assert distance(one, other) < 1e-9


def test_repair_and_reset_differ_by_eps_alone():
    """1e-5 beside pre-activations of variance about 1."""
    for kind in (("mlp", "batch", 3, 24), ("resnet20", "batch", 20, 1, 8)):
        pair = Pair(*kind)
        one, other = (logits(corrected(pair, name), pair.held_out) for name in ("repair", "reset"))
        assert 1e-9 < distance(one, other) < 1e-4


def test_one_pass_comes_within_a_few_thousandths_of_the_exact_estimator():
    """In float32; what is compared are the moments of the folded network, measured afterwards, with the goal's."""
    pair = Pair("resnet20", "batch", 20, 1, n_images=60, side=28)
    images = pair.images.float()
    states = [{n: t.float() if t.is_floating_point() else t for n, t in state.items()} for state in pair.states]
    a, b = (measure_side(pair.network, state, images) for state in states)
    goal = goal_moments(a.moments, b.moments, ALPHA)
    state = interpolate(*states, ALPHA)
    errors = []
    for options in ({"estimator": "layerwise"}, {"batch_size": 20}):
        result = correct(pair.network, a.layout, state, "repair", goal, images, **options)
        reports = report_layers(result.achieved, goal, a.moments, b.moments)
        errors.append(max(max(report.mean_error, report.sd_error) for report in reports))
    assert errors[0] < 1e-5
    assert 1e-5 < errors[1] < 5e-3


def test_with_frozen_statistics_repair_is_reset_where_these_are_the_exact_interpolated_moments(batch_pair: Pair):
    a, b = sides_of(batch_pair)
    goal = goal_moments(a.moments, b.moments, ALPHA)
    ordinary = interpolate(*batch_pair.states, ALPHA)
    special = dict(ordinary)
    for site in a.layout.layers:
        special[f"{site.norm}.running_mean"] = goal[site.name].mean
        special[f"{site.norm}.running_var"] = goal[site.name].sd.square()
    gaps = []
    for state in (special, ordinary):
        frozen, reset = (
            logits(correct(batch_pair.network, a.layout, state, name, goal, batch_pair.images), batch_pair.held_out)
            for name in ("repair/frozen", "reset")
        )
        gaps.append(distance(frozen, reset))
    assert gaps[0] < 1e-9
    assert gaps[1] > 1e-2  # Here the frozen statistics were drawn at random.


def test_the_closed_form_is_that_of_interpolated_preactivations_written_out(pair: Pair, monkeypatch):
    a, b = sides_of(pair)
    monkeypatch.setattr(
        "tasks.science.correction.preactivations._PAIRED_BYTES", 5 * 8 * a.layout.n_values
    )  # batches of 5 images
    covariances = matched_covariances(pair.network, a.layout, *pair.states, pair.images)
    predicted = predicted_moments(a.moments, b.moments, covariances, ALPHA)
    seen = []
    for state in pair.states:
        network, outputs = load(pair.fresh, state), {}
        for name in layer_names(network):
            network.get_submodule(name).register_forward_hook(
                lambda _m, _i, values, name=name, outputs=outputs: outputs.__setitem__(name, values)
            )
        network(pair.images)
        seen.append(outputs)
    for name, moments in predicted.items():
        mixed = ((1 - ALPHA) * seen[0][name] + ALPHA * seen[1][name]).transpose(0, 1).flatten(1)
        assert torch.allclose(moments.mean, mixed.mean(1), rtol=1e-9, atol=1e-9)
        assert torch.allclose(moments.sd, mixed.var(1, correction=0).sqrt(), rtol=1e-7, atol=1e-9)


def in_closed_form(pair: Pair) -> tuple[State, LayerMoments, LayerMoments, Corrected]:
    """The interpolated weights, the goal, the predicted moments, and what the correction by these makes."""
    a, b = sides_of(pair)
    goal = goal_moments(a.moments, b.moments, ALPHA)
    covariances = matched_covariances(pair.network, a.layout, *pair.states, pair.images)
    predicted = predicted_moments(a.moments, b.moments, covariances, ALPHA)
    state = interpolate(*pair.states, ALPHA)
    result = correct(pair.network, a.layout, state, "repair-closed-form", goal, pair.images, predicted=predicted)
    return state, goal, predicted, result


def test_the_closed_form_is_exact_in_the_first_layer_and_fixes_the_others_as_predicted(pair: Pair):
    a, b = sides_of(pair)
    state, goal, predicted, result = in_closed_form(pair)
    reports = report_layers(result.achieved, goal, a.moments, b.moments)
    assert max(reports[0].mean_error, reports[0].sd_error) < 1e-9
    assert max(report.sd_error for report in reports) > 1e-3
    plain = load(pair.fresh, state)
    for site in a.layout.layers:  # What a BatchNorm then expects is the goal.
        if site.norm is not None:
            norm = plain.get_submodule(site.norm)
            norm.running_mean.copy_(goal[site.name].mean)
            norm.running_var.copy_(goal[site.name].sd ** 2)
    made = wrap(plain, layer_names(plain), lambda n, m: Affine(m, (goal[n].mean, goal[n].sd)))
    for name, module in made.items():
        module.parts, module.calibrating = [(1, predicted[name].mean, predicted[name].sd ** 2)], False
    assert distance(logits(result, pair.held_out), plain(pair.held_out)) < 1e-9


def test_correlations_of_the_closed_form_are_those_with_the_moments_it_stands_for(pair: Pair):
    """Against a plain reference: every layer's own correction is left out in turn, and its moments are measured."""
    a, b = sides_of(pair)
    state, goal, predicted, result = in_closed_form(pair)
    reports = report_layers(result.achieved, goal, a.moments, b.moments, predicted)
    for site, report in zip(a.layout.layers, reports, strict=True):
        without = dict(result.state)
        without |= {name: state[name] for name in (f"{site.name}.weight", f"{site.name}.bias") if name in state}
        if f"{site.name}.bias" in without and f"{site.name}.bias" not in state:
            without[f"{site.name}.bias"] = torch.zeros_like(without[f"{site.name}.bias"])
        found = measure(result.network, without, [site], pair.images)[site.name]
        live = ~(predicted[site.name].dead() | goal[site.name].dead() | result.achieved[site.name].dead())
        for part, told in (("mean", report.mean_correlation), ("sd", report.sd_correlation)):
            both = torch.stack([getattr(predicted[site.name], part)[live], getattr(found, part)[live]])
            assert told == pytest.approx(float(torch.corrcoef(both)[0, 1]), abs=1e-6)
    assert reports[0].mean_correlation == pytest.approx(1, abs=1e-9)
    assert reports[0].sd_correlation == pytest.approx(1, abs=1e-9)
    assert min(report.sd_correlation for report in reports) < 0.999
    others = report_layers(result.achieved, goal, a.moments, b.moments)
    assert all(report.sd_correlation != report.sd_correlation for report in others)


def test_a_closed_form_that_runs_away_is_a_row(blobs: Dataset):
    """Deep behind the first layer the prediction can be off by any factor: then losses overflow, and are kept."""
    pair = Pair("mlp", "none", 3, 24)
    images = pair.images.float()
    states = [{name: tensor.float() for name, tensor in state.items()} for state in pair.states]
    for state in states:
        state["hidden.2.linear.weight"] = state["hidden.2.linear.weight"] * 1e25
        state["output.weight"] = state["output.weight"] * 1e25
    sides = tuple(measure_side(pair.network, state, images) for state in states)
    split = Examples(images, torch.zeros(len(images), dtype=torch.int64))
    dataset = Dataset(blobs.spec, split, split, 0.0)
    (point,) = measure_path(pair.network, sides, "repair-closed-form", [0.5], dataset, images)
    assert not torch.tensor(point.splits["test"].loss).isfinite()
    assert 0 <= point.splits["test"].accuracy <= 1
    assert len(point.layers) == 3


def test_running_moments_are_those_of_float64_however_the_values_lie_and_come():
    values = torch.randn(70, 5, 24, 24, generator=torch.Generator().manual_seed(0)) + 1000
    values[:, 3] = 7.0
    reference = values.double().transpose(0, 1).flatten(1)
    for layout in (torch.contiguous_format, torch.channels_last):
        running = RunningMoments()
        for batch in values.contiguous(memory_format=layout).split(32):
            running.add(batch, 1)
        found = running.result()
        assert torch.allclose(found.mean, reference.mean(1), rtol=1e-5)
        assert torch.allclose(found.sd, reference.var(1, correction=0).sqrt(), rtol=1e-3, atol=1e-2)
        assert found.sd[3] < 1e-6
        assert found.dead().tolist() == [False, False, False, True, False]
    last = RunningMoments()
    last.add(values.movedim(1, -1), -1)
    assert torch.allclose(last.result().mean, reference.mean(1), rtol=1e-5)


class ListedSpec:
    """A permutation spec written out: axis name -> (tensor, dimension) pairs."""

    def __init__(self, axes: dict[str, list[tuple[str, int]]]) -> None:
        self.axes = axes

    def apply(self, state: State, permutation: dict[str, torch.Tensor]) -> State:
        permuted = dict(state)
        for axis, slots in self.axes.items():
            for tensor, dim in slots:
                permuted[tensor] = permuted[tensor].index_select(dim, permutation[axis])
        return permuted


def resnet20_spec() -> ListedSpec:
    def norm(path: str) -> list[tuple[str, int]]:
        return [(f"{path}.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")]

    axes: dict[str, list[tuple[str, int]]] = {}
    streams = [[("stem.conv.weight", 0), *norm("stem.norm")], [], []]
    for stage in range(3):
        for block in range(3):
            path = f"stages.{stage}.blocks.{block}"
            axes[path] = [(f"{path}.conv1.weight", 0), *norm(f"{path}.norm1"), (f"{path}.conv2.weight", 1)]
            source = stage - 1 if stage and block == 0 else stage
            streams[source].append((f"{path}.conv1.weight", 1))
            streams[stage] += [(f"{path}.conv2.weight", 0), *norm(f"{path}.norm2")]
            if source != stage:
                streams[source].append((f"{path}.shortcut.conv.weight", 1))
                streams[stage] += [(f"{path}.shortcut.conv.weight", 0), *norm(f"{path}.shortcut.norm")]
    streams[2].append(("output.weight", 1))
    return ListedSpec(axes | {f"stream{stage}": slots for stage, slots in enumerate(streams)})


def test_a_permuted_side_has_the_moments_of_the_permuted_network_blocks_included():
    pair, spec = Pair("resnet20", "batch", 20, 1), resnet20_spec()
    rng = torch.Generator().manual_seed(3)
    state = pair.states[0]
    permutation = {
        axis: torch.randperm(state[slots[0][0]].shape[slots[0][1]], generator=rng) for axis, slots in spec.axes.items()
    }
    side = measure_side(pair.network, state, pair.images, blocks=True)
    permuted = side.permuted(spec, permutation)
    one, other = (functional_call(pair.network, s.state, (pair.held_out,)) for s in (side, permuted))
    assert distance(one, other) < 1e-12
    measured = measure_side(pair.network, permuted.state, pair.images, blocks=True)
    assert len(permuted.moments) == 21 + 9
    for name, moments in measured.moments.items():
        assert torch.allclose(permuted.moments[name].mean, moments.mean, rtol=1e-9, atol=1e-9), name
        assert torch.allclose(permuted.moments[name].sd, moments.sd, rtol=1e-9, atol=1e-9), name


def test_paths_of_convolutional_networks_end_where_they_should():
    pair = Pair("resnet20", "layer", 20, 1, n_images=8)
    sides = tuple(sides_of(pair))
    split = Examples(pair.images, torch.arange(len(pair.images)) % 10)
    dataset = Dataset(pair.cell.data, split, split, 0.0)
    ends = tuple({"train": Evaluation(k, 0.5, 8), "test": Evaluation(k, 0.5, 8)} for k in (1.0, 2.0))
    raw = measure_path(pair.network, sides, "none", [0.0, 0.5, 1.0], dataset, pair.images, ends)
    assert (raw[0].splits, raw[2].splits) == ends
    assert [len(point.layers) for point in raw] == [0, 21, 0]
    made = measure_path(pair.network, sides, "none", [0.0, 1.0], dataset, pair.images)
    fixed = measure_path(pair.network, sides, "repair", [0.0, 0.5, 1.0], dataset, pair.images)
    assert [len(point.layers) for point in fixed] == [21, 21, 21]
    for end, point in zip(made, (fixed[0], fixed[2]), strict=True):
        assert point.splits["test"].loss == pytest.approx(end.splits["test"].loss, rel=1e-9)
    with pytest.raises(ValueError, match="correction reset needs a network with BatchNorm, and this one has none"):
        measure_path(pair.network, sides, "reset", [0.5], dataset, pair.images)
    with pytest.raises(ValueError, match="there is no correction 'magic'; known: none, repair"):
        measure_path(pair.network, sides, "magic", [0.5], dataset, pair.images)
