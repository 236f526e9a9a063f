"""The paths of a study as figures and tables show them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from flows.report.labels import label_path


@dataclass(frozen=True)
class Curve:
    """A path as figures and tables show it."""

    matcher: str
    correction: str
    label: str
    color: str
    marker: str

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of this path."""
        return frame[(frame["matcher"] == self.matcher) & (frame["correction"] == self.correction)]


DIRECT = Curve("none", "none", "direct", "#8a8f98", "s")
DIRECT_REPAIRED = Curve("none", "repair", "direct, REPAIR", "#c9a227", "v")
ALIGNED = Curve("activation", "none", "aligned", "#c0392b", "o")
REPAIRED = Curve("activation", "repair", "aligned, REPAIR", "#1f6fb2", "D")
CURVES = (DIRECT, DIRECT_REPAIRED, ALIGNED, REPAIRED)

_COLORS = ("#2e8b57", "#8e44ad", "#d35400", "#16a085", "#7f5539", "#c2185b", "#5c6bc0", "#9e9d24")
_MARKERS = "^<>Pph*X"


def curves_of(frame: pd.DataFrame) -> list[Curve]:
    """The paths that `frame` has rows of: the four of every study first, then by matcher and correction."""
    present = set(zip(frame["matcher"], frame["correction"], strict=True))
    usual = [curve for curve in CURVES if (curve.matcher, curve.correction) in present]
    others = sorted(present - {(curve.matcher, curve.correction) for curve in CURVES})
    return usual + [
        Curve(*words, label_path(*words), _COLORS[i % len(_COLORS)], _MARKERS[(i + i // len(_COLORS)) % len(_MARKERS)])
        for i, words in enumerate(others)
    ]


def spread(curves: list[Curve], step: float) -> list[tuple[Curve, float]]:
    """Every curve with how far aside it stands, so that bars of one size do not cover each other."""
    return list(zip(curves, np.linspace(-step / 2, step / 2, len(curves)) * (len(curves) - 1), strict=True))
