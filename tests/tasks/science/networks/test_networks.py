"""Networks: sizes known from arithmetic, the images they take, where training starts, and what folding keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torchvision import models

from tasks.science.networks import ARCHITECTURES, build_network, build_training_network, initial_state
from tasks.science.networks.folding import fold_batch_norm
from tasks.science.networks.mlp import MLP
from tasks.science.networks.normalization import LayerNorm2d
from tasks.science.networks.permutation_spec import cell_permutation_spec
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import stream, weights_digest
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State

RECIPE = Recipe("plain", batch_size=8, epochs=1, learning_rate=0.1, warmup=0.1)
KINDS = [(word, normalization) for word, known in ARCHITECTURES.items() for normalization in known.normalizations]


def cell(
    architecture: str,
    normalization: str,
    shape: tuple[int, int, int] = (3, 32, 32),
    width: int | None = None,
    depth: int | None = None,
    n_classes: int = 10,
) -> Cell:
    known = ARCHITECTURES[architecture]
    data = DataSpec("toy", "0" * 64, 100, 100, n_classes, shape)
    return Cell(data, architecture, normalization, width or known.width or 16, depth or known.depth or 3, RECIPE)


def draw(network: nn.Module, seed: int = 0) -> State:
    return initial_state(network, stream("initialization", seed))


def randomised(network: nn.Module, seed: int = 0) -> State:
    """Float64 weights in which nothing sits at its initial constant; variances positive, scales of both signs."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: tensor.double() for name, tensor in draw(network, seed).items()}
    for name, tensor in state.items():
        if tensor.ndim < 2:
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            state[name] = noise.square() + 0.1 if name.endswith("running_var") else noise
    return state


def images(n: int, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


# Counts, by hand. A convolution with bias has 9ab + b parameters, BatchNorm and LayerNorm 2 per channel.
# MLP 784-128-128-128-10: (784 + 2 * 128) * 128 + 3 * 128 + (128 + 1) * 10 = 133,120 + 384 + 1,290 = 134,794;
#   batch: 3 * 128 biases leave, 2 * 3 * 128 scales and shifts come: + 384 = 135,178.
# VGG convolution weights, in units of 64^2 = 4,096 after the first 9 * 3 * 64 = 1,728:
#   11: 9 (2 + 8 + 16 + 32 + 64 + 64 + 64) = 2,250; 13: + 9 (1 + 4) = 2,295; 16: 13 + 9 (16 + 64 + 64) = 3,591;
#   19: 16 + the same again = 4,887. Output channels: 11: 2,752; 13: 2,944; 16: 4,224; 19: 5,504. Classifier 5,130.
#   11: 1,728 + 2,250 * 4,096 + 2,752 + 5,130 = 9,225,610, batch + 5,504; one image channel: - 9 * 2 * 64 = 1,152.
# ResNet20, weights in units of 9 * 16^2 = 2,304 after the stem's 9 * 3 * 16 = 432: stage 1: 6; stage 2: 2 + 2
#   (shortcut) + 5 * 4 = 24; stage 3: 4 times that = 96; together 126 * 2,304 + 432 = 290,736. Norms: 16 * 7 + 32 * 7 +
#   64 * 7 = 784 channels. Classifier 650. batch: + 2 * 784 = 292,954; layer: + 3 * 784 (conv biases) = 293,738;
#   fixup: + 1 (stem) + 9 * 5 + 1 (head) = 291,433. Width 2: 432 * 2 + 126 * 9,216 + 2 * 2 * 784 + 1,290 = 1,166,506.
# ResNet18 at 32x32, units of 9 * 64^2 = 36,864 after the stem's 1,728: 4 + (2 + 3 * 4) + 4 * 14 + 16 * 14 = 298;
#   1x1 shortcuts 8,192 * (1 + 4 + 16) = 172,032; norms 2 * (64 * 5 + 128 * 5 + 256 * 5 + 512 * 5) = 9,600;
#   classifier 5,130: 11,173,962.
# torchvision's, for 1,000 classes, are those of its documentation.
COUNTS = [
    (cell("mlp", "none", (1, 28, 28), width=128), 134_794),
    (cell("mlp", "batch", (1, 28, 28), width=128), 135_178),
    (cell("mlp", "batch-fused", (1, 28, 28), width=128), 134_794),
    (cell("vgg11", "none"), 9_225_610),
    (cell("vgg11", "none", (1, 28, 28)), 9_224_458),
    (cell("vgg11", "batch"), 9_231_114),
    (cell("vgg13", "none"), 9_410_122),
    (cell("vgg16", "none"), 14_719_818),
    (cell("vgg16", "batch"), 14_728_266),
    (cell("vgg19", "none"), 20_029_514),
    (cell("resnet20", "batch"), 292_954),
    (cell("resnet20", "batch", (1, 28, 28)), 292_954 - 288),
    (cell("resnet20", "batch", width=2), 1_166_506),
    (cell("resnet20", "layer"), 293_738),
    (cell("resnet20", "fixup"), 291_433),
    (cell("resnet18", "batch"), 11_173_962),
    (cell("resnet18", "batch", (3, 224, 224), n_classes=1000), 11_689_512),
    (cell("resnet50", "batch", (3, 224, 224), n_classes=1000), 25_557_032),
    (cell("wide-resnet50-2", "batch", (3, 224, 224), n_classes=1000), 68_883_240),
]


@pytest.mark.parametrize(("asked", "count"), COUNTS, ids=lambda value: getattr(value, "architecture", str(value)))
def test_networks_have_as_many_parameters_as_arithmetic_says(asked: Cell, count: int) -> None:
    assert sum(parameter.numel() for parameter in build_network(asked).parameters()) == count


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 28), (1, 32, 32), (3, 32, 32)], ids=str)
@pytest.mark.parametrize(("architecture", "normalization"), KINDS)
def test_every_network_takes_one_or_three_channels_at_28_and_32_pixels(
    architecture: str, normalization: str, shape: tuple[int, int, int]
) -> None:
    network = build_network(cell(architecture, normalization, shape))
    assert not network.training
    with torch.device("meta"):  # shapes alone: the numbers are the next test's
        assert network(torch.empty(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize(("architecture", "normalization"), KINDS)
def test_training_mode_moves_the_buffers_and_evaluation_mode_nothing(architecture: str, normalization: str) -> None:
    network = build_training_network(cell(architecture, normalization, (1, 28, 28)))
    state = draw(network)
    before = weights_digest(state)
    seen = images(4, (1, 28, 28))
    assert functional_call(network, state, (seen,)).isfinite().all()
    assert weights_digest(state) == before
    network.train()
    assert functional_call(network, state, (seen,)).isfinite().all()
    buffers = [name for name, _ in network.named_buffers()]
    assert bool(buffers) == (normalization in ("batch", "batch-fused"))
    assert (weights_digest(state) == before) == (not buffers)
    assert all(state[name] == 1 for name in buffers if name.endswith("num_batches_tracked"))


@pytest.mark.parametrize(("architecture", "normalization"), KINDS)
def test_every_relu_runs_exactly_once(architecture: str, normalization: str) -> None:
    network = build_network(cell(architecture, normalization))
    calls = {name: 0 for name, module in network.named_modules() if isinstance(module, nn.ReLU)}
    for name in calls:
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, _output, name=name: calls.__setitem__(name, calls[name] + 1)
        )
    with torch.device("meta"):
        network(torch.empty(2, 3, 32, 32))
    assert set(calls.values()) == {1}


def test_vgg_pools_32_pixels_exactly_as_published() -> None:
    asked = cell("vgg11", "none")
    network, published = build_network(asked), build_network(asked)
    for module in published.modules():
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = False
    state = draw(network)
    seen = images(2, (3, 32, 32))
    assert torch.equal(functional_call(network, state, (seen,)), functional_call(published, state, (seen,)))


@pytest.mark.parametrize(
    ("asked", "published"),
    [
        (cell("resnet18", "batch", (3, 224, 224)), models.resnet18),
        (cell("resnet50", "batch", (3, 224, 224)), models.resnet50),
    ],
)
def test_torchvisions_weights_load_and_compute_the_same(asked: Cell, published) -> None:
    network = build_network(asked)
    reference = published(num_classes=10).eval().double()
    assert list(network.state_dict()) == list(reference.state_dict())
    state = randomised(network)
    seen = images(1, (3, 64, 64), torch.float64)
    torch.testing.assert_close(
        functional_call(network, state, (seen,)), functional_call(reference, state, (seen,)), rtol=1e-12, atol=0
    )


def test_wide_resnet50_has_torchvisions_shapes() -> None:
    network = build_network(cell("wide-resnet50-2", "batch", (3, 224, 224)))
    with torch.device("meta"):
        reference = models.wide_resnet50_2(num_classes=10)
    shapes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (network, reference)]
    assert shapes[0] == shapes[1]


def test_layer_norm_equals_a_plain_float64_reference() -> None:
    norm = LayerNorm2d(6).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(6, generator=generator))
        norm.bias.copy_(torch.randn(6, generator=generator))
    maps = 3 + torch.randn(2, 6, 4, 5, generator=generator, dtype=torch.float64)
    expected = np.empty(maps.shape)
    for n, y, x in np.ndindex(2, 4, 5):
        pixel = maps[n, :, y, x].numpy()
        expected[n, :, y, x] = (pixel - pixel.mean()) / pixel.std(ddof=0)
        expected[n, :, y, x] = expected[n, :, y, x] * norm.weight.detach().numpy() + norm.bias.detach().numpy()
    np.testing.assert_allclose(norm(maps).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_layer_norms_guard_turns_equal_channels_to_zero_and_changes_no_other_bit() -> None:
    norm = LayerNorm2d(16)
    with torch.no_grad():
        norm.bias.fill_(0.5)
    assert torch.equal(norm(torch.full((1, 16, 2, 2), 7.0)), torch.full((1, 16, 2, 2), 0.5))
    maps = 1e-6 * images(8, (16, 9, 9))
    published = F.layer_norm(maps.permute(0, 2, 3, 1), (16,), norm.weight, norm.bias, 0.0).permute(0, 3, 1, 2)
    assert torch.equal(norm(maps), published)


def test_fixup_begins_with_logits_of_zero_and_still_learns() -> None:
    network = build_network(cell("resnet20", "fixup"))
    state = draw(network)
    logits = functional_call(network, state, (images(4, (3, 32, 32)),))
    assert torch.equal(logits, torch.zeros(4, 10))
    state = {name: tensor.requires_grad_() for name, tensor in state.items()}
    loss = F.cross_entropy(functional_call(network, state, (images(4, (3, 32, 32)),)), torch.arange(4))
    (gradient,) = torch.autograd.grad(loss, [state["output.weight"]])
    assert gradient.abs().max() > 0


def test_fixup_scales_the_first_convolution_of_a_branch_by_the_root_of_nine_branches() -> None:
    state = draw(build_network(cell("resnet20", "fixup", width=4)))
    for name, tensor in state.items():
        if name.endswith("conv2.weight") or name.startswith("output."):
            assert not tensor.any()
        elif name.endswith("scale"):
            assert torch.equal(tensor, torch.ones(1))
        elif tensor.ndim < 2:
            assert torch.equal(tensor, torch.zeros(1))
        else:
            share = 1 / 3 if name.endswith("conv1.weight") else 1
            assert float(tensor.std()) == pytest.approx(share * (2 / tensor[0].numel()) ** 0.5, rel=0.05)


def test_initial_weights_of_mlps_are_what_they_always_were() -> None:
    """Endpoints are named by their spec alone: other initial weights under the same id would be another network."""
    assert weights_digest(draw(MLP(64, 32, 3, 10))) == (
        "7681c68a70176ee628daca3cf637c37f1490bbdac17bd6641addfa37abe7b83e"
    )
    assert weights_digest(draw(build_network(cell("mlp", "none", (1, 28, 28), width=64, depth=11)), seed=3)) == (
        "9977836990e1875dc78a4ab49dc8ac5114aaac87cb203e8de9c1d898b86ee5b0"
    )


@pytest.mark.parametrize(("architecture", "normalization"), KINDS)
def test_initial_state_is_a_function_of_the_stream_and_complete(architecture: str, normalization: str) -> None:
    before = torch.get_rng_state()
    network = build_training_network(cell(architecture, normalization))
    state = draw(network)
    assert torch.equal(torch.get_rng_state(), before)
    assert weights_digest(state) == weights_digest(draw(network))
    expected = network.state_dict()
    assert list(state) == list(expected)
    assert all(
        state[name].shape == expected[name].shape and state[name].dtype == expected[name].dtype for name in state
    )
    for name, tensor in state.items():
        parent = network.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, nn.BatchNorm1d | nn.BatchNorm2d | LayerNorm2d):
            at_one = name.endswith(("weight", "running_var"))
            assert torch.equal(tensor, torch.full_like(tensor, 1 if at_one else 0)), name


def test_other_seeds_begin_elsewhere() -> None:
    network = build_network(cell("resnet20", "layer"))
    assert weights_digest(draw(network, 0)) != weights_digest(draw(network, 1))


@pytest.mark.parametrize(
    ("asked", "tensor", "variance_share", "bounded"),
    [
        # Variance of a weight times its fan-in: 2 for He-normal, 1/3 for torch's uniform default.
        (cell("mlp", "batch", width=256), "hidden.0.linear.weight", 2, False),
        (cell("resnet20", "batch", width=2), "stages.2.blocks.0.conv2.weight", 2, False),
        (cell("resnet20", "layer", width=2), "stages.2.blocks.0.conv2.weight", 2, False),
        (cell("vgg11", "none"), "hidden.7.conv.weight", 1 / 3, True),
        (cell("resnet18", "batch"), "stages.3.blocks.0.conv1.weight", 1 / 3, True),
        # Fan-out, twice the fan-in here, in torchvision's networks.
        (cell("resnet18", "batch", (3, 224, 224)), "layer4.0.conv1.weight", 1, False),
        (cell("resnet18", "batch", (3, 224, 224), n_classes=1000), "fc.weight", 1 / 3, True),
    ],
    ids=lambda value: getattr(value, "architecture", None),
)
def test_each_architecture_begins_as_its_authors_code_does(
    asked: Cell, tensor: str, variance_share: float, bounded: bool
) -> None:
    weight = draw(build_network(asked))[tensor]
    fan_in = weight[0].numel()
    assert float(weight.var()) * fan_in == pytest.approx(variance_share, rel=0.03)
    assert abs(float(weight.mean())) < 0.01 * float(weight.std())
    assert (float(weight.abs().max()) <= fan_in**-0.5) == bounded


def test_convolution_biases_of_layer_norm_networks_begin_at_torchs_default() -> None:
    state = draw(build_network(cell("resnet20", "layer", width=8)))
    bias = state["stages.2.blocks.0.conv2.bias"]
    bound = state["stages.2.blocks.0.conv2.weight"][0].numel() ** -0.5
    assert 0.9 * bound < float(bias.abs().max()) <= bound


def test_folding_batch_norm_computes_the_same_function() -> None:
    asked = cell("mlp", "batch-fused", (1, 8, 8), width=24, depth=4)
    trained, plain = build_training_network(asked), build_network(asked)
    state = randomised(trained)
    folded = fold_batch_norm(trained, state)
    assert list(folded) == list(plain.state_dict())
    seen = images(50, (1, 8, 8), torch.float64)
    expected = functional_call(trained, state, (seen,))
    error = (functional_call(plain, folded, (seen,)) - expected).abs().max() / expected.abs().max()
    assert float(error) < 1e-12


def test_folding_follows_its_formula_and_keeps_the_type() -> None:
    trained = build_training_network(cell("mlp", "batch-fused", (1, 4, 4), width=5, depth=1))
    state = randomised(trained)
    scale = state["hidden.0.norm.weight"] / (state["hidden.0.norm.running_var"] + 1e-5).sqrt()
    folded = fold_batch_norm(trained, state)
    torch.testing.assert_close(
        folded["hidden.0.linear.weight"], torch.diag(scale) @ state["hidden.0.linear.weight"], rtol=1e-14, atol=0
    )
    bias = state["hidden.0.norm.bias"] - scale * state["hidden.0.norm.running_mean"]
    torch.testing.assert_close(folded["hidden.0.linear.bias"], bias, rtol=1e-14, atol=0)
    single = fold_batch_norm(trained, {name: tensor.float() for name, tensor in state.items()})
    assert {tensor.dtype for tensor in single.values()} == {torch.float32}


def test_folding_refuses_what_has_no_batch_norm() -> None:
    plain = build_network(cell("mlp", "none"))
    assert isinstance(plain, MLP)
    with pytest.raises(ValueError, match="only an MLP with normalization batch can be folded, got none"):
        fold_batch_norm(plain, draw(plain))
    trained = MLP(4, 3, 1, 2, "batch")
    state = draw(trained)
    del state["hidden.0.norm.running_var"]
    with pytest.raises(ValueError, match=r"the weights lack hidden\.0\.norm\.running_var"):
        fold_batch_norm(trained, state)


def test_permuting_an_mlp_with_batch_norm_leaves_its_logits() -> None:
    network = MLP(12, 9, 3, 4, "batch").eval()
    state = randomised(network)
    spec = cell_permutation_spec(cell("mlp", "batch", (3, 2, 2), width=9, depth=3, n_classes=4))
    permuted = spec.apply(state, spec.random(torch.Generator().manual_seed(0)))
    seen = images(20, (3, 2, 2), torch.float64)
    expected = functional_call(network, state, (seen,))
    error = (functional_call(network, permuted, (seen,)) - expected).abs().max() / expected.abs().max()
    assert float(error) < 1e-12


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            Cell(cell("mlp", "none").data, "vgg12", "none", 1, 12, RECIPE),
            f"there is no architecture 'vgg12'; known: {', '.join(ARCHITECTURES)}",
        ),
        (cell("resnet20", "none"), "resnet20 has no normalization 'none'; known: batch, layer, fixup"),
        (cell("vgg16", "batch", depth=11), "vgg16 has depth 16 and no other, got 11"),
        (
            cell("resnet18", "batch", (3, 224, 224), width=2),
            "resnet18 for images of 224 pixels a side has width 1 and no other, got 2",
        ),
        (
            cell("resnet50", "batch", width=2),
            "resnet50 for images of 32 pixels a side has width 1 and no other, got 2",
        ),
        (
            cell("vgg11", "none", (3, 64, 64)),
            "vgg11 takes images of at most 32 pixels a side, and those of toy have 64",
        ),
    ],
    ids=lambda value: getattr(value, "architecture", "message"),
)
def test_a_cell_that_no_network_fits_is_refused_with_what_would(asked: Cell, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole text is compared below
        build_network(asked)
    assert str(error.value) == message


def test_a_network_that_does_not_say_how_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear does not name its `initialization`; known: he-normal"):
        initial_state(nn.Linear(2, 2), stream("initialization", 0))


def test_a_recipe_may_start_any_network_he_normal():
    network = nn.Sequential(nn.Conv2d(3, 400, 3), nn.Linear(400, 50))
    state = initial_state(network, stream("initialization", 0), "he-normal")
    assert float(state["0.weight"].var()) == pytest.approx(2 / 27, rel=0.05)
    assert float(state["1.weight"].var()) == pytest.approx(2 / 400, rel=0.05)
    assert not state["0.bias"].any()
    assert not state["1.bias"].any()
