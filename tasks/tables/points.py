"""The numbers that the authors of REPAIR saved beside their code, as rows; `published_points.csv` holds them.

Provenance: the figure objects (`notebooks/figure_objects/*.pt`) of the authors' repository at commit e90263d, read into
one row per network or interpolated network; `source` names the object. They were measured by the authors, none by this
package. Every point is one pair of networks: no spread was saved. `width` and `depth` are counted as in `Cell`.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib import resources

FILE = "published_points.csv"


@dataclass(frozen=True)
class Point:
    """One network as published: an endpoint, or what was made of a pair at one alpha.

    Accuracies are fractions, losses nats per example, NaN where none was saved.
    """

    dataset: str
    architecture: str
    normalization: str
    """`unknown` where the source does not say; `batch-fused` was trained with BatchNorm that was folded afterwards."""
    width: int
    depth: int
    method: str
    """`endpoint`, `direct`, `aligned`, `reset` and `repair` (neither aligned), `aligned+...`; and what is no path."""
    alpha: float | None
    """0 is the first network of the pair, 1 the second; None for what lies on no path."""
    train_accuracy: float
    train_loss: float
    test_accuracy: float
    test_loss: float
    source: str
    note: str
    """What is uncertain about the point, or wrong with it; empty where nothing is."""

    @property
    def is_converged(self) -> bool:
        """Whether the pair's endpoints had learned: else the point says nothing about interpolation."""
        return "unconverged" not in self.note

    @property
    def has_recipe_of_family(self) -> bool:
        """Whether it was trained as the other sizes of its networks were, as far as its numbers tell."""
        return "another recipe" not in self.note


@functools.cache
def read_points() -> tuple[Point, ...]:
    """Every published point, in the order of the file."""
    lines = resources.files("tasks.tables").joinpath(FILE).read_text(encoding="utf-8").splitlines()
    return tuple(
        Point(
            dataset=row["dataset"],
            architecture=row["arch"],
            normalization=row["norm"],
            width=int(row["width"]),
            depth=int(row["depth"]),
            method=row["method"],
            alpha=float(row["alpha"]) if row["alpha"] else None,
            train_accuracy=_number(row["train_acc"]),
            train_loss=_number(row["train_loss"]),
            test_accuracy=_number(row["test_acc"]),
            test_loss=_number(row["test_loss"]),
            source=row["source"],
            note=row["note"],
        )
        for row in csv.DictReader(lines)
    )


def _number(text: str) -> float:
    return float(text or "nan")
