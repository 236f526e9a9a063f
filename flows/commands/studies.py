"""`repairlab studies`: the studies that come with repairlab."""

from __future__ import annotations

from flows.plan import measure_flops_per_second, request_flops
from flows.presets import PRESETS
from flows.presets.preset import Preset
from flows.terminal import say
from tasks.data.datasets import published_shape


def list_studies() -> None:
    """Print every study with its question, size and cost, and the parts of it that were run."""
    rate = measure_flops_per_second()
    for preset in PRESETS.values():
        say(f"{preset.name}: {preset.question}")
        for line in _facts(preset, rate):
            say(f"    {line}")


def list_names(size: str) -> None:
    """Print the names of the studies that come in a size."""
    say("\n".join(name for name, preset in PRESETS.items() if size in preset.sizes))


def _facts(preset: Preset, flops_per_second: float) -> list[str]:
    request = preset.request(published_shape)
    hours = request_flops(request) / flops_per_second / 3600
    n_endpoints = len(request.trained_cells) * preset.n_seeds
    recipes = dict.fromkeys((*preset.default_recipes, *preset.recipes))
    facts = {"recipes": ", ".join(recipes), "sizes": ", ".join(preset.sizes), "figure": preset.figure}
    told = [f"{name} {fact}" for name, fact in facts.items() if fact]
    return [
        f"{n_endpoints} endpoints, {request.n_pairs} pairs, {hours:.2g} core-hours here; "
        f"data {', '.join(preset.datasets)}",
        "; ".join([*told, f"run here: {preset.ran}"]),
    ]
