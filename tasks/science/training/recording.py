"""Training steps recorded as CUDA graphs, whose launches then cost next to nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tasks.science.networks import find_architecture
from tasks.science.specs.cell import Cell

WARM_UP_STEPS = 3
"""Steps that run as they are before one is recorded: what the first sets up must not be part of a graph."""

Step = Callable[..., None]
"""A training step: it takes tensors alone, always of the same shapes, and changes tensors in place."""


def is_recorded(cell: Cell, device: torch.device) -> bool:
    """Return whether the training steps of a cell are recorded: on a GPU, where nothing depends on values.

    In float16 the scale of the loss does.
    """
    recordable = find_architecture(cell.architecture).recordable
    return device.type == "cuda" and recordable and cell.recipe.precision != "float16"


def record_graph(step: Step, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """Record `step` with `inputs` as a CUDA graph, without running it; return the function that runs it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(*inputs)
    return graph.replay


class RecordedStep:
    """A step that runs as it is a few times, is then recorded, and from then on replayed with the values it is given.

    The first runs are steps like any other.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._n_run = 0
        self._inputs: tuple[Tensor, ...] = ()
        self._replay: Callable[[], object] | None = None

    def __call__(self, *inputs: Tensor) -> None:
        if self._n_run < WARM_UP_STEPS:
            self._n_run += 1
            self._warm_up(inputs)
            return
        if self._replay is None:
            self._inputs = tuple(value.clone() for value in inputs)
            self._replay = record_graph(self._step, self._inputs)
        for held, value in zip(self._inputs, inputs, strict=True):
            held.copy_(value)
        self._replay()

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> None:
        if not inputs[0].is_cuda:
            self._step(*inputs)
            return
        # Not on the default stream: what the first steps set up there could not be recorded.
        main, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            self._step(*inputs)
        main.wait_stream(side)
