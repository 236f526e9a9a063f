"""What benchmarks share: cells with endpoints and images, how both sides measure paths, and the record of a row."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import published
import torch
from torch import Tensor, nn

from tasks.science.alignment.matching import Match, match
from tasks.science.data.examples import Dataset, Examples
from tasks.science.networks import build_network, initial_state
from tasks.science.networks.permutation_spec import cell_permutation_spec
from tasks.science.paths.curves import CorrectedPath, Side, evaluate_splits, measure_path, measure_side
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import stream
from tasks.science.specs.measurement import PLAINLY, Viewing
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State
from tasks.science.symmetry.permutation import Permutation, PermutationSpec

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
                between, "none", ALPHAS, self.bench.dataset, self.bench.images,
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
            path = CorrectedPath(between, "repair", self.bench.images)
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
