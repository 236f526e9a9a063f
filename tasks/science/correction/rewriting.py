"""Weights while a correction rewrites them: scales and shifts of units are folded into a copy of a network's state."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tasks.science.correction.preactivations import LayerMoments
from tasks.science.correction.sites import CorrectionSites, Site
from tasks.science.correction.unit_entries import UnitEntries, along
from tasks.science.evaluation.moments import Moments
from tasks.science.specs.corrections import Correction, GoalPart
from tasks.science.specs.state import State


class ChannelAffine(nn.Module):
    """One scale and one shift per unit; units lie along `dim`."""

    def __init__(self, n_units: int, dim: int, like: Tensor) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(like.new_ones(n_units))
        self.bias = nn.Parameter(like.new_zeros(n_units))

    def forward(self, values: Tensor) -> Tensor:
        return values * along(self.weight, values, self.dim) + along(self.bias, values, self.dim)


class Rewriting:
    """The `network`, `state` and `sites` of a network that the correction `chosen` rewrites.

    Where the correction needs tensors that the network's own class lacks, `network` is a copy that has them; as yet
    they change nothing. `shifts` (n_units,), by site: what was added to the units of those already folded.
    """

    def __init__(self, network: nn.Module, state: State, sites: CorrectionSites, chosen: Correction) -> None:
        self.chosen = chosen
        self.network, self.state, self.sites = network, dict(state), sites
        self.shifts: dict[str, Tensor] = {}
        if lacking := lacking_sites(sites, chosen):
            self._extend(lacking)

    @property
    def measured(self) -> list[Site]:
        """The sites whose moments the correction needs, in the order in which a pass reaches them."""
        found: list[Site] = []
        for site in self.sites.all:
            if site.kind == "layer" and self.chosen.layers:
                found.append(site)
            elif site.kind == "layer" and site.norm is not None and not self.chosen.frozen:
                found.append(Site(site.norm, "norm", 1, site.n_units, site.norm))
            elif (site.kind == "norm" and not self.chosen.frozen) or (site.kind == "block" and self.chosen.blocks):
                found.append(site)
        return found

    def fold(self, site: Site, before: Moments, goal: Moments | None) -> None:
        """Write into the weights what takes `site` from the moments `before` to `goal`; a norm has no goal."""
        if goal is None or site.kind == "norm":
            self._set_statistics(site.name, before.mean, before.sd)
            return
        scale, shift = scale_and_shift(before, goal, self.chosen.part)
        self.shifts[site.name] = shift
        for part in site.scaled:
            weight = self.state[part.key]
            self.state[part.key] = (part.spread(scale, 1.0) * weight).to(weight.dtype)
        mean = scale * before.mean
        if site.shift is not None:
            bias = self.state[site.shift.key]
            shifted = site.shift.spread(scale, 1.0) * bias + site.shift.spread(shift, 0.0)
            self.state[site.shift.key] = shifted.to(bias.dtype)
            mean = mean + shift
        elif self.chosen.frozen:
            # (y + shift) - running_mean = y - (running_mean - shift)
            running = self.state[f"{site.norm}.running_mean"]
            self.state[f"{site.norm}.running_mean"] = (running - shift).to(running.dtype)
        if site.norm is not None and not self.chosen.frozen:
            self._set_statistics(site.norm, mean, scale * before.sd)

    def counting_shifts(self, measured: LayerMoments) -> LayerMoments:
        """Return the moments `measured` with the shifts that only the norms behind the layers take."""
        found = dict(measured)
        for site in self.sites.layers:
            if site.norm is not None and site.shift is None and site.name in self.shifts:
                moments = found[site.name]
                found[site.name] = replace(moments, mean=moments.mean + self.shifts[site.name])
        return found

    def _set_statistics(self, norm: str, mean: Tensor, sd: Tensor) -> None:
        for name, value in (("running_mean", mean), ("running_var", sd.square())):
            self.state[f"{norm}.{name}"] = value.to(self.state[f"{norm}.{name}"].dtype)

    def _extend(self, lacking: list[Site]) -> None:
        self.network = copy.deepcopy(self.network)
        complete: dict[Site, Site] = {}
        for site in lacking:
            module = self.network.get_submodule(site.module or "")
            values = self.state[site.order.key if site.order else site.name]
            complete[site] = self._add_bias(site, module, values) if site.extra == "bias" else (
                self._add_affine(site, module, values)
            )  # fmt: skip
        self.sites = replace(self.sites, all=tuple(complete.get(site, site) for site in self.sites.all))

    def _add_bias(self, site: Site, module: nn.Module, like: Tensor) -> Site:
        parameter = next(module.parameters())
        module.register_parameter("bias", nn.Parameter(parameter.new_zeros(site.n_units)))
        self.state[f"{site.name}.bias"] = like.new_zeros(site.n_units)
        return replace(site, extra="", shift=UnitEntries(f"{site.name}.bias", torch.arange(site.n_units)))

    def _add_affine(self, site: Site, module: nn.Module, like: Tensor) -> Site:
        name = site.affine.rpartition(".")[2]
        module.register_module(name, ChannelAffine(site.n_units, site.dim, next(module.parameters())))
        module.register_forward_hook(functools.partial(_apply_affine, name))
        weight, bias = f"{site.affine}.weight", f"{site.affine}.bias"
        self.state |= {weight: like.new_ones(site.n_units), bias: like.new_zeros(site.n_units)}
        units = torch.arange(site.n_units)
        return replace(site, extra="", scaled=(UnitEntries(weight, units),), shift=UnitEntries(bias, units))


def lacking_sites(sites: CorrectionSites, chosen: Correction) -> list[Site]:
    """Return the sites, layers first, that need a tensor of their own to take what `chosen` does to them."""
    layers = sites.layers if chosen.layers else ()
    blocks = sites.blocks if chosen.blocks else ()
    return [site for site in (*layers, *blocks) if site.extra]


def scale_and_shift(before: Moments, goal: Moments, part: GoalPart) -> tuple[Tensor, Tensor]:
    """Return the scale and shift (n_units,) that take a unit from the moments `before` to that `part` of `goal`.

    A unit without spread, in either, keeps its scale.
    """
    dead = before.dead() | goal.dead()
    scale = torch.ones_like(before.sd)
    if part != "mean":
        scale = torch.where(dead, 1.0, goal.sd / torch.where(dead, 1.0, before.sd))
    mean = before.mean if part == "deviation" else goal.mean
    return scale, mean - scale * before.mean


def _apply_affine(name: str, module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return module.get_submodule(name)(output)
