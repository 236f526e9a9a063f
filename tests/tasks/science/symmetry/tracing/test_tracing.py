"""Traced specs are exact, complete where the generator of a network knows the answer, and never wrong."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, seed, settings
from torch import Tensor, nn

from tasks.science.symmetry.permutation import Permutation, PermutationSpec
from tasks.science.symmetry.proof import FUNCTION_TOLERANCE
from tasks.science.symmetry.tracing import FAILED_CHECK, UNREACHED, TraceError, trace_permutation_spec
from tasks.science.symmetry.tracing.check import Check, read
from tasks.science.symmetry.tracing.graph import module_of, operation_name, trace_graph
from tests.tasks.science import random_operations as random_operations  # Enters its blocks into the table.
from tests.tasks.science.handwritten import CASES
from tests.tasks.science.handwritten_operations import OPERATIONS
from tests.tasks.science.random_networks import Known, RandomNetwork, networks


def _documentation() -> Any:
    path = Path(__file__).parents[5] / "docs" / "networks.py"
    module = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("networks_page", path))  # type: ignore[arg-type]
    sys.modules["networks_page"] = module
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


page = _documentation()
EVERY_NETWORK = page.every_network()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def largest_error(network: nn.Module, inputs: tuple[Tensor, ...], spec: PermutationSpec, n: int = 3) -> float:
    check = Check(network, inputs, ())
    return max(check.proof.error(spec, spec.random(torch.Generator().manual_seed(i))) for i in range(n))


@pytest.mark.parametrize("name", [*sorted(CASES), *sorted(OPERATIONS)])
def test_handwritten_network_is_exact_without_the_net_and_every_free_axis_moves(name: str) -> None:
    build, shape, sizes = (CASES | OPERATIONS)[name]
    torch.manual_seed(0)
    network, inputs = build(), (torch.randn(*shape),)
    spec = trace_permutation_spec(network, inputs, check=False)
    assert largest_error(network, inputs, spec) <= FUNCTION_TOLERANCE
    assert sorted(a.size for a in spec.axes) == sizes


def test_the_net_keeps_the_axes_of_attention_under_a_mask_of_numbers() -> None:
    """Without gradients torch would take one fused operation for a layer, which reads such a mask as true and false."""
    build, shape, sizes = OPERATIONS["WindowedEncoder"]
    spec = trace_permutation_spec(build(), (torch.randn(*shape),))
    assert sorted(a.size for a in spec.axes) == sizes


QUICK = ("resnet18", "squeezenet1_1")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in page.REPRESENTATIVES]
)
def test_torchvision_family_is_exact_and_every_expected_axis_moves(name: str) -> None:
    row = page.examine(name)
    assert row.error <= FUNCTION_TOLERANCE
    assert row.n_found == row.n_expected
    assert row.caught == 0


@pytest.mark.thorough
@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_every_torchvision_network_is_exact_and_nine_of_ten_expected_axes_move(name: str) -> None:
    """Judges the rows of docs/networks.json, which `make test-thorough` makes first: nothing is examined twice."""
    row = page.read_rows(page.ROWS).get(name)
    assert row is not None, f"run docs/networks.py {name}"
    assert row.tracer == page.tracer_state(), f"another state of the tracer was examined: run docs/networks.py {name}"
    assert not row.failure, row.failure
    assert row.error <= FUNCTION_TOLERANCE
    assert row.n_found >= 0.9 * row.n_expected
    assert row.caught == 0


HELD_IN_ZOO = {"timm/efficientvit_b0": 41 / 117}
"""Of these networks fewer than nine of ten expected axes move: docs/networks.md says what holds them."""


@pytest.mark.thorough
@pytest.mark.parametrize("name", page.ZOO)
def test_every_network_of_timm_and_transformers_is_exact_and_nine_of_ten_expected_axes_move(name: str) -> None:
    row = page.read_rows(page.ROWS).get(name)
    assert row is not None, f"run docs/networks.py {name}"
    assert row.tracer == page.tracer_state(), f"another state of the tracer was examined: run docs/networks.py {name}"
    assert not row.failure, row.failure
    assert row.error <= FUNCTION_TOLERANCE
    assert row.n_found >= HELD_IN_ZOO.get(name, 0.9) * row.n_expected
    assert row.caught == 0


def test_forty_networks_of_timm_and_transformers_have_rows_and_every_expected_axis_but_of_one_moves() -> None:
    rows = [row for name, row in page.read_rows(page.ROWS).items() if name in page.ZOO]
    assert len(rows) >= 40
    assert not any(row.failure or row.refusal or row.caught for row in rows)
    assert {row.name for row in rows if row.n_found < row.n_expected} <= set(HELD_IN_ZOO)
    assert all(row.held for row in rows if row.misses)


def test_the_page_of_networks_is_made_from_the_rows_and_names_every_miss_and_what_is_left_out() -> None:
    assert page.page(page.read_rows(page.ROWS)) == page.ROWS.with_suffix(".md").read_text()
    missed = page.Row("resnet18", "ResNet", 12, 11, 11, 1e-15, misses=[page.Expected("stem", "conv1.weight", 64)])
    rows = {
        "resnet18": missed,
        "vgg11": page.Row("vgg11", "VGG", 10, misses=[], refusal="VGG cannot be traced"),
        "vit_h_14": page.Row("vit_h_14", failure="stopped by signal 9, after 40 s at 13 GB"),
    }
    text = page.page(rows)
    assert (
        f"2 of {len(EVERY_NETWORK)} networks are examined; 11 of 22 expected axes move; largest error 1.0e-15" in text
    )
    assert "\n- resnet18: stem conv1.weight (1 x 64)\n- vgg11: VGG cannot be traced\n" in text
    left = text.partition("## Not examined")[2]
    assert "- vit_h_14: stopped by signal 9, after 40 s at 13 GB\n" in left
    assert left.count(": not yet\n") == len(EVERY_NETWORK) + len(page.ZOO) - 3


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    misses = [page.Expected("stem", "conv1.weight", 64, 2)]
    rows = {"b": page.Row("b", "ResNet", 12, 11, 11, 1e-15, 2.5, 0, misses, peak_gb=1.5), "a": page.Row("a")}
    path = tmp_path / "rows.json"
    assert page.read_rows(path) == {}
    page.write_rows(path, rows)
    again = page.read_rows(path)
    assert list(again) == ["a", "b"]
    assert again["b"] == rows["b"]
    assert repr(again["a"]) == repr(rows["a"])  # it holds what is not a number
    assert [p.name for p in tmp_path.iterdir()] == ["rows.json"]


def test_a_run_goes_on_where_one_was_stopped_and_takes_the_smallest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, state, asked = tmp_path / "rows.json", page.tracer_state(), list[str]()

    def examine(name: str, _memory: float | None) -> Any:
        asked.append(name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return page.Row(name, tracer=state)

    def run(*arguments: str) -> list[str]:
        asked.clear()
        monkeypatch.setattr(sys, "argv", ["networks.py", "--rows", str(path), "--out", str(tmp_path / "p"), *arguments])
        page.main()
        return list(asked)

    monkeypatch.setattr(page, "examine_apart", examine)
    monkeypatch.setattr(page, "REPRESENTATIVES", ["vgg11_bn", "resnet18", "squeezenet1_1", "resnet50"])
    old, failed = page.Row("resnet50", tracer="old"), page.Row("squeezenet1_1", tracer=state, failure="killed")
    page.write_rows(path, {"resnet50": old, "squeezenet1_1": failed})
    with pytest.raises(KeyboardInterrupt):
        run()
    assert asked == ["squeezenet1_1", "resnet18", "vgg11_bn"]
    assert run() == ["vgg11_bn"]
    assert run() == []
    assert run("--fresh") == ["resnet50"]
    assert run("resnet18") == ["resnet18"]
    assert set(page.read_rows(path)) == {"vgg11_bn", "resnet18", "squeezenet1_1", "resnet50"}


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "reason"), [(None, "Unknown model no_such"), (0.05, "GB")])
def test_a_network_that_cannot_be_examined_leaves_a_note(memory: float | None, reason: str) -> None:
    row = page.examine_apart("no_such", memory)
    assert reason in row.failure
    assert f"after {row.seconds:.0f} s at {row.peak_gb:g} GB" in row.failure


def _examine_random_networks(n_examples: int, number: int) -> Counter[str]:
    count: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=n_examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(networks())
    def run(case: tuple[RandomNetwork, tuple[Tensor, ...], list[Known]]) -> None:
        network, inputs, known = case
        count["networks"] += 1
        try:
            spec = trace_permutation_spec(network, inputs, check=False)
        except TraceError:
            return
        count["traced"] += 1
        assert largest_error(network, inputs, spec, 2) <= FUNCTION_TOLERANCE, f"wrong spec for {network}\n{spec}"
        have = Counter((k, d, a.size) for a in spec.axes for k, d in {(s.key, s.dim) for s in a.slots})
        for axis in known:
            place = (axis.key, axis.dim, axis.size)
            moving = min(have[place], axis.copies)
            have[place] -= moving
            count["known free"] += axis.copies
            count["moving"] += moving

    run()
    print(dict(count))
    return count


def test_random_networks_never_get_a_wrong_spec(capsys: pytest.CaptureFixture[str]) -> None:
    count = _examine_random_networks(30, 0)
    with capsys.disabled():
        print(f"\n{dict(count)}")
    assert count["traced"] >= 0.9 * count["networks"]
    assert count["moving"] >= 0.8 * count["known free"]


@pytest.mark.thorough
def test_five_thousand_random_networks_never_get_a_wrong_spec(capsys: pytest.CaptureFixture[str]) -> None:
    count = _examine_random_networks(5000, 1)
    with capsys.disabled():
        print(f"\n{dict(count)}")
    assert count["traced"] >= 0.9 * count["networks"]
    assert count["moving"] >= 0.8 * count["known free"]


def test_swapping_key_value_heads_takes_their_query_heads_along() -> None:
    build, shape, _ = OPERATIONS["SharedHeads"]
    network, inputs = build(), (torch.randn(*shape),)
    spec = trace_permutation_spec(network, inputs)
    groups = next(a for a in spec.axes if a.size == 2 and a.parent is None)
    permutation = Permutation({**spec.identity(), groups.name: np.array([1, 0])})
    before = network.state_dict()
    after = spec.apply(before, permutation)
    for key, order in {"q.weight": [2, 3, 0, 1], "k.weight": [1, 0], "v.weight": [1, 0]}.items():
        assert torch.equal(after[key], before[key].view(-1, 4, 8)[order].flatten(0, 1))
    assert torch.equal(after["o.weight"], before["o.weight"].view(8, 4, 4)[:, [2, 3, 0, 1]].flatten(1))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3))


@pytest.mark.parametrize("training", [True, False])
def test_tracing_leaves_the_network_and_the_random_state_as_they_were(training: bool) -> None:
    network = small().train(training)
    network[1].eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    modes = [m.training for m in network.modules()]
    generator = torch.get_rng_state()
    trace_permutation_spec(network, (torch.ones(2, 4),))
    assert torch.equal(torch.get_rng_state(), generator)
    assert [m.training for m in network.modules()] == modes
    after = network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_checking_a_network_of_two_names_for_one_layer_leaves_it_as_it_was() -> None:
    build, shape, _ = CASES["SharedModule"]
    network = build()
    before = {name: id(p) for name, p in network.named_parameters(remove_duplicate=False)}
    values = {k: v.clone() for k, v in network.state_dict().items()}
    trace_permutation_spec(network, (torch.randn(*shape),))
    assert {name: id(p) for name, p in network.named_parameters(remove_duplicate=False)} == before
    assert all(torch.equal(v, values[k]) for k, v in network.state_dict().items())


class Stores(nn.Module):
    """Keeps its last activation, as many networks do for visualisation."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.a(x)
        return self.last.sum(1)


def test_what_the_forward_pass_stores_does_not_leak_out() -> None:
    network = Stores()
    with contextlib.suppress(TraceError):
        trace_permutation_spec(network, (torch.ones(2, 4),), check=False)
    assert network.last is None


def test_several_threads_may_trace_at_once() -> None:
    names = ["GroupedConv", "Transposed", "EncoderLayer", "HandMadeAttention"]

    def trace(name: str) -> PermutationSpec:
        build, shape, _ = CASES[name]
        return trace_permutation_spec(build(), (torch.zeros(*shape),))

    with ThreadPoolExecutor(len(names)) as pool:
        together = list(pool.map(trace, names))
    assert together == [trace(name) for name in names]


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class ReadsValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.max())


class DataDependentSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0].sum()


@pytest.mark.parametrize(
    ("network", "place"),
    [(Branches(), "if x.sum() > 0:"), (ReadsValue(), "float(x.max())"), (DataDependentSize(), "index in forward")],
)
def test_forward_that_depends_on_data_is_refused_with_its_place(network: nn.Module, place: str) -> None:
    with pytest.raises(TraceError) as caught:
        trace_permutation_spec(network, (torch.randn(2, 3),))
    assert isinstance(caught.value, ValueError)
    assert type(network).__name__ in str(caught.value)
    assert place in str(caught.value)


def test_inputs_that_are_no_tuple_are_refused() -> None:
    with pytest.raises(TypeError, match="must be a tuple of tensors, got Tensor"):
        trace_permutation_spec(small(), torch.ones(2, 4))  # type: ignore[arg-type]


class Auxiliary(nn.Module):
    """A head that training mode alone uses, fed by the hidden axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.aux, self.dead = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x).relu()
        return (self.c(x), self.aux(x)) if self.training else self.c(x)


def test_axis_that_feeds_an_auxiliary_head_moves_with_it() -> None:
    network = Auxiliary()
    spec = trace_permutation_spec(network, (torch.randn(2, 4),))
    (axis,) = spec.axes
    assert ("aux.weight", 1) in {(s.key, s.dim) for s in axis.slots}
    assert spec.training == "traced"
    assert spec.unreached == ("dead.weight", "dead.bias")
    state = {k: v.double() for k, v in network.state_dict().items()}
    permuted = spec.apply(state, spec.random(torch.Generator().manual_seed(0)))
    x = torch.randn(2, 4, dtype=torch.float64)
    for before, after in zip(
        torch.func.functional_call(network.train(), state, (x,)),
        torch.func.functional_call(network, permuted, (x,)),
        strict=True,
    ):
        assert torch.allclose(before, after, rtol=0, atol=1e-12)


class BrokenTraining(Auxiliary):
    def forward(self, x: Tensor) -> Any:
        if self.training and x.sum() > 0:
            return self.aux(x)
        return super().forward(x)


def test_training_mode_that_cannot_be_traced_is_left_unverified() -> None:
    spec = trace_permutation_spec(BrokenTraining(), (torch.randn(2, 4),))
    assert spec.training.startswith("unverified: BrokenTraining cannot be traced")
    assert "aux.weight" in spec.unreached
    assert [a.size for a in spec.axes] == [6]


def test_axis_is_read_after_its_nonlinearity_and_a_stream_after_its_last_block() -> None:
    network, inputs = page.build("resnet18")
    spec = trace_permutation_spec(network, inputs, check=True)
    stream, inner = spec.by_name["layer2"], spec.by_name["layer2.1.conv1"]
    assert stream.reading is not None
    assert inner.reading is not None
    assert (stream.reading.module, stream.reading.kind) == ("layer2", "nonlinearity")
    assert (inner.reading.module, inner.reading.call, inner.reading.kind) == ("layer2.1.relu", 0, "nonlinearity")
    assert next(r.module for r in inner.readings if r.kind == "linear") == "layer2.1.conv1"


def test_reading_hands_out_the_units_in_the_order_of_the_slots() -> None:
    network = small().double().eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    spec = trace_permutation_spec(network, (x,))
    (axis,) = spec.axes
    permutation = spec.random(torch.Generator().manual_seed(2))
    seen: list[Tensor] = []
    assert axis.reading is not None
    module = network.get_submodule(axis.reading.module or "")
    with module.register_forward_hook(lambda _module, _inputs, out: seen.append(out.clone())):
        network(x)
        network.load_state_dict(spec.apply(network.state_dict(), permutation))
        network(x)
    before, after = (read(t, axis.reading) for t in seen)
    assert torch.equal(before[:, torch.from_numpy(permutation[axis.name])], after)


class FoldsTheBatch(nn.Module):
    """Normalises every map of every image by itself, as one image of n * c channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.folded, self.b = nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        folded = F.batch_norm(x.reshape(1, n * c, h, w), None, None, training=True)
        return self.b(self.folded(folded).reshape(n, c, h, w))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_an_axis_is_not_read_where_the_batch_is_folded_into_its_units(n: int) -> None:
    spec = trace_permutation_spec(FoldsTheBatch(), (torch.randn(n, 3, 4, 4),))
    (axis,) = spec.axes
    assert axis.size == 6
    assert axis.readings
    assert {r.module for r in axis.readings} == {"a"}
    assert {r.n_samples for r in axis.readings} == {16 * n}


class OneBatchOnly(FoldsTheBatch):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(2, 3, 4, 4))


def test_a_network_of_one_batch_that_folds_it_is_not_read_at_all() -> None:
    (axis,) = trace_permutation_spec(OneBatchOnly(), (torch.randn(2, 3, 4, 4),)).axes
    assert axis.size == 6
    assert axis.readings == ()


class PositionBias(nn.Module):
    """Adds what a small network makes of the positions: its hidden axis sees no image."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out, self.c = nn.Linear(2, 8), nn.Linear(8, 5), nn.Linear(5, 3)
        self.register_buffer("positions", torch.randn(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.c((x + self.out(torch.relu(self.hidden(self.positions)))).relu())


def test_an_axis_that_sees_no_image_is_free_and_not_read() -> None:
    (axis,) = trace_permutation_spec(PositionBias(), (torch.randn(2, 5),)).axes
    assert axis.size == 8
    assert axis.readings == ()


class AuxiliaryHidden(Auxiliary):
    """The hidden axis of the head exists in training mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x).relu()
        return (self.c(x), self.aux(self.inner(x).relu())) if self.training else self.c(x)


def test_an_axis_of_training_mode_alone_is_not_read_in_eval_mode() -> None:
    spec = trace_permutation_spec(AuxiliaryHidden(), (torch.randn(2, 4),))
    assert spec.by_name["a"].readings
    assert spec.by_name["inner"].readings == ()


def test_fixed_axes_state_their_reason() -> None:
    build, shape, _ = CASES["UnknownOperation"]
    spec = trace_permutation_spec(build(), (torch.randn(*shape),))
    reasons = {f.slots[0]: f.reason for f in spec.fixed}
    assert "which has no rule" in reasons["a.weight", 0]
    assert reasons["c.weight", 0] == "output"
    assert "fixed  8  a.weight:0, a.bias:0" in repr(spec)


@torch.library.custom_op("repairlab_test::linear", mutates_args=())
def _namesake(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight


@_namesake.register_fake
def _(x: Tensor, _weight: Tensor) -> Tensor:
    return torch.empty(x.shape)


class _Wrapped(nn.Module):
    """Something odd between two layers."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.a, self.w, self.c = nn.Linear(4, 8), nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.function(self.a(x).relu(), self.w))


def _overwrite(x: Tensor, _: Tensor) -> Tensor:
    x[:, :4] = x[:, 4:]
    return x


ODD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "namesake": _namesake,
    "overwritten": _overwrite,
    "vector": lambda x, w: x + F.linear(x, w[0])[:, None],
    "empty": lambda x, w: x + F.pad(x[:, :0] @ w[:0], (0, 0)),
    "bytes": lambda x, w: x * w.view(torch.uint8).float().mean(),
}


@pytest.mark.parametrize("name", ODD)
def test_what_has_no_rule_is_held_and_never_an_error(name: str) -> None:
    """An operation of another library by a known name, overlapping writes, sizes 0, bytes seen as another type."""
    torch.manual_seed(0)
    network, inputs = _Wrapped(ODD[name]), (torch.randn(2, 4),)
    spec = trace_permutation_spec(network, inputs, check=False)
    assert largest_error(network, inputs, spec) <= FUNCTION_TOLERANCE
    assert repr(trace_permutation_spec(network, inputs)) == repr(spec)


def test_a_network_that_writes_to_its_input_is_checked_on_copies() -> None:
    network = _Wrapped(lambda x, _: x)
    network.forward = lambda x: network.c(network.a(x.mul_(0.5)).relu())  # type: ignore[method-assign]
    x = torch.randn(2, 4, dtype=torch.float64)
    before = x.clone()
    assert [axis.size for axis in trace_permutation_spec(network, (x,)).axes] == [8]
    assert torch.equal(x, before)


def test_dead_parameters_are_listed_and_not_claimed() -> None:
    spec = trace_permutation_spec(Auxiliary(), (torch.randn(2, 4),))
    assert not any(s.key.startswith("dead") for a in spec.axes for s in a.slots)
    assert all(f.reason != UNREACHED for f in spec.fixed)
    assert "not read by a forward pass: dead.weight, dead.bias" in repr(spec)


def test_numerical_check_takes_back_an_axis_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The net can fail: with a rule that forgets the tie of a sum, it holds the axes at fault still."""
    from tasks.science.symmetry.tracing import operations

    real = operations.combine

    def forgetful(demands: Any, layouts: Any, shape: Any) -> Any:
        return real(demands, layouts[:1] if demands.here.startswith("mul") else layouts, shape)

    monkeypatch.setattr(operations, "combine", forgetful)
    build, shape, _ = CASES["ChunkAndGate"]
    network, inputs = build(), (torch.randn(*shape),)
    wrong = trace_permutation_spec(network, inputs, check=False)
    assert largest_error(network, inputs, wrong) > 1e-3
    held = trace_permutation_spec(network, inputs)
    assert FAILED_CHECK in {f.reason for f in held.fixed}
    assert not held.axes or largest_error(network, inputs, held) <= FUNCTION_TOLERANCE


def test_spec_traced_at_one_batch_size_is_the_spec_at_another() -> None:
    build, shape, _ = CASES["Attention"]
    network = build()
    one, three = (trace_permutation_spec(network, (torch.randn(n, *shape[1:]),)) for n in (1, 3))
    assert [(a.name, a.size) for a in one.axes] == [(a.name, a.size) for a in three.axes]
    for a, b in zip(one.axes, three.axes, strict=True):
        assert all(np.array_equal(s.positions, t.positions) for s, t in zip(a.slots, b.slots, strict=True))


def test_a_check_without_memory_is_no_check_in_float32(monkeypatch: pytest.MonkeyPatch):
    def exhausted(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 8 bytes")

    monkeypatch.setattr(Check, "_prepare", exhausted)
    with pytest.raises(MemoryError, match="takes twice its network's memory in float64"):
        Check(nn.Linear(2, 2), (torch.zeros(1, 2),), ())


class InTwoPlaces(nn.Module):
    """A layer of a container and of an attribute, taken from the latter before the container is looked into."""

    def __init__(self, *, normed: bool) -> None:
        super().__init__()
        second, n = (nn.BatchNorm1d(16), 16) if normed else (nn.Linear(16, 9), 9)
        self.layers = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), second)
        self.last = self.layers[2]
        self.logits = nn.Linear(n, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(torch.relu(self.last(torch.relu(self.layers[0](images)))))


class NamedAlike(nn.Module):
    """The name of the layer in its container is that of another layer of the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"hidden": nn.Linear(12, 12)})
        self.first = self.inner["hidden"]
        self.hidden = nn.Linear(12, 9)

    def forward(self, images: Tensor) -> Tensor:
        return self.hidden(torch.relu(self.first(torch.relu(self.inner["hidden"](images)))))


@pytest.mark.parametrize("normed", [False, True])
def test_a_layer_of_two_places_is_read_under_a_path_that_it_has(normed: bool) -> None:
    network = InTwoPlaces(normed=normed)
    spec = trace_permutation_spec(network, (torch.randn(2, 12),))
    assert sorted(a.size for a in spec.axes) == ([16] if normed else [9, 16])
    modules = {r.module for a in spec.axes for r in a.readings} - {None}
    assert modules == {"layers.0", "layers.2"}


def test_a_layer_of_two_places_is_not_taken_for_another_of_its_name() -> None:
    network = NamedAlike().eval()
    graph = trace_graph(network, (torch.randn(2, 12),), training=False)
    assert [module_of(n) for n in graph.nodes if operation_name(n) == "linear"] == [
        ("inner.hidden", 0),
        ("inner.hidden", 1),
        ("hidden", 0),
    ]
