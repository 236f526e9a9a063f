"""Alignment of one pair of ResNet20 in one pass, against the published schedule written out plainly.

Prints CPU seconds, peak memory above the loaded inputs, and the objective of each side, and their ratios. Each side
runs in a process of its own on one thread. The reference takes the axes one after another: for each, a fresh pass
through both networks up to where its units are read, every position of a map a sample, float64 products, one
assignment, and B is permuted before the next axis (REPAIR, section 3; the authors' notebooks). Weights are drawn as
training begins and images are noise: the work does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.func import functional_call

from tasks.science.identity import stream
from tasks.science.matching import match
from tasks.science.networks import build_network, initial_state
from tasks.science.networks.symmetry import cell_permutation_spec
from tasks.science.permutation import Permutation, PermutationSpec
from tasks.science.recipe import Recipe
from tasks.science.specs import Cell, DataSpec, State

SIDES = ("one pass", "layer by layer")

BATCH_SIZE = 100
"""Of the reference: small enough for its maps to stay in the caches, which the authors' 500 on a GPU need not be."""


class _ReachedError(Exception):
    """The pass has come to the module that is read, and need not go on."""


def read_up_to(network: nn.Module, state: State, batch: Tensor, module: str) -> Tensor:
    """What `module` puts out, (n_samples, n_units) float64: every position of every image is a sample."""
    seen: list[Tensor] = []

    def stop(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen.append(output)
        raise _ReachedError

    handle = network.get_submodule(module).register_forward_hook(stop)
    try:
        functional_call(network, state, (batch,))
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return seen[0].movedim(1, -1).flatten(0, -2).double()


def correlations(network: nn.Module, a: State, b: State, images: Tensor, module: str) -> np.ndarray:
    """Correlations (n_units of A, n_units of B) over all images; 0 where a unit never moves."""
    n_samples, sums, products = 0, [], []
    for batch in images.split(BATCH_SIZE):
        seen_a, seen_b = (read_up_to(network, state, batch, module) for state in (a, b))
        n_samples += len(seen_a)
        sums.append(torch.stack([seen_a.sum(0), seen_b.sum(0), seen_a.square().sum(0), seen_b.square().sum(0)]))
        products.append(seen_a.T @ seen_b)
    mean_a, mean_b, square_a, square_b = torch.stack(sums).sum(0) / n_samples
    covariance = torch.stack(products).sum(0) / n_samples - torch.outer(mean_a, mean_b)
    spread = torch.outer((square_a - mean_a**2).clamp(min=0).sqrt(), (square_b - mean_b**2).clamp(min=0).sqrt())
    return torch.where(spread > 0, covariance / spread, 0.0).numpy()


def align_layer_by_layer(
    network: nn.Module, spec: PermutationSpec, a: State, b: State, images: Tensor
) -> tuple[Permutation, float]:
    """The permutation, and the sum of matched correlations."""
    identity = dict(spec.identity())
    vectors, objective = dict(identity), 0.0
    for axis in spec.axes:
        module = axis.readings[0].module
        if module is None:
            raise ValueError(f"the units of {axis.name} are not what a module puts out")
        found = correlations(network, a, b, images, module)
        rows, vectors[axis.name] = linear_sum_assignment(found, maximize=True)
        objective += float(found[rows, vectors[axis.name]].sum())
        b = spec.apply(b, Permutation({**identity, axis.name: vectors[axis.name]}))
    return Permutation(vectors), objective


def align_in_one_pass(
    network: nn.Module, spec: PermutationSpec, a: State, b: State, images: Tensor
) -> tuple[Permutation, float]:
    (found,) = match(network, spec, [a, b], [(0, 1)], "activation", images)
    return found.permutation, found.objective


def measure_side(side: str, width: int, n_examples: int) -> dict[str, Any]:
    """CPU seconds, peak bytes above what inputs and libraries take, and the objective of one side."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    data = DataSpec("noise", "", n_examples, 1, 10, (3, 32, 32))
    cell = Cell(data, "resnet20", "batch", width, 20, Recipe("none", 1, 1, 1.0, 0.0))
    network, spec = build_network(cell), cell_permutation_spec(cell)
    a, b = (initial_state(network, stream("benchmark", seed)) for seed in (0, 1))
    images = torch.randn(n_examples, *data.shape, generator=torch.Generator().manual_seed(0))
    run: Callable[..., tuple[Permutation, float]] = align_in_one_pass if side == SIDES[0] else align_layer_by_layer
    run(network, spec, a, b, images[:2])  # What is loaded or compiled once does not count.
    before, begun = _peak_bytes(), time.process_time()
    permutation, objective = run(network, spec, a, b, images)
    return {
        "seconds": time.process_time() - begun,
        "peak_bytes": _peak_bytes() - before,
        "objective": objective,
        "permutation": {name: vector.tolist() for name, vector in permutation.items()},
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.side:
        print(json.dumps(measure_side(arguments.side, arguments.width, arguments.examples)))
        return
    print(f"ResNet20 x{arguments.width}, BatchNorm, {arguments.examples} images of 3x32x32, one pair; "
          f"{platform.machine()}, torch {torch.__version__}, CPU seconds, 1 thread", flush=True)  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--side", side]
        command += ["--width", str(arguments.width), "--examples", str(arguments.examples)]
        found[side] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"{side:<16}{found[side]['seconds']:>9.1f} s{found[side]['peak_bytes'] / 2**20:>9.0f} MiB"
              f"   objective {found[side]['objective']:.6f}", flush=True)  # fmt: skip
    ours, reference = (found[side] for side in SIDES)
    pairs = [
        (ours["permutation"][name][unit], partner)
        for name, partners in reference["permutation"].items()
        for unit, partner in enumerate(partners)
    ]
    same = sum(one == other for one, other in pairs) / len(pairs)
    seconds, memory = (reference[figure] / max(1e-9, ours[figure]) for figure in ("seconds", "peak_bytes"))
    print(f"ratio {seconds:.1f} in time, {memory:.1f} in memory; {same:.2%} of partners the same")


if __name__ == "__main__":
    main()
