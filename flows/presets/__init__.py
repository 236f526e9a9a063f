"""Every study by its name: one file here, one study."""

from __future__ import annotations

from flows.presets import digits_depth, mlp_width
from flows.presets.preset import Preset

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (digits_depth.PRESET, mlp_width.PRESET)}


def find_preset(name: str) -> Preset:
    """ValueError, naming those there are, for an unknown study."""
    if name not in PRESETS:
        raise ValueError(f"there is no study {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
