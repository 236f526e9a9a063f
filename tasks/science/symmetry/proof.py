"""The proof that a permutation preserves a network's function: its outputs in float64, before and after.

Every permutation that is used is proved here: that of a pair on its own weights and images, a spec written by hand
before anything is matched by it, and a traced spec on random weights (`tracing/check.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tasks.science.evaluation.functional import compute, mode
from tasks.science.evaluation.outputs import logits_in
from tasks.science.evaluation.precision import InFloat64, loose_buffers
from tasks.science.evaluation.random_state import kept_random_state
from tasks.science.specs.state import State
from tasks.science.symmetry.permutation import Permutation, PermutationSpec

FUNCTION_TOLERANCE = 1e-9
"""Largest `function_error` of a permutation that is used: float64 rounding stays orders of magnitude below."""

FUNCTION_EXAMPLES = 128

FUNCTION_BATCH_SIZE = 16


class FunctionProof:
    """The outputs of a network with the weights `state`, to be compared with those of its permuted copies.

    `batches` holds the positional inputs of every forward pass. Passes run in evaluation mode, in float64 unless
    `double` is false; `casts` lists the modules whose casts to fewer digits were left out.
    """

    def __init__(
        self,
        network: nn.Module,
        state: State,
        batches: Sequence[tuple[Tensor, ...]],
        *,
        tolerance: float = FUNCTION_TOLERANCE,
        double: bool = True,
    ) -> None:
        self.network, self.state, self.batches, self.tolerance = network, state, batches, tolerance
        self._in_float64 = InFloat64(network) if double else None
        self.before = self.outputs(state)

    @property
    def casts(self) -> tuple[str, ...]:
        """Paths of the modules whose casts were left out."""
        return () if self._in_float64 is None else self._in_float64.casts

    @torch.no_grad()
    def outputs(self, state: State) -> list[Tensor]:
        """Return every tensor that the network puts out with the weights `state`, over all batches."""
        parts: list[list[Tensor]] = []
        with mode(self.network, training=False):
            for batch in self.batches:
                with kept_random_state():
                    parts.append(list(_tensors(logits_in(self._compute(state, batch)))))
        return [one[0] if len(one) == 1 else torch.cat(one) for one in zip(*parts, strict=True)]

    def _compute(self, state: State, batch: tuple[Tensor, ...]) -> Any:
        if self._in_float64 is not None:
            return self._in_float64.compute(state, *batch)
        dtype = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
        return compute(self.network, loose_buffers(self.network, state, dtype) | state, *(x.clone() for x in batch))

    def error_of(self, state: State) -> float:
        """Return the relative error of the outputs with the weights `state`."""
        return relative_error(self.before, self.outputs(state))

    def error(self, spec: PermutationSpec, permutation: Permutation) -> float:
        """Return the relative error of the outputs of the permuted network."""
        return self.error_of(spec.apply(self.state, permutation))

    def axes_at_fault(self, spec: PermutationSpec, permutation: Permutation) -> list[str]:
        """Return the axes whose part of `permutation` changes the outputs, found by halving; none where it is exact.

        Axes that change them only together are returned together.
        """
        return self._search(spec, permutation, [axis.name for axis in spec.axes])

    def _search(self, spec: PermutationSpec, permutation: Permutation, names: list[str]) -> list[str]:
        chosen = Permutation({**spec.identity(), **{name: permutation[name] for name in names}})
        if not names or self.error(spec, chosen) <= self.tolerance:
            return []
        if len(names) == 1:
            return names
        half = len(names) // 2
        found = self._search(spec, permutation, names[:half]) + self._search(spec, permutation, names[half:])
        return found or names


def function_error(network: nn.Module, state: State, permuted: State, images: Tensor) -> float:
    """Return the largest difference between outputs of `state` and `permuted`, over the largest output of `state`.

    In float64 on the first 128 of `images`. Infinite where an output is not finite, or where all outputs of `state`
    are 0 and the others are not.
    """
    return FunctionProof(network, state, proof_batches(images)).error_of(permuted)


def proof_batches(images: Tensor) -> list[tuple[Tensor]]:
    """Return the first 128 of `images` in batches.

    None holds a single image where there are more: a network that ends in a squeeze puts out no row for one.
    """
    images = images[:FUNCTION_EXAMPLES]
    ends = list(range(FUNCTION_BATCH_SIZE, len(images) - 1, FUNCTION_BATCH_SIZE))
    return [(batch,) for batch in images.tensor_split(ends)]


def draw_moving(spec: PermutationSpec, generator: torch.Generator) -> Permutation:
    """Draw a permutation that moves units of every axis: a random order of two units moves none half the time."""
    drawn = spec.random(generator)
    return Permutation({n: np.roll(v, 1) if np.array_equal(v, np.arange(len(v))) else v for n, v in drawn.items()})


def relative_error(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the largest difference between two lists of tensors, per tensor over its largest absolute value."""
    return max((_relative_error(a, b) for a, b in zip(before, after, strict=True)), default=0.0)


def _relative_error(before: Tensor, after: Tensor) -> float:
    if not before.is_floating_point():
        return 0.0 if torch.equal(before, after) else float("inf")
    if not bool(torch.isfinite(before).all() and torch.isfinite(after).all()):
        return float("inf")
    difference = float((before - after).abs().max()) if before.numel() else 0.0
    if difference == 0:
        return 0.0
    largest = float(before.abs().max())
    return difference / largest if largest > 0 else float("inf")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in cast(dict[Any, Any], value).values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in cast(Iterable[Any], value):
            yield from _tensors(part)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _tensors(getattr(value, name))
