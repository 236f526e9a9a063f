"""Every step of the pipeline against the published schedule written out plainly, alternating in one run.

Prints medians and ratios, and with --write keeps them: the table in docs/benchmarks.md, the raw figures in
docs/benchmarks/. Each step runs on one thread and is clocked in CPU seconds, so that a busy machine disturbs it little;
training, which is about using all cores, is clocked by the wall. Both sides have the same samples in memory, and every
row says how far their results agree. Networks have the weights that training begins with, and images are noise, but for
training: the work hardly depends on them.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import published
import torch
from machine import describe
from torch import Tensor, nn

from infra.settings import load_settings
from tasks.datasets import load_dataset
from tasks.science.assignment import SOLVERS
from tasks.science.augmentation import TrainImages, draw_views
from tasks.science.curves import CorrectedPath, Side, evaluate_splits, measure_path, measure_side
from tasks.science.examples import Dataset, Examples
from tasks.science.identity import stream
from tasks.science.matching import Match, match
from tasks.science.networks import build_network, initial_state
from tasks.science.networks.symmetry import cell_permutation_spec
from tasks.science.permutation import Permutation, PermutationSpec
from tasks.science.recipe import Recipe
from tasks.science.specs import PLAINLY, Cell, DataSpec, State, Viewing
from tasks.science.training import train_group

ROOT = Path(__file__).parent.parent
PAGE, HISTORY = ROOT / "docs/benchmarks.md", ROOT / "docs/benchmarks"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"

ALPHAS = [i / 10 for i in range(11)]
N_SEEDS = 4
"""Of paths: six pairs share four endpoints."""


@dataclass(frozen=True)
class Sizes:
    """How many images each network sees. Costs are linear in them."""

    mlp: int
    mlp_all_pairs: int
    resnet: int
    vgg: int
    path: int
    resnet_path: int
    assignment: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int
    resnet_steps: int
    study_epochs: int


FULL = Sizes(10_000, 5_000, 200, 64, 10_000, 500, (512, 1024, 2048, 4096), (8, 16), 600, 40, 5)
TINY = Sizes(64, 64, 4, 2, 64, 4, (16,), (3,), 4, 2, 1)


@dataclass(frozen=True)
class Work:
    """One step, done by ours and by the reference: `times` is how often the reference would have to be run for the same
    work. `agrees` tells how far the results of the two agree. `best`: the largest ratio that was measured before this
    was written, of a prototype; `least`: what is aimed at; 0 where neither is. `floor`: the arithmetic that cannot be
    left out, in plain forward passes and matrix products, and nothing else."""

    key: str
    name: str
    ours: Callable[[], Any]
    reference: Callable[[], Any]
    agrees: Callable[[Any, Any], str]
    times: float = 1.0
    best: float = 0.0
    least: float = 0.0
    floor: Callable[[], Any] | None = None


@dataclass
class Bench:
    """A cell with the endpoints that its benchmarks share."""

    architecture: str
    normalization: str
    width: int
    depth: int
    shape: tuple[int, int, int]
    n_examples: int
    n_states: int
    recipe: Recipe = field(default_factory=lambda: Recipe("none", 1, 1, 1.0, 0.0))

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.n_examples, *self.shape, generator=generator)
        labels = torch.arange(self.n_examples) % 10
        n_test = max(2, self.n_examples // 5)
        spec = DataSpec("noise", "", self.n_examples, n_test, 10, self.shape)
        self.dataset = Dataset(spec, Examples(images, labels), Examples(images[:n_test], labels[:n_test]), 0.0)
        self.cell = Cell(spec, self.architecture, self.normalization, self.width, self.depth, self.recipe)
        self.network: nn.Module = build_network(self.cell)
        self.spec: PermutationSpec = cell_permutation_spec(self.cell)
        self.states: list[State] = [
            initial_state(self.network, stream("benchmark", seed)) for seed in range(self.n_states)
        ]

    @property
    def images(self) -> Tensor:
        return self.dataset.train.images

    @property
    def splits(self) -> list[tuple[Tensor, Tensor]]:
        return [(split.images, split.labels) for split in (self.dataset.train, self.dataset.test)]

    @property
    def modules(self) -> dict[str, str]:
        """The module that puts out each axis' units."""
        return {axis.name: str(axis.readings[0].module) for axis in self.spec.axes}

    def permute(self, state: State, partners: dict[str, np.ndarray]) -> State:
        return self.spec.apply(state, Permutation({**self.spec.identity(), **partners}))

    def align(self, pairs: Sequence[tuple[int, int]]) -> list[Match]:
        return match(self.network, self.spec, self.states, pairs, "activation", self.images)

    def compute(self, n_passes: int, n_pairs: int = 0, part: float = 1.0) -> None:
        """So many forward passes over a `part` of the images in the layout and batches that are fastest, and for each
        of so many pairs the products of every axis' units."""
        module = published.load(self.network, self.states[0])
        images, batch_size = self.images[: int(part * self.n_examples)], 1000
        if self.architecture != "mlp":
            module, batch_size = module.to(memory_format=torch.channels_last), 64  # pyright: ignore[reportCallIssue]
            images = torch.empty_like(images, memory_format=torch.channels_last).copy_(images)
        for _ in range(n_passes):
            for batch in images.split(batch_size):
                module(batch)
        if n_pairs:
            for values in self._units:
                for _ in range(n_pairs):
                    for rows in values.split(2**14):
                        torch.matmul(rows.T, rows)

    @functools.cached_property
    def _units(self) -> list[Tensor]:
        """The activations (n_samples, n_units) of every axis."""
        module = published.load(self.network, self.states[0])
        return [published.read_up_to(module, self.images, name).float() for name in self.modules.values()]

    def align_plainly(self, a: int, b: int) -> tuple[dict[str, np.ndarray], float]:
        batch_size = published.BATCH_SIZE if self.architecture == "mlp" else 100
        return published.align_layer_by_layer(
            self.network, self.modules, self.permute, self.states[a], self.states[b], self.images, batch_size
        )


def pairs_of(n_seeds: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(n_seeds) for b in range(a + 1, n_seeds)]


def same_objective(ours: list[Match], reference: tuple[dict[str, np.ndarray], float]) -> str:
    partners, objective = reference
    same = np.concatenate([ours[0].permutation[axis] == partner for axis, partner in partners.items()])
    gap = abs(ours[0].objective - objective) / objective
    return f"objective within {gap:.0e}, {same.mean():.2%} of partners the same"


def alignment_works(sizes: Sizes) -> Iterator[Work]:
    mlp = Bench("mlp", "none", 128, 11, (1, 28, 28), sizes.mlp, 2)
    resnet = Bench("resnet20", "batch", 1, 20, (3, 32, 32), sizes.resnet, 2)
    vgg = Bench("vgg16", "none", 1, 16, (3, 32, 32), sizes.vgg, 2)
    for key, name, bench, best, least in (
        ("align-mlp", "align one pair, MLP 11 x 128", mlp, 6.3, 5.4),
        ("align-resnet20", "align one pair, ResNet20 x1", resnet, 7.2, 6.1),
        ("align-vgg16", "align one pair, VGG16", vgg, 6.9, 5.9),
    ):
        yield Work(
            key, f"{name}, {bench.n_examples:,} images",
            lambda b=bench: b.align([(0, 1)]), lambda b=bench: b.align_plainly(0, 1), same_objective,
            best=best, least=least, floor=lambda b=bench: b.compute(2, 1),
        )  # fmt: skip


def all_pairs_works(sizes: Sizes) -> Iterator[Work]:
    targets = {("mlp", 8): (16, 14), ("resnet20", 8): (32, 27)}
    n_states = max(sizes.seeds)
    mlp = Bench("mlp", "none", 128, 11, (1, 28, 28), sizes.mlp_all_pairs, n_states)
    resnet = Bench("resnet20", "batch", 1, 20, (3, 32, 32), max(2, sizes.resnet // 2), n_states)
    for bench, name in ((mlp, "MLP 11 x 128"), (resnet, "ResNet20 x1")):
        for n_seeds in sizes.seeds:
            best, least = targets.get((bench.architecture, n_seeds), (0, 0))
            yield Work(
                f"align-{bench.architecture}-{n_seeds}",
                f"align all pairs of {n_seeds} seeds, {name}, {bench.n_examples:,} images",
                lambda b=bench, n=n_seeds: b.align(pairs_of(n)), lambda b=bench: b.align_plainly(0, 1), same_objective,
                times=published.n_pairs(n_seeds), best=best, least=least,
                floor=lambda b=bench, n=n_seeds: b.compute(n, published.n_pairs(n)),
            )  # fmt: skip


def assignment_works(sizes: Sizes) -> Iterator[Work]:
    from scipy.optimize import linear_sum_assignment

    for solver in (name for name in SOLVERS if name != "scipy" and is_installed(name)):
        for n in sizes.assignment:
            scores = trained_correlations(n)

            def agree(ours: Any, reference: Any, scores: np.ndarray = scores) -> str:
                totals = [scores[np.arange(len(scores)), partners].sum() for partners in (ours, reference[1])]
                return f"objective within {abs(totals[0] - totals[1]) / totals[1]:.0e}"

            targets = (10.0, 6.0) if n == 4096 and solver == "lapjv" else (0, 0)
            yield Work(
                f"assign-{solver}-{n}", f"assign {n:,} units, solver {solver}",
                lambda s=solver, m=scores: SOLVERS[s](m), lambda m=scores: linear_sum_assignment(m, maximize=True),
                agree, best=targets[0], least=targets[1],
            )  # fmt: skip


@functools.cache
def trained_correlations(n: int) -> np.ndarray:
    """Correlations (n, n) of the hidden units of two networks after two epochs of 20,000 images of Fashion-MNIST."""
    dataset = load_dataset("fashion_mnist", load_settings().data_dir)
    images, labels = dataset.train.images[:20_000], dataset.train.labels[:20_000]
    cell = Cell(dataset.spec, "mlp", "none", n, 1, Recipe("none", 1, 1, 1.0, 0.0))
    network, seen = build_network(cell), []
    for seed in (0, 1):
        state = initial_state(network, stream("benchmark", seed))
        with torch.enable_grad():
            trained = published.load(network, published.train_one(network, state, images, labels, 500, 80, 0.02))
        seen.append(torch.cat([published.read_up_to(trained, batch, "hidden.0") for batch in images.split(1000)[:5]]))
    a, b = ((values - values.mean(0)) / values.std(0, correction=0).clamp_min(1e-6) for values in seen)
    return (a.T @ b / len(a)).numpy()


def is_installed(solver: str) -> bool:
    try:
        SOLVERS[solver](np.eye(2))
    except ModuleNotFoundError:
        return False
    return True


@dataclass
class Paths:
    """The aligned pairs of a bench, and how both sides measure what lies between their ends."""

    bench: Bench
    pairs: list[tuple[int, int]]

    def __post_init__(self) -> None:
        self.permutations = [found.permutation for found in self.bench.align(self.pairs)]
        self.aligned = [
            self.bench.spec.apply(self.bench.states[b], p)
            for (_, b), p in zip(self.pairs, self.permutations, strict=True)
        ]

    def sides(self) -> list[Side]:
        return [measure_side(self.bench.network, state, self.bench.images) for state in self.bench.states]

    def walk(self, sides: list[Side], viewing: Viewing = PLAINLY) -> list[list[tuple[float, float]]]:
        """Loss and accuracy on the train split at every alpha of every pair; each endpoint is evaluated once."""
        bench = self.bench
        ends = [evaluate_splits(bench.network, state, bench.dataset, viewing=viewing) for state in bench.states]
        curves = []
        for (a, b), permutation in zip(self.pairs, self.permutations, strict=True):
            between = (sides[a], sides[b].permuted(self.bench.spec, permutation))
            points = measure_path(
                self.bench.network, between, "none", ALPHAS, self.bench.dataset, self.bench.images,
                ends=(ends[a], ends[b]), viewing=viewing,
            )  # fmt: skip
            curves.append([(p.splits["train"].loss, p.splits["train"].accuracy) for p in points])
        return curves

    def walk_plainly(self, layers: Sequence[str]) -> list[list[tuple[float, float]]]:
        """The same; and as ours does, the moments of every layer at the midpoint."""
        bench = self.bench
        curves = []
        for (a, _), aligned in zip(self.pairs, self.aligned, strict=True):
            curve = published.walk_path(bench.network, bench.states[a], aligned, ALPHAS, bench.splits)
            published.tracked_pass(bench.network, published.mix(bench.states[a], aligned, 0.5), layers, bench.images)
            curves.append([point[0] for point in curve])
        return curves

    def compute_path(self) -> None:
        """A forward pass over both splits for every endpoint, and every alpha between two; one more at the midpoint."""
        n_passes = self.bench.n_states + len(self.pairs) * (len(ALPHAS) - 2)
        for part in (1.0, 0.2):
            self.bench.compute(n_passes, part=part)
        self.bench.compute(len(self.pairs))

    def repair(self) -> list[State]:
        """The corrected weights at alpha .5 of every pair, of those at all alphas."""
        sides = self.sides()
        middles = []
        for (a, b), permutation in zip(self.pairs, self.permutations, strict=True):
            between = (sides[a], sides[b].permuted(self.bench.spec, permutation))
            path = CorrectedPath(self.bench.network, between, "repair", self.bench.images)
            corrected = [path.at(alpha).state for alpha in ALPHAS]
            middles.append(corrected[5])
        return middles

    def repair_plainly(self, layers: Sequence[str]) -> list[State]:
        bench = self.bench
        middles = []
        for (a, _), aligned in zip(self.pairs, self.aligned, strict=True):
            corrected = [
                published.repair_in_three_passes(
                    bench.network, layers, bench.states[a], aligned, alpha, bench.images
                )
                for alpha in ALPHAS
            ]  # fmt: skip
            middles.append(corrected[5])
        return middles


def same_curves(ours: Any, reference: Any) -> str:
    one, other = np.array(ours), np.array(reference)
    gap = np.abs(one - other).max(axis=(0, 1))
    return f"losses within {gap[0] / other[..., 0].max():.0e} of the largest, accuracies within {gap[1]:.0e}"


def same_states(ours: list[State], reference: list[State]) -> str:
    gaps = [
        float((one[name] - other[name]).abs().max() / other[name].abs().max())
        for one, other in zip(ours, reference, strict=True)
        for name in other
        if other[name].is_floating_point()
    ]
    return f"weights within {max(gaps):.0e} of the largest (the reference averages per batch)"


def path_works(sizes: Sizes) -> Iterator[Work]:
    for width, best, least in ((64, 2.5, 2.1), (128, 1.8, 1.5)):
        paths = Paths(Bench("mlp", "none", width, 11, (1, 28, 28), sizes.path, N_SEEDS), pairs_of(N_SEEDS))
        sides = paths.sides()
        yield Work(
            f"path-mlp-{width}",
            f"path of 11 alphas, MLP 11 x {width}, {sizes.path:,} + {len(paths.bench.dataset.test):,} images, 6 pairs",
            lambda p=paths, s=sides: p.walk(s),
            lambda p=paths: p.walk_plainly([f"hidden.{i}.linear" for i in range(11)]),
            same_curves, best=best, least=least,
            floor=lambda p=paths: p.compute_path(),
        )  # fmt: skip
    paths = Paths(Bench("resnet20", "batch", 1, 20, (3, 32, 32), sizes.resnet_path, 2), [(0, 1)])
    sides = paths.sides()
    n_images = f"{sizes.resnet_path:,} + {len(paths.bench.dataset.test):,} images"
    for word, viewing in (("float32", PLAINLY), ("bfloat16", Viewing(evaluated_in="bfloat16"))):
        yield Work(
            f"path-resnet20-{word}",
            f"path of 11 alphas, ResNet20 x1, {word}, {n_images}, 1 pair",
            lambda p=paths, s=sides, v=viewing: p.walk(s, v),
            lambda p=paths, s=sides: p.walk_plainly([site.name for site in s[0].layout.layers]),
            same_curves, best=2.7, least=2.3, floor=lambda p=paths: p.compute_path(),
        )  # fmt: skip


def repair_works(sizes: Sizes) -> Iterator[Work]:
    for width, best, least in ((64, 4.5, 3.9), (128, 3.7, 3.1)):
        paths = Paths(Bench("mlp", "none", width, 11, (1, 28, 28), sizes.path, 3), pairs_of(3))
        layers = [f"hidden.{i}.linear" for i in range(11)]
        yield Work(
            f"repair-mlp-{width}", f"REPAIR at 11 alphas, MLP 11 x {width}, {sizes.path:,} images, 3 pairs",
            paths.repair, lambda p=paths, names=layers: p.repair_plainly(names), same_states, best=best, least=least,
            floor=lambda p=paths: p.bench.compute(p.bench.n_states + len(p.pairs) * len(ALPHAS)),
        )  # fmt: skip
    paths = Paths(Bench("resnet20", "batch", 1, 20, (3, 32, 32), sizes.resnet_path, 2), [(0, 1)])
    convolutions = [site.name for site in paths.sides()[0].layout.layers]
    yield Work(
        "repair-resnet20", f"REPAIR at 11 alphas, ResNet20 x1, {sizes.resnet_path:,} images, 1 pair", paths.repair,
        lambda p=paths, names=convolutions: p.repair_plainly(names),
        lambda _ours, _reference: "not compared: theirs are not folded into the norms",
        floor=lambda p=paths: p.bench.compute(p.bench.n_states + len(p.pairs) * len(ALPHAS)),
    )  # fmt: skip


def data_works(sizes: Sizes) -> Iterator[Work]:
    for shape, best, least in (((1, 28, 28), 37.0, 30.0), ((3, 32, 32), 12.0, 0.0)):
        n_examples = min(sizes.mlp, 4000)
        pixels = torch.randint(0, 256, (n_examples, *shape), dtype=torch.uint8)
        spec = DataSpec("noise", "", n_examples, n_examples, 10, shape)
        examples = Examples((pixels.float() - 127.5) / 127.5, torch.zeros(n_examples, dtype=torch.int64))
        batch_size = min(500, n_examples // 2)
        recipe = Recipe("augmented", batch_size, 1, 1.0, 0.0, flip=True, translate=4, cutout=12)
        shown = TrainImages(Dataset(spec, examples, examples, -1.0), recipe, torch.device("cpu"), torch.float32)

        def ours(
            shown: TrainImages = shown, recipe: Recipe = recipe, n: int = n_examples, size: tuple[int, int] = shape[1:]
        ) -> int:
            order = torch.from_numpy(stream("order").permutation(n))[None]
            views = draw_views(stream("augmentation"), n, size, recipe)
            return sum(len(batch[0]) for batch in shown.batches(order, views, recipe.batch_size))

        def reference(pixels: Tensor = pixels, batch_size: int = batch_size) -> int:
            return sum(len(batch) for batch in published.load_one_by_one(pixels, 4, 12, batch_size, (0.5, 0.5)))

        yield Work(
            f"data-{shape[0]}", f"flip, shift and cut out {n_examples:,} images of {'x'.join(map(str, shape))}",
            ours, reference, lambda a, b: "as many images" if a == b else f"{a} and {b} images",
            best=best, least=least,
        )  # fmt: skip


TRAININGS: dict[str, tuple[str, str, int, int, tuple[int, int, int], int]] = {
    "mlp": ("mlp", "none", 128, 11, (1, 28, 28), 500),
    "resnet20": ("resnet20", "batch", 1, 20, (3, 32, 32), 128),
}


def train_once(network: str, side: str, seed: int, n_steps: int) -> dict[str, float]:
    """Wall and CPU seconds of one seed's steps, and the train loss they lead to; `side` is `plain`, or one of our
    precisions."""
    torch.set_num_threads(1)
    architecture, normalization, width, depth, shape, batch_size = TRAININGS[network]
    n_examples = batch_size * 20 if network == "mlp" else batch_size * 5
    epochs = max(1, n_steps * batch_size // n_examples)
    precision = "float32" if side == "plain" else side
    rate = 0.002 if network == "mlp" else 0.02
    recipe = Recipe("bench", batch_size, epochs, rate, 0.0, precision=precision)  # pyright: ignore[reportArgumentType]
    bench = Bench(architecture, normalization, width, depth, shape, n_examples, 0, recipe)
    # Classes that can be told apart, so that the loss says whether something was learned.
    pattern = torch.randn(10, *shape, generator=torch.Generator().manual_seed(1))
    bench.images.add_(pattern[bench.dataset.train.labels])
    few = Examples(bench.images[:batch_size], bench.dataset.train.labels[:batch_size])
    state = initial_state(bench.network, stream("benchmark", seed))
    begun, cpu = time.perf_counter(), time.process_time()
    if side == "plain":
        images, labels = bench.dataset.train.images, bench.dataset.train.labels
        n = epochs * (n_examples // batch_size)
        trained = published.train_one(bench.network, state, images, labels, batch_size, n, recipe.learning_rate)
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
        with torch.no_grad():
            loss, _ = published.judge(published.load(bench.network, trained), few.images, few.labels)
    else:
        dataset = Dataset(bench.cell.data, bench.dataset.train, few, 0.0)
        (training,) = train_group(bench.cell, [seed], dataset)
        seconds, cpu_seconds = training.seconds, training.seconds
        loss = training.test.loss
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "loss": loss, "n_samples": epochs * n_examples}


def train_together(network: str, side: str, n_processes: int, n_steps: int) -> dict[str, float]:
    """Samples a second by the wall of `n_processes` processes of one thread at once."""
    words = [sys.executable, __file__, "--train", network, "--side", side, "--steps", str(n_steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([*words, "--seed", str(seed)], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
        for seed in range(n_processes)
    ]
    found = [json.loads(process.communicate()[0]) for process in running]
    return {
        "rate": sum(one["n_samples"] / one["seconds"] for one in found),
        "loss": statistics.fmean(one["loss"] for one in found),
    }


def training_records(sizes: Sizes, n_rounds: int) -> Iterator[dict[str, Any]]:
    """Ours on every core, in float32 and in bfloat16, against one plain loop after another."""
    n_processes = min(2, os.cpu_count() or 1)
    for network, name, steps, targets in (
        ("mlp", "MLP 11 x 128, batch 500", sizes.steps, {"float32": (2.0, 1.8), "bfloat16": (3.0, 2.7)}),
        ("resnet20", "ResNet20 x1, batch 128", sizes.resnet_steps, {"float32": (2.0, 1.8), "bfloat16": (4.0, 2.7)}),
    ):
        rounds = [
            {
                "plain": train_together(network, "plain", 1, steps),
                **{side: train_together(network, side, n_processes, steps) for side in targets},
            }
            for _ in range(n_rounds)
        ]
        for side, (best, least) in targets.items():
            losses = [statistics.fmean(one[key]["loss"] for one in rounds) for key in (side, "plain")]
            yield record(
                f"train-{network}-{side}",
                f"train seeds, {name}, {side}, {n_processes} processes (seconds per 10,000 samples)",
                [1e4 / one[side]["rate"] for one in rounds],
                [1e4 / one["plain"]["rate"] for one in rounds],
                f"losses {losses[0]:.3f} and {losses[1]:.3f}",
                best,
                least,
            )


STUDY = """
name = "benchmark"
dataset = "fashion_mnist"
architecture = "mlp"
width = {width}
depth = 4
seeds = {seeds}
recipe = {{base = "mlp/mlp-still", epochs = {epochs}, batch_size = 500, learning_rate = 0.02}}
measurement = {{alphas = 11, statistics = {images}, evaluation = {images}}}
"""
STUDY_WIDTHS = [64, 128]


def study_records(sizes: Sizes, n_rounds: int) -> Iterator[dict[str, Any]]:
    """A whole small width study as a person runs it, from the command to the report, against a plain script on all of
    torch's threads that begins with torch loaded."""
    values = {"width": STUDY_WIDTHS, "seeds": N_SEEDS, "epochs": sizes.study_epochs, "images": sizes.path}
    ours: list[float] = []
    reference: list[float] = []
    aligned: list[list[float]] = [[], []]
    for _ in range(n_rounds):
        with tempfile.TemporaryDirectory() as folder:
            study = Path(folder, "study.toml")
            study.write_text(STUDY.format(**values))
            words = [str(Path(sys.executable).with_name("repairlab")), "run", str(study), "--store", f"{folder}/runs"]
            begun = time.perf_counter()
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
            ours.append(time.perf_counter() - begun)
            paths = pd.read_parquet(f"{folder}/runs/studies/benchmark/paths.parquet")
        middle = paths.query("alpha == 0.5 and split == 'train' and correction == 'repair' and matcher != 'none'")
        aligned[0].append(float(middle["accuracy"].mean()))
        words = [sys.executable, __file__, "--published", json.dumps(values)]
        found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
        reference.append(found["seconds"])
        aligned[1].append(found["accuracy"])
    name = f"a whole study: MLP 4 x {' and '.join(map(str, STUDY_WIDTHS))} on Fashion-MNIST, {N_SEEDS} seeds, "
    name += f"{sizes.study_epochs} epochs, 12 pairs, 3 paths of 11 alphas (wall)"
    agreement = "repaired midpoints {:.1%} and {:.1%}".format(*(statistics.fmean(one) for one in aligned))
    yield record("study", name, ours, reference, agreement, 0, 0)


def published_study(width: Sequence[int], seeds: int, epochs: int, images: int) -> dict[str, float]:
    """The same work by the published schedule: one seed after another, one pair after another."""
    dataset = load_dataset("fashion_mnist", load_settings().data_dir)
    begun = time.perf_counter()
    accuracies: list[float] = []
    train, test = dataset.train, dataset.test
    seen = train.images[:images]
    splits = [(split.images[:images], split.labels[:images]) for split in (train, test)]
    for one in width:
        cell = Cell(dataset.spec, "mlp", "none", one, 4, Recipe("none", 500, epochs, 0.02, 0.0))
        network, spec = build_network(cell), cell_permutation_spec(cell)
        n_steps = epochs * (len(train) // 500)
        states = [
            published.train_one(network, initial_state(network, stream("benchmark", seed)), train.images, train.labels,
                                500, n_steps, 0.02)
            for seed in range(seeds)
        ]  # fmt: skip
        layers = [f"hidden.{i}.linear" for i in range(4)]
        modules = {axis.name: str(axis.readings[0].module) for axis in spec.axes}

        def permute(state: State, partners: dict[str, np.ndarray], spec: PermutationSpec = spec) -> State:
            return spec.apply(state, Permutation({**spec.identity(), **partners}))

        with torch.no_grad():
            for a, b in pairs_of(seeds):
                partners, _ = published.align_layer_by_layer(network, modules, permute, states[a], states[b], seen)
                aligned = permute(states[b], partners)
                for end in (states[b], aligned):
                    published.walk_path(network, states[a], end, ALPHAS, splits)
                for alpha in ALPHAS:
                    state = published.repair_in_three_passes(network, layers, states[a], aligned, alpha, seen)
                    (judged, _) = published.walk_path(network, state, state, [0.0], splits)[0]
                    if alpha == 0.5:
                        accuracies.append(judged[1])
    return {"seconds": time.perf_counter() - begun, "accuracy": statistics.fmean(accuracies)}


def record(
    key: str,
    name: str,
    ours: list[float],
    reference: list[float],
    agreement: str,
    best: float,
    least: float,
    floor: list[float] | None = None,
) -> dict[str, Any]:
    ratios = [slow / fast for fast, slow in zip(ours, reference, strict=True)]
    return {
        "key": key, "name": name, "ours": ours, "reference": reference, "ratio": statistics.median(ratios),
        "low": min(ratios), "high": max(ratios), "agreement": agreement, "best": best, "least": least, "floor": floor,
    }  # fmt: skip


def alternate(work: Work, n_rounds: int) -> dict[str, Any]:
    """Ours, the reference and the floor in turn, after one round that does not count."""
    runs = [work.ours, work.reference, *([work.floor] if work.floor else [])]
    seconds: list[list[float]] = [[] for _ in runs]
    results: list[Any] = [None] * len(runs)
    for _ in range(n_rounds + 1):
        for index, run in enumerate(runs):
            begun = time.process_time()
            results[index] = run()
            seconds[index].append(time.process_time() - begun)
    ours, reference, *floor = (each[1:] for each in seconds)
    return record(
        work.key, work.name, ours, [work.times * each for each in reference], work.agrees(*results[:2]),
        work.best, work.least, *floor,
    )  # fmt: skip


GROUPS: dict[str, Callable[[Sizes], Iterator[Work]]] = {
    "align": alignment_works,
    "pairs": all_pairs_works,
    "assign": assignment_works,
    "path": path_works,
    "repair": repair_works,
    "data": data_works,
}


WALL: dict[str, Callable[[Sizes, int], Iterator[dict[str, Any]]]] = {
    "train": training_records,
    "study": study_records,
}
"""What is clocked by the wall, for it is about using all cores."""


def measure(groups: Sequence[str], sizes: Sizes, n_rounds: int) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    torch.set_num_threads(1)
    with torch.no_grad():
        for group in groups:
            if group in WALL:
                found = WALL[group](sizes, n_rounds)
            else:
                found = (alternate(work, n_rounds) for work in GROUPS[group](sizes))
            for one in found:
                records.append(one)
                print(row(one), flush=True)
    return records


def row(one: dict[str, Any]) -> str:
    target = f"{one['least']:g}" if one["least"] else ""
    best = f"{one['best']:g}" if one["best"] else ""
    met = ("yes" if one["ratio"] >= one["least"] else "no") if one["least"] else ""
    floor = ""
    if one["floor"]:
        part = statistics.median(a / b for a, b in zip(one["ours"], one["floor"], strict=True))
        floor = f"{statistics.median(one['floor']):.3f} ({part:.2f})"
    return (
        f"| {one['name']} | {statistics.median(one['ours']):.3f} | {statistics.median(one['reference']):.3f} "
        f"| {floor} | {one['ratio']:.1f} ({one['low']:.1f}-{one['high']:.1f}) | {best} | {target} | {met} "
        f"| {one['agreement']} |"
    )


HEADER = """| work | ours, s | published, s | floor, s (ours to it) | ratio (range) | best | aim | met | agreement |
|---|---|---|---|---|---|---|---|---|"""


USERS = {
    "MLP 11 x 128": (
        ("align-mlp-8", 28, FULL.mlp_all_pairs), ("path-mlp-128", 6, FULL.path), ("repair-mlp-128", 3, FULL.path),
    ),
    "ResNet20 x1": (
        ("align-resnet20-8", 28, FULL.resnet // 2), ("path-resnet20-float32", 1, FULL.resnet_path),
        ("repair-resnet20", 1, FULL.resnet_path),
    ),
}  # fmt: skip
"""What makes an aligned and repaired pair: rows of the table, with the pairs and images that each is of."""


def pairs_per_hour(records: Sequence[dict[str, Any]], n_images: int = 10_000) -> list[str]:
    """What a user sees of it: pairs of one core that are aligned among 8 seeds, measured and repaired at 11 alphas."""
    by_key = {one["key"]: one for one in records}
    lines: list[str] = []
    for network, parts in USERS.items():
        if not all(key in by_key for key, _, _ in parts):
            continue
        ours, reference = (
            3600 / sum(statistics.median(by_key[key][side]) / n_pairs * n_images / n for key, n_pairs, n in parts)
            for side in ("ours", "reference")
        )
        lines.append(
            f"{network}, {n_images:,} statistics images, {n_images:,} + {n_images // 5:,} evaluated: {ours:,.3g} pairs "
            f"an hour on one core, {reference:,.3g} by the published schedule."
        )
    return lines


def write(machine: dict[str, Any], records: list[dict[str, Any]], n_rounds: int) -> None:
    """Keeps the raw figures, and puts the table in its place on the page."""
    HISTORY.mkdir(exist_ok=True)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    raw = HISTORY / f"{today}-{machine['commit']}.json"
    raw.write_text(json.dumps({"machine": machine, "rounds": n_rounds, "records": records}, indent=1) + "\n")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    rates = ", ".join(f"{rate:g} at {size}" for size, rate in machine["sgemm_gflops"].items())
    lines = [
        BEGIN,
        f"{today}, commit {machine['commit']}: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB; Python {machine['python']}, {versions}. One thread multiplies {rates} "
        f"GFLOP/s (float32). Medians of {n_rounds} alternating rounds, after one that does not count. Raw figures: "
        f"[{raw.name}](benchmarks/{raw.name}).",
        "",
        HEADER,
        *(row(one) for one in records),
        "",
        *(f"- {line}" for line in pairs_per_hour(records)),
        END,
    ]
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + "\n".join(lines) + rest.split(END)[1])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", help=f"of {', '.join([*GROUPS, *WALL])}; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="see that it runs: the figures mean nothing")
    parser.add_argument("--write", action="store_true", help="keep the figures in docs")
    for hidden, kind in (("--train", str), ("--side", str), ("--seed", int), ("--steps", int)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--published", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.published:
        print(json.dumps(published_study(**arguments.published)))
        return
    if arguments.train:
        print(json.dumps(train_once(arguments.train, arguments.side, arguments.seed, arguments.steps)))
        return
    machine = describe()
    print(json.dumps(machine))
    print(HEADER, flush=True)
    groups = arguments.groups or [*GROUPS, *WALL]
    records = measure(groups, TINY if arguments.tiny else FULL, arguments.rounds)
    print(*pairs_per_hour(records), sep="\n")
    if arguments.write:
        write(machine, records, arguments.rounds)


if __name__ == "__main__":
    main()
