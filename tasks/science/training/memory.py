"""The memory that seeds take while they are trained, and how many a GPU trains as one group."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from tasks.science.data.examples import Dataset, FileExamples
from tasks.science.networks import build_training_network, find_architecture
from tasks.science.specs.cell import Cell
from tasks.science.specs.recipe import Recipe

VIEW_BYTES = 41
"""Bytes of one example of an epoch: its place in the order, and five whole numbers and a boolean of its view."""


def default_group_size(cell: Cell, dataset: Dataset, n_seeds: int, device: torch.device) -> int:
    """Return how many of `n_seeds` are trained as one group: as many as the free memory of a GPU takes by an estimate.

    It is 1 on a CPU, for architectures that are not stackable, and for images in files, which are decoded for one seed
    after another.
    """
    stackable = find_architecture(cell.architecture).stackable
    if device.type != "cuda" or not stackable or isinstance(dataset.train, FileExamples):
        return 1
    n_channels, *size = cell.data.shape
    side = cell.recipe.resized_crop
    shape = (n_channels, side, side) if side else cell.data.shape
    n_bytes = seed_bytes(build_training_network(cell), cell.recipe, shape, len(dataset.train))
    # Both splits to judge by, and the train images again to train on, which for a moment are there twice.
    n_shared = (3 * len(dataset.train) + len(dataset.test)) * n_channels * math.prod(size) * 4
    return min(n_seeds, fitting_seeds(torch.cuda.mem_get_info(device)[0], n_bytes, n_shared))


def seed_bytes(network: nn.Module, recipe: Recipe, image_shape: tuple[int, ...], n_examples: int) -> int:
    """Estimate the bytes that one more seed of a group takes while it is trained.

    They are its weights, gradients and optimizer memory; in float32, what a forward pass of a batch keeps for the
    backward pass, and its gradients; and the order and views of an epoch of `n_examples`. `network` is on the meta
    device, where the pass computes nothing.
    """
    copies = 2 + (2 if recipe.optimizer == "adam" else 1)
    alone = copy.deepcopy(network).train()
    of_weights = [parameter.untyped_storage() for parameter in alone.parameters()]
    kept: list[torch.UntypedStorage] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage())
        return tensor

    images = torch.empty((recipe.batch_size, *image_shape), device="meta")
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alone(images)
    apart = {id(storage): storage.nbytes() for storage in kept}  # Each once: two layers may keep the same.
    for storage in of_weights:
        apart.pop(id(storage), None)
    weights = sum(storage.nbytes() for storage in of_weights)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in network.buffers())
    # Three times: as kept, its gradients, and what a step holds for a moment.
    passing = 3 * (sum(apart.values()) + images.numel() * 4)
    return copies * weights + buffers + passing + n_examples * VIEW_BYTES


def fitting_seeds(n_free_bytes: int, n_seed_bytes: int, n_shared_bytes: int) -> int:
    """Return how many seeds fit into memory, at least one; a tenth of the free memory is left alone."""
    return max(1, int((0.9 * n_free_bytes - n_shared_bytes) // n_seed_bytes))
