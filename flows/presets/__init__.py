"""Every study by its name: one file here, one study."""

from __future__ import annotations

from flows.presets import digits_depth, mlp_depth, mlp_smoke, mlp_width, networks_smoke, r20_norm_short
from flows.presets.preset import Preset

PRESETS: dict[str, Preset] = {
    module.PRESET.name: module.PRESET
    for module in (digits_depth, mlp_width, mlp_depth, mlp_smoke, networks_smoke, r20_norm_short)
}


def find_preset(name: str) -> Preset:
    """ValueError, naming those there are, for an unknown study."""
    if name not in PRESETS:
        raise ValueError(f"there is no study {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
