"""Corrections: an interpolated network is given back the spread of activations that interpolation took from it.

At alpha, every unit's pre-activation is rescaled and shifted so that over the statistics samples it has the mean
(1 - alpha) mu_A + alpha mu_B and the standard deviation (1 - alpha) sd_A + alpha sd_B: the *goal*. Layers are corrected
front to back, each measured on what the corrected layers before it put out, so that in the end all goals hold at once.
The rescaling folds into the weights; the architecture stays. `CORRECTIONS` names every variant.

The moments of the interpolated network are found by an estimator:
- MLPs without norms: exact; the whole statistics set goes through one layer at a time, at the cost of one pass.
- Other networks, *one pass*: each batch is standardised to the goal by its own moments wherever it passes a layer, so
  that every layer sees corrected input; the moments over all batches are folded. In batches of 500 a trained ResNet20
  comes within .1 % of the goal's standard deviation in every layer, of 100 within 1 % (1,437 digits of 16x16, a pair).
- *Layerwise*: one pass per layer, through the layers already folded; exact for any network, and the reference.

Source: REPAIR (arXiv 2211.08403), section 4 and appendix B; the logits are not corrected.
Deviates: means and standard deviations are over all samples at once, where the authors average per-batch ones and add
1e-5 to the variance; one pass thereby counts what lies between batches, which for the first layer is exact. BatchNorm's
running variance is the biased one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tasks.science.correction.mlp import MLPModel, first_layer, is_plain_mlp, repair
from tasks.science.correction.models import ONE_PASS, Corrected, Estimation, Model, Target
from tasks.science.correction.preactivations import LayerMoments, goal_moments
from tasks.science.correction.rewriting import lacking_sites
from tasks.science.correction.sites import CorrectionSites, find_sites
from tasks.science.specs.corrections import find_correction
from tasks.science.specs.state import State

__all__ = [
    "check_sites",
    "correct",
    "extra_tensors",
    "goal_moments",
    "load_model",
    "preactivation_moments",
    "repair",
]


def load_model(network: nn.Module, state: State, images: Tensor) -> Model:
    """Return `network` with the weights `state`, as the class that does its kind best; it is traced on `images`."""
    sites = find_sites(network, state, images)
    if is_plain_mlp(network):
        return MLPModel(network, state, sites, first_layer(network, state))
    return Model(network, state, sites)


def preactivation_moments(network: nn.Module, state: State, images: Tensor) -> LayerMoments:
    """Return the exact moments of every layer of `network` over all of `images`."""
    return load_model(network, state, images).moments(images)


def check_sites(sites: CorrectionSites, correction: str) -> None:
    """Raise ValueError, with the way out, where the correction has nothing to act on in a network of these sites."""
    chosen = find_correction(correction)
    if chosen.layers and not sites.layers:
        why = f"{sites.left_out[0].name}: {sites.left_out[0].reason}" if sites.left_out else "its logits are linear"
        raise ValueError(f"correction {correction} finds no layer to correct in this network ({why}); take none")
    if "none" not in chosen.normalizations and not sites.norms:
        raise ValueError(f"correction {correction} needs a network with BatchNorm, and this one has none; take repair")
    if chosen.blocks and not sites.blocks:
        raise ValueError(f"correction {correction} needs residual blocks, and this network has none; take repair")


def extra_tensors(sites: CorrectionSites, correction: str) -> tuple[str, ...]:
    """Return the tensors that corrected weights have beyond those of the network's own class; mostly none."""
    lacking = lacking_sites(sites, find_correction(correction))
    biases = [f"{site.name}.bias" for site in lacking if site.extra == "bias"]
    affines = [site.affine for site in lacking if site.extra == "affine"]
    return (*biases, *(f"{path}.{part}" for path in affines for part in ("weight", "bias")))


@torch.no_grad()
def correct(model: Model, correction: str, target: Target, estimation: Estimation = ONE_PASS) -> Corrected:
    """Return `model`, an interpolated network, after `correction` (a name of `CORRECTIONS`) to `target`.

    A unit without spread, here or in the goal, keeps its scale and has only its mean set. A layer with neither a bias
    nor a BatchNorm that reads it alone gets a bias, in a copy of the network; so does what a block's output needs.
    Raises ValueError where the correction has nothing to act on (no BatchNorm, no residual block, no prediction), for a
    batch of one image, and for a name that the table lacks.
    """
    chosen = find_correction(correction)
    check_sites(model.sites, correction)
    if correction == "none":
        return Corrected(model, (), model.moments(target.statistics))
    if chosen.closed_form:
        return model.corrected_as_predicted(chosen, target)
    return model.corrected(chosen, target, estimation)
