"""What a GPU makes of training many seeds, of aligning and measuring them, and of a whole grid, without Prefect.

Prints and writes as JSON:
- `matmul`: the rate of a square product, in TFLOP/s, by precision;
- `training`: seed-images per second of every way to train some seeds, against one seed after another as PyTorch does
  it by itself, and the share of the matmul rate that this comes to (a step counted as three forward passes); with
  `--processes N` also of N processes on the one device that share the seeds;
- `augmentation`: images per second of flips, shifts and cutouts on the device;
- `grid`: seconds of a width ablation of an MLP: training, alignment of every pair, and direct, aligned and repaired
  paths. Where `--budget` seconds do not take all of it, what is left is estimated from what was done, and said so.

`--device cpu --tiny` is for tests: it runs all of it in seconds, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from infra.lifeline import begin_worker
from tasks.science.alignment.matching import Match, match
from tasks.science.data.augmentation import TrainImages, draw_views
from tasks.science.data.examples import Dataset, Examples
from tasks.science.networks import build_network, build_training_network
from tasks.science.networks.permutation_spec import cell_permutation_spec
from tasks.science.paths.curves import Splits, evaluate_splits, measure_path, measure_side
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import stream
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State
from tasks.science.training.stacking import seed_bytes
from tasks.science.training.training import Stack, default_group_size, train_group

N_TIMED = 3
"""Epochs of every way of training, after one that does not count; of them the median."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured."""

    depth: int
    widths: tuple[int, ...]
    compared_widths: tuple[int, ...]
    n_seeds: int
    grid_seeds: int
    grid_epochs: int
    n_train: int
    n_compared: int
    n_compared_maps: int
    side: int
    map_side: int
    n_images: int
    alphas: int
    matmul: int


PAPER = Size(11, (16, 32, 64, 96, 128, 192, 256, 512), (64, 128, 512), 16, 8, 100, 60_000, 20_000, 5_000, 28, 32,
             10_000, 11, 8192)  # fmt: skip
TINY = Size(2, (8, 12), (8,), 2, 3, 2, 400, 200, 64, 8, 8, 100, 3, 128)


def make_dataset(n_examples: int, n_channels: int, side: int) -> Dataset:
    """Ten classes, each a pattern under noise: what is trained learns something and stays finite."""
    generator = torch.Generator().manual_seed(0)
    shape = (n_channels, side, side)
    patterns = torch.randn(10, *shape, generator=generator)

    def draw(n: int) -> Examples:
        labels = torch.randint(0, 10, (n,), generator=generator)
        return Examples(0.3 * patterns[labels] + torch.randn(n, *shape, generator=generator), labels)

    n_test = max(100, n_examples // 6)
    return Dataset(DataSpec("patterns", "0" * 64, n_examples, n_test, 10, shape), draw(n_examples), draw(n_test), -1.0)


def make_cell(architecture: str, width: int, depth: int, dataset: Dataset, epochs: int, precision: str) -> Cell:
    batch_size = min(128 if architecture == "resnet20" else 500, len(dataset.train) // 2)
    recipe = Recipe("benchmark", batch_size, epochs, 0.02, 0.2, precision=precision)
    normalization = "batch" if architecture == "resnet20" else "none"
    return Cell(dataset.spec, architecture, normalization, width, depth, recipe)


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_of(run: Callable[[], object], device: torch.device, n_rounds: int = N_TIMED) -> float:
    """Median wall-clock seconds, after a round that does not count."""
    seconds: list[float] = []
    for _ in range(n_rounds + 1):
        settle(device)
        begun = time.perf_counter()
        run()
        settle(device)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


def measure_matmul(n: int, device: torch.device) -> dict[str, float]:
    """FLOP/s of products of n x n matrices."""
    rates: dict[str, float] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        left, right = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        rates[name] = 2 * n**3 / time_of(lambda left=left, right=right: left @ right, device, 10)
    return rates


def count_step(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """FLOPs of training on one image: three times those of its forward pass."""
    with FlopCounterMode(display=False) as counter:
        network(torch.empty((1, *shape), device="meta"))
    return 3 * counter.get_total_flops()


def ways_of(cell: Cell, device: torch.device) -> Iterator[tuple[str, dict[str, Any]]]:
    """By name what `Stack` is told; `one after another` comes first."""
    schemes = ["apart", *(["batched"] if cell.architecture == "mlp" else [])]
    if device.type == "cuda" or cell.recipe.precision == "float32":
        schemes.append("vectorised")
    for recorded in (False, True) if device.type == "cuda" else (False,):
        ending = ", recorded" if recorded else ""
        yield f"one after another{ending}", {"scheme": "apart", "recorded": recorded}
        for scheme in schemes:
            yield f"{scheme}{ending}", {"scheme": scheme, "recorded": recorded}


def compare_training(cell: Cell, dataset: Dataset, n_seeds: int, device: torch.device, rates: dict[str, float]):
    """A row for every way to train `n_seeds` of `cell`; one that memory does not take, or that torch refuses, has the
    reason in place of figures."""
    network = build_training_network(cell)
    flops = count_step(network, cell.data.shape)
    n_images = len(dataset.train) // cell.recipe.batch_size * cell.recipe.batch_size
    one_after_another: float | None = None
    for name, options in ways_of(cell, device):
        row: dict[str, Any] = {"network": cell.label, "precision": cell.recipe.precision, "n_seeds": n_seeds}
        row |= {"way": name, "estimated_seed_mb": seed_bytes(network, cell.recipe, cell.data.shape, n_images) / 2**20}
        alone = name.startswith("one after another")
        try:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seeds = range(1 if alone else n_seeds)
            stack = Stack(network, cell, seeds, dataset, device, torch.float32, **options)
            seconds = time_of(stack.train_epoch, device) / len(seeds)
            row["images_per_second"] = n_images / seconds
            row["share_of_matmul"] = n_images / seconds * flops / rates[cell.recipe.precision]
            one_after_another = one_after_another or seconds
            row["times_one_after_another"] = one_after_another / seconds
            if device.type == "cuda":
                row["peak_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
            del stack
        except RuntimeError as error:  # Out of memory is one as well.
            row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        yield row


def train_beside_others(
    rank: int, cell: Cell, dataset: Dataset, seeds: Sequence[int], device: str, at_once: Any
) -> None:
    """Trains `seeds` in a process of its own, together with others: seconds per epoch go to `at_once`."""
    begin_worker()
    begin, seconds = at_once
    torch.set_num_threads(1)
    on = torch.device(device)
    stack = Stack(build_training_network(cell), cell, seeds, dataset, on, torch.float32)
    stack.train_epoch()
    settle(on)
    begin.wait()
    begun = time.perf_counter()
    for _ in range(N_TIMED):
        stack.train_epoch()
    settle(on)
    seconds[rank] = (time.perf_counter() - begun) / N_TIMED


def compare_processes(cell: Cell, dataset: Dataset, n_seeds: int, n_processes: int, device: torch.device):
    """A row for `n_seeds` shared among so many processes on one device, each training its own by default."""
    context = multiprocessing.get_context("spawn")
    begin, seconds = context.Barrier(n_processes), context.Array("d", n_processes)
    shares = [list(range(rank, n_seeds, n_processes)) for rank in range(n_processes)]
    arguments = [(rank, cell, dataset, share, str(device), (begin, seconds)) for rank, share in enumerate(shares)]
    running = [context.Process(target=train_beside_others, args=each) for each in arguments]
    for process in running:
        process.start()
    for process in running:
        process.join()
    row: dict[str, Any] = {"network": cell.label, "precision": cell.recipe.precision, "n_seeds": n_seeds}
    row["way"] = f"{n_processes} processes"
    if any(process.exitcode for process in running):
        return {**row, "failed": "a process ended with an error, which it has printed"}
    n_images = len(dataset.train) // cell.recipe.batch_size * cell.recipe.batch_size
    return {**row, "images_per_second": n_images * n_seeds / max(seconds)}


def measure_augmentation(dataset: Dataset, device: torch.device) -> float:
    """Images per second."""
    recipe = Recipe("benchmark", 500, 1, 1.0, 0.0, flip=True, translate=2, cutout=2)
    n, size = len(dataset.train), dataset.train.size
    images = TrainImages(dataset, recipe, device, torch.float32)
    order = torch.from_numpy(stream("order", 0).permutation(n))[None].to(device)
    views = draw_views(stream("views", 0), n, size, recipe.augmentation)
    views = dataclasses.replace(
        views, offsets=views.offsets.to(device), mirrored=views.mirrored.to(device), corners=views.corners.to(device)
    )

    def run() -> None:
        for _ in images.batches(order, views, min(500, n // 2)):
            pass

    return n / time_of(run, device)


def to_device(dataset: Dataset, device: torch.device) -> Dataset:
    train, test = (
        Examples(split.images.to(device), split.labels.to(device)) for split in (dataset.train, dataset.test)
    )
    return dataclasses.replace(dataset, train=train, test=test)


class Analysis:
    """Alignment and paths of the pairs of one cell, on the device where that can be, else on the CPU: `where` says for
    each of the two, with the reason."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.where: dict[str, str] = {}

    def _try(self, what: str, run: Callable[[torch.device], Any]) -> Any:
        if self.device.type != "cpu" and self.where.get(what, "") in ("", str(self.device)):
            try:
                found = run(self.device)
                settle(self.device)
                self.where[what] = str(self.device)
                return found
            except (RuntimeError, TypeError) as error:
                self.where[what] = f"cpu, for {type(error).__name__}: {str(error).splitlines()[0]}"
        self.where.setdefault(what, "cpu")
        return run(torch.device("cpu"))

    def align(self, cell: Cell, states: Sequence[State], pairs: Sequence[tuple[int, int]], images: Tensor):
        """A match for each of `pairs`."""
        network, spec = build_network(cell), cell_permutation_spec(cell)

        def run(device: torch.device) -> list[Match]:
            moved = [{name: tensor.to(device) for name, tensor in state.items()} for state in states]
            return match(network, spec, moved, pairs, "activation", images.to(device))

        return self._try("alignment", run)

    def follow(self, cell: Cell, states: Sequence[State], matches: dict[tuple[int, int], Match], dataset: Dataset,
               statistics_images: Tensor, alphas: Sequence[float], is_over: Callable[[], bool]):  # fmt: skip
        """Direct, aligned and repaired paths of the pairs of `matches`, until `is_over`; how many pairs were done."""
        network, spec = build_network(cell), cell_permutation_spec(cell)

        def run(device: torch.device) -> int:
            shown, images = to_device(dataset, device), statistics_images.to(device)
            moved = [{name: tensor.to(device) for name, tensor in state.items()} for state in states]
            sides = [measure_side(network, state, images) for state in moved]
            ends: list[Splits] = [evaluate_splits(network, state, shown) for state in moved]
            n_done = 0
            for (a, b), found in matches.items():
                if is_over():
                    break
                aligned = sides[b].permuted(spec, found.permutation)
                for side, correction in ((sides[b], "none"), (aligned, "none"), (aligned, "repair")):
                    both = (ends[a], ends[b]) if correction == "none" else None
                    measure_path(network, (sides[a], side), correction, alphas, shown, images, both)
                n_done += 1
            return n_done

        return self._try("paths", run)


def measure_grid(size: Size, device: torch.device, precision: str, budget: float) -> dict[str, Any]:
    """A width ablation: seconds by part and width, and of all, estimated where the budget did not take it."""
    begun = time.perf_counter()
    dataset = make_dataset(size.n_train, 1, size.side)
    few = dataset.reduced(size.n_images)
    pairs = list(itertools.combinations(range(size.grid_seeds), 2))
    alphas = Measurement("", alphas=size.alphas).grid.tolist()
    analysis = Analysis(device)
    rows: list[dict[str, Any]] = []

    def is_over() -> bool:
        return time.perf_counter() - begun > budget

    for width in size.widths:
        if is_over():
            break
        cell = make_cell("mlp", width, size.depth, dataset, size.grid_epochs, precision)
        started = time.perf_counter()
        group = default_group_size(cell, dataset, size.grid_seeds, device)
        trained = list(train_group(cell, range(size.grid_seeds), dataset, device))
        row: dict[str, Any] = {"width": width, "group_size": group, "training": time.perf_counter() - started}
        rows.append(row)
        states = [one.state for one in trained]
        started = time.perf_counter()
        matches = analysis.align(cell, states, pairs, few.train.images)
        row["alignment"] = time.perf_counter() - started
        started = time.perf_counter()
        of_pairs = dict(zip(pairs, matches, strict=True))
        n_done = analysis.follow(cell, states, of_pairs, few, few.train.images, alphas, is_over)
        row |= {"paths": time.perf_counter() - started, "pairs": n_done}
    seconds = time.perf_counter() - begun
    return {
        "precision": precision, "seeds": size.grid_seeds, "epochs": size.grid_epochs, "alphas": size.alphas,
        "images": size.n_images, "pairs": len(size.widths) * len(pairs), "analysed_on": analysis.where, "rows": rows,
        "seconds": seconds, "estimated_seconds": estimate_grid(rows, len(size.widths), len(pairs), seconds),
        "finished": len(rows) == len(size.widths) and all(row["pairs"] == len(pairs) for row in rows),
    }  # fmt: skip


def estimate_grid(rows: Sequence[dict[str, Any]], n_widths: int, n_pairs: int, seconds: float) -> float | None:
    """Seconds of the whole grid: what was measured, paths that were not at the price of those that were, and widths
    that were not reached at that of the last that was. None where not one pair was done."""
    if not rows or not all(row["pairs"] for row in rows):
        return None
    paths = [row["paths"] / row["pairs"] * n_pairs for row in rows]
    whole = [row["training"] + row["alignment"] + price for row, price in zip(rows, paths, strict=True)]
    other = seconds - sum(row["training"] + row["alignment"] + row["paths"] for row in rows)
    return other + sum(whole) + (n_widths - len(rows)) * whole[-1]


def print_training(row: dict[str, Any]) -> None:
    figures = row.get("failed") or f"{row['images_per_second']:>12.0f} /s"
    if "share_of_matmul" in row:
        figures += f"{row['times_one_after_another']:>8.2f}x{row['share_of_matmul']:>8.1%} of matmul"
    print(f"{row['network']:<28}{row['precision']:<10}{row['way']:<30}{figures}", flush=True)


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="all of it, as small as can be")
    parser.add_argument("--budget", type=float, default=300, help="seconds that the grid may take")
    parser.add_argument("--processes", type=int, default=1, help="how many share the seeds of a network, besides")
    parser.add_argument("--skip-grid", action="store_true")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    arguments = parser.parse_args(words)
    device, size = torch.device(arguments.device), TINY if arguments.tiny else PAPER
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here: --device cpu --tiny runs all of it, with figures that mean nothing")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    torch.set_num_threads(1)
    print(f"{name}, torch {torch.__version__}", flush=True)
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "tiny": arguments.tiny}
    rates = found["matmul"] = measure_matmul(size.matmul, device)
    print("matmul", *(f"{precision} {rate / 1e12:.1f} TFLOP/s" for precision, rate in rates.items()), flush=True)
    found["training"] = []
    mlp_data = make_dataset(size.n_compared, 1, size.side)
    maps_data = make_dataset(size.n_compared_maps, 3, size.map_side)
    for precision in ("float32", "bfloat16"):
        cells = [(make_cell("mlp", width, size.depth, mlp_data, 9, precision), mlp_data)
                 for width in size.compared_widths]  # fmt: skip
        cells.append((make_cell("resnet20", 1, 20, maps_data, 9, precision), maps_data))
        for cell, dataset in cells:
            for row in compare_training(cell, dataset, size.n_seeds, device, rates):
                found["training"].append(row)
                print_training(row)
            if arguments.processes > 1:
                row = compare_processes(cell, dataset, size.n_seeds, arguments.processes, device)
                found["training"].append(row)
                print_training(row)
    found["augmentation"] = measure_augmentation(mlp_data, device)
    print(f"augmentation {found['augmentation']:.0f} images/s", flush=True)
    if not arguments.skip_grid:
        grid = found["grid"] = measure_grid(size, device, "bfloat16", arguments.budget)
        for row in grid["rows"]:
            print("grid", *(f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}"
                            for key, value in row.items()), flush=True)  # fmt: skip
        estimated = grid["estimated_seconds"]
        rest = "" if grid["finished"] else f", all of it about {'unknown' if estimated is None else round(estimated)}"
        print(f"grid {grid['seconds']:.0f} s of {arguments.budget:.0f}{rest}; {grid['analysed_on']}", flush=True)
    arguments.json.write_text(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    main()
