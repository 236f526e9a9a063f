"""Corrections: an interpolated network is given back the spread of activations that interpolation took from it.

At alpha, every unit's pre-activation is rescaled and shifted so that over the statistics samples it has the mean
(1 - alpha) mu_A + alpha mu_B and the standard deviation (1 - alpha) sd_A + alpha sd_B: the *goal*. Layers are corrected
front to back, each measured on what the corrected layers before it put out, so that in the end all goals hold at once.
The rescaling folds into the weights; the architecture stays. `correction_table` names every variant.

How the interpolated network's moments are found (the estimator):
- One vector per image in every layer (an MLP): exact, the whole statistics set goes through one layer at a time, which
  costs the same as one pass.
- Else *one pass*: a batch is standardised to the goal by its own moments wherever it passes a layer, so that every
  layer sees corrected input, and what is folded are the moments over all batches. In batches of 500 a trained ResNet20
  comes within .1 % of the goal's deviation in every layer, of 100 within 1 % (1,437 digits at 16x16, one pair).
- *Layerwise*: one pass per layer, through the layers already folded; exact for any network, and the reference.

Source: REPAIR (arXiv 2211.08403), section 4 and appendix B; the logits are not corrected.
Deviates: means and deviations are over all samples at once, where the authors average per-batch ones and add 1e-5 to
the variance; one pass thereby counts what lies between batches, which for the first layer is exact. BatchNorm's running
variance is the biased one.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tasks.science.correction.first_layer import Between, FirstLayer
from tasks.science.correction.layout import Layout, Site, find_layout
from tasks.science.correction.mlp import Ramp, is_plain_mlp, mlp_moments, repair
from tasks.science.correction.observing import observe
from tasks.science.correction.preactivations import (
    LayerMoments,
    LayerReport,
    goal_moments,
    measure,
    reorder_layers,
    report_layers,
    unit_orders,
)
from tasks.science.correction.unit_entries import UnitEntries
from tasks.science.evaluation.moments import Moments, RunningMoments
from tasks.science.specs.corrections import Correction, Part, find_correction
from tasks.science.specs.state import State

__all__ = [
    "Corrected",
    "Estimator",
    "LayerMoments",
    "LayerReport",
    "Moments",
    "check_layout",
    "correct",
    "extra_tensors",
    "goal_moments",
    "preactivation_moments",
    "reorder_layers",
    "repair",
    "report_layers",
    "unit_orders",
]

Estimator = Literal["one-pass", "layerwise"]

BATCH_SIZE = 500
"""Statistics samples that are standardised together in one pass: the authors' batch at 32x32."""

LARGE_IMAGE_BATCH_SIZE = 200
"""The authors' batch on ImageNet; for images of more than 64 pixels a side."""


@dataclass(frozen=True)
class Corrected:
    """A corrected network, and what its layers then do.

    `network` is the one that was given, or a copy that has the tensors `extra`, which its own class lacks; `state` are
    its weights. `achieved`: moments over the statistics samples, measured on these weights (of residual blocks too,
    where they were corrected); of an MLP that was corrected exactly they follow from those that it had before.
    `first`: of such an MLP, what became of its first layer's values.
    """

    network: nn.Module
    state: State
    extra: tuple[str, ...]
    achieved: LayerMoments
    first: Ramp | None = None


@torch.no_grad()
def preactivation_moments(
    network: nn.Module,
    state: State,
    images: Tensor,
    layout: Layout | None = None,
    *,
    blocks: bool = False,
    first: FirstLayer | Between | None = None,
) -> LayerMoments:
    """Exact moments of every layer of `network` over all of `images`; with `blocks`, of residual blocks' outputs too.

    `layout` is the network's, found where it is not given. `first` is the first layer of a plain MLP, where its values
    are kept.
    """
    if is_plain_mlp(network):
        return mlp_moments(network, state, images, first)
    layout = layout or find_layout(network, state, images)
    return measure(network, state, layout.layers + (layout.blocks if blocks else ()), images)


def check_layout(layout: Layout, correction: str) -> None:
    """ValueError, with the way out, where the correction has nothing to act on in a network of this layout."""
    chosen = find_correction(correction)
    if chosen.layers and not layout.layers:
        why = f"{layout.left_out[0].name}: {layout.left_out[0].reason}" if layout.left_out else "its logits are linear"
        raise ValueError(f"correction {correction} finds no layer to correct in this network ({why}); take none")
    if "none" not in chosen.normalizations and not layout.norms:
        raise ValueError(f"correction {correction} needs a network with BatchNorm, and this one has none; take repair")
    if chosen.blocks and not layout.blocks:
        raise ValueError(f"correction {correction} needs residual blocks, and this network has none; take repair")


def extra_tensors(layout: Layout, correction: str) -> tuple[str, ...]:
    """The tensors that the corrected weights would have beyond those of the network's own class; none for most."""
    lacking = _lacking(layout, find_correction(correction))
    biases = [f"{site.name}.bias" for site in lacking if site.extra == "bias"]
    affines = [site.affine for site in lacking if site.extra == "affine"]
    return (*biases, *(f"{path}.{part}" for path in affines for part in ("weight", "bias")))


@torch.no_grad()
def correct(
    network: nn.Module,
    layout: Layout,
    state: State,
    correction: str,
    goal: LayerMoments,
    images: Tensor,
    *,
    predicted: LayerMoments | None = None,
    estimator: Estimator = "one-pass",
    batch_size: int | None = None,
    first: Between | None = None,
) -> Corrected:
    """`state`, an interpolated network, after `correction` (a name of `CORRECTIONS`) to `goal` on `images`.

    `predicted`: the moments in closed form, for the correction that measures none (`predicted_moments`). `batch_size`:
    the samples that one pass standardises together, at most; batches are of nearly equal size. `first` is the first
    layer of a plain MLP, where its values are kept.
    A unit without spread, here or in the goal, keeps its scale and has only its mean set. A layer with neither a bias
    nor a BatchNorm that reads it alone gets a bias, in a copy of the network; so does what a block's output needs.
    Raises ValueError where the correction has nothing to act on (no BatchNorm, no residual block, no prediction), for a
    batch of one image, and for a name that the table lacks.
    """
    chosen = find_correction(correction)
    check_layout(layout, correction)
    if chosen.closed_form and predicted is None:
        raise ValueError(f"correction {correction} needs predicted moments, as predicted_moments gives them")
    if correction == "none":
        return Corrected(network, state, (), preactivation_moments(network, state, images, layout, first=first))
    if is_plain_mlp(network) and not chosen.closed_form:
        repaired = repair(network, state, goal, images, chosen.part, first)
        return Corrected(network, repaired.state, (), repaired.moments, repaired.first)
    extended, corrected, layout = _extend(network, state, layout, chosen)
    sites = _sites(layout, chosen)
    shifts: dict[str, Tensor] = {}
    if predicted is not None and chosen.closed_form:
        for site in layout.layers:
            shifts[site.name] = _fold(corrected, site, predicted[site.name], goal.get(site.name), chosen)
    elif estimator == "layerwise":
        for site in sites:
            before = measure(extended, corrected, [site], images, stop=site.kind != "norm")[site.name]
            shifts[site.name] = _fold(corrected, site, before, goal.get(site.name), chosen)
    else:
        n_together = len(images) if layout.dense else batch_size or _batch_size(images)
        found = _one_pass(extended, corrected, layout, sites, goal, chosen, images, n_together)
        for site in sites:
            shifts[site.name] = _fold(corrected, site, found[site.name], goal.get(site.name), chosen)
    achieved = preactivation_moments(extended, corrected, images, layout, blocks=chosen.blocks)
    for site in layout.layers:
        if site.norm is not None and site.shift is None and site.name in shifts:
            # The norm behind it takes the layer's shift; what it then reads is the corrected pre-activation.
            found_moments = achieved[site.name]
            achieved[site.name] = replace(found_moments, mean=found_moments.mean + shifts[site.name])
    return Corrected(extended, corrected, tuple(name for name in corrected if name not in state), achieved)


class ChannelAffine(nn.Module):
    """One scale and one shift per unit; units lie along `dim`."""

    def __init__(self, n_units: int, dim: int, like: Tensor) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(like.new_ones(n_units))
        self.bias = nn.Parameter(like.new_zeros(n_units))

    def forward(self, values: Tensor) -> Tensor:
        return values * _along(self.weight, values, self.dim) + _along(self.bias, values, self.dim)


def _lacking(layout: Layout, chosen: Correction) -> list[Site]:
    """Sites that need a tensor of their own to take what `chosen` does to them: layers first, then blocks."""
    layers = layout.layers if chosen.layers else ()
    blocks = layout.blocks if chosen.blocks else ()
    return [site for site in (*layers, *blocks) if site.extra]


def _extend(network: nn.Module, state: State, layout: Layout, chosen: Correction) -> tuple[nn.Module, State, Layout]:
    """The network with what `chosen` needs beyond it, which as yet changes nothing: biases, affines behind modules."""
    lacking = _lacking(layout, chosen)
    if not lacking:
        return network, dict(state), layout
    network, extended = copy.deepcopy(network), dict(state)
    complete: dict[Site, Site] = {}
    for site in lacking:
        module = network.get_submodule(site.module or "")
        parameter, values = next(module.parameters()), state[site.order.key if site.order else site.name]
        units = torch.arange(site.n_units)
        if site.extra == "bias":
            module.register_parameter("bias", nn.Parameter(parameter.new_zeros(site.n_units)))
            extended[f"{site.name}.bias"] = values.new_zeros(site.n_units)
            complete[site] = replace(site, extra="", shift=UnitEntries(f"{site.name}.bias", units))
            continue
        affine = ChannelAffine(site.n_units, site.dim, parameter)
        module.register_module(site.affine.rpartition(".")[2], affine)
        module.register_forward_hook(functools.partial(_apply_affine, site.affine.rpartition(".")[2]))
        weight, bias = f"{site.affine}.weight", f"{site.affine}.bias"
        extended |= {weight: values.new_ones(site.n_units), bias: values.new_zeros(site.n_units)}
        complete[site] = replace(site, extra="", scaled=(UnitEntries(weight, units),), shift=UnitEntries(bias, units))
    return network, extended, replace(layout, sites=tuple(complete.get(site, site) for site in layout.sites))


def _apply_affine(name: str, module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return module.get_submodule(name)(output)


def _sites(layout: Layout, chosen: Correction) -> list[Site]:
    """Where `chosen` measures, in the order in which a pass reaches it."""
    sites: list[Site] = []
    for site in layout.sites:
        if site.kind == "layer" and chosen.layers:
            sites.append(site)
        elif site.kind == "layer" and site.norm is not None and not chosen.frozen:
            sites.append(Site(site.norm, "norm", 1, site.n_units, site.norm))
        elif (site.kind == "norm" and not chosen.frozen) or (site.kind == "block" and chosen.blocks):
            sites.append(site)
    return sites


def _one_pass(
    network: nn.Module,
    state: State,
    layout: Layout,
    sites: Sequence[Site],
    goal: LayerMoments,
    chosen: Correction,
    images: Tensor,
    batch_size: int,
) -> LayerMoments:
    """The moments of every site, each measured while the sites before it are standardised batch by batch.

    A BatchNorm whose statistics are to be re-estimated normalises by those of the batch. Behind a layer that is brought
    to a goal, these follow from the layer's own: it is told them, and reads what the layer puts out as it is.
    """
    seen = {site.name: RunningMoments() for site in sites}
    norms = set(layout.norms)
    working = {name: value.clone() if name.rpartition(".")[0] in norms else value for name, value in state.items()}

    def see(site: Site, values: Tensor) -> Tensor | None:
        batch = seen[site.name].add(values, site.dim).result()
        if site.kind == "norm":
            _tell(working, site.name, batch.mean, batch.sd.square())
            return None
        scale, shift = _affine(batch, goal[site.name], chosen.part)
        if site.norm is not None and not chosen.frozen:
            # Of scale x + shift the deviation is scale sd: (x - mean) scale / sqrt(scale^2 sd^2 + eps) is what
            # normalising it makes of x, hence as if x had this variance.
            variance = batch.sd.square() + site.epsilon * (scale.square().reciprocal() - 1)
            _tell(working, site.norm, batch.mean, variance)
            return None
        scale, shift = (_along(part.to(values.dtype), values, site.dim) for part in (scale, shift))
        return (values * scale).add_(shift)

    batches = images.tensor_split(math.ceil(len(images) / batch_size))
    if len(batches[-1]) < 2:
        raise ValueError(f"statistics need batches of at least 2 images, got {len(images)} in {len(batches)}")

    observe(network, working, sites, batches, see, writes=True)
    return {name: running.result() for name, running in seen.items()}


def _tell(state: State, norm: str, mean: Tensor, variance: Tensor) -> None:
    """Writes statistics into the tensors that a running network has."""
    state[f"{norm}.running_mean"].copy_(mean)
    state[f"{norm}.running_var"].copy_(variance)


def _affine(before: Moments, goal: Moments, part: Part) -> tuple[Tensor, Tensor]:
    """Scale and shift (n_units,) that take a unit from the moments `before` to that `part` of `goal`."""
    dead = before.dead() | goal.dead()
    scale = torch.ones_like(before.sd)
    if part != "mean":
        scale = torch.where(dead, 1.0, goal.sd / torch.where(dead, 1.0, before.sd))
    mean = before.mean if part == "deviation" else goal.mean
    return scale, mean - scale * before.mean


def _fold(state: State, site: Site, before: Moments, goal: Moments | None, chosen: Correction) -> Tensor:
    """Writes into `state` what brings the site from the moments `before` to the goal; returns the shift."""
    if goal is None or site.kind == "norm":
        _set_statistics(state, site.name, before.mean, before.sd)
        return torch.zeros_like(before.mean)
    scale, shift = _affine(before, goal, chosen.part)
    for part in site.scaled:
        weight = state[part.key]
        state[part.key] = (part.spread(scale, 1.0) * weight).to(weight.dtype)
    mean = scale * before.mean
    if site.shift is not None:
        bias = state[site.shift.key]
        state[site.shift.key] = (site.shift.spread(scale, 1.0) * bias + site.shift.spread(shift, 0.0)).to(bias.dtype)
        mean = mean + shift
    elif chosen.frozen:
        # (y + shift) - running_mean = y - (running_mean - shift)
        running = state[f"{site.norm}.running_mean"]
        state[f"{site.norm}.running_mean"] = (running - shift).to(running.dtype)
    if site.norm is not None and not chosen.frozen:
        _set_statistics(state, site.norm, mean, scale * before.sd)
    return shift


def _set_statistics(state: State, norm: str, mean: Tensor, sd: Tensor) -> None:
    for name, value in (("running_mean", mean), ("running_var", sd.square())):
        state[f"{norm}.{name}"] = value.to(state[f"{norm}.{name}"].dtype)


def _batch_size(images: Tensor) -> int:
    return BATCH_SIZE if max(images.shape[2:], default=0) <= 64 else LARGE_IMAGE_BATCH_SIZE


def _along(units: Tensor, values: Tensor, dim: int) -> Tensor:
    """`units` (n_units,) as it is multiplied with `values`, whose units lie along `dim`."""
    shape = [1] * values.ndim
    shape[dim] = -1
    return units.view(shape)
