"""Ours beside theirs: every figure that the authors of REPAIR saved, and what a study says of it.

A published figure is one pair of networks, so it is judged by the prediction interval of a new pair: a point inside it
is one that our networks could have made. Only accuracies are judged. The interval's width tells whether that says
anything, and points of accuracy mean the same everywhere, while midpoint losses range from .02 to 14 nats and are
ruled by a few images.

A judgement needs the same training: all fields of the recipe but its name, its precision, and whether steps are
skipped whose gradients are not finite. The authors trained in float16 under a gradient scaler, which does skip them,
and a CPU can do neither. It needs the same measurement: statistics from the whole train split wherever there are any,
and the whole split for accuracy. And it needs published endpoints that had learned.
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
from tasks.tables.points import Point, read_points

INSIDE, OUTSIDE, UNINFORMATIVE = "inside", "outside", "uninformative"
OTHER_RECIPE, OTHER_MEASUREMENT = "other recipe", "other measurement"
UNCONVERGED, NOT_RUN = "unconverged", "not run"

LARGEST_HALF_WIDTH = 0.1
"""Of a prediction interval of accuracy that still tells something: 10 points."""

RECIPE_FIELDS_ASIDE = ("name", "precision", "skip_nonfinite")
"""Where two recipes may differ and still be the same training."""

ENDPOINTS = "endpoints"
"""What a comparison calls the two ends of a published pair; its value is their mean."""

PATHS_OF_METHODS: Mapping[str, tuple[tuple[str, str], ...]] = {
    ENDPOINTS: (("none", "none"), ("activation", "none")),
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
"""Which matcher and correction stands for a published method: the first that a study has. All uncorrected paths of a
cell end in the same networks."""

NORMALIZATIONS: Mapping[str, str] = {"unknown": "batch"}
"""What points of a normalization are compared with, where it is not its own name: the saved VGGs were most likely
trained with BatchNorm, as their accuracies and the authors' figure say."""

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
"""The recipe that made the saved points of some networks, by the points' data set, architecture and normalization, and
whether that is known: where not, it is our guess, for the reason its source gives in docs/recipes.md."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """What the authors saved of one pair under one method: its midpoint, or the mean of its two endpoints."""

    point: str
    dataset: str
    architecture: str
    normalization: str
    """As our cells have it."""
    width: int
    depth: int
    method: str
    paths: tuple[tuple[str, str], ...]
    recipe: Recipe | None
    """None where it is not even guessed."""
    is_recipe_known: bool
    is_converged: bool
    values: Mapping[tuple[str, str], float]
    """By split and `accuracy` or `loss`."""
    source: str
    note: str

    @property
    def place(self) -> str:
        return "endpoint" if self.method == ENDPOINTS else "midpoint"


@functools.cache
def published_figures() -> tuple[Figure, ...]:
    """Every saved figure of networks that this package can train, by its pair."""
    figures: list[Figure] = []
    pairs: dict[tuple[str, str, str, int, int], list[Point]] = {}
    for point in read_points():
        network = (point.dataset, point.architecture, point.normalization, point.width, point.depth)
        if network[:3] in _RECIPES and point.alpha in (0.0, 0.5, 1.0):
            pairs.setdefault(network, []).append(point)
    for of_pair in pairs.values():
        # Where the endpoints were not saved on their own, they are the ends of the direct path.
        ends = {p.alpha: p for method in ("direct", "endpoint") for p in of_pair if p.method == method}
        if 0.0 in ends and 1.0 in ends:
            figures.append(_figure(ENDPOINTS, [ends[0.0], ends[1.0]]))
        figures += [
            _figure(point.method, [point])
            for point in of_pair
            if point.alpha == 0.5 and point.method in PATHS_OF_METHODS
        ]
    return tuple(figures)


def _figure(method: str, points: Sequence[Point]) -> Figure:
    """The mean of `points`, which differ in nothing but their alpha."""
    first = points[0]
    network = (first.dataset, first.architecture, first.normalization)
    recipe, is_known = _RECIPES[network]
    # What the authors' figures call REPAIR of a network with BatchNorm is its re-estimated statistics.
    ours = method.replace("repair", "reset") if first.normalization == "unknown" else method
    sums = {
        ("train", "accuracy"): sum(point.train_accuracy for point in points),
        ("train", "loss"): sum(point.train_loss for point in points),
        ("test", "accuracy"): sum(point.test_accuracy for point in points),
        ("test", "loss"): sum(point.test_loss for point in points),
    }
    return Figure(
        point="/".join([*network, f"w{first.width}", f"d{first.depth}", method]),
        dataset=first.dataset,
        architecture=first.architecture,
        normalization=NORMALIZATIONS.get(first.normalization, first.normalization),
        width=first.width,
        depth=first.depth,
        method=method,
        paths=PATHS_OF_METHODS[ours],
        recipe=recipe if first.has_recipe_of_family else None,
        is_recipe_known=is_known and first.has_recipe_of_family,
        is_converged=first.is_converged,
        values={name: total / len(points) for name, total in sums.items()},
        source=first.source,
        note=first.note,
    )


def tabulate_comparison(
    cells: pd.DataFrame, ablation: pd.DataFrame, measurements: Mapping[str, Measurement]
) -> pd.DataFrame:
    """The `paper` table, of a study's tables: every published figure of the study's networks, as far as it was run.

    A study's networks are its triples of data set, architecture and normalization; their published widths and depths
    that it lacks have rows without ours. `measurements` are those that anything was measured under, by name.
    """
    names = ["dataset", "architecture", "normalization", "width", "depth"]
    of_size: dict[tuple[Any, ...], list[Record]] = {}
    for cell in _records(cells):
        of_size.setdefault(tuple(cell[name] for name in names), []).append(cell)
    networks = {size[:3] for size in of_size}
    asked: dict[tuple[str, str, str], list[str]] = {}
    means: dict[tuple[str, ...], Record] = {}
    for row in _records(ablation):
        under = asked.setdefault((row["cell_id"], row["matcher"], row["correction"]), [])
        if row["measurement"] not in under:
            under.append(row["measurement"])
        means[(*_group(row), row["split"], row["metric"])] = row
    rows: list[Record] = []
    for figure in published_figures():
        size = tuple(getattr(figure, name) for name in names)
        if size[:3] not in networks:
            continue
        found: list[Record] = []
        for cell in of_size.get(size, []):
            paths = {
                measurement: path
                for path in reversed(figure.paths)
                for measurement in asked.get((cell["cell_id"], *path), [])
            }
            for measurement, (matcher, correction) in paths.items():
                path = {"matcher": matcher, "correction": correction, "measurement": measurement}
                for split, value in figure.values:
                    key = (cell["cell_id"], matcher, correction, measurement, split, f"{figure.place}_{value}")
                    found.append(_compared(figure, cell | path, split, value, means[key], measurements))
        rows += found or [
            _published(figure, split, value) | {"study": cells["study"].iloc[0], "verdict": NOT_RUN}
            for split, value in figure.values
        ]
    return pd.DataFrame(rows, columns=list(schema.PAPER.columns))


def _group(row: Record) -> tuple[str, ...]:
    return (row["cell_id"], row["matcher"], row["correction"], row["measurement"])


def _published(figure: Figure, split: str, value: str) -> Record:
    """The columns that need no run."""
    names = ("dataset", "architecture", "normalization", "width", "depth", "point", "method", "source", "note")
    matcher, correction = figure.paths[0]
    return {name: getattr(figure, name) for name in names} | {
        "published_recipe": figure.recipe.name if figure.recipe else None,
        "published_recipe_known": figure.is_recipe_known,
        "matcher": matcher,
        "correction": correction,
        "split": split,
        "metric": f"{figure.place}_{value}",
        "published": figure.values[(split, value)],
        "n_seeds": 0,
        "n_pairs": 0,
        "n_diverged": 0,
        "n_untrained": 0,
    }


def _compared(
    figure: Figure, cell: Record, split: str, value: str, ours: Record, measurements: Mapping[str, Measurement]
) -> Record:
    """The row of a figure and one of our cells, of which `ours` is the ablation's row."""
    row = _published(figure, split, value)
    row |= {name: cell[name] for name in (*schema.CELL, "matcher", "correction", "measurement")}
    row |= {name: ours[name] for name in ("mean", "new_pair_low", "new_pair_high")}
    row |= {name: ours[name] for name in ("n_seeds", "n_pairs", "n_diverged", "n_untrained")}
    row["difference"] = ours["mean"] - row["published"]
    if not ours["n_pairs"]:
        row["verdict"] = NOT_RUN
    elif not figure.is_converged:
        row["verdict"] = UNCONVERGED
    elif figure.recipe is None or not _trains_alike(figure.recipe, cell):
        row["verdict"] = OTHER_RECIPE
    elif not _measures_all(measurements[cell["measurement"]], figure, cell, split):
        row["verdict"] = OTHER_MEASUREMENT
    else:
        judged = value == "accuracy"
        row["verdict"] = judge(row["published"], row["new_pair_low"], row["new_pair_high"]) if judged else None
    return row


def judge(published: float, low: float, high: float) -> str:
    """Whether an accuracy lies inside a prediction interval, if that is narrow enough to tell anything.

    A wide interval, or none (NaN), is uninformative on whichever side of it the point lies: if it counted only where
    it fails, the share inside would be too low.
    """
    if not (high - low) / 2 <= LARGEST_HALF_WIDTH:
        return UNINFORMATIVE
    return INSIDE if low <= published <= high else OUTSIDE


def _trains_alike(recipe: Recipe, cell: Record) -> bool:
    fields = [field.name for field in dataclasses.fields(recipe) if field.name not in RECIPE_FIELDS_ASIDE]
    return all(cell[f"recipe_{name}"] == getattr(recipe, name) for name in fields)


def _measures_all(measurement: Measurement, figure: Figure, cell: Record, split: str) -> bool:
    """Whether nothing was spared: no train image for statistics, where there are any, and none of the split; and
    nothing changed, for none of these figures is flip-averaged or in bfloat16."""
    n_statistics = measurement.statistics or math.inf
    if figure.method in (ENDPOINTS, "direct"):
        n_statistics = math.inf
    n_evaluated = measurement.evaluation or math.inf
    is_whole = n_statistics >= cell["data_n_train"] and n_evaluated >= cell[f"data_n_{split}"]
    return is_whole and measurement.viewing == PLAINLY


def _records(frame: pd.DataFrame) -> list[Record]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict(orient="records")]
