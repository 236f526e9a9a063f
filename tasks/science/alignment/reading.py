"""Activations at the readings of a permutation spec.

Where every reading is the output of a module, forward hooks take activations from the network itself. Where one is not
(a functional nonlinearity, a sum in a forward method), the traced graph is run instead, operation by operation: its
operations have the names that the spec gives them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from tasks.science.evaluation.functional import compute, lay_out, lay_out_weights
from tasks.science.specs.state import State
from tasks.science.symmetry.permutation import Axis, Reading
from tasks.science.symmetry.tracing.execution import graph_for, run_graph


@dataclass(frozen=True)
class ObservedFamily:
    """The axes of one family (one axis, where nothing is nested) and where their activations are read.

    The units of all axes count one after the other. `readings` have ascending units: several where the axes do not
    lie in one tensor.
    """

    name: str
    axes: tuple[Axis, ...]
    readings: tuple[Reading, ...]

    @property
    def n_units(self) -> int:
        """Units of all axes."""
        return sum(axis.size for axis in self.axes)

    @property
    def n_each(self) -> int:
        """Channels per unit."""
        return self.readings[0].positions.shape[1]

    @cached_property
    def channels(self) -> list[slice]:
        """Channels of each reading, among those of all units side by side."""
        ends = np.cumsum([0, *(reading.positions.size for reading in self.readings)]).tolist()
        return [slice(first, last) for first, last in itertools.pairwise(ends)]


Key = tuple[str, int]
"""A reading: the name of its family, and its number there."""

Receive = Callable[[Key, Tensor], None]


def keyed_readings(families: Iterable[ObservedFamily]) -> list[tuple[Key, Reading]]:
    """Return the readings of `families`, each under its key."""
    return [((family.name, i), reading) for family in families for i, reading in enumerate(family.readings)]


class MisreadError(ValueError):
    """Error of a tensor without the traced units of `reading`.

    Its batch has another size than the traced one, or its values are complex, for which no correlation is defined.
    """

    def __init__(self, reading: Reading) -> None:
        super().__init__(f"{reading.node} does not carry the units that were traced there, as real numbers")
        self.reading = reading


class Reader(Protocol):
    """A network that hands out what is read as it runs."""

    def prepare(self, state: State) -> State:
        """Return the same values, laid out as visits read them fastest."""
        ...

    def visit(self, state: State, batch: Tensor, wanted: Sequence[tuple[Key, Reading]], receive: Receive) -> None:
        """Call `receive` with each key and its activations (n_samples, n_channels), those of a unit side by side.

        They are valid during the call only: the network may overwrite them later. The pass ends with the last of them.
        Raises ValueError where the pass does not come to one, MisreadError where one is not what was traced.
        """
        ...


def make_reader(network: nn.Module, readings: Sequence[Reading]) -> Reader:
    """Return a reader of `network` that can read all of `readings`."""
    if all(reading.module is not None for reading in readings):
        return HookReader(network)
    return GraphReader(network)


class Selection:
    """Activations taken out of the tensors that readings name; the channels of each reading are worked out once."""

    def __init__(self) -> None:
        self._channels: dict[Reading, tuple[Tensor, int, bool]] = {}

    def __call__(self, tensor: Tensor, reading: Reading) -> Tensor:
        """Return the activations (n_samples, n_channels), those of a unit side by side; a view where that can be.

        Raises MisreadError where `tensor` has no such positions, or is complex.
        """
        if reading not in self._channels:
            channels = reading.positions.ravel()
            in_order = np.array_equal(channels, np.arange(len(channels)))
            self._channels[reading] = torch.from_numpy(channels), int(channels.max()), in_order
        channels, last, in_order = self._channels[reading]
        if tensor.is_complex() or tensor.ndim <= reading.dim or tensor.shape[reading.dim] <= last:
            raise MisreadError(reading)
        n = tensor.shape[reading.dim]
        rows = tensor.movedim(reading.dim, -1).reshape(-1, n)
        return rows if in_order and n == len(channels) else rows.index_select(1, channels.to(tensor.device))


class HookReader:
    """A reader of the outputs of modules, by path and number of the call."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.select = Selection()

    def prepare(self, state: State) -> State:
        return lay_out_weights(self.network, state)

    def visit(self, state: State, batch: Tensor, wanted: Sequence[tuple[Key, Reading]], receive: Receive) -> None:
        by_module: dict[str, list[tuple[Key, Reading]]] = {}
        for key, reading in wanted:
            if reading.module is None:
                raise ValueError(f"{reading.node} is no module's output")
            by_module.setdefault(reading.module, []).append((key, reading))
        missing = dict(wanted)

        def observe(path: str) -> Callable[[nn.Module, Any, Any], None]:
            n_calls = 0

            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                nonlocal n_calls
                for key, reading in by_module[path]:
                    if reading.call == n_calls:
                        receive(key, self.select(output, reading))
                        del missing[key]
                n_calls += 1
                if not missing:
                    raise _AllReadError

            return hook

        handles = [self.network.get_submodule(path).register_forward_hook(observe(path)) for path in by_module]
        try:
            compute(self.network, state, lay_out(self.network, batch))
        except _AllReadError:
            return
        finally:
            for handle in handles:
                handle.remove()
        raise _missed(missing.values())


class _AllReadError(Exception):
    """The pass has come to the last of what was wanted and need not go on."""


def _missed(readings: Iterable[Reading]) -> ValueError:
    return ValueError(f"the forward pass did not come to {next(iter(readings)).node}, which was to be read")


class GraphReader:
    """A reader of the results of operations, by their names in the graph, traced once per size of batch."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.select = Selection()

    def prepare(self, state: State) -> State:
        return state

    def visit(self, state: State, batch: Tensor, wanted: Sequence[tuple[Key, Reading]], receive: Receive) -> None:
        of_node: dict[str, list[tuple[Key, Reading]]] = {}
        for key, reading in wanted:
            of_node.setdefault(reading.node, []).append((key, reading))
        missing = {reading.node: reading for _, reading in wanted}

        def see(node: Node, value: Any) -> Any:
            if node.name in missing:
                for key, reading in of_node[node.name]:
                    receive(key, self.select(value, reading))
                del missing[node.name]
            if not missing:
                raise _AllReadError
            return value

        with suppress(_AllReadError):
            run_graph(graph_for(self.network, batch), state, batch, see)
        if missing:
            raise _missed(missing.values())
