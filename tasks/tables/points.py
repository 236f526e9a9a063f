"""Points that the authors of REPAIR saved beside their code, from `published_points.csv`.

Provenance: the figure objects (`notebooks/figure_objects/*.pt`) of the authors' repository at commit e90263d, read into
one row per network or interpolated network; `source` names the object. The authors measured all of them. Every point is
one pair of networks: no spread was saved. `width` and `depth` are counted as in `Cell`.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib import resources

FILE = "published_points.csv"


@dataclass(frozen=True)
class PublishedPoint:
    """A published network: an endpoint, or a network made of a pair at one alpha.

    Accuracies are fractions, losses nats per example, NaN if none was saved.
    """

    dataset: str
    architecture: str
    normalization: str
    """`unknown` if the source does not say; `batch-fused` was trained with BatchNorm, folded afterwards."""
    width: int
    depth: int
    method: str
    """`endpoint`, `direct`, `aligned`, `reset` and `repair` (neither aligned), `aligned+...`; others lie on no path."""
    alpha: float | None
    """0 at the first network of the pair, 1 at the second; None off any path."""
    train_accuracy: float
    train_loss: float
    test_accuracy: float
    test_loss: float
    source: str
    note: str
    """Known doubts about the point, and errors in it."""

    @property
    def is_converged(self) -> bool:
        """True if the pair's endpoints had learned; otherwise the point does not bear on interpolation."""
        return "unconverged" not in self.note

    @property
    def has_recipe_of_family(self) -> bool:
        """True if its numbers agree with the recipe of the other sizes of its network."""
        return "another recipe" not in self.note


@functools.cache
def read_points() -> tuple[PublishedPoint, ...]:
    """Return every published point, in the order of the file."""
    lines = resources.files("tasks.tables").joinpath(FILE).read_text(encoding="utf-8").splitlines()
    return tuple(
        PublishedPoint(
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
