"""Correlations between the units of endpoints, for every hidden axis and every pair, from passes over the same samples.

Permuting an axis only reorders the activations of the others, so no correlation depends on another axis' permutation:
one pass over the data gives all of them.

A position of a feature map, or a token, is a sample like any other. A unit of several channels (a group whose channels
keep their order) has as correlation the mean of its channels' correlations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tasks.science.alignment.correlations import (
    EndpointFamily,
    Job,
    OnePass,
    Sizes,
    States,
    UnitCorrelations,
    exact_correlations,
    published_correlations,
)
from tasks.science.alignment.reading import Key, MisreadError, ObservedFamily, Reader, keyed_readings, make_reader
from tasks.science.evaluation.functional import mode
from tasks.science.evaluation.moments import LONGEST_SUM
from tasks.science.specs.matchers import published_modules
from tasks.science.specs.state import State
from tasks.science.symmetry.permutation import Axis, PermutationSpec, Reading

BATCH_BYTES = 2**24
"""Activations of all axes in one forward pass, at most: those of a small network stay in the caches."""

VECTOR_BATCH_SIZE = 2000
"""Images per forward pass, at most, where a unit is seen once per image."""

MAP_BATCH_SIZE = 125
"""Images per forward pass, at most, where units are seen at many positions."""

WEIGHT_BYTES = 2**25
"""Forward passes grow with the weights, which each reads once, until their activations have this size."""

MEMORY_BYTES = 2**30
"""Bytes of the sums of products and activations of one pass; more are spread over several passes."""


def observed_families(
    spec: PermutationSpec, reading: str = "post", avoid: Collection[str] = (), published: Collection[str] = ()
) -> list[ObservedFamily]:
    """Return the families of `spec` whose units can be observed, in the order of the spec.

    `reading`: `post`, where the axis is read by default (after its nonlinearity, a residual stream at its end),
    `pre`, the last linear map or convolution before that, or `published`, the output of one of the modules of that
    name; an axis without one keeps the default. An axis that would be read at an operation in `avoid` is read at the
    next best one.
    """
    members: dict[str, list[Axis]] = {}
    for axis in spec.axes:
        members.setdefault(axis.family, []).append(axis)
    families: list[ObservedFamily] = []
    for name, axes in members.items():
        readings: list[Reading] = []
        for axis in axes:
            usable = [r for r in axis.readings if r.node not in avoid]
            wanted: list[Reading] = []
            if reading == "pre":
                wanted = [r for r in usable if r.kind == "linear"]
            elif reading == "published":
                wanted = [r for r in usable if r.module in published]
            readings += (wanted or usable)[:1]
        if len(readings) < len(axes) or len({r.positions.shape[1] for r in readings}) > 1:
            continue
        merged: list[Reading] = []
        for r in readings:
            if merged and (merged[-1].node, merged[-1].dim) == (r.node, r.dim):
                positions = np.concatenate([merged[-1].positions, r.positions])
                merged[-1] = dataclasses.replace(merged[-1], positions=positions)
            else:
                merged.append(r)
        families.append(ObservedFamily(name, tuple(axes), tuple(merged)))
    return families


def readable_families(
    network: nn.Module, spec: PermutationSpec, state: State, images: Tensor, reading: str = "post"
) -> tuple[list[ObservedFamily], dict[str, Tensor]]:
    """Return the families whose units can be observed in batches of any size, and what is read of the first image.

    Readings that hold for the traced size of batch alone are left out: where a layer folds the samples of a batch into
    its units (InstanceNorm), another batch has other positions. Activations are as `read_activations` returns them.
    Raises ValueError for the reading `published` of a network that was not published with one.
    """
    published = published_modules(network) if reading == "published" else frozenset[str]()
    avoid: set[str] = set()
    while True:
        families = observed_families(spec, reading, avoid, published)
        if not families:
            return families, {}
        try:
            one, two = (read_activations(network, state, images[:n], families) for n in (1, 2))
        except MisreadError as error:
            avoid.add(error.reading.node)
            continue
        n_images = min(len(images), 2)
        folded = [f for f in families if len(two[f.name]) != n_images * len(one[f.name])]
        if not folded:
            return families, one
        avoid |= {r.node for family in folded for r in family.readings}


def unit_correlations(
    network: nn.Module,
    states: States,
    pairs: Sequence[tuple[int, int]],
    families: Sequence[ObservedFamily],
    images: Tensor,
    published_batch: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> Iterator[UnitCorrelations]:
    """Yield the correlations of each family and each of `pairs`, indices into `states`, over all of `images`.

    One pass serves as many pairs and families as fit into `memory_bytes`, and at least one. How they are grouped
    changes no bit of the result; they come pass by pass. A state is asked for at the beginning of each pass that needs
    it and let go at its end. With `published_batch`, correlations are those of the authors' estimator over batches of
    so many images, else exact.
    Raises ValueError where there is no image, a published batch has a single sample, or a batch does not give as many
    samples per image as one image alone.
    """
    if len(images) == 0:
        raise ValueError("there is no image to measure activations on")
    if not families or not pairs:
        return
    reader = make_reader(network, [r for family in families for r in family.readings])
    with mode(network, training=False), torch.no_grad():
        sizes = _measure(reader, states[pairs[0][0]], families, images, published_batch)
        for jobs in _passes(families, pairs, sizes, memory_bytes):
            if published_batch:
                yield from published_correlations(OnePass(reader, states, jobs, sizes), images, published_batch)
            else:
                yield from exact_correlations(OnePass(reader, states, jobs, sizes), images)


def _measure(
    reader: Reader, state: State, families: Sequence[ObservedFamily], images: Tensor, published_batch: int | None
) -> Sizes:
    seen = _read(reader, state, images[:1], families)
    of_maps = max(len(values) for values in seen.values()) > 1
    weight_bytes = sum(tensor.nbytes for tensor in state.values())
    n_bytes = max(BATCH_BYTES, min(weight_bytes, WEIGHT_BYTES))
    n_together = published_batch or len(images)
    most = min(MAP_BATCH_SIZE if of_maps else VECTOR_BATCH_SIZE, len(images), n_together)
    batch_size = int(np.clip(n_bytes // sum(values.nbytes for values in seen.values()), 1, most))
    product_bytes: dict[str, int] = {}
    for family in families:
        values = seen[family.name]
        n_float64 = (len(values) * n_together > LONGEST_SUM) + (published_batch is not None)
        product_bytes[family.name] = family.n_units**2 * family.n_each * (values.element_size() + 8 * n_float64)
    activation_bytes = {name: values.nbytes * batch_size for name, values in seen.items()}
    return Sizes(batch_size, seen, activation_bytes, product_bytes)


def _passes(
    families: Sequence[ObservedFamily], pairs: Sequence[tuple[int, int]], sizes: Sizes, memory_bytes: int
) -> Iterator[list[Job]]:
    """Yield jobs in groups that fit into `memory_bytes`, or of a single one.

    All families of a pair stand in one group where they fit into one. A group's pairs are those among few endpoints,
    as in a square of the table of all pairs: each endpoint runs once per group.
    """
    per_pair, per_member = sum(sizes.product_bytes.values()), sum(sizes.activation_bytes.values())
    # Of a square with this side, all products and both sides' activations fit.
    side = int((math.sqrt(per_member**2 + per_pair * memory_bytes) - per_member) / per_pair) or 1
    group: list[Job] = []
    kept: set[EndpointFamily] = set()
    n_bytes = 0
    for pair in sorted(pairs, key=lambda pair: (pair[0] // side, pair[1] // side)):
        whole = per_pair + per_member * len(set(pair)) <= memory_bytes
        for part in [families] if whole else [[family] for family in families]:
            members = {(family.name, k) for family in part for k in pair}
            products = sum(sizes.product_bytes[family.name] for family in part)
            if group and n_bytes + products + sizes.of_activations(members - kept) > memory_bytes:
                yield group
                group, kept, n_bytes = [], set(), 0
            group += [(family, pair) for family in part]
            n_bytes += products + sizes.of_activations(members - kept)
            kept |= members
    yield group


def read_activations(
    network: nn.Module, state: State, images: Tensor, families: Sequence[ObservedFamily]
) -> dict[str, Tensor]:
    """Return the activations of each family by name, all of `images` in one pass.

    Shapes are (n_samples, n_units), or (n_samples, n_units, n_each) if units have several channels. `network` is left
    as it was.
    """
    if not families:
        return {}
    reader = make_reader(network, [r for family in families for r in family.readings])
    with mode(network, training=False), torch.no_grad():
        seen = _read(reader, state, images, families)
    return {
        family.name: seen[family.name] if family.n_each == 1 else seen[family.name].unflatten(1, (-1, family.n_each))
        for family in families
    }


def _read(reader: Reader, state: State, batch: Tensor, families: Sequence[ObservedFamily]) -> dict[str, Tensor]:
    """Return copies of the activations of each family, (n_samples, n_units * n_each)."""
    pieces: dict[Key, Tensor] = {}
    wanted = keyed_readings(families)
    reader.visit(state, batch, wanted, lambda key, values: pieces.update({key: values.clone()}))
    return {
        family.name: torch.cat([pieces[family.name, i] for i in range(len(family.readings))], dim=1)
        for family in families
    }
