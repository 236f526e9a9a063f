"""Shapes of what modules return while a network is traced, which operations alone do not tell."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ModuleOutputs = dict[str, list[torch.Size | None]]
"""By path of a module, the shape that each of its calls returned; None for anything but one tensor."""


@contextmanager
def recorded_outputs(network: nn.Module) -> Generator[ModuleOutputs]:
    """Record what the modules of `network` put out while this is open; the network itself is not recorded."""
    shapes: ModuleOutputs = {}

    def observe(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            shapes.setdefault(name, []).append(output.shape if isinstance(output, Tensor) else None)

        return hook

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(observe(name)).remove)
        yield shapes
