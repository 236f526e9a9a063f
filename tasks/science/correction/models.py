"""Networks with their weights, as paths measure, correct and evaluate them.

`Model` does so for any network. A kind of network that can do it faster or more exactly has a class of its own with the
same methods; `load_model` chooses it once, and every network on the line between two models is of their class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

from torch import Tensor, nn

from tasks.science.correction.estimators import Estimator, fold_in_one_pass, fold_layerwise, fold_predicted
from tasks.science.correction.folded_norms import fold_norms
from tasks.science.correction.preactivations import LayerMoments, measure
from tasks.science.correction.rewriting import Rewriting
from tasks.science.correction.sites import CorrectionSites
from tasks.science.data.examples import Examples
from tasks.science.evaluation.calibration import Halves
from tasks.science.evaluation.metrics import Evaluation, evaluate
from tasks.science.specs.corrections import Correction
from tasks.science.specs.measurement import PLAINLY, Viewing
from tasks.science.specs.state import State


@dataclass(frozen=True)
class Target:
    """The moments that a correction aims at: the `goal` of every layer on the samples `statistics`.

    `predicted`: the moments of the interpolated network in closed form, for the correction that measures none.
    """

    goal: LayerMoments
    statistics: Tensor
    predicted: LayerMoments | None = None


@dataclass(frozen=True)
class Estimation:
    """The way to measure the moments of an interpolated network that has no exact walk of its own.

    `batch_size`: the most samples that one pass standardises together; None for the authors' batches.
    """

    estimator: Estimator = "one-pass"
    batch_size: int | None = None


ONE_PASS = Estimation()


@dataclass(frozen=True)
class Corrected:
    """A corrected model.

    Its network is the one that was given, or a copy that has the tensors `extra`, which its own class lacks.
    `achieved`: moments over the statistics samples, measured on the corrected weights (of residual blocks too, where
    they were corrected); those of an MLP that was corrected exactly follow from its moments before.
    """

    model: Model
    extra: tuple[str, ...]
    achieved: LayerMoments

    @property
    def network(self) -> nn.Module:
        return self.model.network

    @property
    def state(self) -> State:
        return self.model.state


@dataclass(frozen=True, eq=False)
class Model:
    """A network of any kind with the weights `state` and the sites where it is corrected."""

    network: nn.Module
    state: State
    sites: CorrectionSites

    def moments(self, images: Tensor, *, blocks: bool = False) -> LayerMoments:
        """Return the exact moments of every layer over all of `images`; with `blocks`, of residual blocks too."""
        return measure(self.network, self.state, self.sites.layers + (self.sites.blocks if blocks else ()), images)

    def permuted(self, state: State, orders: Mapping[str, Tensor]) -> Self:  # noqa: ARG002 - for classes that keep values
        """Return this model with the permuted weights `state`, where unit orders[layer][i] stands at position i."""
        return replace(self, state=state)

    def between(self, other: Model, alpha: float, state: State) -> Self:  # noqa: ARG002 - for classes that keep values
        """Return the model with the weights `state`, at `alpha` between this one and `other`."""
        return replace(self, state=state)

    def corrected(self, chosen: Correction, target: Target, estimation: Estimation) -> Corrected:
        """Return this model brought to `target` by moments that are measured on it."""
        work = Rewriting(self.network, self.state, self.sites, chosen)
        if estimation.estimator == "layerwise":
            fold_layerwise(work, target.goal, target.statistics)
        else:
            fold_in_one_pass(work, target.goal, target.statistics, estimation.batch_size)
        return self._rewritten(work, target.statistics)

    def corrected_as_predicted(self, chosen: Correction, target: Target) -> Corrected:
        """Return this model brought to `target` by its predicted moments. Raises ValueError where there are none."""
        if target.predicted is None:
            raise ValueError("a correction in closed form needs predicted moments; make them with predicted_moments")
        work = Rewriting(self.network, self.state, self.sites, chosen)
        fold_predicted(work, target.goal, target.predicted)
        return self._rewritten(work, target.statistics)

    def _rewritten(self, work: Rewriting, statistics: Tensor) -> Corrected:
        model = type(self)(work.network, work.state, work.sites)
        achieved = work.counting_shifts(model.moments(statistics, blocks=work.chosen.blocks))
        return Corrected(model, tuple(name for name in work.state if name not in self.state), achieved)

    def evaluate(self, examples: Examples, halves: Halves | None = None, *, viewing: Viewing = PLAINLY) -> Evaluation:
        """Return loss and accuracy over all of `examples`; arguments as in `metrics.evaluate`."""
        return evaluate(*self._folded, examples, halves, viewing=viewing)

    @cached_property
    def _folded(self) -> tuple[nn.Module, State]:
        return fold_norms(self.network, self.state, self.sites)
