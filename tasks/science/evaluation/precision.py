"""Forward passes kept in float64 where a network would cast its values to fewer digits.

Many networks normalise in float32 whatever the type of their input. Permuting units changes the order of sums and hence
the last digits of float32, which a proof in float64 would take for a change of function. Without its casts a network
computes the same function, so a proof leaves them out and keeps its strict tolerance.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class CastsKept(TorchDispatchMode):
    """A mode in which every operation makes floating values in float64, whatever type it asks for.

    Casts to whole numbers are kept. `places`: paths of the modules whose casts were left out, in the order in which
    they ran.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._paths = {id(module): path for path, module in network.named_modules()}
        self._places: dict[str, None] = {}

    @property
    def places(self) -> tuple[str, ...]:
        return tuple(self._places)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if _is_narrow(named.get("dtype")):
            named["dtype"] = torch.float64
            # Only what had more digits loses some.
            if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
                self._places[self._place()] = None
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


def _is_narrow(dtype: Any) -> bool:
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize < torch.float64.itemsize


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if _is_narrow(tensor.dtype) else tensor
