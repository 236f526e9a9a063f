"""The second safety net: does a permuted network compute the same numbers?

All parameters and float buffers are drawn at random first: at initialisation, biases of zero and scales of one hide a
forgotten axis. The traced rules are meant to make this check redundant; tests count how often it catches something.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tasks.science.evaluation.functional import compute, mode
from tasks.science.evaluation.outputs import logits_in
from tasks.science.evaluation.precision import CastsKept
from tasks.science.symmetry.permutation import Axis, Permutation, PermutationSpec, Reading
from tasks.science.symmetry.tracing.graph import kept_random_state

TOLERANCE = 1e-9
FLOAT32_TOLERANCE = 1e-3

# Variances of the random weights, in units of 1 / fan-in. The largest is taken at which the network does not amplify
# rounding beyond MAX_AMPLIFICATION: very deep networks are chaotic at 2, and barely see their first layers at .25.
# At 0 the network's own state is shaken by a tenth: some parameters (a logarithm's) cannot take any value.
GAINS = (2.0, 1.0, 0.5, 0.25, 0.0)
MAX_AMPLIFICATION = 3e3


def randomised_state(
    network: nn.Module, generator: torch.Generator, dtype: torch.dtype, gain: float = 2.0
) -> dict[str, Tensor]:
    """The state dict with every float entry drawn at random, on a scale that keeps deep networks alive.

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


def function_error(
    network: nn.Module,
    spec: PermutationSpec,
    state: dict[str, Tensor],
    permutation: Permutation,
    inputs: tuple[Tensor, ...],
) -> float:
    """Largest difference between the outputs of the network and of its permuted self, over its largest output.

    Source of the definition: the column `function_error` of the table `merges`.
    """  # fmt: skip
    before = outputs(network, state, inputs)
    return relative_error(before, outputs(network, spec.apply(state, permutation), inputs))


def relative_error(before: list[Tensor], after: list[Tensor]) -> float:
    """Largest difference of two lists of tensors over the largest absolute value of the first, per tensor."""
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        if not a.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(a, b) else float("inf"))
            continue
        difference = float((a - b).abs().max()) if a.numel() else 0.0
        scale = float(a.abs().max()) if a.numel() else 0.0
        # NaN compares false with everything: count it as an error.
        ratio = difference / scale if scale > 0 else (0.0 if difference == 0 else float("inf"))
        worst = ratio if not ratio <= worst else worst
    return worst


def outputs(
    network: nn.Module, state: dict[str, Tensor], inputs: tuple[Tensor, ...], kept: CastsKept | None = None
) -> list[Tensor]:
    """Every tensor that the network returns in eval mode with this state; the network is left as it was.

    A float64 state is computed with in float64 throughout; `kept` records the casts that this leaves out.
    """
    dtype = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
    kept_casts = (kept or CastsKept(network)) if dtype == torch.float64 else nullcontext()
    with mode(network, training=False), kept_random_state(), torch.no_grad(), kept_casts:
        loose = {k: b.to(dtype) for k, b in network.named_buffers() if k not in state and b.is_floating_point()}
        # Copies, since a forward pass may write to what it is given.
        result = compute(network, {**loose, **state}, *(x.clone() for x in inputs))
    return list(_tensors(logits_in(result)))


def module_outputs(
    network: nn.Module,
    state: dict[str, Tensor],
    inputs: tuple[Tensor, ...],
    wanted: set[tuple[str, int]],
    kept: CastsKept | None = None,
) -> tuple[list[Tensor], dict[tuple[str, int], Tensor]]:
    """`outputs`, and those of the named calls of modules, copied before anything can write to them."""
    seen: dict[tuple[str, int], Tensor] = {}
    calls: dict[str, int] = {}
    handles: list[RemovableHandle] = []

    def observer(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            call = calls.get(path, 0)
            calls[path] = call + 1
            if (path, call) in wanted and isinstance(output, Tensor):
                seen[path, call] = output.detach().clone()

        return hook

    for path in {p for p, _ in wanted}:
        handles.append(network.get_submodule(path).register_forward_hook(observer(path)))
    try:
        return outputs(network, state, inputs, kept), seen
    finally:
        for handle in handles:
            handle.remove()


def read(tensor: Tensor, reading: Reading) -> Tensor:
    """The activations of an axis in the tensor that a reading names: (n_samples, size, n_each)."""
    index = torch.as_tensor(reading.positions.ravel(), device=tensor.device)
    rows = tensor.movedim(reading.dim, -1).reshape(-1, tensor.shape[reading.dim]).index_select(1, index)
    return rows.reshape(len(rows), *reading.positions.shape)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for v in cast(dict[Any, Any], value).values():
            yield from _tensors(v)
    elif isinstance(value, tuple | list):
        for v in cast(Iterable[Any], value):
            yield from _tensors(v)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _tensors(getattr(value, name))


class Check:
    """Compares a network with permuted copies of itself, on one randomised state."""

    def __init__(self, network: nn.Module, inputs: tuple[Tensor, ...], axes: tuple[Axis, ...]) -> None:
        self.network = network
        self.generator = torch.Generator().manual_seed(0)
        self.wanted = {(r.module, r.call) for a in axes for r in a.readings if r.module is not None}
        self.tolerance = TOLERANCE
        self.kept = CastsKept(network)
        try:
            self._prepare(torch.float64, inputs)
        except (RuntimeError, TypeError) as error:
            if "can't allocate memory" in str(error):
                raise MemoryError("checking a permutation spec takes twice its network's memory in float64") from error
            # A network that insists on float32 (constants made in forward) is checked in float32.
            self.tolerance = FLOAT32_TOLERANCE
            self._prepare(torch.float32, inputs)

    def _prepare(self, dtype: torch.dtype, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
        step = 1e-8 if dtype == torch.float64 else 1e-4
        for gain in GAINS:
            self.state = randomised_state(self.network, self.generator, dtype, gain)
            self.before, self.seen = module_outputs(self.network, self.state, self.inputs, self.wanted, self.kept)
            nudged = tuple(x * (1 + step) if x.is_floating_point() else x for x in self.inputs)
            amplified = relative_error(self.before, outputs(self.network, self.state, nudged))
            # Not a number where the output is not finite.
            if amplified <= MAX_AMPLIFICATION * step:
                break

    def error(self, spec: PermutationSpec, permutation: Permutation) -> float:
        """Relative error of the permuted network's output."""
        return relative_error(self.before, outputs(self.network, spec.apply(self.state, permutation), self.inputs))

    def bad_axes(self, spec: PermutationSpec) -> list[str]:
        """Axes whose permutation changes the output: all at once first, then by halves."""
        drawn = spec.random(self.generator)
        # A random order of two units is no order at all half the time.
        still = {n for n, v in drawn.items() if np.array_equal(v, np.arange(len(v)))}
        full = Permutation({n: np.roll(v, 1) if n in still else v for n, v in drawn.items()})
        return self._search(spec, full, [a.name for a in spec.axes])

    def _search(self, spec: PermutationSpec, full: Permutation, names: list[str]) -> list[str]:
        identity = spec.identity()
        chosen = Permutation({**identity, **{n: full[n] for n in names}})
        if not names or self.error(spec, chosen) <= self.tolerance:
            return []
        if len(names) == 1:
            return names
        half = len(names) // 2
        found = self._search(spec, full, names[:half]) + self._search(spec, full, names[half:])
        return found or names

    def unread(self, spec: PermutationSpec) -> set[tuple[str, str, int]]:
        """Readings (axis, module, call) whose module does not hand out the tensor that the graph promised."""
        full = spec.random(self.generator)
        permuted = spec.apply(self.state, full)
        _, after = module_outputs(self.network, permuted, self.inputs, self.wanted)
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
        return bool(((moved.sum(0) - other.sum(0)).abs().max() / (scale * max(len(own), 1))) <= self.tolerance)
