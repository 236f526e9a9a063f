"""A group of seeds computed together, in every scheme, against each seed's network by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from tasks.science.data.examples import Dataset, Examples
from tasks.science.evaluation.functional import mode
from tasks.science.networks import build_training_network, initial_state
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import stream, weights_digest
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State
from tasks.science.training import recording, seed_group
from tasks.science.training.judging import Training
from tasks.science.training.memory import default_group_size, fitting_seeds, seed_bytes
from tasks.science.training.recording import WARM_UP_STEPS, RecordedStep, is_recorded
from tasks.science.training.seed_group import SeedGroup
from tasks.science.training.stacking import Scheme, bind, choose_scheme
from tasks.science.training.training import train_group

RECIPE = Recipe("toy", batch_size=16, epochs=2, learning_rate=0.02, warmup=0.2, flip=True, translate=1)
MLPS = [("mlp", "none", 12, 3), ("mlp", "batch", 12, 3)]
KINDS = [
    *MLPS,
    ("vgg11", "batch", 1, 11),
    ("resnet20", "batch", 1, 20),
    ("resnet20", "layer", 1, 20),
    ("resnet20", "fixup", 1, 20),
]
WAYS = [*((kind, "batched") for kind in MLPS), *((kind, way) for kind in KINDS for way in ("apart", "vectorised"))]
SEEDS = (0, 3, 4)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    train, test = (
        Examples(torch.randn(48, 1, 8, 8, generator=generator), torch.randint(0, 10, (48,), generator=generator))
        for _ in range(2)
    )
    return Dataset(DataSpec("toy", "0" * 64, 48, 48, 10, (1, 8, 8)), train, test, black=-1.0)


def make_cell(dataset: Dataset, kind: tuple[str, str, int, int], **changes) -> Cell:
    architecture, normalization, width, depth = kind
    recipe = dataclasses.replace(RECIPE, **changes)
    return Cell(dataset.spec, architecture, normalization, width, depth, recipe)


def draw_stack(network: nn.Module, dtype: torch.dtype) -> State:
    states = [initial_state(network, stream("initialization", seed)) for seed in SEEDS]
    stacks = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    return {name: stack.to(dtype) if stack.is_floating_point() else stack for name, stack in stacks.items()}


def show_images(dtype: torch.dtype) -> Tensor:
    return torch.randn(len(SEEDS), 8, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "scheme", "dtype"),
    [*((*way, torch.float64) for way in WAYS), *((*way, torch.float32) for way in WAYS if way[0] in MLPS)],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, tuple) else str(value),
)
def test_a_group_has_the_logits_gradients_and_running_statistics_of_each_seed(
    dataset: Dataset, kind: tuple[str, str, int, int], scheme: Scheme, dtype: torch.dtype
):
    atol = 1e-10 if dtype == torch.float64 else 1e-4
    network = build_training_network(make_cell(dataset, kind))
    weights, images = draw_stack(network, dtype), show_images(dtype)
    plain = [{name: stack[index].clone() for name, stack in weights.items()} for index in range(len(SEEDS))]
    parts, forward = bind(network, weights, scheme)
    with mode(network, training=True):
        logits = forward(images)
        logits.square().sum().backward()
        for index, state in enumerate(plain):
            for name, _ in network.named_parameters():
                state[name].requires_grad_()
            alone = functional_call(network, state, (images[index],))
            alone.square().sum().backward()
            torch.testing.assert_close(logits[index], alone, rtol=0, atol=atol)
    for index, state in enumerate(plain):
        for name, tensor in state.items():
            torch.testing.assert_close(weights[name][index], tensor.detach(), rtol=0, atol=atol, msg=name)
            if tensor.grad is not None:
                given = parts[index][name].grad if scheme == "apart" else parts[0][name].grad[index]
                scale = float(tensor.grad.abs().max()) + 1
                torch.testing.assert_close(given / scale, tensor.grad / scale, rtol=0, atol=atol, msg=name)


def test_what_is_bound_shares_its_memory_with_the_stacks(dataset: Dataset):
    """Updates in place are of the stacks, whichever way they are computed."""
    for kind, scheme in WAYS:
        network = build_training_network(make_cell(dataset, kind))
        weights = draw_stack(network, torch.float32)
        parts, _ = bind(network, weights, scheme)
        assert len(parts) == (3 if scheme == "apart" else 1)
        with torch.no_grad():
            for part in parts:
                for name, _ in network.named_parameters():
                    part[name].fill_(0.5)
        assert all((weights[name] == 0.5).all() for name, _ in network.named_parameters())


def test_a_scheme_that_cannot_be_is_refused_with_the_way_out(dataset: Dataset):
    resnet = make_cell(dataset, KINDS[3])
    with pytest.raises(ValueError, match="only an MLP is batched, got a ResNet: compute its seeds apart"):
        list(train_group(resnet, [0, 1], dataset, scheme="batched"))
    half = make_cell(dataset, KINDS[3], precision="bfloat16")
    with pytest.raises(ValueError, match="recipe toy trains in bfloat16, which torch does not compute over a dimension "
                       "of seeds on a CPU: compute them apart"):  # fmt: skip
        list(train_group(half, [0, 1], dataset, scheme="vectorised"))


def test_several_seeds_of_an_mlp_are_batched_and_others_apart(dataset: Dataset):
    mlp, resnet = (build_training_network(make_cell(dataset, kind)) for kind in (KINDS[0], KINDS[3]))
    assert [choose_scheme(mlp, n_seeds) for n_seeds in (1, 8)] == ["apart", "batched"]
    assert [choose_scheme(resnet, n_seeds) for n_seeds in (1, 8)] == ["apart", "apart"]


def test_steps_are_recorded_on_a_gpu_but_for_user_defined_networks_and_float16(dataset: Dataset):
    gpu, cell = torch.device("cuda"), make_cell(dataset, KINDS[0])
    assert is_recorded(cell, gpu)
    assert not is_recorded(cell, torch.device("cpu"))
    assert not is_recorded(make_cell(dataset, KINDS[0], precision="float16", skip_nonfinite=True), gpu)
    assert not is_recorded(dataclasses.replace(cell, architecture="mine:build", graph="0" * 64), gpu)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps are recorded on the CPU too: a replay runs the step on the tensors that it was recorded with. Returns how
    many tensors each recorded step has."""
    found: list[int] = []

    def record(step: Callable[..., None], inputs: tuple[Tensor, ...]) -> Callable[[], object]:
        found.append(len(inputs))
        return lambda: step(*inputs)

    monkeypatch.setattr(recording, "record_graph", record)
    monkeypatch.setattr(seed_group, "is_recorded", lambda *_: True)
    return found


@pytest.mark.parametrize("kind", [*MLPS, KINDS[3]], ids=lambda kind: "-".join(kind[:2]))
@pytest.mark.parametrize("group_size", [1, 2])
def test_recorded_steps_are_steps_like_others(
    dataset: Dataset, kind: tuple[str, str, int, int], group_size: int, recorded: list[int], monkeypatch
):
    """All of them happen once, each with its own images, labels and rate, which is rounded to float32 there."""
    cell = make_cell(dataset, kind, epochs=3, skip_nonfinite=True)  # 9 steps
    ours = list(train_group(cell, [0, 1], dataset, dtype=torch.float64, group_size=group_size))
    assert recorded == [3] * (2 // group_size)
    monkeypatch.undo()
    for one, plain in zip(ours, train_group(cell, [0, 1], dataset, dtype=torch.float64), strict=True):
        for name, tensor in plain.state.items():
            torch.testing.assert_close(one.state[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_a_step_is_recorded_once_it_has_run_a_few_times(recorded: list[int]):
    seen: list[tuple[float, int]] = []
    held: list[int] = []

    def step(value: Tensor) -> None:
        seen.append((float(value), len(recorded)))
        held.append(value.data_ptr())

    run = RecordedStep(step)
    for number in range(6):
        run(torch.tensor(float(number)))
    assert seen == [(float(number), int(number >= WARM_UP_STEPS)) for number in range(6)]
    assert len(set(held[WARM_UP_STEPS:])) == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind[:2]))
def test_a_group_trains_in_bfloat16_as_each_seed_alone(dataset: Dataset, kind: tuple[str, str, int, int]):
    """But for rounding, which is coarse: two epochs of a network that is hardly moved."""
    cell = make_cell(dataset, kind, precision="bfloat16", learning_rate=1e-4)
    together = list(train_group(cell, [0, 1], dataset, group_size=2))
    for one, alone in zip(together, train_group(cell, [0, 1], dataset), strict=True):
        assert one.status == alone.status
        for name, tensor in alone.state.items():
            torch.testing.assert_close(one.state[name].float(), tensor.float(), rtol=0.02, atol=0.02, msg=name)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind[:2]))
def test_images_rounded_once_are_what_the_first_layer_rounds(dataset: Dataset, kind: tuple[str, str, int, int]):
    """So they may be held in bfloat16: not a bit of logits or gradients changes."""
    network = build_training_network(make_cell(dataset, kind))
    found: list[list[Tensor]] = []
    for images in (show_images(torch.float32)[:1], show_images(torch.float32)[:1].bfloat16()):
        weights = {name: stack[:1] for name, stack in draw_stack(network, torch.float32).items()}
        (part,), forward = bind(network, weights, "apart")
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(images)
        F.cross_entropy(logits[0].float(), torch.arange(8)).backward()
        gradients = [part[name].grad for name, _ in network.named_parameters()]
        found.append([logits, *(gradient for gradient in gradients if gradient is not None)])
    for exact, rounded in zip(*found, strict=True):
        assert torch.equal(exact, rounded)


def test_what_is_trained_in_float64_is_never_rounded(dataset: Dataset):
    (exact,) = train_group(make_cell(dataset, KINDS[3]), [0], dataset, dtype=torch.float64)
    (asked,) = train_group(make_cell(dataset, KINDS[3], precision="bfloat16"), [0], dataset, dtype=torch.float64)
    assert weights_digest(exact.state) == weights_digest(asked.state)


class Memory:
    """A GPU whose memory takes `n_fitting` seeds: a forward pass of more raises what torch raises."""

    def __init__(self, n_fitting: int, fails_at: int = 0) -> None:
        self.n_fitting, self.fails_at = n_fitting, fails_at
        self.sizes: list[int] = []

    def __call__(self, network: nn.Module, weights: State, scheme: Scheme, **options: bool):
        n_seeds = len(next(iter(weights.values())))
        self.sizes.append(n_seeds)
        parts, forward = bind(network, weights, scheme, **options)
        n_passes = iter(range(10_000))

        def limited(images: Tensor) -> Tensor:
            if n_seeds > self.n_fitting and next(n_passes) >= self.fails_at:
                raise torch.OutOfMemoryError("out of memory")
            return forward(images)

        return parts, limited


def train_all(cell: Cell, dataset: Dataset, n_seeds: int, group_size: int) -> Iterator[Training]:
    seeds = range(n_seeds)
    return train_group(cell, seeds, dataset, group_size=group_size, checkpoints={seed: [1, 2] for seed in seeds})


@pytest.mark.parametrize("fails_at", [0, 1, 4], ids=lambda step: f"at step {step}")
def test_a_group_that_memory_does_not_take_is_halved_and_loses_nothing(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, fails_at: int
):
    """8 seeds become 4 and 4, and so do the 8 after them; what was yielded before stays, and is not yielded again."""
    cell = make_cell(dataset, KINDS[0])
    plain = {(one.seed, one.epoch): one for one in train_all(cell, dataset, 16, 4)}
    memory = Memory(4, fails_at)
    monkeypatch.setattr(seed_group, "bind", memory)
    found = list(train_all(cell, dataset, 16, 8))
    assert memory.sizes == [8, 4, 4, 4, 4]
    assert len(found) == 32
    assert {(one.seed, one.epoch) for one in found} == plain.keys()
    for one in found:
        reference = plain[one.seed, one.epoch]
        if fails_at == 4 and one.epoch == 1 and one.seed < 8:
            # Reached in the group of 8, whose products round otherwise.
            assert all(torch.allclose(one.state[n], t, atol=1e-5) for n, t in reference.state.items())
        else:
            assert weights_digest(one.state) == weights_digest(reference.state)


def test_one_seed_that_memory_does_not_take_is_an_error(dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    memory = Memory(0)
    monkeypatch.setattr(seed_group, "bind", memory)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        list(train_all(make_cell(dataset, KINDS[0]), dataset, 3, 3))
    assert memory.sizes == [3, 2, 1]


def test_the_memory_of_a_seed_is_its_weights_copies_and_what_a_pass_keeps(dataset: Dataset):
    """Of an MLP: the inputs of its layers, which are also the outputs of its ReLUs."""
    cell = make_cell(dataset, ("mlp", "none", 12, 3))
    network = build_training_network(cell)
    n_weights = sum(parameter.numel() for parameter in network.parameters())
    n_kept = RECIPE.batch_size * (64 + 3 * 12)
    of_images = 3 * RECIPE.batch_size * 64 + 48 * 41 // 4
    found = seed_bytes(network, cell.recipe, (1, 8, 8), 48)
    assert found == 4 * (3 * n_weights + 3 * n_kept + of_images)
    wider = dataclasses.replace(cell.recipe, batch_size=160)
    assert 4 * found < seed_bytes(network, wider, (1, 8, 8), 48) < 10 * found
    adam = dataclasses.replace(cell.recipe, optimizer="adam")
    assert seed_bytes(network, adam, (1, 8, 8), 48) == found + 4 * n_weights


def test_as_many_seeds_fit_as_the_free_memory_takes_but_a_tenth_and_at_least_one():
    assert fitting_seeds(1000, 100, 0) == 9
    assert fitting_seeds(1000, 100, 200) == 7
    assert fitting_seeds(1000, 5000, 0) == 1


def test_a_group_is_as_large_as_the_free_memory_of_a_gpu_takes(dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    cell = make_cell(dataset, KINDS[0])
    gpu = torch.device("cuda")
    shared = (3 * 48 + 48) * 64 * 4
    one = seed_bytes(build_training_network(cell), cell.recipe, (1, 8, 8), 48)
    for n_free, expected in ((10**12, 8), ((shared + 3.5 * one) / 0.9, 3), (0, 1)):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda _device, n=n_free: (int(n), 10**12))
        assert default_group_size(cell, dataset, 8, gpu) == expected
    assert default_group_size(cell, dataset, 8, torch.device("cpu")) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind[:2]))
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("skip", [True, False])
def test_a_recorded_group_on_a_gpu_trains_to_the_weights_of_the_cpu(
    dataset: Dataset, kind: tuple[str, str, int, int], optimizer: str, skip: bool
):
    cell = make_cell(dataset, kind, epochs=3, optimizer=optimizer, learning_rate=1e-3, skip_nonfinite=skip)
    on_gpu = train_group(cell, [0, 1, 2], dataset, device="cuda", dtype=torch.float64)
    for one, plain in zip(on_gpu, train_group(cell, [0, 1, 2], dataset, dtype=torch.float64), strict=True):
        assert one.n_skipped_steps == plain.n_skipped_steps
        assert one.test.accuracy == pytest.approx(plain.test.accuracy, abs=0.05)
        for name, tensor in plain.state.items():
            torch.testing.assert_close(one.state[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [*MLPS, KINDS[3]], ids=lambda kind: "-".join(kind[:2]))
def test_an_epoch_on_a_gpu_waits_for_nothing(dataset: Dataset, kind: tuple[str, str, int, int]):
    """torch itself raises at whatever would wait, once the steps are recorded."""
    cell = make_cell(dataset, kind, epochs=4, skip_nonfinite=True)
    network = build_training_network(cell)
    stack = SeedGroup(network, cell, [0, 1], dataset, torch.device("cuda"), torch.float32)
    for _ in range(2):
        stack.train_epoch()
    torch.cuda.set_sync_debug_mode("error")
    try:
        stack._take_steps()
    finally:
        torch.cuda.set_sync_debug_mode("default")
