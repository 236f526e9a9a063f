"""Networks that write into their own weights are found before a caller's tensors are at stake.

A network lends its forward pass, and weights are put in its parameters' place. Where `train()` or `eval()` changes what
stands there, as layers do that merge an update of low rank, or where a forward pass does, the outcome depends on what
was done before, and the caller's weights are changed. Changes of mode are tried once per network on noise, for what is
added may be 0 in the network's own weights; forward passes are watched the first time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]

from tasks.science.evaluation.random_state import kept_random_state

_STEADY: WeakSet[nn.Module] = WeakSet()
"""Networks whose changes of mode leave their tensors alone."""

_READING: WeakSet[nn.Module] = WeakSet()
"""Networks whose forward pass in evaluation mode writes into no tensor."""

_KNOWN_PACKAGES = ("torch.", "tasks.science.")
"""Whose modules write in evaluation mode into nothing."""


_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")


class NetworkError(ValueError):
    """A network that nothing can be computed with here; the message says why, and the way out."""


def check_modes(network: nn.Module) -> None:
    """NetworkError where `train()` or `eval()` of `network` changes its parameters or buffers, or where it holds
    TorchScript or quantized modules, whose tensors cannot be exchanged. It is left as it was, and tried once."""
    if network in _STEADY:
        return
    for path, module in network.named_modules():
        where = f"{path} of the network" if path else "the network"
        if type(module).__module__.startswith(_QUANTIZED):
            raise NetworkError(
                f"{where} is quantized, and weights in whole numbers cannot be merged: give the network as it was "
                "before, in floats, and quantize what comes out"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise NetworkError(
                f"{where} is TorchScript, whose weights cannot be exchanged: give the nn.Module that was scripted or "
                "traced"
            )
    switching = [(path, module) for path, module in network.named_modules() if _has_own_switch(module)]
    if switching and _rewritten(network, network):
        # Innermost first: a module is switched with all that it holds.
        guilty = next(((p, m) for p, m in reversed(switching) if _rewritten(network, m)), ("", network))
        path, module = guilty
        raise NetworkError(
            f"train() and eval() of {path or 'the network'} ({type(module).__name__}) rewrite its weights, so weights "
            "would mean something else in each mode: merge the update into the weights first and give a plain network, "
            "or let train() and eval() leave them alone"
        )
    _STEADY.add(network)


@contextmanager
def watched(network: nn.Module, state: Mapping[str, Tensor]) -> Generator[Callable[[], None]]:
    """While open, `network` computes with the tensors of `state`, in evaluation mode; afterwards they are as they were.

    What it yields is called while the tensors are in the network's own, after the last pass.
    Raises NetworkError where a pass has changed or replaced a parameter, or a buffer that it reads and that is not of
    whole numbers. The first passes that end are watched, and all of a network that writes; that costs a copy of the
    weights.
    """
    if network in _READING or all(type(m).__module__.startswith(_KNOWN_PACKAGES) for m in network.modules()):
        yield lambda: None
        return
    # What is done here is none of the work that a caller's mode of torch's functions is for.
    with _plainly():
        before = {key: tensor.clone() for key, tensor in state.items()}
    shown: list[tuple[Any, ...]] = []
    changed: list[str] = []

    def look() -> None:
        with _plainly():
            changed.extend(k for k, t in network.named_parameters() if k in before and not _same(before[k], t.detach()))
            floats = [(k, t) for k, t in network.named_buffers() if k in before and t.is_floating_point()]
            found = [k for k, t in floats if not _same(before[k], t.detach())]
            if found and _reads(network, {key: before[key] for key in found}, shown[:1]):
                changed.extend(found)

    handle = network.register_forward_pre_hook(lambda _, inputs: shown.append(inputs) if not shown else None)
    written: list[str] = []
    try:
        yield look
    finally:
        handle.remove()
        with _plainly(), torch.no_grad():
            for key, tensor in before.items():
                if not _same(tensor, state[key]):
                    written.append(key)
                    state[key].copy_(tensor)
    changed += [key for key in written if key in dict(network.named_parameters(remove_duplicate=False))]
    if changed:
        path, _, name = changed[0].rpartition(".")
        raise NetworkError(
            f"the forward pass of {path or 'the network'} changes {name} in evaluation mode, so what it puts out "
            "depends on what it saw before: let it write in training mode alone"
        )
    if not written:
        _READING.add(network)


@torch.no_grad()
def _reads(network: nn.Module, buffers: Mapping[str, Tensor], shown: Sequence[tuple[Any, ...]]) -> bool:
    """Whether what `network` puts out for `shown` depends on these values of its buffers; hooks of this package, which
    observe it, are not called."""
    outputs: list[Any] = []
    with kept_attributes(network), ExitStack() as hooks:
        for module in network.modules():
            module.training = False
            for held in (module._forward_hooks, module._forward_pre_hooks):  # pyright: ignore[reportPrivateUsage]
                hooks.enter_context(_without_ours(held))
        dtype = next(iter(buffers.values())).dtype
        for shift in (0.0, 1.0):
            for key, tensor in buffers.items():
                path, _, name = key.rpartition(".")
                network.get_submodule(path)._buffers[name] = tensor + shift  # pyright: ignore[reportPrivateUsage]
            outputs += [
                network(*(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs))
                for inputs in shown
            ]
    known = len(outputs) == 2 and all(isinstance(one, Tensor) for one in outputs)
    return not (known and _same(outputs[0], outputs[1]))


@contextmanager
def _without_ours(hooks: dict[int, Any]) -> Generator[None]:
    before = dict(hooks)
    for number, hook in before.items():
        if str(getattr(hook, "__module__", "")).startswith("tasks.science."):
            del hooks[number]
    try:
        yield
    finally:
        hooks.clear()
        hooks.update(before)


@contextmanager
def kept_attributes(network: nn.Module) -> Generator[None]:
    """Put every attribute of every module back, whatever is stored there in the meantime."""
    before = [(module, dict(module.__dict__)) for module in network.modules()]
    inner = [(d, dict(d)) for module, _ in before for d in (module._parameters, module._buffers, module._modules)]  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        for module, attributes in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for holder, content in inner:
            if list(holder) != list(content) or any(holder.get(k) is not v for k, v in content.items()):
                holder.clear()
                holder.update(content)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _has_own_switch(module: nn.Module) -> bool:
    """Whether a change of mode does more than `nn.Module` does, which is to set a flag."""
    kind = type(module)
    return (
        kind.train is not nn.Module.train
        or kind.eval is not nn.Module.eval
        or kind.__setattr__ is not nn.Module.__setattr__
        or hasattr(kind, "training")
        or not {"train", "eval"}.isdisjoint(module.__dict__)
    )


def _rewritten(network: nn.Module, module: nn.Module) -> bool:
    """Whether changes of mode of `module`, which `network` holds, change any tensor of `network` where all are noise.
    Attributes and the CPU's random state are put back."""
    with kept_random_state(), kept_attributes(network), torch.no_grad():
        noise = _put_noise(network)
        for _ in range(2):
            for training in (not module.training, module.training):
                module.train(training)
                found = _tensors(network)
                if found.keys() != noise.keys() or any(not _same(noise[k], found[k]) for k in noise):
                    return True
    return False


def _put_noise(network: nn.Module) -> dict[tuple[str, str], Tensor]:
    """Puts noise in the place of every tensor of `network` that has values; returns a copy of it."""
    generator = torch.Generator().manual_seed(0)
    drawn: dict[int, Tensor] = {}
    for module in network.modules():
        for holder in (module._parameters, module._buffers):  # pyright: ignore[reportPrivateUsage]
            for name, tensor in holder.items():
                if tensor is None or is_lazy(tensor) or tensor.is_meta:
                    continue
                if id(tensor) not in drawn:
                    values = tensor.detach().clone()
                    if values.is_floating_point() and not values.is_quantized:
                        values.copy_(torch.randn(values.shape, generator=generator))
                    is_parameter = isinstance(tensor, nn.Parameter)
                    drawn[id(tensor)] = nn.Parameter(values, tensor.requires_grad) if is_parameter else values
                holder[name] = drawn[id(tensor)]  # pyright: ignore[reportArgumentType]
    return {place: tensor.clone() for place, tensor in _tensors(network).items()}


def _tensors(network: nn.Module) -> dict[tuple[str, str], Tensor]:
    """Parameters and buffers that have values, by the path of their module and their name."""
    holders: list[tuple[str, Sequence[tuple[str, Tensor | None]]]] = []
    for path, module in network.named_modules():
        holders += [(path, list(module._parameters.items())), (path, list(module._buffers.items()))]  # pyright: ignore[reportPrivateUsage]
    return {
        (path, name): tensor.detach()
        for path, held in holders
        for name, tensor in held
        if tensor is not None and not is_lazy(tensor) and not tensor.is_meta
    }


@contextmanager
def _plainly() -> Generator[None]:
    """While open, no mode or subclass sees what torch is asked for."""
    with torch._C.DisableTorchFunction(), _disable_current_modes():  # pyright: ignore[reportPrivateUsage]
        yield


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape and values, where what is no number is the same as itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
