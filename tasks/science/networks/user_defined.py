"""User-defined networks: cells whose architecture is a place `package.module:function`.

The function is called with the cell's width, depth and normalization, as far as it has parameters of these names, and
always from the same state of torch's random numbers, so that what it draws besides its parameters is the same in every
process. The parameters that it draws are where training starts, from a state of random numbers for each seed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from tasks.science.evaluation.modes import NetworkError, check_modes
from tasks.science.evaluation.random_state import kept_random_state
from tasks.science.networks.architecture import Architecture, CountLayers, Factors
from tasks.science.networks.inspection import (
    FOUND_NORMALIZATIONS,
    check_trainable_network,
    find_normalization,
    graph_digest,
)
from tasks.science.networks.output_checks import check_classes
from tasks.science.specs.cell import Cell
from tasks.science.specs.checks import is_whole
from tasks.science.specs.data import DataSpec
from tasks.science.specs.state import State
from tasks.science.specs.user_code import UserCodeError, call_function, find_function, named_parameters
from tasks.science.symmetry.tracing.graph import TRACING


@contextmanager
def drawing(seed: int) -> Generator[None]:
    """Draw torch's random numbers from `seed` while open, and restore their state afterwards.

    Threads share the state: one at a time holds it, and none that traces, which keeps it too.
    """
    with TRACING, kept_random_state():
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class UserDefined(Architecture):
    """The architecture of the function at a place; nothing is imported before it is described, checked or built."""

    place: str
    normalizations: tuple[str, ...] = ()
    depth: int | None = None

    unvaried_width: ClassVar[int | None] = None
    # Nothing is known of a user's forward pass: it may look at values, share weights, draw, or read images anyhow.
    stackable: ClassVar[bool] = False
    recordable: ClassVar[bool] = False
    holds_weights: ClassVar[bool] = False
    rounds_images: ClassVar[bool] = False
    draws: ClassVar[bool] = True

    @property
    def defaults(self) -> dict[str, Any]:
        """The factors that the function takes, each with its default: None where it has none.

        Raises ValueError where there is no such place, UserCodeError where importing it raises.
        """
        taken = named_parameters(find_function(self.place, "--network"))
        empty = inspect.Parameter.empty
        return {name: None if taken[name] is empty else taken[name] for name in vars(Factors()) if name in taken}

    def describe(self, data: DataSpec, wanted: Factors, count_layers: CountLayers, /) -> dict[str, Any]:
        """Return the fields of a cell after running the network on two black images and tracing it.

        Where the function does not take a factor, width is 1, depth is the number of layers and normalization is the
        one found. Raises ValueError for a factor that must be given and a network that does not fit the data;
        UserCodeError and TraceError where it cannot be made or traced.
        """
        if data.holds_ids:
            raise ValueError(
                f"{data.name} holds token ids, and studies flip, shift and train on images: merge networks of ids by "
                "`repairlab merge`"
            )
        arguments = self._arguments(wanted)
        network, images = self._call(arguments), torch.zeros(2, *data.shape)
        state = network.state_dict()
        check_classes(network, state, images, data, self.place)
        has = find_normalization(network)
        word = arguments.get("normalization", wanted.normalization) or has
        if word not in FOUND_NORMALIZATIONS or (word == "batch") != (has == "batch"):
            raise ValueError(
                f"{self.place} makes a network whose normalization is {has}, not {word}; "
                f"known: {', '.join(FOUND_NORMALIZATIONS)}"
            )
        return {
            "architecture": self.place,
            "normalization": word,
            "width": arguments.get("width", wanted.width or 1),
            "depth": arguments.get("depth", wanted.depth or max(1, count_layers(network, state, images))),
            "graph": graph_digest(network, data.shape),
        }

    def describe_grid(
        self, data: DataSpec, widths: Sequence[int], depths: Sequence[int], normalization: str, count: CountLayers
    ) -> list[dict[str, Any]]:
        """Return `describe` at every width and depth, each once, of networks that can be trained.

        ValueError also for a factor that the function does not take, and as `check_trainable_network`.
        """
        taken = self.defaults
        for name, given in (("width", widths), ("depth", depths), ("normalization", normalization)):
            if given and name not in taken:
                raise ValueError(
                    f"{self.place} takes no {name}: let it have an argument of that name, or leave out --{name}"
                )
        found = super().describe_grid(data, widths, depths, normalization, count)
        for fields in found:
            network, again = (self._call({name: fields[name] for name in taken}) for _ in range(2))
            check_trainable_network(network, again, self.place)
        return found

    def _arguments(self, wanted: Factors) -> dict[str, Any]:
        """Return the arguments of the function: those `wanted`, or its defaults. ValueError for one that cannot be."""
        arguments: dict[str, Any] = {}
        for name, default in self.defaults.items():
            given = getattr(wanted, name)
            value = default if given is None else given
            if not (isinstance(value, str) if name == "normalization" else is_whole(value, 1)):
                kind = "word" if name == "normalization" else "positive whole number"
                raise ValueError(f"{self.place} takes a {name}, and has no {kind} for its default: give one")
            arguments[name] = value
        return arguments

    def check(self, cell: Cell) -> None:
        if not cell.user_defined:
            raise ValueError(f"{self.place} is user-defined, and its cells need the digest of its graph")

    def build(self, cell: Cell) -> nn.Module:
        """Return the network of `cell`, on the CPU, in evaluation mode.

        Raises as `defaults`, and UserCodeError where the function makes no network.
        """
        return self._build(cell, seed=0)

    def draw(self, cell: Cell, rng: np.random.Generator) -> State:
        """Return the initial weights that the function itself draws, where the recipe does not name others."""
        if cell.recipe.initialization != "published":
            return super().draw(cell, rng)
        network = self._build(cell, int(rng.integers(2**63)))
        return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    def _build(self, cell: Cell, seed: int) -> nn.Module:
        self.check(cell)
        return self._call({name: getattr(cell, name) for name in self.defaults}, seed)

    def _call(self, arguments: dict[str, Any], seed: int = 0) -> nn.Module:
        with drawing(seed):
            return call_builder(find_function(self.place, "--network"), self.place, **arguments).eval()


def call_builder(build: Callable[..., Any], place: str, **arguments: Any) -> nn.Module:
    """Return the network that a user-defined function makes of `arguments`, on the CPU, in float32.

    UserCodeError where it makes none.
    """
    network = call_function(build, place, **arguments)
    if not isinstance(network, nn.Module):
        raise UserCodeError(f"{place} must return a torch.nn.Module, got {type(network).__name__}")
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        raise UserCodeError(
            f"{place} makes a network on the meta device, which has no weights: let it make one on the CPU"
        )
    try:
        check_modes(network)
    except NetworkError as error:
        raise UserCodeError(f"{place}: {error}") from error
    return network.cpu().float()
