"""REPAIR of a plain MLP, exact: the whole statistics set goes through one layer at a time.

The scale and shift that are folded into a layer's weights are also applied to its values, so that the next layer is
measured on corrected input without a second pass. Only the bend at 0 costs a pass over the values (`Ramp`). The values
of one layer are in memory, in chunks of images that stay in a core's caches while they are computed and measured.

The moments of a corrected layer are not measured again: they follow from those before and its scale and shift.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self, TypeGuard

import torch
from torch import Tensor, nn

from tasks.science.correction.first_layer import Between, FirstLayer, chunks_of
from tasks.science.correction.models import Corrected, Estimation, Model, Target
from tasks.science.correction.preactivations import LayerMoments
from tasks.science.data.examples import Examples
from tasks.science.evaluation.calibration import Halves
from tasks.science.evaluation.metrics import Evaluation, evaluate_batches
from tasks.science.evaluation.moments import Moments, RunningMoments
from tasks.science.networks.mlp import MLP
from tasks.science.specs.corrections import Correction, GoalPart
from tasks.science.specs.measurement import PLAINLY, Viewing
from tasks.science.specs.state import State


def is_plain_mlp(network: nn.Module) -> TypeGuard[MLP]:
    """Return whether `network` is an MLP without norms."""
    return isinstance(network, MLP) and network.normalization == "none"


def first_layer(network: MLP, state: State) -> FirstLayer:
    """Return the first layer of the network `state`, which as yet keeps no values."""
    name = network.hidden_linears[0]
    return FirstLayer(name, state[f"{name}.weight"], state[f"{name}.bias"])


@dataclass(frozen=True, eq=False)
class MLPModel(Model):
    """A plain MLP, which is measured and corrected exactly, layer by layer.

    `first`: its first layer before any correction, where endpoints keep its values; `ramp`: what the correction made of
    these values.
    """

    network: MLP
    first: FirstLayer | Between | None = None
    ramp: Ramp | None = None

    def moments(self, images: Tensor, *, blocks: bool = False) -> LayerMoments:  # noqa: ARG002 - an MLP has no blocks
        return mlp_moments(self.network, self.state, images, self._kept(images))

    def permuted(self, state: State, orders: Mapping[str, Tensor]) -> Self:
        assert isinstance(self.first, FirstLayer)
        return replace(self, state=state, first=self.first.reordered(orders[self.first.name]))

    def between(self, other: Model, alpha: float, state: State) -> Self:
        assert isinstance(other, MLPModel)
        assert isinstance(self.first, FirstLayer)
        assert isinstance(other.first, FirstLayer)
        return replace(self, state=state, first=Between(self.first, other.first, alpha))

    def corrected(self, chosen: Correction, target: Target, estimation: Estimation) -> Corrected:  # noqa: ARG002 - exact
        """Return this model brought to `target`, exactly whatever the `estimation`."""
        first = self._kept(target.statistics)
        repaired = repair(self.network, self.state, target.goal, target.statistics, chosen.part, first)
        return Corrected(replace(self, state=repaired.state, ramp=repaired.first), (), repaired.moments)

    @torch.no_grad()
    def evaluate(self, examples: Examples, halves: Halves | None = None, *, viewing: Viewing = PLAINLY) -> Evaluation:
        """Return loss and accuracy over all of `examples`; endpoints' values are read where they keep them."""
        first = self._kept(examples.images)
        if first is None or examples.scaling is not None or viewing != PLAINLY:
            return super().evaluate(examples, halves, viewing=viewing)
        logits = logits_between(self.network, self.state, first, examples.images, self.ramp)
        return evaluate_batches(zip(logits, chunks_of(examples.labels), strict=True), halves)

    def _kept(self, images: Tensor) -> FirstLayer | Between | None:
        """Return the first layer where its values on `images` are kept."""
        return self.first if self.first is not None and self.first.keeps(images) else None


@dataclass(frozen=True)
class Ramp:
    """A ReLU of scaled and shifted values, relu(scale z + shift) = scale (max(z, start) - start).

    `scale` (n_units,), above 0, and `start` (n_units,). The maximum is taken of the values, the rest goes into the
    weights that read them.
    """

    scale: Tensor
    start: Tensor

    @staticmethod
    def plain(like: Tensor) -> Ramp:
        """Return the ReLU alone, for the units of `like` and in its type."""
        return Ramp(torch.ones_like(like), torch.zeros_like(like))

    def bend(self, values: Tensor) -> Tensor:
        """Bend `values` (n_units, n_examples) in place and return them."""
        return torch.maximum(values, self.start[:, None], out=values)

    def read(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the next layer for values that `bend` returned."""
        weight = weight * self.scale
        # A product of a matrix and a vector is no faster, and in MKL slower at these sizes.
        return weight, bias - (weight * self.start).sum(1)


@dataclass(frozen=True)
class Repaired:
    """Corrected weights `state`, and the `moments` that every hidden layer then has on the statistics samples.

    `first`: what the correction and the ReLU made of the first layer's values.
    """

    state: State
    moments: LayerMoments
    first: Ramp


@torch.no_grad()
def mlp_moments(network: MLP, state: State, images: Tensor, first: FirstLayer | Between | None = None) -> LayerMoments:
    """Return the moments of every hidden layer over all of `images`; `first` as in `repair`."""
    walk = _Walk(first or first_layer(network, state), images)
    moments: LayerMoments = {}
    for position, name in enumerate(network.hidden_linears):
        if position:
            walk.go_on(Ramp.plain(state[f"{name}.bias"]), state[f"{name}.weight"], state[f"{name}.bias"])
        moments[name] = walk.moments()
    return moments


@torch.no_grad()
def repair(
    network: MLP,
    state: State,
    goal: LayerMoments,
    images: Tensor,
    part: GoalPart = "both",
    first: FirstLayer | Between | None = None,
) -> Repaired:
    """Return `state` rescaled so that every hidden layer reaches that `part` of `goal` on `images`.

    A unit without spread, here or in the goal, keeps its scale and has only its mean set. `first` is the first layer of
    `state` where its values, or those of its two endpoints, are kept.
    """
    walk = _Walk(first or first_layer(network, state), images)
    repaired, moments = dict(state), dict[str, Moments]()
    ramps: list[Ramp] = []
    for name in network.hidden_linears:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        if ramps:
            walk.go_on(ramps[-1], weight, bias)
        before, after = walk.moments(), goal[name]
        dead = before.dead() | after.dead()
        if part == "deviation":
            after = replace(after, mean=before.mean)
        elif part == "mean":
            after = replace(after, sd=before.sd)
        scale = torch.where(dead, 1.0, after.sd / torch.where(dead, 1.0, before.sd))
        repaired[f"{name}.weight"] = scale[:, None] * weight
        repaired[f"{name}.bias"] = scale * (bias - before.mean) + after.mean
        moments[name] = Moments(after.mean, scale * before.sd)
        ramps.append(Ramp(scale, before.mean - after.mean / scale))
    return Repaired(repaired, moments, ramps[0])


def logits_between(
    network: MLP, state: State, first: FirstLayer | Between, images: Tensor, ramp: Ramp | None = None
) -> Iterator[Tensor]:
    """Yield the logits (at most `CHUNK_IMAGES`, n_out) of the network `state` by chunk, classes outermost in memory.

    `first` is its first layer, or, where that was corrected since, the one before, and `ramp` what was made of its
    values.
    """
    _, *inner = network.hidden_linears
    layers = [(state[f"{name}.weight"], state[f"{name}.bias"]) for name in (*inner, "output")]
    if ramp is not None:
        layers[0] = ramp.read(*layers[0])
    for values in first.values(images):
        values = values.relu_() if ramp is None else ramp.bend(values)
        spare = torch.empty_like(values)
        for weight, bias in layers[:-1]:
            values, spare = torch.addmm(bias[:, None], weight, values, out=spare).relu_(), values
        weight, bias = layers[-1]
        yield torch.addmm(bias[:, None], weight, values).T


class _Walk:
    """All images at one hidden layer of an MLP: pre-activations (n_units, at most `CHUNK_IMAGES`), and moments.

    Units are rows, so that every reduction runs along contiguous memory.
    """

    def __init__(self, first: FirstLayer | Between, images: Tensor) -> None:
        self._chunks: list[Tensor] = []
        self._moments: list[tuple[Tensor, Tensor]] = []
        # By the number of images. Fresh memory for every chunk would cost more than what is done in it.
        self._spare: dict[int, Tensor] = {}
        for values in first.values(images):
            self._chunks.append(values)
            self._measure(values, self._spare.setdefault(values.shape[1], torch.empty_like(values)))

    def go_on(self, ramp: Ramp, weight: Tensor, bias: Tensor) -> None:
        """Go on to the layer of this `weight` and `bias`, through the `ramp` of the current layer."""
        weight, bias = ramp.read(weight, bias)
        self._moments.clear()
        for i, values in enumerate(self._chunks):
            n = values.shape[1]
            made = torch.addmm(bias[:, None], weight, ramp.bend(values), out=self._spare[n])
            self._measure(made, values)
            self._chunks[i], self._spare[n] = made, values

    def _measure(self, values: Tensor, scratch: Tensor) -> None:
        """Measure `values` in two passes, the second over their distance from the mean, in `scratch`."""
        mean = values.mean(1)
        left = torch.sub(values, mean[:, None], out=scratch)
        self._moments.append((mean, torch.linalg.vector_norm(left, dim=1)))

    def moments(self) -> Moments:
        """Return the moments over all images."""
        counts = [values.shape[1] for values in self._chunks]
        means, norms = (torch.stack(parts).double() for parts in zip(*self._moments, strict=True))
        running = RunningMoments()
        running.add_parts(counts, means, norms.square() / torch.tensor(counts, device=norms.device)[:, None])
        found, like = running.result(), self._chunks[0].dtype
        return Moments(found.mean.to(like), found.sd.to(like))
