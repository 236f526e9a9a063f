"""Where a network can be measured and corrected, found by watching one forward pass.

Any network will do: layers are told by torch's own module types, what reads what by the identity of tensors, residual
blocks by the addition in them. Names are module paths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.overrides import TorchFunctionMode

from tasks.science.evaluation import compute, mode
from tasks.science.specs import State


@dataclass(frozen=True)
class Site:
    """A place in a network where units have moments.

    `layer`: what a convolution or hidden linear layer puts out; `norm`: what a BatchNorm reads that does not directly
    follow such a layer; `block`: what a residual block puts out. Units lie along dimension `dim` of that tensor.
    """

    name: str
    kind: Literal["layer", "norm", "block"]
    dim: int
    units: str | None = None
    """The layer whose weight's rows are in the order of these units; None for a norm, whose moments are not compared
    between networks."""
    bias: bool = False
    norm: str | None = None
    """The BatchNorm that alone reads a layer's output."""


@dataclass(frozen=True)
class Layout:
    """`sites` in the order in which they run. `n_values`: how many numbers the layers put out per image."""

    sites: tuple[Site, ...]
    n_values: int
    dense: bool
    """Whether every layer puts out one vector per image, so that all statistics samples fit into memory at once."""

    @property
    def layers(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.kind == "layer")

    @property
    def blocks(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.kind == "block")

    @property
    def norms(self) -> tuple[str, ...]:
        """Every BatchNorm with running statistics, whether it follows a layer or not."""
        followers = [site.norm for site in self.sites if site.norm is not None]
        return (*followers, *(site.name for site in self.sites if site.kind == "norm"))


@torch.no_grad()
def find_layout(network: nn.Module, state: State, images: Tensor) -> Layout:
    """The sites of `network` in evaluation mode, from a pass over the first two of `images`; `network` is left alone.

    Left out: the layer that runs last (it makes the logits), and layers that no single rescaling can correct, because
    they run more than once, share their weight with another, or compute it from other tensors of `state`.
    """
    watch = _Watch(network)
    with mode(network, training=False), watch.hooked(), watch:
        compute(network, state, images[:2])
    uses = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    layers = [name for name, kind in watch.events if kind == "layer"]
    correctable = {
        name
        for name in layers[:-1]
        if watch.calls[name] == 1 and f"{name}.weight" in state and uses[id(network.get_submodule(name).weight)] == 1
    }
    followers = {
        name: norm
        for norm, name in watch.follows.items()
        if name in correctable and watch.n_reads[name] == 1 and watch.calls[norm] == 1
    }
    sites: list[Site] = []
    for name, kind in watch.events:
        site = Site(name, kind, 1)
        if kind == "layer":
            dim = 1 if isinstance(network.get_submodule(name), nn.Conv2d) else -1
            site = Site(name, kind, dim, name, f"{name}.bias" in state, followers.get(name))
        elif kind == "block":
            units = watch.last_layer.get(name)
            dim = _units_dim(watch.shapes[name], state[f"{units}.weight"].shape[0]) if units in correctable else None
            site = Site(name, kind, dim or 0, units)
        usable = (
            name in correctable
            if kind == "layer"
            else site.dim != 0 and name not in followers.values() and (kind == "norm" or watch.calls[name] == 1)
        )
        if usable and site not in sites:
            sites.append(site)
    shapes = [watch.shapes[site.name] for site in sites if site.kind == "layer"]
    return Layout(tuple(sites), sum(shape[1:].numel() for shape in shapes), all(len(shape) == 2 for shape in shapes))


@contextmanager
def observing(
    network: nn.Module, sites: Sequence[Site], see: Callable[[Site, Tensor], Tensor | None]
) -> Generator[None]:
    """While open, a pass through `network` shows every site's values to `see`, whose answer, if any, takes their place
    (of a norm, what it reads; else what the module puts out)."""

    def reading(site: Site) -> Callable[[nn.Module, Any], Any]:
        return lambda _module, inputs: see(site, inputs[0])

    def writing(site: Site) -> Callable[[nn.Module, Any, Tensor], Any]:
        return lambda _module, _inputs, output: see(site, output)

    handles = [
        network.get_submodule(site.name).register_forward_pre_hook(reading(site))
        if site.kind == "norm"
        else network.get_submodule(site.name).register_forward_hook(writing(site))
        for site in sites
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_ADDITIONS = ("add", "add_", "__add__", "__iadd__", "__radd__")


class _Watch(TorchFunctionMode):
    """What one forward pass does: which modules run in which order, who reads a layer's output, who adds maps."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.modules = dict(network.named_modules())
        self.events: list[tuple[str, Literal["layer", "norm", "block"]]] = []
        self.calls: Counter[str] = Counter()
        self.shapes: dict[str, torch.Size] = {}
        self.follows: dict[str, str] = {}
        """By BatchNorm the layer whose output it reads."""
        self.n_reads: Counter[str] = Counter()
        """By layer, how many operations read its output."""
        self.last_layer: dict[str, str | None] = {}
        """By block, the layer that ran last before its addition."""
        self._running: list[str] = []
        self._outputs: dict[int, tuple[str, Tensor]] = {}  # The tensors too: an id is free again once its tensor is.

    @contextmanager
    def hooked(self) -> Generator[None]:
        handles: list[Any] = []
        for name, module in self.modules.items():
            handles.append(module.register_forward_pre_hook(self._entering(name)))
            handles.append(module.register_forward_hook(self._leaving(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._running.append(name)
            self.calls[name] += 1
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                self.events.append((name, "norm"))
                if id(inputs[0]) in self._outputs:
                    self.follows[name] = self._outputs[id(inputs[0])][0]

        return hook

    def _leaving(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            self._running.pop()
            if not isinstance(output, Tensor):
                return
            self.shapes[name] = output.shape
            if isinstance(module, nn.Conv2d | nn.Linear):
                self.events.append((name, "layer"))
                self._outputs[id(output)] = (name, output)
            elif name in self.last_layer:
                self.events.append((name, "block"))

        return hook

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if next(_tensors(result), None) is not None:  # Asking for a shape is not reading values.
            read = list(_tensors([args, kwargs or {}]))
            for tensor in read:
                if id(tensor) in self._outputs:
                    self.n_reads[self._outputs[id(tensor)][0]] += 1
            adds = getattr(func, "__name__", "") in _ADDITIONS and len(read) == 2
            if adds and read[0].ndim > 1 and read[0].shape == read[1].shape and self._running[-1]:
                ran = [name for name, kind in self.events if kind == "layer"]
                self.last_layer[self._running[-1]] = ran[-1] if ran else None
        return result


def _tensors(value: Any) -> Generator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _units_dim(shape: torch.Size, n_units: int) -> int | None:
    """Along which dimension of a block's output its units lie: maps carry them in front, sequences at the end."""
    dims = (1, -1) if len(shape) == 4 else (-1, 1)
    return next((dim for dim in dims if shape[dim] == n_units), None)
