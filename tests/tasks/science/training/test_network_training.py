"""Training of networks with buffers and convolutions: the same alone and in company, and evaluated as it should be."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from tasks.science.data.examples import Dataset, Examples
from tasks.science.evaluation.functional import lay_out, mode
from tasks.science.evaluation.metrics import evaluate
from tasks.science.networks import build_network, build_training_network, initial_state
from tasks.science.networks.folding import fold_batch_norm
from tasks.science.networks.mlp import MLP
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import stream, weights_digest
from tasks.science.specs.recipe import Recipe
from tasks.science.training.judging import Training
from tasks.science.training.schedules import learning_rate
from tasks.science.training.stacking import Scheme
from tasks.science.training.training import train_group

RECIPE = Recipe(
    "toy", batch_size=16, epochs=2, learning_rate=0.02, warmup=0.2, weight_decay=1e-3, flip=True, translate=1
)
KINDS = [
    ("mlp", "batch", 16, 2),
    ("mlp", "batch-fused", 16, 2),
    ("vgg11", "none", 1, 11),
    ("vgg11", "batch", 1, 11),
    ("resnet20", "batch", 1, 20),
    ("resnet20", "layer", 1, 20),
    ("resnet20", "fixup", 1, 20),
]
SMALL = [kind for kind in KINDS if kind[0] != "vgg11"]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    train, test = (
        Examples(torch.randn(48, 1, 8, 8, generator=generator), torch.randint(0, 10, (48,), generator=generator))
        for _ in range(2)
    )
    return Dataset(DataSpec("toy", "0" * 64, 48, 48, 10, (1, 8, 8)), train, test, black=-1.0)


def make_cell(dataset: Dataset, kind: tuple[str, str, int, int], recipe: Recipe = RECIPE) -> Cell:
    architecture, normalization, width, depth = kind
    return Cell(dataset.spec, architecture, normalization, width, depth, recipe)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind[:2]))
def test_a_seed_has_the_same_bits_alone_and_in_a_group(dataset: Dataset, kind: tuple[str, str, int, int]) -> None:
    cell = make_cell(dataset, kind)
    group = list(train_group(cell, (0, 1), dataset))
    (alone,) = train_group(cell, (1,), dataset)
    assert weights_digest(alone.state) == weights_digest(group[1].state)
    assert (alone.train, alone.test) == (group[1].train, group[1].test)
    assert weights_digest(group[0].state) != weights_digest(group[1].state)


@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: "-".join(kind[:2]))
@pytest.mark.parametrize("scheme", [None, "vectorised"])
def test_a_group_of_seeds_learns_what_each_learns_alone(
    dataset: Dataset, kind: tuple[str, str, int, int], scheme: Scheme | None
) -> None:
    """Running statistics included: a seed's BatchNorm must never see another's batches."""
    cell = make_cell(dataset, kind)
    stacked = train_group(cell, (0, 1), dataset, dtype=torch.float64, group_size=2, scheme=scheme)
    alone = train_group(cell, (0, 1), dataset, dtype=torch.float64)
    for one, other in zip(stacked, alone, strict=True):
        assert list(one.state) == list(other.state)
        for name, tensor in one.state.items():
            torch.testing.assert_close(tensor, other.state[name], rtol=1e-7, atol=1e-9, msg=name)


def test_buffers_follow_a_plain_training_loop(dataset: Dataset) -> None:
    """ResNet20 with BatchNorm beside torch's own way: a module that holds its weights, model.train(), SGD."""
    recipe = Recipe("toy", batch_size=16, epochs=2, learning_rate=0.02, warmup=0.2, weight_decay=1e-3)
    cell = make_cell(dataset, ("resnet20", "batch", 1, 20), recipe)
    (trained,) = train_group(cell, (5,), dataset, dtype=torch.float64)

    model = build_network(cell).to_empty(device="cpu")
    model.load_state_dict(initial_state(model, stream("initialization", 5)))
    model.double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9, weight_decay=1e-3)
    for step in range(6):
        epoch, batch = divmod(step, 3)
        chosen = stream("order", 5, epoch).permutation(48)[16 * batch : 16 * (batch + 1)]
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, step, 3)
        loss = F.cross_entropy(model(dataset.train.images[chosen].double()), dataset.train.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    expected = model.state_dict()
    assert trained.state["stem.norm.num_batches_tracked"] == 6
    assert list(trained.state) == list(expected)
    for name, tensor in trained.state.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-9, msg=name)


def test_evaluation_uses_running_statistics_and_leaves_network_and_weights_alone(dataset: Dataset) -> None:
    cell = make_cell(dataset, ("resnet20", "batch", 1, 20))
    network = build_network(cell)
    state = initial_state(network, stream("initialization", 0))
    before = weights_digest(state)
    in_evaluation_mode = evaluate(network, state, dataset.test)
    with mode(network, training=True):
        assert evaluate(network, state, dataset.test) == in_evaluation_mode
        assert network.training
        assert all(module.training for module in network.modules())
    assert weights_digest(state) == before
    logits = functional_call(network, state, (lay_out(network, dataset.test.images),))
    assert in_evaluation_mode.loss == pytest.approx(float(F.cross_entropy(logits, dataset.test.labels)), rel=1e-6)


def test_training_leaves_the_mode_as_it_found_it_when_it_fails() -> None:
    network = MLP(4, 3, 1, 2, "batch").eval()
    with pytest.raises(RuntimeError, match="stop"), mode(network, training=True):
        raise RuntimeError("stop")
    assert not network.training


def test_a_fused_endpoint_is_its_batch_norm_network_folded(dataset: Dataset) -> None:
    def train(normalization: str) -> Training:
        (trained,) = train_group(make_cell(dataset, ("mlp", normalization, 16, 2)), (3,), dataset)
        return trained

    wrapped, fused = train("batch"), train("batch-fused")
    network = build_training_network(make_cell(dataset, ("mlp", "batch-fused", 16, 2)))
    assert isinstance(network, MLP)
    assert weights_digest(fold_batch_norm(network, wrapped.state)) == weights_digest(fused.state)
    assert fused.test.loss == pytest.approx(wrapped.test.loss, rel=1e-5)
    assert fused.train.accuracy == wrapped.train.accuracy


def test_a_network_with_batch_norm_that_diverges_is_recorded_as_diverged(dataset: Dataset) -> None:
    recipe = Recipe("toy", batch_size=16, epochs=2, learning_rate=1e30, warmup=0.0)
    (trained,) = train_group(make_cell(dataset, ("mlp", "batch-fused", 16, 2), recipe), (0,), dataset)
    assert trained.status == "diverged"


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8)], ids=str)
def test_maps_of_convolutional_networks_have_their_channels_innermost(shape: tuple[int, int, int]) -> None:
    network = build_network(Cell(DataSpec("toy", "0" * 64, 1, 1, 10, shape), "resnet20", "batch", 1, 20, RECIPE))
    images = torch.randn(2, *shape)
    laid_out = lay_out(network, images)
    assert torch.equal(laid_out, images)
    seen: list[torch.Tensor] = []
    network.get_submodule("stages.1.blocks.2.relu2").register_forward_hook(
        lambda _module, _inputs, output: seen.append(output)
    )
    functional_call(network, initial_state(network, stream("initialization", 0)), (laid_out,))
    assert seen[0].stride()[1] == 1
    assert lay_out(MLP(64, 3, 1, 2), images) is images
