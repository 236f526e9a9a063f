"""Forward passes in float64, whatever the type of the weights and whatever the network's code casts to.

Many networks normalise in float32 whatever their input is. Permuting units changes the order of sums, hence the last
digits of float32: a proof in float64 would take that rounding for a change of function. The network computes the same
function without the casts, so a proof leaves them out, and its tolerance stays strict.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from tasks.science.evaluation.functional import compute
from tasks.science.specs.state import State


class InFloat64:
    """A network computed in float64.

    Every weight is converted where it is read and dropped again, so that no second copy of a state is held. Casts to
    fewer digits are left out; `casts` lists the modules that make them, by path, in the order in which they ran.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._without_casts = _WithoutCasts(network)

    @property
    def casts(self) -> tuple[str, ...]:
        """Paths of the modules whose casts were left out so far."""
        return tuple(self._without_casts.places)

    def compute(self, state: State, *inputs: Tensor) -> Any:
        """Return the output of the network with the weights `state` for copies of `inputs`."""
        wide = [x.double() if _is_narrow(x.dtype) else x.clone() for x in inputs]
        loose = loose_buffers(self.network, state, torch.float64)
        with _WideWeights(state), self._without_casts:
            return compute(self.network, loose | state, *wide)


class _WithoutCasts(TorchDispatchMode):
    """Makes every floating value that an operation yields float64; casts to whole numbers are as they are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._paths = {id(module): path for path, module in network.named_modules()}
        self.places: dict[str, None] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if _is_narrow(named.get("dtype")):
            named["dtype"] = torch.float64
            # Only a value of more digits loses some.
            if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
                self.places[self._place()] = None
        # A view or a write has to be of the very tensor that is given.
        if any(argument.alias_info is not None for argument in func._schema.arguments):
            return func(*args, **named)
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(Tensor, _widened, (args, named))
        return tree_map_only(Tensor, _widened, func(*arguments[0], **arguments[1]))

    def _place(self) -> str:
        """Return the path of the innermost module whose forward pass is running."""
        frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        while frame is not None:
            path = self._paths.get(id(frame.f_locals.get("self")))
            if path is not None:
                return path or "forward"
            frame = frame.f_back
        return "forward"


class _WideWeights(TorchFunctionMode):
    """Hands every function of torch float64 copies of the weights that it reads, since some compare types first."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self._weights = {id(tensor) for tensor in state.values() if _is_narrow(tensor.dtype)}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") == "__get__":
            # Of attributes (`weight.T`, `weight.dtype`, `weight.shape`) a tensor and the type are converted.
            value = func(*args, **(kwargs or {}))
            if id(args[0]) not in self._weights:
                return value
            return torch.float64 if _is_narrow(value) else value.double() if isinstance(value, Tensor) else value
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(Tensor, self._wide, (args, kwargs or {}))
        return func(*arguments[0], **arguments[1])

    def _wide(self, tensor: Tensor) -> Tensor:
        return tensor.double() if id(tensor) in self._weights else tensor


def loose_buffers(network: nn.Module, state: State, dtype: torch.dtype) -> State:
    """Return the floating buffers that `state` lacks, as `dtype`: exchanged with it, they are put back after a pass."""
    buffers = network.named_buffers()
    return {key: buffer.to(dtype) for key, buffer in buffers if key not in state and buffer.is_floating_point()}


def _is_narrow(dtype: Any) -> bool:
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize < torch.float64.itemsize


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if _is_narrow(tensor.dtype) else tensor
