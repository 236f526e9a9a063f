"""Whether two ways of training give the same results: test accuracy, and aligned and repaired accuracy barriers.

Both ways train the same seeds, from the same weights and in the same order, and every pair of seeds is aligned and
repaired within each. What is judged is the mean difference, right less left, in points: over seeds for accuracy, over
pairs for barriers, whose spread is that of leaving out one seed at a time
(`tasks.science.statistics.jackknife`). Two one-sided t-tests ask whether it lies within the margin, half a point by
default; p is the larger of the two (Schuirmann 1987). The verdict is `equivalent` where p is below .05, `different`
where the 90 % interval lies beyond the margin, else `undecided`.

`float32`, `bfloat16` and `float16` train each seed by itself in that precision, `stacked` all seeds as one network in
float32, and so does `vectorised` by vmap.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import special

from tasks.data.datasets import load_dataset
from tasks.science.alignment.matching import match
from tasks.science.data.augmentation import statistics_images
from tasks.science.data.examples import Dataset
from tasks.science.evaluation.barrier import barrier
from tasks.science.networks import build_network
from tasks.science.networks.permutation_spec import cell_permutation_spec
from tasks.science.paths.curves import measure_path, measure_side
from tasks.science.specs.cell import Cell
from tasks.science.specs.measurement import Measurement, Samples
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State
from tasks.science.statistics.jackknife import mean_estimate
from tasks.science.training.training import train_group

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("float32", {"group_size": 1}),
    "bfloat16": ("bfloat16", {"group_size": 1}),
    "float16": ("float16", {"group_size": 1}),
    "stacked": ("float32", {}),
    "vectorised": ("float32", {"scheme": "vectorised"}),
}
"""Of each way its precision, and what else `train_group` is told."""

LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A mean difference in points with its 90 % interval, and the p of the two one-sided tests."""

    what: str
    left: float
    right: float
    difference: float
    low: float
    high: float
    p: float
    verdict: str


def compare(
    what: str, seed_pairs: Sequence[tuple[int, int]], left: Sequence[float], right: Sequence[float], margin: float
) -> Comparison:
    """Two one-sided t-tests on the mean difference of `left` and `right`, one value per pair of seeds, in the unit of
    `margin`; a value of one seed is that of a pair with itself."""
    found = mean_estimate(seed_pairs, (np.asarray(right) - np.asarray(left)).tolist())
    deviation = max(found.variance**0.5, 1e-12)
    p = max(float(special.stdtr(found.degrees, (side * found.mean - margin) / deviation)) for side in (1, -1))
    reach = float(special.stdtrit(found.degrees, 1 - LEVEL)) * deviation
    low, high = found.mean - reach, found.mean + reach
    verdict = "equivalent" if p < LEVEL else "different" if low > margin or high < -margin else "undecided"
    return Comparison(what, float(np.mean(left)), float(np.mean(right)), found.mean, low, high, p, verdict)


def train_way(cell: Cell, way: str, seeds: Sequence[int], dataset: Dataset, device: str):
    """The weights and test accuracy in percent of each seed, and the CPU seconds that training took."""
    precision, options = WAYS[way]
    recipe = dataclasses.replace(cell.recipe, precision=precision, skip_nonfinite=precision == "float16")
    options = {"group_size": len(seeds), **options}
    begun = time.process_time()
    trained = list(train_group(dataclasses.replace(cell, recipe=recipe), seeds, dataset, device, **options))
    if lost := [one.seed for one in trained if one.status != "trained"]:
        raise SystemExit(f"{way}: seeds {lost} did not train: {trained[lost[0]].message}")
    return [one.state for one in trained], [100 * one.test.accuracy for one in trained], time.process_time() - begun


def measure_barriers(
    cell: Cell,
    states: Sequence[State],
    pairs: Sequence[tuple[int, int]],
    dataset: Dataset,
    n_images: int,
    n_alphas: int,
) -> dict[str, list[float]]:
    """The test accuracy barrier of every pair, in points, aligned and repaired."""
    network, spec = build_network(cell), cell_permutation_spec(cell)
    statistics = statistics_images(dataset, cell.recipe.augmentation, Samples(n_images))
    few = dataset.reduced(n_images)
    alphas = Measurement("", alphas=n_alphas).grid
    sides = [measure_side(network, state, statistics) for state in states]
    found: dict[str, list[float]] = {"none": [], "repair": []}
    for (a, b), matched in zip(pairs, match(network, spec, states, pairs, "activation", statistics), strict=True):
        aligned = sides[b].permuted(spec, matched.permutation)
        for correction, barriers in found.items():
            points = measure_path(network, (sides[a], aligned), correction, alphas.tolist(), few, statistics)
            errors = np.array([100 * (1 - point.splits["test"].accuracy) for point in points])
            barriers.append(barrier(errors, alphas, (float(errors[0]), float(errors[-1]))))
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--left", choices=WAYS, default="float32")
    parser.add_argument("--right", choices=WAYS, default="bfloat16")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--images", type=int, default=5000, help="of each split that statistics and curves are of")
    parser.add_argument("--alphas", type=int, default=11)
    parser.add_argument("--margin", type=float, default=0.5, help="in points")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="where the figures go besides")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    dataset = load_dataset(arguments.dataset, arguments.data_dir)
    recipe = Recipe("equivalence", arguments.batch_size, arguments.epochs, arguments.learning_rate, 0.2)
    cell = Cell(dataset.spec, "mlp", "none", arguments.width, arguments.depth, recipe)
    seeds = range(arguments.seeds)
    pairs = list(itertools.combinations(seeds, 2))
    machine = f"{platform.machine()}, torch {torch.__version__}, {arguments.device}"
    what = f"{cell.label}, {arguments.epochs} epochs, {len(seeds)} seeds, {len(pairs)} pairs, {arguments.images} images"
    print(f"{what}; {machine}", flush=True)
    accuracies: dict[str, list[float]] = {}
    barriers: dict[str, dict[str, list[float]]] = {}
    for way in (arguments.left, arguments.right):
        states, accuracies[way], seconds = train_way(cell, way, seeds, dataset, arguments.device)
        print(f"{way}: trained in {seconds:.0f} CPU seconds", flush=True)
        barriers[way] = measure_barriers(cell, states, pairs, dataset, arguments.images, arguments.alphas)
    left, right = arguments.left, arguments.right
    alone = [(seed, seed) for seed in seeds]
    found = [compare("test accuracy", alone, accuracies[left], accuracies[right], arguments.margin)]
    for correction, what in (("none", "aligned barrier"), ("repair", "repaired barrier")):
        of_ways = (barriers[way][correction] for way in (left, right))
        found.append(compare(what, pairs, *of_ways, arguments.margin))
    print(f"{'in points':<18}{left:>10}{right:>12}{'difference':>12}{'90 % interval':>20}{'p':>10}")
    for one in found:
        print(f"{one.what:<18}{one.left:>10.3f}{one.right:>12.3f}{one.difference:>12.3f}"
              f"{f'{one.low:.3f} to {one.high:.3f}':>20}{one.p:>10.2g}  {one.verdict}")  # fmt: skip
    if arguments.json:
        figures = {"arguments": {key: str(value) for key, value in vars(arguments).items()},
                   "comparisons": [dataclasses.asdict(one) for one in found]}  # fmt: skip
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
