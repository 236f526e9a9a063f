"""Kinds of networks: the widths, depths and normalizations of each, how it is built, and how it may be trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tasks.science.networks.folding import fold_batch_norm
from tasks.science.networks.initialization import initial_state
from tasks.science.specs.cell import Cell
from tasks.science.specs.checks import shown
from tasks.science.specs.data import DataSpec
from tasks.science.specs.state import State

CountLayers = Callable[[nn.Module, State, Tensor], int]
"""Counts the layers of a network with given weights, for given images, that corrections reach."""


@dataclass(frozen=True)
class Factors:
    """The factors of a network as they are asked for; None stands for the architecture's default."""

    width: int | None = None
    depth: int | None = None
    normalization: str | None = None


class Architecture(ABC):
    """A kind of network that a cell can name: it describes cells, builds their networks and draws initial weights."""

    normalizations: tuple[str, ...]
    """The normalizations that there are, the default first; empty where the network itself says which it has."""
    depth: int | None
    """The only depth that there is; None where a cell chooses."""
    unvaried_width: ClassVar[int | None] = 1
    """The width of a grid that asks for none; None where the network itself says which."""

    stackable: ClassVar[bool] = True
    """Whether several seeds may be computed as one group: the forward pass has nothing that `torch.func` refuses."""
    recordable: ClassVar[bool] = True
    """Whether a training step may be recorded as a CUDA graph: no operation depends on values."""
    holds_weights: ClassVar[bool] = True
    """Whether weights may be loaded into a copy once for all passes: no two layers share a tensor."""
    rounds_images: ClassVar[bool] = True
    """Whether the first layer rounds images to the precision of a pass, so that they may be rounded beforehand."""
    draws: ClassVar[bool] = False
    """Whether a forward pass in training mode draws random numbers, as dropout does."""

    @property
    def default_normalization(self) -> str:
        """The first of `normalizations`; empty where the network itself says which it has."""
        return self.normalizations[0] if self.normalizations else ""

    @abstractmethod
    def describe(self, data: DataSpec, wanted: Factors, count_layers: CountLayers, /) -> dict[str, Any]:
        """Return the fields of a cell that say which network this is for `data`.

        ValueError for a width or depth that has to be given and is not. `count_layers` tells the depth of a network
        that takes none.
        """

    def describe_grid(
        self, data: DataSpec, widths: Sequence[int], depths: Sequence[int], normalization: str, count: CountLayers
    ) -> list[dict[str, Any]]:
        """Return `describe` at every width and depth, each once; empty stands for the default.

        An architecture of one depth is not varied over `depths`.
        """
        chosen = [self.depth] if self.depth is not None else dict.fromkeys(depths) or [None]
        found: list[dict[str, Any]] = []
        for width, depth in product(dict.fromkeys(widths) or [self.unvaried_width], chosen):
            fields = self.describe(data, Factors(width, depth, normalization or None), count)
            if fields not in found:
                found.append(fields)
        return found

    @abstractmethod
    def check(self, cell: Cell) -> None:
        """Raise ValueError for a cell whose network this architecture does not have."""

    @abstractmethod
    def build(self, cell: Cell) -> nn.Module:
        """Return the network whose weights an endpoint of `cell` holds, in evaluation mode. Raises as `check`."""

    def build_for_training(self, cell: Cell) -> nn.Module:
        """Return the network that is trained for `cell`, which `build` may simplify afterwards."""
        return self.build(cell)

    def fold(self, _cell: Cell, state: State, /) -> State:
        """Return the weights of `build` that compute what `state` computes in `build_for_training`."""
        return state

    def draw(self, cell: Cell, rng: np.random.Generator) -> State:
        """Return every parameter and buffer at the start of training, by the `initialization` of the cell's recipe."""
        return initial_state(self.build_for_training(cell), rng, cell.recipe.initialization)


@dataclass(frozen=True)
class Shipped(Architecture):
    """An architecture that ships with the package, built on torch's meta device: it costs nothing and draws nothing.

    `make` makes the network of a cell with a normalization. `depth` is the only one there is; None where a cell chooses
    its number of hidden layers. `width` is the published one, None where a cell has to choose.
    """

    word: str
    normalizations: tuple[str, ...]
    make: Callable[[Cell, str], nn.Module]
    depth: int | None
    width: int | None = 1
    scalable_up_to: int | None = None
    """Images of more pixels a side are taken at the published width alone; None for no such limit."""
    max_side: int | None = None
    """Images of more pixels a side are not taken; None for no such limit."""

    def describe(self, _data: DataSpec, wanted: Factors, _count_layers: CountLayers, /) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "architecture": self.word,
            "normalization": wanted.normalization or self.default_normalization,
            "width": wanted.width or self.width,
            "depth": wanted.depth or self.depth,
        }
        for name, meaning in (("width", "neurons of a hidden layer"), ("depth", "number of hidden layers")):
            if fields[name] is None:
                raise ValueError(
                    f"an {self.word} needs its {name}, the {meaning}: give --{name} N, or --set {name}=N to import"
                )
        return fields

    def check(self, cell: Cell) -> None:
        if cell.user_defined:
            raise ValueError(f"{self.word} ships with the package and has no digest of its graph, got {cell.graph}")
        if cell.normalization not in self.normalizations:
            raise ValueError(
                f"{self.word} has no normalization {shown(cell.normalization)}; known: {', '.join(self.normalizations)}"
            )
        if self.depth is not None and cell.depth != self.depth:
            raise ValueError(f"{self.word} has depth {self.depth} and no other, got {cell.depth}")
        if cell.data.holds_ids:
            raise ValueError(f"{self.word} reads images, and {cell.data.name} holds token ids: take a network of ids")
        side = max(cell.data.shape[1:])
        if self.scalable_up_to is not None and side > self.scalable_up_to and cell.width != self.width:
            raise ValueError(
                f"{self.word} for images of {side} pixels a side has width {self.width} and no other, got {cell.width}"
            )
        if self.max_side is not None and side > self.max_side:
            raise ValueError(
                f"{self.word} takes images of at most {self.max_side} pixels a side, and those of {cell.data.name} "
                f"have {side}"
            )

    def build(self, cell: Cell) -> nn.Module:
        return self._make(cell, "none" if cell.normalization == "batch-fused" else cell.normalization)

    def build_for_training(self, cell: Cell) -> nn.Module:
        """Return the network with the BatchNorm that is folded away after training, where there is one."""
        return self._make(cell, "batch" if cell.normalization == "batch-fused" else cell.normalization)

    def fold(self, cell: Cell, state: State, /) -> State:
        return fold_batch_norm(self.build_for_training(cell), state) if cell.normalization == "batch-fused" else state

    def _make(self, cell: Cell, normalization: str) -> nn.Module:
        self.check(cell)
        with torch.device("meta"):
            return self.make(cell, normalization).eval()
