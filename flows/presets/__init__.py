"""Every study by its name: one file here, one study."""

from __future__ import annotations

from flows.presets import (
    acc_vs_barrier,
    barrier_over_training,
    calibration_size,
    cifar100_split,
    closed_vs_forward,
    depth,
    digits_depth,
    imagenet_curves,
    mlp_depth,
    mlp_smoke,
    mlp_width,
    networks_smoke,
    normalization,
    optimizer_ablation,
    r18_cifar,
    r20_curves,
    r20_datasets,
    r20_ln_width,
    r20_norm_short,
    r20_norm_width,
    stability,
    summary_reduction,
    variance_layers,
    vgg11_curve,
    vgg_depth,
    width,
)
from flows.presets.preset import Preset
from tasks.science.specs.checks import shown

PRESETS: dict[str, Preset] = {
    module.PRESET.name: module.PRESET
    for module in (
        digits_depth, width, depth, normalization, mlp_width, mlp_depth, r20_norm_width, r20_ln_width, r20_curves,
        r20_datasets, vgg_depth, vgg11_curve, r18_cifar, imagenet_curves, cifar100_split, closed_vs_forward,
        variance_layers, optimizer_ablation, acc_vs_barrier, summary_reduction, barrier_over_training, stability,
        calibration_size, r20_norm_short, mlp_smoke, networks_smoke,
    )
}  # fmt: skip


def find_preset(name: str) -> Preset:
    """Return a study by its name. Raises ValueError, naming the known ones, for an unknown study."""
    if name not in PRESETS:
        raise ValueError(f"there is no study {shown(name)}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
