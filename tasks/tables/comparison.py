"""The table `paper`: every figure that the authors of REPAIR saved, beside ours, with a verdict.

A published figure is one pair of networks, so it is judged by the prediction interval of a new pair: a point inside it
is one that our networks could have made. Only accuracies are judged: the width of their interval says how informative
it is, while midpoint losses range from .02 to 14 nats and are dominated by a few images.

A verdict needs the same training, that is, all fields of the recipe but its name, its precision and the skipping of
steps with non-finite gradients: the authors trained in float16 under a gradient scaler, which skips such steps, and a
CPU can do neither. It needs the same measurement, that is, statistics from the whole train split, if there are any, and
accuracy on the whole split. And it needs published endpoints that had learned.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tasks.science.specs import recipes
from tasks.science.specs.measurement import PLAINLY, Measurement
from tasks.science.specs.recipe import Recipe
from tasks.tables import schema
from tasks.tables.derived_columns import COUNTS
from tasks.tables.frames import Row, read_frame
from tasks.tables.points import PublishedPoint, read_points

INSIDE, OUTSIDE, UNINFORMATIVE = "inside", "outside", "uninformative"
OTHER_RECIPE, OTHER_MEASUREMENT = "other recipe", "other measurement"
UNCONVERGED, NOT_RUN = "unconverged", "not run"

LARGEST_HALF_WIDTH = 0.1
"""Largest half width of an informative prediction interval of an accuracy: 10 points."""

RECIPE_FIELDS_ASIDE = ("name", "precision", "skip_nonfinite")
"""Fields in which two recipes may differ and still be the same training."""

ENDPOINTS_METHOD = "endpoints"
"""The method of the two ends of a published pair, whose value is their mean."""

PATHS_OF_METHODS: Mapping[str, tuple[tuple[str, str], ...]] = {
    ENDPOINTS_METHOD: (("none", "none"), ("activation", "none")),
    "direct": (("none", "none"),),
    "reset": (("none", "reset"),),
    "repair": (("none", "repair"),),
    "aligned": (("activation", "none"),),
    "aligned+reset": (("activation", "reset"),),
    "aligned+repair": (("activation", "repair"),),
    "aligned+repair_closed_form": (("activation", "repair-closed-form"),),
    "aligned+repair_block": (("activation", "repair-block"),),
    "aligned+repair_plus": (("activation", "repair-block"),),
}
"""The matchers and corrections that a published method is compared with: the first that a study has. All uncorrected
paths of a cell end in the same networks."""

_NORMALIZATIONS: Mapping[str, str] = {"unknown": "batch"}
"""Normalization of ours, by a published one of another name: the accuracies of the saved VGGs, and the authors' figure,
point to BatchNorm."""

_RECIPES: Mapping[tuple[str, str, str], tuple[Recipe, bool]] = {
    ("cifar10", "resnet20", "batch"): (recipes.R20_SAVED, True),
    ("fashion_mnist", "resnet20", "batch"): (recipes.R20_SAVED, False),
    ("mnist", "resnet20", "batch"): (recipes.R20_SAVED_MNIST_SVHN, False),
    ("svhn", "resnet20", "batch"): (recipes.R20_SAVED_MNIST_SVHN, False),
    ("cifar10", "resnet20", "layer"): (recipes.R20_SAVED_LAYER, True),
    ("cifar10", "resnet20", "fixup"): (recipes.R20_SAVED_FIXUP, False),
    ("cifar10", "resnet18", "batch"): (recipes.R18_SAVED, False),
    ("cifar10", "vgg11", "unknown"): (recipes.VGG_SAVED, False),
    ("cifar10", "vgg16", "unknown"): (recipes.VGG_SAVED, False),
    ("cifar10", "vgg19", "unknown"): (recipes.VGG_SAVED, False),
    ("mnist", "mlp", "batch-fused"): (recipes.MLP_BATCH, True),
    ("mnist", "mlp", "none"): (recipes.MLP_SAVED, False),
    ("fashion_mnist", "mlp", "none"): (recipes.MLP_SAVED, False),
    ("cifar10", "mlp", "none"): (recipes.MLP_STILL, False),
    ("svhn", "mlp", "none"): (recipes.MLP_STILL, False),
}
"""The recipe of the saved points, by their data set, architecture and normalization, and True if that is known. If not,
it is our guess, for the reason that its source gives in docs/recipes.md."""

_NETWORK = ("dataset", "architecture", "normalization")
_SIZE = (*_NETWORK, "width", "depth")


@dataclass(frozen=True)
class Figure:
    """The saved values of one pair under one method: at its midpoint, or the mean of its two endpoints."""

    point: str
    dataset: str
    architecture: str
    normalization: str
    """In the words of our cells."""
    width: int
    depth: int
    method: str
    paths: tuple[tuple[str, str], ...]
    recipe: Recipe | None
    """None if it is not even guessed."""
    is_recipe_known: bool
    is_converged: bool
    values: Mapping[tuple[str, str], float]
    """By split and `accuracy` or `loss`."""
    source: str
    note: str

    @property
    def place(self) -> str:
        return "endpoint" if self.method == ENDPOINTS_METHOD else "midpoint"


@functools.cache
def published_figures() -> tuple[Figure, ...]:
    """Return every saved figure of networks that this package can train, by pair."""
    figures: list[Figure] = []
    pairs: dict[tuple[str, str, str, int, int], list[PublishedPoint]] = {}
    for point in read_points():
        network = (point.dataset, point.architecture, point.normalization, point.width, point.depth)
        if network[:3] in _RECIPES and point.alpha in (0.0, 0.5, 1.0):
            pairs.setdefault(network, []).append(point)
    for of_pair in pairs.values():
        # Endpoints that were not saved on their own are the ends of the direct path.
        ends = {p.alpha: p for method in ("direct", "endpoint") for p in of_pair if p.method == method}
        if 0.0 in ends and 1.0 in ends:
            figures.append(_figure(ENDPOINTS_METHOD, [ends[0.0], ends[1.0]]))
        figures += [
            _figure(point.method, [point])
            for point in of_pair
            if point.alpha == 0.5 and point.method in PATHS_OF_METHODS
        ]
    return tuple(figures)


def _figure(method: str, points: Sequence[PublishedPoint]) -> Figure:
    """Return the mean of `points`, which differ only in their alpha."""
    first = points[0]
    network = (first.dataset, first.architecture, first.normalization)
    recipe, is_known = _RECIPES[network]
    # The authors' figures call re-estimated BatchNorm statistics REPAIR.
    ours = method.replace("repair", "reset") if first.normalization == "unknown" else method
    values = {
        (split, value): sum(getattr(point, f"{split}_{value}") for point in points) / len(points)
        for split in ("train", "test")
        for value in ("accuracy", "loss")
    }
    return Figure(
        point="/".join([*network, f"w{first.width}", f"d{first.depth}", method]),
        dataset=first.dataset,
        architecture=first.architecture,
        normalization=_NORMALIZATIONS.get(first.normalization, first.normalization),
        width=first.width,
        depth=first.depth,
        method=method,
        paths=PATHS_OF_METHODS[ours],
        recipe=recipe if first.has_recipe_of_family else None,
        is_recipe_known=is_known and first.has_recipe_of_family,
        is_converged=first.is_converged,
        values=values,
        source=first.source,
        note=first.note,
    )


def tabulate_comparison(
    cells: pd.DataFrame, ablation: pd.DataFrame, measurements: Mapping[str, Measurement]
) -> pd.DataFrame:
    """Return the `paper` table: every published figure of the study's networks, beside ours if there are any.

    A study's networks are its triples of data set, architecture and normalization; published widths and depths that it
    lacks have rows without ours. `measurements` are those that anything was measured under, by name.
    """
    of_size: dict[tuple[Any, ...], list[Row]] = {}
    for cell in read_frame(cells):
        of_size.setdefault(tuple(cell[name] for name in _SIZE), []).append(cell)
    networks = {size[: len(_NETWORK)] for size in of_size}
    under: dict[tuple[str, str, str], dict[str, None]] = {}
    means: dict[tuple[str, ...], Row] = {}
    for row in read_frame(ablation):
        path = (row["cell_id"], row["matcher"], row["correction"])
        under.setdefault(path, {})[row["measurement"]] = None
        means[(*path, row["measurement"], row["split"], row["metric"])] = row
    rows: list[Row] = []
    for figure in published_figures():
        size = tuple(getattr(figure, name) for name in _SIZE)
        if size[: len(_NETWORK)] not in networks:
            continue
        found: list[Row] = []
        for cell in of_size.get(size, []):
            # The first measured one of the paths that the method is compared with.
            paths = {
                measurement: path
                for path in reversed(figure.paths)
                for measurement in under.get((cell["cell_id"], *path), {})
            }
            for measurement, (matcher, correction) in paths.items():
                path = {"matcher": matcher, "correction": correction, "measurement": measurement}
                for split, value in figure.values:
                    key = (cell["cell_id"], *path.values(), split, f"{figure.place}_{value}")
                    found.append(_compared(figure, cell | path, split, value, means[key], measurements))
        rows += found or [
            _published(figure, split, value) | {"study": cells["study"].iloc[0], "verdict": NOT_RUN}
            for split, value in figure.values
        ]
    return pd.DataFrame(rows, columns=list(schema.PAPER.columns))


def _published(figure: Figure, split: str, value: str) -> Row:
    """Return the columns that need no run."""
    matcher, correction = figure.paths[0]
    return {name: getattr(figure, name) for name in (*_SIZE, "point", "method", "source", "note")} | {
        "published_recipe": figure.recipe.name if figure.recipe else None,
        "published_recipe_known": figure.is_recipe_known,
        "matcher": matcher,
        "correction": correction,
        "split": split,
        "metric": f"{figure.place}_{value}",
        "published": figure.values[(split, value)],
        **dict.fromkeys(COUNTS, 0),
    }


def _compared(
    figure: Figure, cell: Row, split: str, value: str, ours: Row, measurements: Mapping[str, Measurement]
) -> Row:
    """Return the row of a figure and one of our cells; `ours` is the row of the ablation."""
    row = _published(figure, split, value)
    row |= {name: cell[name] for name in (*schema.CELL, "matcher", "correction", "measurement")}
    row |= {name: ours[name] for name in ("mean", "new_pair_low", "new_pair_high", *COUNTS)}
    row["difference"] = ours["mean"] - row["published"]
    if not ours["n_pairs"]:
        row["verdict"] = NOT_RUN
    elif not figure.is_converged:
        row["verdict"] = UNCONVERGED
    elif figure.recipe is None or not _trains_alike(figure.recipe, cell):
        row["verdict"] = OTHER_RECIPE
    elif not _measures_all(measurements[cell["measurement"]], figure, cell, split):
        row["verdict"] = OTHER_MEASUREMENT
    elif value == "accuracy":
        row["verdict"] = judge_accuracy(row["published"], row["new_pair_low"], row["new_pair_high"])
    else:
        row["verdict"] = None
    return row


def judge_accuracy(published: float, low: float, high: float) -> str:
    """Return the verdict on an accuracy: inside or outside a prediction interval, or uninformative.

    A wide interval, or none (NaN), is uninformative on whichever side of it the point lies: if it counted only where
    it fails, the share inside would be too low.
    """
    if not (high - low) / 2 <= LARGEST_HALF_WIDTH:
        return UNINFORMATIVE
    return INSIDE if low <= published <= high else OUTSIDE


def _trains_alike(recipe: Recipe, cell: Row) -> bool:
    fields = [field.name for field in dataclasses.fields(recipe) if field.name not in RECIPE_FIELDS_ASIDE]
    return all(cell[f"recipe_{name}"] == getattr(recipe, name) for name in fields)


def _measures_all(measurement: Measurement, figure: Figure, cell: Row, split: str) -> bool:
    """Return True if all images were used: for statistics, if there are any, and of the split.

    Flip-averaged measurements and those in bfloat16 do not count: no published figure is one.
    """
    n_statistics = measurement.statistics or math.inf
    if figure.method in (ENDPOINTS_METHOD, "direct"):
        n_statistics = math.inf
    n_evaluated = measurement.evaluation or math.inf
    is_whole = n_statistics >= cell["data_n_train"] and n_evaluated >= cell[f"data_n_{split}"]
    return is_whole and measurement.viewing == PLAINLY
