"""Ways to find the moments of an interpolated network that a correction folds into its weights, layer by layer."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from tasks.science.correction.observing import observe
from tasks.science.correction.preactivations import LayerMoments, measure
from tasks.science.correction.rewriting import Rewriting, scale_and_shift
from tasks.science.correction.sites import Site
from tasks.science.correction.unit_entries import along
from tasks.science.evaluation.moments import Moments, RunningMoments
from tasks.science.specs.state import State

Estimator = Literal["one-pass", "layerwise"]

PASS_BATCH_SIZE = 500
"""Statistics samples that one pass standardises together: the authors' batch at 32x32."""

LARGE_IMAGE_BATCH_SIZE = 200
"""The authors' batch on ImageNet; for images of more than 64 pixels a side."""


def fold_predicted(work: Rewriting, goal: LayerMoments, predicted: LayerMoments) -> None:
    """Fold layers by their moments `predicted` in closed form; nothing is measured."""
    for site in work.sites.layers:
        work.fold(site, predicted[site.name], goal.get(site.name))


def fold_layerwise(work: Rewriting, goal: LayerMoments, images: Tensor) -> None:
    """Fold layers front to back, each by its exact moments on `images` behind those folded before, in a pass each."""
    for site in work.measured:
        before = measure(work.network, work.state, [site], images, stop=site.kind != "norm")[site.name]
        work.fold(site, before, goal.get(site.name))


def fold_in_one_pass(work: Rewriting, goal: LayerMoments, images: Tensor, batch_size: int | None = None) -> None:
    """Fold layers by their moments in one pass over `images`, in which the layers before are standardised by batch.

    At most `batch_size` images are standardised together, in batches of nearly equal size; all of them where every
    layer puts out one vector per image. Raises ValueError for a batch of one image.
    """
    n_together = len(images) if work.sites.dense else batch_size or _batch_size(images)
    batches = images.tensor_split(math.ceil(len(images) / n_together))
    if len(batches[-1]) < 2:
        raise ValueError(f"statistics need batches of at least 2 images, got {len(images)} in {len(batches)}")
    standardised, sites = _Standardised(work, goal), work.measured
    observe(work.network, standardised.state, sites, batches, standardised.see, writes=True)
    for site in sites:
        work.fold(site, standardised.seen[site.name].result(), goal.get(site.name))


class _Standardised:
    """A network that brings every site to its goal by the moments of the batch that passes, and counts these moments.

    A BatchNorm whose statistics are to be re-estimated normalises by those of the batch. Behind a layer that is brought
    to a goal they follow from the layer's own: they are written into `state`, and the norm reads the layer's values as
    they are.
    """

    def __init__(self, work: Rewriting, goal: LayerMoments) -> None:
        self.chosen, self.goal = work.chosen, goal
        self.seen = {site.name: RunningMoments() for site in work.measured}
        norms = set(work.sites.norms)
        self.state: State = {
            name: value.clone() if name.rpartition(".")[0] in norms else value for name, value in work.state.items()
        }

    def see(self, site: Site, values: Tensor) -> Tensor | None:
        batch = self.seen[site.name].add(values, site.dim).result()
        if site.kind == "norm":
            self._normalise_by(site.name, batch.mean, batch.sd.square())
            return None
        scale, shift = scale_and_shift(batch, self.goal[site.name], self.chosen.part)
        if site.norm is not None and not self.chosen.frozen:
            self._normalise_by(site.norm, batch.mean, _variance_before(scale, batch, site.epsilon))
            return None
        scale, shift = (along(part.to(values.dtype), values, site.dim) for part in (scale, shift))
        return (values * scale).add_(shift)

    def _normalise_by(self, norm: str, mean: Tensor, variance: Tensor) -> None:
        # In place: these are the tensors that the running network has.
        self.state[f"{norm}.running_mean"].copy_(mean)
        self.state[f"{norm}.running_var"].copy_(variance)


def _variance_before(scale: Tensor, batch: Moments, epsilon: float) -> Tensor:
    """Return the variance by which normalising unscaled values gives what normalising the scaled ones would.

    The standard deviation of scale x + shift is scale sd, and normalising it makes (x - mean) scale /
    sqrt(scale^2 sd^2 + epsilon) of x.
    """
    return batch.sd.square() + epsilon * (scale.square().reciprocal() - 1)


def _batch_size(images: Tensor) -> int:
    return PASS_BATCH_SIZE if max(images.shape[2:], default=0) <= 64 else LARGE_IMAGE_BATCH_SIZE
