"""What is clocked by the wall, for it is about using all cores: training, and a whole study. `pipeline.py` runs it.

Each training, and the published side of the study, is a process of its own, which this file is run as.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import published
import torch
from benches import ALPHAS, N_SEEDS, Bench, Sizes, pairs_of, record

from infra.settings import load_settings
from tasks.data.datasets import load_dataset
from tasks.science.data.examples import Dataset, Examples
from tasks.science.networks import build_network, initial_state
from tasks.science.networks.permutation_spec import cell_permutation_spec
from tasks.science.specs.cell import Cell
from tasks.science.specs.identity import stream
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State
from tasks.science.symmetry.permutation import Permutation, PermutationSpec
from tasks.science.training.training import train_group

ROOT = Path(__file__).parent.parent

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


def main() -> None:
    """One training, or the published side of a study, as its arguments say; prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", choices=TRAININGS)
    parser.add_argument("--side")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--published", type=json.loads)
    arguments = parser.parse_args()
    if arguments.published:
        print(json.dumps(published_study(**arguments.published)))
    else:
        print(json.dumps(train_once(arguments.train, arguments.side, arguments.seed, arguments.steps)))


if __name__ == "__main__":
    main()
