"""Training of one seed on a CPU against a plain loop, and augmentation in memory against images transformed one by one.

Prints microseconds of process CPU time per image, on one thread, each side in turn, and medians of ratios. The plain
loop is what one writes in PyTorch by hand: a module, SGD with momentum, float32 batches by index from memory, and
`torch.autocast` for bfloat16. The transforms are torchvision's, on PIL images, in a `DataLoader` of this process. With
`--processes N`, N processes train at once, and the figure is wall-clock time against one of them alone.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2 as transforms

from tasks.science.augmentation import TrainImages, draw_views
from tasks.science.examples import Dataset, Examples
from tasks.science.identity import stream
from tasks.science.networks import build_network, draw_state
from tasks.science.optimization import learning_rate
from tasks.science.recipe import Recipe
from tasks.science.specs import Cell, DataSpec
from tasks.science.training import train_states

CPU = torch.device("cpu")
TRANSLATE, CUTOUT, BATCH_SIZE = 2, 8, 500


def make_noise(n_examples: int, shape: tuple[int, int, int]) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n_examples, *shape, generator=generator)
    labels = torch.randint(0, 10, (n_examples,), generator=generator)
    spec = DataSpec("noise", "0" * 64, n_examples, 1, 10, shape)
    return Dataset(spec, Examples(images, labels), Examples(images[:1], labels[:1]), black=-0.42)


def make_cell(network: str, dataset: Dataset, precision: str) -> Cell:
    recipe = Recipe("benchmark", 128 if network == "resnet20" else 500, 2, 0.02, 0.2, precision=precision)
    if network == "resnet20":
        return Cell(dataset.spec, "resnet20", "batch", 1, 20, recipe)
    return Cell(dataset.spec, "mlp", "none", int(network.removeprefix("mlp")), 11, recipe)


def train_ours(cell: Cell, dataset: Dataset) -> None:
    """One epoch, by what the pipeline calls."""
    (_,) = train_states(cell, 0, [1], dataset)


def train_plainly(cell: Cell, dataset: Dataset) -> None:
    """One epoch of the loop that one writes by hand."""
    recipe = cell.recipe
    network = build_network(cell).to_empty(device="cpu")
    network.load_state_dict(draw_state(cell, stream("initialization", 0)))
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum)
    order = torch.randperm(len(dataset.train))
    n_steps = len(order) // recipe.batch_size
    for step in range(n_steps):
        rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        images = dataset.train.images[rows]
        if cell.architecture != "mlp":
            images = images.contiguous(memory_format=torch.channels_last)
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, step, n_steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            logits = network(images)
        loss = F.cross_entropy(logits.float(), dataset.train.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class OneByOne(TorchDataset[tuple[torch.Tensor, int]]):
    """Bytes, turned into a PIL image, flipped, shifted, normalised and cut out, image by image."""

    def __init__(self, n_examples: int, shape: tuple[int, int, int]) -> None:
        channels, height, width = shape
        pixels = np.random.default_rng(0).integers(0, 256, (n_examples, height, width, channels), dtype=np.uint8)
        self._pixels = pixels if channels > 1 else pixels[..., 0]
        self._transform = transforms.Compose([
            transforms.ToPILImage(),
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop((height, width), padding=TRANSLATE),
            transforms.PILToTensor(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize([0.5] * channels, [0.25] * channels),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self._transform(self._pixels[index])
        down, across = (int(torch.randint(0, side - CUTOUT + 1, ())) for side in image.shape[1:])
        image[:, down : down + CUTOUT, across : across + CUTOUT] = 0
        return image, 0


def augment_one_by_one(n_examples: int, shape: tuple[int, int, int]) -> Callable[[], None]:
    loader = DataLoader(OneByOne(n_examples, shape), BATCH_SIZE, shuffle=True)

    def run() -> None:
        for _ in loader:
            pass

    return run


def augment_in_memory(n_examples: int, shape: tuple[int, int, int]) -> Callable[[], None]:
    """An epoch's order and draws included."""
    recipe = Recipe("benchmark", BATCH_SIZE, 1, 1.0, 0.0, flip=True, translate=TRANSLATE, cutout=CUTOUT)
    images = TrainImages(make_noise(n_examples, shape), recipe, CPU, torch.float32)

    def run() -> None:
        order = torch.from_numpy(stream("order", 0).permutation(n_examples))[None]
        views = draw_views(stream("views", 0), n_examples, shape[1:], recipe)
        for _ in images.batches(order, views, BATCH_SIZE):
            pass

    return run


def alternate(sides: Mapping[str, Callable[[], Any]], n_rounds: int, n_images: int) -> dict[str, list[float]]:
    """Microseconds of CPU time per image of each side, run in turn, after one round that does not count."""
    found: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(n_rounds + 1):
        for side, run in sides.items():
            begun = time.process_time()
            run()
            found[side].append((time.process_time() - begun) / n_images * 1e6)
    return {side: times[1:] for side, times in found.items()}


def compare_training(network: str, n_examples: int, n_rounds: int) -> None:
    dataset = make_noise(n_examples, (3, 32, 32) if network == "resnet20" else (1, 28, 28))
    sides: dict[str, Callable[[], Any]] = {}
    for precision in ("float32", "bfloat16"):
        cell = make_cell(network, dataset, precision)
        sides[f"plain {precision}"] = lambda cell=cell: train_plainly(cell, dataset)
        sides[f"ours {precision}"] = lambda cell=cell: train_ours(cell, dataset)
    found = alternate(sides, n_rounds, n_examples // cell.recipe.batch_size * cell.recipe.batch_size)
    plain = found["plain float32"]
    for side, times in found.items():
        ratio = statistics.median(slow / fast for slow, fast in zip(plain, times, strict=True))
        print(f"train {network:<10}{side:<18}{statistics.median(times):>10.2f} us{ratio:>8.2f}", flush=True)


def compare_augmentation(shape: tuple[int, int, int], n_rounds: int) -> None:
    n_examples = 4000
    sides = {"PIL": augment_one_by_one(n_examples, shape), "in memory": augment_in_memory(n_examples, shape)}
    found = alternate(sides, n_rounds, n_examples)
    ratios = [slow / fast for slow, fast in zip(found["PIL"], found["in memory"], strict=True)]
    for side, times in found.items():
        ratio = statistics.median(ratios) if side == "in memory" else 1
        print(f"augment {'x'.join(map(str, shape)):<8}{side:<18}{statistics.median(times):>10.2f} us{ratio:>8.1f}",
              flush=True)  # fmt: skip


def compare_processes(network: str, n_examples: int, n_processes: int) -> None:
    """Images per second of wall-clock time of so many processes at once, against one, both in float32 and bfloat16."""
    rates: dict[tuple[int, str], float] = {}
    for n_at_once in (1, n_processes):
        for precision in ("float32", "bfloat16"):
            command = [sys.executable, __file__, "--rate", precision, "--networks", network]
            command += ["--examples", str(n_examples)]
            running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(n_at_once)]
            rates[n_at_once, precision] = sum(float(process.communicate()[0]) for process in running)
    for (n_at_once, precision), rate in rates.items():
        times = rate / rates[1, "float32"]
        print(f"train {network:<10}{f'{n_at_once} x {precision}':<18}{rate:>10.0f} /s{times:>8.2f}", flush=True)


def print_rate(network: str, n_examples: int, precision: str) -> None:
    """Images per second of wall-clock time, over three epochs after one that does not count."""
    dataset = make_noise(n_examples, (3, 32, 32) if network == "resnet20" else (1, 28, 28))
    cell = make_cell(network, dataset, precision)
    train_ours(cell, dataset)
    begun = time.perf_counter()
    for _ in range(3):
        train_ours(cell, dataset)
    print(3 * n_examples / (time.perf_counter() - begun))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=["mlp64", "mlp128", "mlp512", "resnet20"])
    parser.add_argument("--examples", type=int, help="by default as many as take some seconds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rate", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    if arguments.rate:
        print_rate(arguments.networks[0], arguments.examples, arguments.rate)
        return
    what = (
        "wall-clock time" if arguments.processes > 1 else f"medians of {arguments.rounds} alternating rounds, CPU time"
    )
    print(f"{platform.machine()}, torch {torch.__version__}, {what}, 1 thread, and how many times as fast as the first")
    sizes = {"mlp512": 4000, "resnet20": 640}
    for network in arguments.networks:
        n_examples = arguments.examples or sizes.get(network, 20_000)
        if arguments.processes > 1:
            compare_processes(network, n_examples, arguments.processes)
        else:
            compare_training(network, n_examples, arguments.rounds)
    if arguments.processes == 1:
        for shape in ((1, 28, 28), (3, 32, 32)):
            compare_augmentation(shape, arguments.rounds)


if __name__ == "__main__":
    main()
