"""Alignment and REPAIR of a pair of MLPs against the published schedule written out plainly, alternating in one run.

Prints the median seconds of each and their ratio. One thread, process CPU time, so that a busy machine disturbs it
little; data in memory on both sides. The reference aligns layer by layer, with a fresh pass through both networks for
each, and repairs with three passes per alpha through layers that track their statistics, as the authors' notebooks do
(REPAIR, appendix B). Its per-batch statistics are not ours, so the two agree closely, not exactly.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from tasks.science.curves import CorrectedPath, measure_side
from tasks.science.identity import stream
from tasks.science.interpolation import interpolate
from tasks.science.matching import match
from tasks.science.networks import build_network, initial_state
from tasks.science.networks.mlp import MLP
from tasks.science.networks.symmetry import cell_permutation_spec
from tasks.science.permutation import Permutation, PermutationSpec
from tasks.science.recipe import Recipe
from tasks.science.specs import Cell, DataSpec, State

BATCH_SIZE = 500


def hidden_layer(network: MLP, state: State, batch: Tensor, position: int) -> Tensor:
    """Activations (n_examples, width) of one hidden layer, from a pass up to it."""
    values = batch.flatten(1)
    for name in network.hidden_linears[: position + 1]:
        values = nn.functional.linear(values, state[f"{name}.weight"], state[f"{name}.bias"]).relu()
    return values


def align_layer_by_layer(network: MLP, spec: PermutationSpec, a: State, b: State, images: Tensor) -> Permutation:
    """For each layer a pass through both networks, float64 outer products and an assignment; then B is permuted."""
    identity = dict(spec.identity())
    vectors = dict(identity)
    for position, axis in enumerate(spec.axes):
        sums_a, sums_b, squares_a, squares_b = (torch.zeros(axis.size, dtype=torch.float64) for _ in range(4))
        products = torch.zeros(axis.size, axis.size, dtype=torch.float64)
        for batch in images.split(BATCH_SIZE):
            seen_a, seen_b = (hidden_layer(network, state, batch, position).double() for state in (a, b))
            sums_a += seen_a.sum(0)
            sums_b += seen_b.sum(0)
            squares_a += seen_a.square().sum(0)
            squares_b += seen_b.square().sum(0)
            products += seen_a.T @ seen_b
        mean_a, mean_b = sums_a / len(images), sums_b / len(images)
        sd_a, sd_b = ((s / len(images) - m**2).sqrt() for s, m in ((squares_a, mean_a), (squares_b, mean_b)))
        correlation = (products / len(images) - torch.outer(mean_a, mean_b)) / (torch.outer(sd_a, sd_b) + 1e-4)
        vectors[axis.name] = linear_sum_assignment(correlation.nan_to_num().numpy(), maximize=True)[1]
        b = spec.apply(b, Permutation({**identity, axis.name: vectors[axis.name]}))
    return Permutation(vectors)


def tracked_pass(network: MLP, state: State, images: Tensor, goal: Sequence[tuple[Tensor, Tensor]] | None):
    """Runs `state` with a BatchNorm after every layer, which only tracks, or, with a goal, also sets mean and sd."""
    norms = [nn.BatchNorm1d(network.width, momentum=None, affine=False).train() for _ in range(network.depth)]
    for batch in images.split(BATCH_SIZE):
        values = batch.flatten(1)
        for position, name in enumerate(network.hidden_linears):
            values = nn.functional.linear(values, state[f"{name}.weight"], state[f"{name}.bias"])
            standard = norms[position](values)
            if goal is not None:
                mean, sd = goal[position]
                values = standard * sd + mean
            values = values.relu()
    return [(norm.running_mean, norm.running_var.sqrt()) for norm in norms]


def repair_in_three_passes(network: MLP, a: State, b: State, alpha: float, images: Tensor) -> State:
    """Statistics of A, of B, and of the interpolated network while it is corrected; folded into the weights."""
    ends = [tracked_pass(network, state, images, None) for state in (a, b)]
    pairs = zip(*ends, strict=True)
    goal = [((1 - alpha) * ma + alpha * mb, (1 - alpha) * sa + alpha * sb) for (ma, sa), (mb, sb) in pairs]
    state = interpolate(a, b, alpha)
    found = tracked_pass(network, state, images, goal)
    for name, (mean, sd), (goal_mean, goal_sd) in zip(network.hidden_linears, found, goal, strict=True):
        scale = goal_sd / sd
        state[f"{name}.weight"] = scale[:, None] * state[f"{name}.weight"]
        state[f"{name}.bias"] = scale * (state[f"{name}.bias"] - mean) + goal_mean
    return state


def repair_path(
    network: MLP,
    spec: PermutationSpec,
    a: State,
    b: State,
    permutation: Permutation,
    alphas: list[float],
    images: Tensor,
) -> None:
    """Ours: each endpoint measured once, B's moments and first layer reordered, each alpha corrected in one walk."""
    side_a, side_b = (measure_side(network, state, images) for state in (a, b))
    path = CorrectedPath(network, (side_a, side_b.permuted(spec, permutation)), "repair", images)
    for alpha in alphas:
        path.at(alpha)


def alternate(ours: Callable[[], object], reference: Callable[[], object], n_rounds: int) -> tuple[list[float], ...]:
    """CPU seconds of each, run in turn, after one round that does not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(n_rounds + 1):
        for into, run in zip(seconds, (ours, reference), strict=True):
            begun = time.process_time()
            run()
            into.append(time.process_time() - begun)
    return tuple(times[1:] for times in seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print(f"{platform.machine()}, torch {torch.__version__}, {arguments.examples} examples of 1x28x28, medians of "
          f"{arguments.rounds} alternating rounds, CPU seconds, 1 thread")  # fmt: skip
    data = DataSpec("noise", "", arguments.examples, 1, 10, (1, 28, 28))
    images = torch.randn(arguments.examples, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    alphas = [i / 10 for i in range(11)]
    print(f"{'work':<34}{'ours':>9}{'reference':>11}{'ratio':>8}  range of ratios")
    for width in (64, 128):
        cell = Cell(data, "mlp", "none", width, 11, Recipe("none", 1, 1, 1.0, 0.0))
        network, spec = build_network(cell), cell_permutation_spec(cell)
        assert isinstance(network, MLP)
        a, b = (initial_state(network, stream("benchmark", seed)) for seed in (0, 1))
        (found,) = match(network, spec, [a, b], [(0, 1)], "activation", images)
        aligned = spec.apply(b, found.permutation)
        works: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            f"align a pair, MLP 11 x {width}": (
                lambda n=network, s=spec, p=(a, b): match(n, s, p, [(0, 1)], "activation", images),
                lambda n=network, s=spec, p=(a, b): align_layer_by_layer(n, s, *p, images),
            ),
            f"REPAIR at 11 alphas, MLP 11 x {width}": (
                lambda n=network, s=spec, p=(a, b), m=found: repair_path(n, s, *p, m.permutation, alphas, images),
                lambda n=network, p=(a, aligned): [repair_in_three_passes(n, *p, alpha, images) for alpha in alphas],
            ),
        }
        for name, (ours, reference) in works.items():
            seconds, plain = alternate(ours, reference, arguments.rounds)
            ratios = [slow / fast for fast, slow in zip(seconds, plain, strict=True)]
            print(f"{name:<34}{statistics.median(seconds):>9.3f}{statistics.median(plain):>11.3f}"
                  f"{statistics.median(ratios):>8.1f}  {min(ratios):.1f}-{max(ratios):.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
