"""Merges two networks that were trained anywhere: aligns, interpolates, corrects, gives weights of their own class.

Nothing about the network is taken on trust. The weights must fit it; what may be permuted is traced from it (or given)
and then proved on its own weights before anything is matched by it, and again on the permutation that was found. All
is measured and corrected in float32, proved in float64, and given back in the endpoints' own type.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tasks.science.alignment.matching import FUNCTION_TOLERANCE, Match, function_error, match
from tasks.science.correction.correction import check_sites, extra_tensors
from tasks.science.correction.sites import CorrectionSites, LeftOut, find_sites
from tasks.science.evaluation.functional import compute, mode
from tasks.science.evaluation.modes import NetworkError, check_modes
from tasks.science.evaluation.outputs import logits_in, way_to_logits
from tasks.science.evaluation.precision import CastsKept
from tasks.science.networks.fitting import (
    MergeError,
    fit_state,
    in_float32,
    shared_tensors,
    some,
    word_of,
)
from tasks.science.networks.user_code import are_ids, one_line
from tasks.science.paths.curves import CorrectedPath, measure_side
from tasks.science.paths.networks import averaged_buffers, interpolate_network
from tasks.science.specs.checks import is_own
from tasks.science.specs.corrections import find_correction
from tasks.science.specs.data import DataSpec
from tasks.science.specs.matchers import parse_matcher
from tasks.science.specs.state import State
from tasks.science.symmetry.permutation import Axis, Permutation, PermutationSpec, Slot
from tasks.science.symmetry.tracing import trace_permutation_spec

CHECK_EXAMPLES = 16
"""Images on which a spec is proved before it is used; the permutation that was found is proved on 128."""

TRACE_EXAMPLES = 2


@dataclass(frozen=True, eq=False)
class Merged:
    """Two networks merged at `alpha` (0 is A, 1 is B).

    `direct`, `aligned` and `corrected` are weights in the endpoints' own type: on the straight line between A and B, on
    that between A and B permuted, and the latter corrected. The first two have the network's keys; `corrected` has the
    tensors `extra` beside them, and `network` computes with it: the one that was given, or a copy with these tensors.
    `function_error`: what `permutation` does to B's outputs (float64, largest difference over largest output).
    `casts`: modules whose casts to fewer digits that proof left out.
    `n_layers`: how many layers were corrected. `left_out`: those that the correction does not reach, and why.
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
    n_layers: int
    left_out: tuple[LeftOut, ...] = ()
    averaged: tuple[str, ...] = ()
    casts: tuple[str, ...] = ()

    @property
    def permutation(self) -> Permutation:
        """Of B's units, into alignment with A's."""
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
    """Merges the state dicts `a` and `b` of `network`, which lends its forward pass and is left as it was.

    `images` (n_examples, ...) float, as the network takes them, or token ids (n_examples, length), whole numbers: the
    samples that all is measured on. `spec` says what
    may be permuted; where it is not given it is traced. Weights of half precision are computed with in float32; what
    comes out is rounded to the wider of the two endpoints' types, tensor by tensor.
    Raises MergeError for weights that do not fit the network or are not finite, a network that does not compute these
    images, a spec that changes what it computes (the axis is named), a correction that is not defined for it or needs
    layers that its class lacks (unless `allow_extra_layers`); TraceError where it cannot be traced, which every
    correction but `none` asks for; ValueError, of
    which both are kinds, for a matcher, correction or alpha that there is not.
    """
    parse_matcher(matcher)
    chosen = find_correction(correction)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha:g}")
    images = _checked_images(images)
    with _explained():
        check_modes(network)
    given_a, given_b = fit_state(network, a, "A"), fit_state(network, b, "B")
    types = {key: torch.promote_types(given_a[key].dtype, given_b[key].dtype) for key in given_a}
    state_a, state_b = in_float32(given_a), in_float32(given_b)
    working = _on_cpu_in_float32(network)
    with mode(working, training=False):
        for owner, state in (("A", state_a), ("B", state_b)):
            check_outputs(working, state, images, owner)
        if spec is None:
            spec = trace_permutation_spec(working, (images[:TRACE_EXAMPLES],))
        _check_spec(working, spec, state_b, images)
        sites = None if correction == "none" else _sites_for(correction, working, state_a, images, allow_extra_layers)
        with _explained():
            (found,) = match(working, spec, [state_a, state_b], [(0, 1)], matcher, images)
        error, casts = _prove(working, spec, state_b, found.permutation, images, "the permutation that was found")
        permuted = spec.apply(given_b, found.permutation)
        with _explained():
            direct, aligned = (
                _stored(interpolate_network(working, _wide(given_a), _wide(end), alpha), types)
                for end in (given_b, permuted)
            )
        averaged = averaged_buffers(working, given_a, permuted)
        if sites is None:
            return Merged(alpha, direct, aligned, aligned, network, (), spec, found, error, 0, (), averaged, casts)
        side_a, side_b = (measure_side(working, state, images, blocks=chosen.blocks) for state in (state_a, state_b))
        path = CorrectedPath((side_a, side_b.permuted(spec, found.permutation)), correction, images)
        result = path.at(alpha)
    if result.extra:
        # What the class lacks has no type of its own there.
        widest = functools.reduce(torch.promote_types, [t for t in types.values() if t.is_floating_point])
        types |= dict.fromkeys(result.extra, widest)
    return Merged(
        alpha=alpha,
        direct=direct,
        aligned=aligned,
        corrected=_stored(_agreed(network, result.state), types),
        network=network if result.network is working else result.network,
        extra=result.extra,
        spec=spec,
        match=found,
        function_error=error,
        n_layers=len(sites.layers) if chosen.layers else 0,
        left_out=sites.left_out if chosen.layers else (),
        averaged=averaged,
        casts=casts,
    )


def _sites_for(
    correction: str, network: nn.Module, state: State, images: Tensor, allow_extra_layers: bool
) -> CorrectionSites:
    """Return where `network` is corrected.

    Raises MergeError where it cannot be, or where that takes tensors that its class lacks.
    """
    with _explained():
        sites = find_sites(network, state, images)
        check_sites(sites, correction)
    if not allow_extra_layers and (extra := extra_tensors(sites, correction)):
        raise MergeError(
            f"correction {correction} needs tensors that the network's own class lacks ({some(extra)}): take "
            "another correction, or allow extra layers and load the result into a class that has them"
        )
    return sites


@contextmanager
def _explained() -> Generator[None]:
    """A ValueError in here says what of the request does not go with this network."""
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
    """`state` with one value for what is one tensor: a layer under two names was corrected under its first."""
    return state | {other: state[first] for first, *others in shared_tensors(network) for other in others}


def _on_cpu_in_float32(network: nn.Module) -> nn.Module:
    """`network`, or a copy where it lies elsewhere or is of another type."""
    tensors = [*network.parameters(), *network.buffers()]
    if all(t.device.type == "cpu" and (t.dtype == torch.float32 or not t.is_floating_point()) for t in tensors):
        return network
    return copy.deepcopy(network).cpu().float()


def _in_double(network: nn.Module, state: State) -> State:
    """`state` and the buffers that no state dict holds, in float64."""
    loose = {key: buffer for key, buffer in network.named_buffers() if key not in state}
    return {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in (loose | state).items()}


def check_outputs(network: nn.Module, state: State, images: Tensor, owner: str) -> Tensor:
    """What the network makes of the first 16 of `images` with `state`, in float64; `owner` is whose weights they are.

    Raises MergeError where that is not one finite tensor with a row per image, in float32 as in float64.
    """
    shown = images[:CHECK_EXAMPLES]
    _outputs(network, state, shown, torch.float32, owner, "")
    if shown.is_floating_point():
        shown = shown.double()
    with CastsKept(network):
        where = " in float64, in which permutations are proved"
        return _outputs(network, _in_double(network, state), shown, torch.float64, owner, where)


def check_classes(network: nn.Module, state: State, images: Tensor, data: DataSpec, owner: str) -> None:
    """MergeError where `check_outputs` raises it, or where there is not one output for every class of `data`: more may
    be there where the classes are counted from the labels of a person's own data."""
    shape, counted = tuple(check_outputs(network, state, images, owner).shape), is_own(data.name)
    if not (len(shape) == 2 and (shape[1] == data.n_classes or (shape[1] > data.n_classes and counted))):
        wanted = f"at least {data.n_classes}" if counted else f"{data.n_classes}"
        raise MergeError(
            f"the network puts out shape {shape} for {shape[0]} images, and {data.name} has {wanted} classes: "
            f"expected ({shape[0]}, {data.n_classes})"
        )


def _outputs(network: nn.Module, weights: State, batch: Tensor, dtype: torch.dtype, owner: str, where: str) -> Tensor:
    try:
        outputs = logits_in(compute(network, weights, batch))
    except NetworkError as error:
        raise MergeError(str(error)) from error
    except Exception as error:  # Whatever a user's forward pass raises.
        raise MergeError(
            f"the network cannot compute images of shape {tuple(batch.shape[1:])}{where}: {one_line(error)}"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.shape[:1] != batch.shape[:1]:
        got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        way_out = "" if isinstance(outputs, Tensor) else f": {way_to_logits(outputs)}"
        raise MergeError(
            f"the network must put out one tensor with a row per image, got {got} of {len(batch)} images{way_out}"
        )
    if outputs.dtype != dtype:
        raise MergeError(
            f"the network puts out {word_of(outputs.dtype)} for weights of {word_of(dtype)}{where}: let its forward "
            "pass keep to the type of its input"
        )
    if not bool(torch.isfinite(outputs).all()):
        raise MergeError(f"{owner} puts out values that are not finite on these images: are they normalised?")
    return outputs


def _check_spec(network: nn.Module, spec: PermutationSpec, state: State, images: Tensor) -> None:
    """MergeError, naming the axis at fault, where the spec is not this network's: one written by hand may be wrong."""
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
    drawn = spec.random(torch.Generator().manual_seed(0))
    # A random order of two units is none half the time.
    moving = {name: np.roll(v, 1) if np.array_equal(v, np.arange(len(v))) else v for name, v in drawn.items()}
    _prove(network, spec, state, Permutation(moving), images[:CHECK_EXAMPLES], "the permutation spec")


def _fault(axis: Axis, slot: Slot, state: State) -> str | None:
    """What is wrong with a place where units are said to lie."""
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
    """The function error of `permutation` on `state`, and the modules whose casts were left out; MergeError where it is
    one, naming the axes that make it."""
    double, kept = _in_double(network, state), CastsKept(network)

    def error_of(some: Permutation) -> float:
        try:
            return function_error(network, double, spec.apply(double, some), images, kept)
        except (ValueError, KeyError, IndexError) as error:
            raise MergeError(f"{what} does not fit the network: {one_line(error)}") from error

    error = error_of(permutation)
    if error <= FUNCTION_TOLERANCE:
        return error, kept.places
    identity = spec.identity()
    alone = {name: Permutation({**identity, name: vector}) for name, vector in permutation.items()}
    guilty = [repr(name) for name, one in alone.items() if not error_of(one) <= FUNCTION_TOLERANCE]
    axes = f"axis {some(guilty)}" if guilty else "no axis alone, but all together,"
    raise MergeError(
        f"{what} is not used, for it changes what the network computes: {axes} at fault (error {error:.2g}, at most "
        f"{FUNCTION_TOLERANCE:g}); correct the spec, or give none and have it traced"
    )


def _wide(state: State) -> State:
    """`state` with half precision in float32, so that the mean of two weights is rounded once."""
    return {k: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for k, t in state.items()}


def _stored(state: State, types: Mapping[str, torch.dtype]) -> State:
    """`state` in the types that it is given back in. MergeError where a value is too large for its type."""
    stored = {key: tensor.to(types[key]) for key, tensor in state.items()}
    for key, tensor in stored.items():
        if not bool(torch.isfinite(tensor).all()):
            raise MergeError(f"{key} of the merged network has values that {word_of(tensor.dtype)} cannot hold")
    return stored
