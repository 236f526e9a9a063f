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
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import published
import torch
from benches import ALPHAS, FULL, N_SEEDS, TINY, Bench, Paths, Sizes, pairs_of, record
from machine import describe
from torch import Tensor
from wall import study_records, training_records

from infra.settings import load_settings
from tasks.data.datasets import load_dataset
from tasks.science.alignment.assignment import SOLVERS
from tasks.science.alignment.matching import Match
from tasks.science.data.augmentation import TrainImages, draw_views
from tasks.science.data.examples import Dataset, Examples
from tasks.science.networks import build_network, initial_state
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import stream
from tasks.science.specs.measurement import PLAINLY, Viewing
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State

ROOT = Path(__file__).parent.parent
PAGE, HISTORY = ROOT / "docs/benchmarks.md", ROOT / "docs/benchmarks"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


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
                times=math.comb(n_seeds, 2), best=best, least=least,
                floor=lambda b=bench, n=n_seeds: b.compute(n, math.comb(n, 2)),
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
            views = draw_views(stream("augmentation"), n, size, recipe.augmentation)
            return sum(len(batch[0]) for batch in shown.batches(order, views, recipe.batch_size))

        def reference(pixels: Tensor = pixels, batch_size: int = batch_size) -> int:
            return sum(len(batch) for batch in published.load_one_by_one(pixels, 4, 12, batch_size, (0.5, 0.5)))

        yield Work(
            f"data-{shape[0]}", f"flip, shift and cut out {n_examples:,} images of {'x'.join(map(str, shape))}",
            ours, reference, lambda a, b: "as many images" if a == b else f"{a} and {b} images",
            best=best, least=least,
        )  # fmt: skip


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
    arguments = parser.parse_args(words)
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
