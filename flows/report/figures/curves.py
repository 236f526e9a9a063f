"""Curves: the label, color and marker of every path of a study, the same in all figures and tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from flows.report.figures.chart import Line, coordinates
from flows.report.labels import label_path


@dataclass(frozen=True)
class Curve:
    """A path with its label, color and marker."""

    matcher: str
    correction: str
    label: str
    color: str
    marker: str

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of this path."""
        return frame[(frame["matcher"] == self.matcher) & (frame["correction"] == self.correction)]

    def line(self, x: Iterable[float], y: Iterable[float], scale: float = 1, **style: Any) -> Line:
        """Return a line of this path at (`x`, `y` times `scale`); `style` are further fields of the line."""
        plain = Line(self.label, self.color, coordinates(x), coordinates(y, scale), self.label, self.marker)
        return dataclasses.replace(plain, **style)


DIRECT = Curve("none", "none", "direct", "#8a8f98", "s")
DIRECT_REPAIRED = Curve("none", "repair", "direct, REPAIR", "#c9a227", "v")
ALIGNED = Curve("activation", "none", "aligned", "#c0392b", "o")
REPAIRED = Curve("activation", "repair", "aligned, REPAIR", "#1f6fb2", "D")
CURVES = (DIRECT, DIRECT_REPAIRED, ALIGNED, REPAIRED)

_COLORS = ("#2e8b57", "#8e44ad", "#d35400", "#16a085", "#7f5539", "#c2185b", "#5c6bc0", "#9e9d24")
_MARKERS = "^<>Pph*X"


def curves_of(frame: pd.DataFrame) -> list[Curve]:
    """Return the paths that `frame` has rows of: the usual four first, then by matcher and correction."""
    present = set(zip(frame["matcher"], frame["correction"], strict=True))
    usual = [curve for curve in CURVES if (curve.matcher, curve.correction) in present]
    others = sorted(present - {(curve.matcher, curve.correction) for curve in CURVES})
    return usual + [
        Curve(*words, label_path(*words), _COLORS[i % len(_COLORS)], _MARKERS[(i + i // len(_COLORS)) % len(_MARKERS)])
        for i, words in enumerate(others)
    ]


def spread(curves: list[Curve], step: float) -> list[tuple[Curve, float]]:
    """Return every curve with an offset, so that bars at the same place do not cover each other."""
    return list(zip(curves, np.linspace(-step / 2, step / 2, len(curves)) * (len(curves) - 1), strict=True))
