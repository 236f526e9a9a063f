"""How the cost of measuring grows: with seeds, width, depth and alphas, as exponents fitted to CPU seconds, one thread.

Every point runs in a process of its own, which also tells its peak memory; its exponent is the slope of log seconds
over log size, by least squares. With --write the table goes into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benches import Bench, pairs_of
from machine import describe

from tasks.science.paths.curves import measure_path, measure_side

PAGE = Path(__file__).parent.parent / "docs/benchmarks.md"
BEGIN, END = "<!-- growth -->", "<!-- end of growth -->"
SHAPE = (1, 28, 28)


def align_seeds(n_seeds: int) -> Callable[[], object]:
    bench = Bench("mlp", "none", 64, 4, SHAPE, 2_000, n_seeds)
    return lambda: bench.align(pairs_of(n_seeds))


def align_width(width: int) -> Callable[[], object]:
    bench = Bench("mlp", "none", width, 1, SHAPE, 2_000, 2)
    return lambda: bench.align([(0, 1)])


def align_depth(depth: int) -> Callable[[], object]:
    bench = Bench("mlp", "none", 64, depth, SHAPE, 5_000, 2)
    return lambda: bench.align([(0, 1)])


def repair_alphas(n_alphas: int, width: int = 64, depth: int = 4) -> Callable[[], object]:
    bench = Bench("mlp", "none", width, depth, SHAPE, 5_000, 2)
    sides = [measure_side(bench.network, state, bench.images) for state in bench.states]
    alphas = np.linspace(0, 1, n_alphas).tolist()
    return lambda: measure_path(
        (sides[0], sides[1]), "repair", alphas, bench.dataset, bench.images
    )  # fmt: skip


def repair_width(width: int) -> Callable[[], object]:
    return repair_alphas(11, width, 2)


def repair_depth(depth: int) -> Callable[[], object]:
    return repair_alphas(11, 64, depth)


WORKS: dict[str, tuple[str, Callable[[int], Callable[[], object]], tuple[int, ...]]] = {
    "align-seeds": ("align all pairs, by seeds (MLP 4 x 64, 2,000 images)", align_seeds, (4, 8, 16, 32, 64)),
    "align-width": ("align a pair, by width (MLP 1 x n, 2,000 images)", align_width, (512, 1024, 2048, 4096, 8192)),
    "align-depth": ("align a pair, by depth (MLP n x 64, 5,000 images)", align_depth, (5, 10, 20, 50)),
    "repair-alphas": ("repair and judge a path, by alphas (MLP 4 x 64)", repair_alphas, (5, 11, 25, 51)),
    "repair-width": ("repair and judge a path, by width (MLP 2 x n)", repair_width, (128, 256, 512, 1024, 2048)),
    "repair-depth": ("repair and judge a path, by depth (MLP n x 64)", repair_depth, (2, 5, 10, 20, 50)),
}


def measure_point(key: str, size: int) -> dict[str, float]:
    """CPU seconds, and peak bytes above what libraries, data and weights take."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    WORKS[key][1](min(WORKS[key][2]))()  # What is loaded or compiled once does not count.
    run = WORKS[key][1](size)
    before, begun = _peak_bytes(), time.process_time()
    run()
    return {"seconds": time.process_time() - begun, "bytes": _peak_bytes() - before, "peak": _peak_bytes()}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def rows(keys: Sequence[str], n_rounds: int) -> list[str]:
    lines = ["| work | sizes | CPU seconds | exponent | last doubling | peak of the process at the largest |"]
    lines.append("|---|---|---|---|---|---|")
    for key in keys:
        name, _, sizes = WORKS[key]
        found: list[list[dict[str, Any]]] = []
        for size in sizes:
            words = [sys.executable, __file__, "--point", key, "--size", str(size)]
            found.append(
                [
                    json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
                    for _ in range(n_rounds)
                ]
            )
        seconds = [float(np.median([one["seconds"] for one in each])) for each in found]
        last = exponent(sizes[-2:], seconds[-2:])
        peak = max(one["peak"] for one in found[-1]) / 2**20
        lines.append(
            f"| {name} | {', '.join(map(str, sizes))} | {', '.join(f'{one:.2f}' for one in seconds)} "
            f"| {exponent(sizes, seconds):.2f} | {last:.2f} | {peak:,.0f} MiB |"
        )
        print(lines[-1], flush=True)
    return lines


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("works", nargs="*", help=f"of {', '.join(WORKS)}; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--point", choices=WORKS, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.point:
        print(json.dumps(measure_point(arguments.point, arguments.size)))
        return
    machine = describe()
    lines = rows(arguments.works or list(WORKS), arguments.rounds)
    if arguments.write:
        page = PAGE.read_text()
        before, rest = page.split(BEGIN)
        n_each = "one process each" if arguments.rounds == 1 else f"medians of {arguments.rounds} processes"
        told = f"Commit {machine['commit']}, {machine['processor']}, {n_each}."
        PAGE.write_text(before + "\n".join([BEGIN, told, "", *lines, END]) + rest.split(END)[1])


if __name__ == "__main__":
    main()
