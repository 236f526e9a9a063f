"""Running a network with given weights in a given mode, and in the memory layout that it reads fastest."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tasks.science.evaluation.modes import check_modes, watched
from tasks.science.specs.state import State

_T = TypeVar("_T")


def compute(network: nn.Module, state: State, *inputs: Tensor) -> Any:
    """Return the output of `network` with the weights `state` for `inputs` as they are laid out; it is left alone."""
    return within(network, state, lambda loaded: loaded(*inputs))


def within(network: nn.Module, state: State, work: Callable[[nn.Module], _T], *, writes: bool = False) -> _T:
    """Return the result of `work` on `network` while its weights are `state`, in however many passes.

    Both are left as they were, except for what `work` itself writes into `state` where `writes` allows it.
    Raises NetworkError where a pass writes into weights.
    """
    # A parameter that two layers share has two names in a state dict, hence after interpolation two equal tensors,
    # which `functional_call` takes for a mistake unless it is told not to look for shared ones. Then a module under
    # two names would have its weights exchanged twice and the wrong ones put back: each place is given once.
    modules = dict(network.named_modules(remove_duplicate=False))
    once: dict[tuple[int | str, str], str] = {}
    for key in state:
        path, _, name = key.rpartition(".")
        once.setdefault((id(modules[path]) if path in modules else path, name), key)
    weights = {f"network.{key}": state[key] for key in once.values()}
    if writes:
        return functional_call(_Within(network), weights, (work,), tie_weights=False)
    with watched(network, state) as look:

        def looked(loaded: nn.Module) -> _T:
            made = work(loaded)
            look()
            return made

        return functional_call(_Within(network), weights, (looked,), tie_weights=False)


class _Within(nn.Module):
    """A module whose forward pass is any work on a network, so that `functional_call` exchanges the weights once."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, work: Callable[[nn.Module], Any]) -> Any:
        return work(self.network)


@contextmanager
def mode(network: nn.Module, *, training: bool) -> Generator[None]:
    """Set `network` to training or evaluation mode while open; afterwards every module is in the mode that it had.

    Raises NetworkError where that would change its weights.
    """
    check_modes(network)
    before = [(module, module.training) for module in network.modules()]
    try:
        network.train(training)
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


def lay_out(network: nn.Module, images: Tensor) -> Tensor:
    """Return `images` (n, channels, height, width) in the memory layout that `network` reads fastest.

    Convolutions read channels innermost, and every later map keeps that layout (ResNet20 trains 1.3 times as fast on
    one thread).
    """
    if images.ndim != 4 or not is_convolutional(network):
        return images
    # `contiguous` would leave images of one channel alone: both layouts are theirs, and later maps would get the other.
    return torch.empty_like(images, memory_format=torch.channels_last).copy_(images)


def lay_out_weights(network: nn.Module, state: State) -> State:
    """Return `state` in the layout that a convolutional `network` reads fastest beside such images.

    It pays for many passes: otherwise each of them copies the kernels into this layout.
    """
    if not is_convolutional(network):
        return state
    return {
        key: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for key, tensor in state.items()
    }


def is_convolutional(network: nn.Module) -> bool:
    """Return whether `network` has a two-dimensional convolution."""
    """Return whether any module of `network` is a two-dimensional convolution."""
    return any(isinstance(module, nn.Conv2d) for module in network.modules())
