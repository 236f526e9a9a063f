"""The published schedule, written out plainly: what the benchmarks measure ours against.

Frozen: it was written before the fast paths and is changed only where it is wrong or slower than it has to be. Data are
in memory, as they are for ours; where the authors' images came one by one from a loader, that is a benchmark of its own
(`load_one_by_one`). Batches are theirs: 500 images.

Source: the schedule of the authors' notebooks (REPAIR, arXiv 2211.08403): a pass through both networks for every layer
that is aligned, float64 products, one module per alpha, three tracked passes per alpha to repair it, one seed trained
after another.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

State = dict[str, Tensor]

BATCH_SIZE = 500


class _ReachedError(Exception):
    """The pass has come to the module that is read, and need not go on."""


def load(network: nn.Module, state: State) -> nn.Module:
    """A module of its own with these weights, in evaluation mode."""
    module = copy.deepcopy(network).to_empty(device="cpu")
    module.load_state_dict(state)
    return module.eval()


def read_up_to(network: nn.Module, batch: Tensor, module: str) -> Tensor:
    """What `module` puts out, (n_samples, n_units) float64: every position of every image is a sample."""
    seen: list[Tensor] = []

    def stop(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen.append(output)
        raise _ReachedError

    handle = network.get_submodule(module).register_forward_hook(stop)
    try:
        network(batch)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return seen[0].movedim(1, -1).flatten(0, -2).double()


def correlations(a: nn.Module, b: nn.Module, images: Tensor, module: str, batch_size: int) -> NDArray[np.float64]:
    """Correlations (n_units of A, n_units of B) over all images; 0 where a unit never moves."""
    n_samples, sums, products = 0, [], []
    for batch in images.split(batch_size):
        seen_a, seen_b = (read_up_to(network, batch, module) for network in (a, b))
        n_samples += len(seen_a)
        sums.append(torch.stack([seen_a.sum(0), seen_b.sum(0), seen_a.square().sum(0), seen_b.square().sum(0)]))
        products.append(seen_a.T @ seen_b)
    mean_a, mean_b, square_a, square_b = torch.stack(sums).sum(0) / n_samples
    covariance = torch.stack(products).sum(0) / n_samples - torch.outer(mean_a, mean_b)
    spread = torch.outer((square_a - mean_a**2).clamp(min=0).sqrt(), (square_b - mean_b**2).clamp(min=0).sqrt())
    return torch.where(spread > 0, covariance / spread, 0.0).numpy()


def align_layer_by_layer(
    network: nn.Module,
    modules: dict[str, str],
    permute: Callable[[State, dict[str, NDArray[np.int64]]], State],
    a: State,
    b: State,
    images: Tensor,
    batch_size: int = BATCH_SIZE,
) -> tuple[dict[str, NDArray[np.int64]], float]:
    """For every axis of `modules` (axis: the module that puts out its units) a pass through both networks, float64
    products and one assignment; then B is permuted. The partners by axis, and the sum of matched correlations."""
    partners: dict[str, NDArray[np.int64]] = {}
    objective = 0.0
    one = load(network, a)
    for axis, module in modules.items():
        found = correlations(one, load(network, b), images, module, batch_size)
        rows, columns = linear_sum_assignment(found, maximize=True)
        objective += float(found[rows, columns].sum())
        partners[axis] = columns
        b = permute(b, {axis: columns})
    return partners, objective


def mix(a: State, b: State, alpha: float) -> State:
    return {name: (1 - alpha) * a[name] + alpha * b[name] if a[name].is_floating_point() else a[name] for name in a}


def judge(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Loss in nats and accuracy."""
    loss, n_correct = 0.0, 0
    for batch, wanted in zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True):
        logits = network(batch)
        loss += float(F.cross_entropy(logits, wanted, reduction="sum"))
        n_correct += int((logits.argmax(1) == wanted).sum())
    return loss / len(labels), n_correct / len(labels)


def walk_path(
    network: nn.Module, a: State, b: State, alphas: Sequence[float], splits: Sequence[tuple[Tensor, Tensor]]
) -> list[list[tuple[float, float]]]:
    """A module per alpha, judged on every split (images, labels)."""
    curve: list[list[tuple[float, float]]] = []
    for alpha in alphas:
        module = load(network, mix(a, b, alpha))
        curve.append([judge(module, images, labels) for images, labels in splits])
    return curve


Moments = dict[str, tuple[Tensor, Tensor]]


def tracked_pass(
    network: nn.Module, state: State, layers: Sequence[str], images: Tensor, goal: Moments | None = None
) -> Moments:
    """Mean and deviation of the output of every one of `layers`, from a BatchNorm behind each that tracks them and,
    with a `goal`, sets them on the way; BatchNorm of the network's own then goes by its batch, as when it is reset."""
    module = load(network, state)
    norms: dict[str, nn.Module] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def see(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
            if name not in norms:
                kind = nn.BatchNorm1d if output.ndim == 2 else nn.BatchNorm2d
                norms[name] = kind(output.shape[1], momentum=None, affine=False).train()
            standard = norms[name](output)
            if goal is None:
                return None
            mean, deviation = (part.view(1, -1, *[1] * (output.ndim - 2)) for part in goal[name])
            return standard * deviation + mean

        return see

    for name in layers:
        module.get_submodule(name).register_forward_hook(hook(name))
    if goal is not None:
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.train()
    for batch in images.split(BATCH_SIZE):
        module(batch)
    found: dict[str, Any] = {name: norms[name] for name in layers}
    return {name: (norm.running_mean, norm.running_var.sqrt()) for name, norm in found.items()}


def repair_in_three_passes(
    network: nn.Module, layers: Sequence[str], a: State, b: State, alpha: float, images: Tensor
) -> State:
    """Statistics of A, of B, and of the interpolated network while it is corrected; folded into `layers` that have a
    bias."""
    of_a, of_b = (tracked_pass(network, state, layers, images) for state in (a, b))
    goal = {
        name: ((1 - alpha) * of_a[name][0] + alpha * of_b[name][0], (1 - alpha) * of_a[name][1] + alpha * of_b[name][1])
        for name in layers
    }
    state = mix(a, b, alpha)
    found = tracked_pass(network, state, layers, images, goal)
    for name in layers:
        (mean, deviation), (goal_mean, goal_deviation) = found[name], goal[name]
        scale = goal_deviation / deviation
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = scale.view(-1, *[1] * (weight.ndim - 1)) * weight
        if f"{name}.bias" in state:
            state[f"{name}.bias"] = scale * (state[f"{name}.bias"] - mean) + goal_mean
    return state


def train_one(
    network: nn.Module, state: State, images: Tensor, labels: Tensor, batch_size: int, n_steps: int, rate: float
) -> State:
    """One seed: SGD with momentum over shuffled batches of images in memory, the rate falling to 0."""
    module = load(network, state).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / n_steps)
    orders = (torch.randperm(len(images)).split(batch_size) for _ in itertools.count())
    rows = itertools.islice((part for order in orders for part in order if len(part) == batch_size), n_steps)
    for part in rows:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(module(images[part]), labels[part]).backward()
        optimizer.step()
        schedule.step()
    return {name: tensor.detach() for name, tensor in module.state_dict().items()}


class _OneByOne(TorchDataset[Tensor]):
    def __init__(self, pixels: Tensor, transform: Callable[[Any], Tensor]) -> None:
        self._pixels, self._transform = pixels, transform

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self._transform(self._pixels[index])


def load_one_by_one(
    pixels: Tensor, translate: int, cutout: int, batch_size: int, normalisation: tuple[float, float]
) -> Iterable[Tensor]:
    """Batches of `pixels` (n, channels, height, width) uint8, each image flipped, shifted, cut out and normalised by
    itself through PIL."""
    side = pixels.shape[-1]
    steps: list[Any] = [
        transforms.ToPILImage(),
        transforms.RandomHorizontalFlip(),
        transforms.RandomAffine(0, translate=(translate / side, translate / side)),
        transforms.ToTensor(),
        transforms.Normalize(*((value,) * pixels.shape[1] for value in normalisation)),
    ]
    if cutout:
        share = (cutout / side) ** 2
        steps.append(transforms.RandomErasing(p=1, scale=(share, share), ratio=(1, 1)))
    dataset = _OneByOne(pixels, transforms.Compose(steps))
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True)
