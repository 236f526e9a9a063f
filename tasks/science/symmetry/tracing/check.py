"""The second safety net: the proof of a traced spec on random weights.

All parameters and float buffers are drawn at random first: at initialisation, biases of zero and scales of one hide a
forgotten axis. The traced rules are meant to make this check redundant; tests count how often it catches something.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tasks.science.symmetry.permutation import Axis, Permutation, PermutationSpec, Reading
from tasks.science.symmetry.proof import FUNCTION_TOLERANCE, FunctionProof, draw_moving, relative_error

FLOAT32_TOLERANCE = 1e-3

# Variances of the random weights, in units of 1 / fan-in. The largest is taken at which the network does not amplify
# rounding beyond MAX_AMPLIFICATION: very deep networks are chaotic at 2, and barely see their first layers at .25.
# At 0 the network's own state is shaken by a tenth: some parameters (a logarithm's) cannot take any value.
GAINS = (2.0, 1.0, 0.5, 0.25, 0.0)
MAX_AMPLIFICATION = 3e3


def randomised_state(
    network: nn.Module, generator: torch.Generator, dtype: torch.dtype, gain: float = 2.0
) -> dict[str, Tensor]:
    """Return the state dict with every float entry drawn at random, on a scale that keeps deep networks alive.

    Matrices: normal, variance `gain` / fan-in. Vectors and constant tensors: around their mean, never negative where
    they were never negative (variances). Keys that are one tensor stay one tensor.
    """
    done: dict[int, Tensor] = {}
    out: dict[str, Tensor] = {}
    entries = network.state_dict(keep_vars=True).items()
    for key, tensor in ((k, v) for k, v in entries if isinstance(v, Tensor)):
        if id(tensor) not in done:
            done[id(tensor)] = _randomised(tensor.detach().cpu(), generator, dtype, gain).to(tensor.device)
        out[key] = done[id(tensor)]
    return out


def _randomised(tensor: Tensor, generator: torch.Generator, dtype: torch.dtype, gain: float) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.clone()
    values = tensor.to(dtype)
    noise = torch.randn(tensor.shape, generator=generator, dtype=dtype)
    if tensor.numel() == 0:
        return values
    if gain == 0:
        return values * (1 + 0.1 * noise)
    if bool((values == values.reshape(-1)[0]).all()):
        if bool((values == 0).all()):
            return 0.3 * noise
        # Layer scales start near zero: at that size they would hide the branch that they scale.
        return 0.5 + torch.rand(tensor.shape, generator=generator, dtype=dtype)
    if tensor.dim() >= 2 and bool((values < 0).any()):
        fan_in = max(tensor.numel() // tensor.shape[0], 1)
        return noise * (gain / fan_in) ** 0.5
    drawn = values.mean() + noise * values.std(correction=0).clamp(min=0.1)
    return drawn if bool((values < 0).any()) else drawn.abs() + 0.1


@contextmanager
def _observed(network: nn.Module, wanted: set[tuple[str, int]]) -> Generator[dict[tuple[str, int], Tensor]]:
    """Yield the outputs of the named calls of modules, copied before anything can write to them."""
    seen: dict[tuple[str, int], Tensor] = {}
    calls: Counter[str] = Counter()

    def observer(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            call = calls[path]
            calls[path] += 1
            if (path, call) in wanted and isinstance(output, Tensor):
                seen[path, call] = output.detach().clone()

        return hook

    with ExitStack() as hooks:
        for path in {p for p, _ in wanted}:
            hooks.callback(network.get_submodule(path).register_forward_hook(observer(path)).remove)
        yield seen


def read(tensor: Tensor, reading: Reading) -> Tensor:
    """Return the activations of an axis in the tensor that a reading names: (n_samples, size, n_each)."""
    index = torch.as_tensor(reading.positions.ravel(), device=tensor.device)
    rows = tensor.movedim(reading.dim, -1).reshape(-1, tensor.shape[reading.dim]).index_select(1, index)
    return rows.reshape(len(rows), *reading.positions.shape)


class Check:
    """The `proof` of a spec on one randomised state, and what modules hand out there."""

    proof: FunctionProof

    def __init__(self, network: nn.Module, inputs: tuple[Tensor, ...], axes: tuple[Axis, ...]) -> None:
        self.network, self.inputs = network, inputs
        self.generator = torch.Generator().manual_seed(0)
        self.wanted = {(r.module, r.call) for a in axes for r in a.readings if r.module is not None}
        try:
            self._prepare(torch.float64, FUNCTION_TOLERANCE)
        except (RuntimeError, TypeError) as error:
            if "can't allocate memory" in str(error):
                raise MemoryError("checking a permutation spec takes twice its network's memory in float64") from error
            # A network that insists on float32 (constants made in forward) is checked in float32.
            self._prepare(torch.float32, FLOAT32_TOLERANCE)

    def _prepare(self, dtype: torch.dtype, tolerance: float) -> None:
        double = dtype == torch.float64
        inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in self.inputs)
        step = 1e-8 if double else 1e-4
        nudged = tuple(x * (1 + step) if x.is_floating_point() else x for x in inputs)
        for gain in GAINS:
            state = randomised_state(self.network, self.generator, dtype, gain)
            with _observed(self.network, self.wanted) as self.seen:
                self.proof = FunctionProof(self.network, state, [inputs], tolerance=tolerance, double=double)
            amplified = FunctionProof(self.network, state, [nudged], double=double)
            # Infinite where the output is not finite.
            if relative_error(self.proof.before, amplified.before) <= MAX_AMPLIFICATION * step:
                break

    def bad_axes(self, spec: PermutationSpec) -> list[str]:
        """Return the axes whose permutation changes the output."""
        return self.proof.axes_at_fault(spec, draw_moving(spec, self.generator))

    def unread(self, spec: PermutationSpec) -> set[tuple[str, str, int]]:
        """Return the readings (axis, module, call) whose module does not yield the tensor that the graph promised."""
        full = spec.random(self.generator)
        with _observed(self.network, self.wanted) as after:
            self.proof.error(spec, full)
        wrong: set[tuple[str, str, int]] = set()
        for axis in spec.axes:
            for r in axis.readings:
                if r.module is None:
                    continue
                was, now = self.seen.get((r.module, r.call)), after.get((r.module, r.call))
                if was is None or now is None or not self._agrees(spec, full, axis, r, was, now):
                    wrong.add((axis.name, r.module, r.call))
        return wrong

    def _agrees(
        self, spec: PermutationSpec, full: Permutation, axis: Axis, r: Reading, was: Tensor, now: Tensor
    ) -> bool:
        if was.dim() <= r.dim or was.numel() != r.n_samples * was.shape[r.dim]:
            return False
        if was.shape[r.dim] <= int(r.positions.max()):
            return False
        # Only this axis' own order is undone: nested or enclosing axes keep the rows apart, so compare sums of rows.
        own, other = read(was, r), read(now, r)
        related = axis.parent is not None or any(a.parent == axis.name for a in spec.axes)
        if related or r.positions.shape[1] > 1:
            return True
        scale = own.abs().max().clamp(min=1e-30)
        moved = own[:, torch.as_tensor(full[axis.name])]
        # Another axis may share the other dimensions (tokens, say): compare what does not depend on their order.
        return bool(((moved.sum(0) - other.sum(0)).abs().max() / (scale * max(len(own), 1))) <= self.proof.tolerance)
