"""The merging of two networks that were trained anywhere: aligned, interpolated, corrected, in their own class.

Nothing about the network is taken on trust. The weights must fit it. The permutation spec is traced from it or given,
then proved on its own weights before anything is matched by it, and again on the permutation that was found. Networks
are measured and corrected in float32, proved in float64, and given back in the endpoints' own type.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tasks.science.alignment.matching import Match, match
from tasks.science.correction.correction import check_layout, extra_tensors
from tasks.science.correction.layout import Layout, LeftOut, find_layout
from tasks.science.evaluation.functional import mode
from tasks.science.evaluation.modes import check_modes
from tasks.science.networks.fitting import (
    MergeError,
    fit_state,
    in_float32,
    shared_tensors,
    some,
    word_of,
)
from tasks.science.networks.output_checks import CHECK_EXAMPLES, check_outputs
from tasks.science.networks.user_code import are_ids, one_line
from tasks.science.paths.curves import CorrectedPath, measure_side
from tasks.science.paths.networks import averaged_buffers, interpolate_network
from tasks.science.specs.corrections import find_correction
from tasks.science.specs.matchers import parse_matcher
from tasks.science.specs.state import State
from tasks.science.symmetry.permutation import Axis, Permutation, PermutationSpec, Slot
from tasks.science.symmetry.proof import FunctionProof, draw_moving, proof_batches
from tasks.science.symmetry.tracing import trace_permutation_spec

TRACE_EXAMPLES = 2


@dataclass(frozen=True, eq=False)
class Merged:
    """Two networks merged at `alpha` (0 is A, 1 is B).

    `direct`, `aligned` and `corrected` are weights in the endpoints' own type: on the straight line between A and B, on
    that between A and B permuted, and the latter corrected. The first two have the network's keys; `corrected` has the
    tensors `extra` beside them, and `network` computes with it: the one that was given, or a copy with these tensors.
    `function_error`: the largest difference that `permutation` makes to B's outputs, over the largest output, in
    float64; `casts` lists the modules whose casts to fewer digits that proof left out.
    `n_layers`: the number of corrected layers; `left_out`: those that the correction does not reach, and why.
    `averaged`: buffers that are no weights, differ, and were interpolated although nothing is known of them.
    """

    alpha: float
    direct: State
    aligned: State
    corrected: State
    network: nn.Module
    extra: tuple[str, ...]
    spec: PermutationSpec
    match: Match
    function_error: float
    n_layers: int = 0
    left_out: tuple[LeftOut, ...] = ()
    averaged: tuple[str, ...] = ()
    casts: tuple[str, ...] = ()

    @property
    def permutation(self) -> Permutation:
        """The permutation of B's units into alignment with A's."""
        return self.match.permutation


@torch.no_grad()
def merge_networks(
    network: nn.Module,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    images: Tensor,
    *,
    alpha: float = 0.5,
    matcher: str = "activation",
    correction: str = "repair",
    spec: PermutationSpec | None = None,
    allow_extra_layers: bool = False,
) -> Merged:
    """Merge the state dicts `a` and `b` of `network`, which lends its forward pass and is left as it was.

    `images` (n_examples, ...) float, as the network takes them, or token ids (n_examples, length), whole numbers: the
    samples on which everything is measured. `spec` says what may be permuted; it is traced where it is not given.
    Weights of half precision are computed with in float32; the result is rounded to the wider of the two endpoints'
    types, tensor by tensor.
    Raises MergeError for weights that do not fit the network or are not finite, a network that does not compute these
    images, a spec that changes its function (the axis is named), a correction that is not defined for it or needs
    layers that its class lacks (unless `allow_extra_layers`); TraceError where it cannot be traced, which every
    correction but `none` asks for; ValueError, of which both are kinds, for an unknown matcher or correction, or an
    alpha outside [0, 1].
    """
    parse_matcher(matcher)
    find_correction(correction)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha:g}")
    images = _checked_images(images)
    with _explained():
        check_modes(network)
    ends = _fit_endpoints(network, a, b)
    working = _on_cpu_in_float32(network)
    with mode(working, training=False):
        for owner, state in zip("AB", ends.states, strict=True):
            check_outputs(working, state, images, owner)
        if spec is None:
            spec = trace_permutation_spec(working, (images[:TRACE_EXAMPLES],))
        _check_spec(working, spec, ends.states[1], images)
        layout = _layout_for(correction, working, ends.states[0], images, allow_extra_layers)
        with _explained():
            (found,) = match(working, spec, ends.states, [(0, 1)], matcher, images)
        what = "the permutation that was found"
        error, casts = _prove(working, spec, ends.states[1], found.permutation, images, what)
        permuted = spec.apply(ends.given[1], found.permutation)
        direct, aligned = (_interpolate(working, ends, end, alpha) for end in (ends.given[1], permuted))
        averaged = averaged_buffers(working, ends.given[0], permuted)
        merged = Merged(
            alpha, direct, aligned, aligned, network, (), spec, found, error, averaged=averaged, casts=casts
        )
        return merged if layout is None else _correct(merged, working, ends, layout, correction, images)


@dataclass(frozen=True, eq=False)
class _Endpoints:
    """A and B in the types in which they were given, in float32, and the types in which results are given back."""

    given: tuple[State, State]
    states: tuple[State, State]
    types: dict[str, torch.dtype]


def _fit_endpoints(network: nn.Module, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> _Endpoints:
    given = fit_state(network, a, "A"), fit_state(network, b, "B")
    types = {key: torch.promote_types(given[0][key].dtype, given[1][key].dtype) for key in given[0]}
    return _Endpoints(given, (in_float32(given[0]), in_float32(given[1])), types)


def _interpolate(network: nn.Module, ends: _Endpoints, b: State, alpha: float) -> State:
    """Return the weights on the straight line from A to `b`, in the types in which they are given back."""
    with _explained():
        mixed = interpolate_network(network, _half_in_float32(ends.given[0]), _half_in_float32(b), alpha)
        return _stored(mixed, ends.types)


def _correct(
    merged: Merged, working: nn.Module, ends: _Endpoints, layout: Layout, correction: str, images: Tensor
) -> Merged:
    """Return `merged` with its aligned network corrected."""
    chosen = find_correction(correction)
    side_a, side_b = (measure_side(working, state, images, blocks=chosen.blocks) for state in ends.states)
    path = CorrectedPath(working, (side_a, side_b.permuted(merged.spec, merged.permutation)), correction, images)
    result = path.at(merged.alpha)
    types = ends.types
    if result.extra:
        # Tensors that the class lacks have no type of their own there.
        widest = functools.reduce(torch.promote_types, [t for t in types.values() if t.is_floating_point])
        types = types | dict.fromkeys(result.extra, widest)
    return dataclasses.replace(
        merged,
        corrected=_stored(_agreed(merged.network, result.state), types),
        network=merged.network if result.network is working else result.network,
        extra=result.extra,
        n_layers=len(layout.layers) if chosen.layers else 0,
        left_out=layout.left_out if chosen.layers else (),
    )


def _layout_for(
    correction: str, network: nn.Module, state: State, images: Tensor, allow_extra_layers: bool
) -> Layout | None:
    """Return where `network` is corrected; None without a correction.

    Raises MergeError where it cannot be corrected, or where that takes tensors that its class lacks.
    """
    if correction == "none":
        return None
    with _explained():
        layout = find_layout(network, state, images)
        check_layout(layout, correction)
    if not allow_extra_layers and (extra := extra_tensors(layout, correction)):
        raise MergeError(
            f"correction {correction} needs tensors that the network's own class lacks ({some(extra)}): take "
            "another correction, or allow extra layers and load the result into a class that has them"
        )
    return layout


@contextmanager
def _explained() -> Generator[None]:
    """Turn a ValueError into a MergeError: something in the request does not go with this network."""
    try:
        yield
    except (ValueError, ModuleNotFoundError) as error:
        raise MergeError(str(error)) from error


def _checked_images(images: Tensor) -> Tensor:
    if not isinstance(images, Tensor) or not (are_ids(images) or (images.is_floating_point() and images.ndim > 1)):
        got = f"{word_of(images.dtype)} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise MergeError(
            "images must be a tensor of floats (n_examples, ...), normalised as in training, or of token ids "
            f"(n_examples, length), got {got}"
        )
    if len(images) < 2:
        raise MergeError(f"statistics need at least 2 images, got {len(images)}")
    if not bool(torch.isfinite(images).all()):
        raise MergeError("the images have values that are not finite")
    return images.detach().cpu().long() if are_ids(images) else images.detach().cpu().float()


def _agreed(network: nn.Module, state: State) -> State:
    """Return `state` with one value for every shared tensor: a layer under two names is corrected under its first."""
    return state | {other: state[first] for first, *others in shared_tensors(network) for other in others}


def _on_cpu_in_float32(network: nn.Module) -> nn.Module:
    """Return `network`, or a copy where it lies elsewhere or is of another type."""
    tensors = [*network.parameters(), *network.buffers()]
    if all(t.device.type == "cpu" and (t.dtype == torch.float32 or not t.is_floating_point()) for t in tensors):
        return network
    return copy.deepcopy(network).cpu().float()


def _check_spec(network: nn.Module, spec: PermutationSpec, state: State, images: Tensor) -> None:
    """Raise MergeError, naming the axis at fault, where the spec is not this network's, as a user's own may be."""
    modules = dict(network.named_modules(remove_duplicate=False))
    for axis in spec.axes:
        for slot in axis.slots:
            if fault := _fault(axis, slot, state):
                raise MergeError(f"axis {axis.name!r} of the permutation spec does not fit the network: {fault}")
        for reading in axis.readings:
            if reading.module is not None and reading.module not in modules:
                raise MergeError(f"axis {axis.name!r} of the permutation spec is read at {reading.module}: no module")
        if axis.parent is not None and axis.parent not in spec.by_name:
            raise MergeError(f"axis {axis.name!r} of the permutation spec lies in {axis.parent!r}, which it lacks")
    moving = draw_moving(spec, torch.Generator().manual_seed(0))
    _prove(network, spec, state, moving, images[:CHECK_EXAMPLES], "the permutation spec")


def _fault(axis: Axis, slot: Slot, state: State) -> str | None:
    """Return the fault of a slot of the spec; None where it fits."""
    if slot.key not in state:
        return f"there is no tensor {slot.key}"
    shape = tuple(state[slot.key].shape)
    if not 0 <= slot.dim < len(shape):
        return f"{slot.key} of shape {shape} has no dimension {slot.dim}"
    if slot.positions.ndim != 2 or len(slot.positions) != axis.size:
        return f"{slot.key} has positions of shape {slot.positions.shape} for {axis.size} units"
    if slot.positions.min(initial=0) < 0 or slot.positions.max(initial=0) >= shape[slot.dim]:
        return f"{slot.key} of shape {shape} lacks some of its positions along dimension {slot.dim}"
    return None


def _prove(
    network: nn.Module, spec: PermutationSpec, state: State, permutation: Permutation, images: Tensor, what: str
) -> tuple[float, tuple[str, ...]]:
    """Return the function error of `permutation` on `state`, and the modules whose casts were left out.

    Raises MergeError, naming the axes at fault, where the permutation changes the function.
    """
    try:
        proof = FunctionProof(network, state, proof_batches(images))
        error = proof.error(spec, permutation)
        if error <= proof.tolerance:
            return error, proof.casts
        guilty = [repr(name) for name in proof.axes_at_fault(spec, permutation)]
    except (ValueError, KeyError, IndexError) as error:
        raise MergeError(f"{what} does not fit the network: {one_line(error)}") from error
    raise MergeError(
        f"{what} is not used, for it changes what the network computes: axis {some(guilty)} at fault (error "
        f"{error:.2g}, at most {proof.tolerance:g}); correct the spec, or give none and have it traced"
    )


def _half_in_float32(state: State) -> State:
    """Return `state` with half precision in float32, so that the mean of two weights is rounded once."""
    return {k: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for k, t in state.items()}


def _stored(state: State, types: Mapping[str, torch.dtype]) -> State:
    """Return `state` in the types in which it is given back; raise MergeError where a value is too large for one."""
    stored = {key: tensor.to(types[key]) for key, tensor in state.items()}
    for key, tensor in stored.items():
        if not bool(torch.isfinite(tensor).all()):
            raise MergeError(f"{key} of the merged network has values that {word_of(tensor.dtype)} cannot hold")
    return stored
