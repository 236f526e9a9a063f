"""A network run with given weights, without changing it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tasks.science.evaluation.modes import check_modes, watched
from tasks.science.specs.state import State

T = TypeVar("T")


def compute(network: nn.Module, state: State, *inputs: Tensor) -> Any:
    """What `network` with the weights `state` puts out for `inputs`, laid out as they are; it is left as it was."""
    return within(network, state, lambda loaded: loaded(*inputs))


def within(network: nn.Module, state: State, work: Callable[[nn.Module], T], *, writes: bool = False) -> T:
    """What `work` makes of `network` while its weights are `state`, in however many passes; both are left as they were,
    but for what `work` itself `writes` into `state`. NetworkError where a pass writes into weights."""
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

        def looked(loaded: nn.Module) -> T:
            made = work(loaded)
            look()
            return made

        return functional_call(_Within(network), weights, (looked,), tie_weights=False)


class _Within(nn.Module):
    """Its forward pass is whatever is done with a network: `functional_call` exchanges the weights once for all."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, work: Callable[[nn.Module], Any]) -> Any:
        return work(self.network)


@contextmanager
def mode(network: nn.Module, *, training: bool) -> Generator[None]:
    """`network` in training or evaluation mode, and every module of it as it was afterwards. NetworkError where that
    would change its weights."""
    check_modes(network)
    before = [(module, module.training) for module in network.modules()]
    try:
        network.train(training)
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


def lay_out(network: nn.Module, images: Tensor) -> Tensor:
    """`images` (n, channels, height, width) as `network` reads them fastest: for convolutions with the channels
    innermost in memory, which every later map then keeps (ResNet20 trains 1.3 times as fast on one thread)."""
    if images.ndim != 4 or not is_convolutional(network):
        return images
    # `contiguous` would leave images of one channel alone: both layouts are theirs, and later maps would get the other.
    return torch.empty_like(images, memory_format=torch.channels_last).copy_(images)


def lay_out_weights(network: nn.Module, state: State) -> State:
    """`state` as a convolutional `network` reads it fastest beside such images, for many passes: otherwise every pass
    makes copies of the kernels in this layout."""
    if not is_convolutional(network):
        return state
    return {
        key: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for key, tensor in state.items()
    }


def is_convolutional(network: nn.Module) -> bool:
    """Return whether any module of `network` is a two-dimensional convolution."""
    return any(isinstance(module, nn.Conv2d) for module in network.modules())
