"""Correlations between the units of endpoints, for every hidden axis and every pair, from passes over the same samples.

Permuting an axis only reorders the activations of the others, so no correlation depends on another axis' permutation:
one pass over the data gives all of them. Activations are multiplied in float32, after a shift by the units' means over
the first batch (which keeps the cancellation in cov = E[ab] - E[a]E[b] harmless), and added up in float64.

A position of a feature map, or a token, is a sample like any other. A unit of several channels (a group whose channels
keep their order) has as correlation the mean of its channels' correlations.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.science.alignment.reading import Key, MisreadError, Reader, make_reader
from tasks.science.evaluation.functional import mode
from tasks.science.evaluation.moments import (
    BLOCK_ROWS,
    LONGEST_SUM,
    ROWS_IN_CACHE,
    Moments,
    RunningMoments,
    RunningProducts,
)
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
"""What one pass may hold in sums of products and activations; what needs more is spread over several passes."""

PUBLISHED_EPSILON = 1e-4


class States(Protocol):
    """The weights of endpoints by position; a list, or what reads them when they are asked for."""

    def __getitem__(self, index: int, /) -> State: ...


@dataclass(frozen=True)
class ObservedFamily:
    """The axes of one family (one axis, where nothing is nested) and where their activations are read.

    The units of all axes count one after the other. `readings` have ascending units: several where the axes do not
    lie in one tensor.
    """

    name: str
    axes: tuple[Axis, ...]
    readings: tuple[Reading, ...]

    @property
    def n_units(self) -> int:
        return sum(axis.size for axis in self.axes)

    @property
    def n_each(self) -> int:
        """Channels per unit."""
        return self.readings[0].positions.shape[1]

    @property
    def n_channels(self) -> int:
        return self.n_units * self.n_each

    @property
    def channels(self) -> list[slice]:
        """Of all channels, those of a unit side by side, the ones that each reading gives."""
        ends = np.cumsum([0, *(reading.positions.size for reading in self.readings)]).tolist()
        return [slice(first, last) for first, last in itertools.pairwise(ends)]


@dataclass(frozen=True)
class UnitCorrelations:
    """What the units of one family have in common in one pair of endpoints A and B.

    `correlations` (n_units, n_units) float64: entry i, j is the correlation of A's unit i with B's unit j, 0 where
    either is dead. `dead_a`, `dead_b` (n_units,) bool.
    """

    family: ObservedFamily
    pair: tuple[int, int]
    correlations: NDArray[np.float64]
    dead_a: NDArray[np.bool_]
    dead_b: NDArray[np.bool_]


def observed_families(
    spec: PermutationSpec, reading: str = "post", avoid: Collection[str] = (), published: Collection[str] = ()
) -> list[ObservedFamily]:
    """The families of `spec` whose units can be observed, in the order of the spec.

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
    """`observed_families` without readings that hold for the traced size of batch alone: where a layer folds the
    samples of a batch into its units (InstanceNorm), another batch has other positions. And what was read of the first
    image, as `read_activations` has it.

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
    """Yields the correlations of each family and each of `pairs`, indices into `states`, over all of `images`.

    One pass serves as many pairs and families as fit into `memory_bytes`, and at least one. How they are grouped
    changes no bit of the result; they come pass by pass. A state is asked for at the beginning of each pass that needs
    it and let go at its end. `published_batch`: the authors' estimator, over batches of so many images: the mean of
    their means, products and unbiased deviations, and cov / (sd_a sd_b + 1e-4); None for exact moments.
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
            one_pass = functools.partial(_Pass, reader, states, jobs, sizes)
            if published_batch:
                yield from _published(one_pass(), images, published_batch)
            else:
                yield from _exact(one_pass(), images)


_Job = tuple[ObservedFamily, tuple[int, int]]


@dataclass(frozen=True)
class _Sizes:
    """Images per forward pass and, by family, the activations `seen` of one image, the bytes of those of a batch in one
    endpoint, and of the sums of products of one pair."""

    batch_size: int
    seen: Mapping[str, Tensor]
    activation_bytes: Mapping[str, int]
    product_bytes: Mapping[str, int]

    def n_rows(self, name: str) -> int:
        """Return how many samples one image gives."""
        return len(self.seen[name])


def _measure(
    reader: Reader, state: State, families: Sequence[ObservedFamily], images: Tensor, published_batch: int | None
) -> _Sizes:
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
    return _Sizes(batch_size, seen, activation_bytes, product_bytes)


def _passes(
    families: Sequence[ObservedFamily], pairs: Sequence[tuple[int, int]], sizes: _Sizes, memory_bytes: int
) -> Iterator[list[_Job]]:
    """Jobs in groups that fit into `memory_bytes`, or of a single one.

    All families of a pair stand in one group where they fit into one. A group's pairs are those among few endpoints,
    as in a square of the table of all pairs: each endpoint runs once per group.
    """
    per_pair, per_member = sum(sizes.product_bytes.values()), sum(sizes.activation_bytes.values())
    # Of a square with this side, all products and both sides' activations fit.
    side = int((math.sqrt(per_member**2 + per_pair * memory_bytes) - per_member) / per_pair) or 1
    group: list[_Job] = []
    kept: set[tuple[str, int]] = set()
    n_bytes = 0
    for pair in sorted(pairs, key=lambda pair: (pair[0] // side, pair[1] // side)):
        whole = per_pair + per_member * len(set(pair)) <= memory_bytes
        for part in [families] if whole else [[family] for family in families]:
            new = {(family.name, k) for family in part for k in pair} - kept
            added = sum(sizes.product_bytes[f.name] for f in part) + sum(sizes.activation_bytes[n] for n, _ in new)
            if group and n_bytes + added > memory_bytes:
                yield group
                group, kept, n_bytes = [], set(), 0
                new = {(family.name, k) for family in part for k in pair}
                added = sum(sizes.product_bytes[f.name] for f in part) + sum(sizes.activation_bytes[n] for n, _ in new)
            group += [(family, pair) for family in part]
            kept |= new
            n_bytes += added
    yield group


def read_activations(
    network: nn.Module, state: State, images: Tensor, families: Sequence[ObservedFamily]
) -> dict[str, Tensor]:
    """The activations of each family by name, (n_samples, n_units), or (n_samples, n_units, n_each) where units have
    several channels; all of `images` in one pass. `network` is left as it was."""
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
    """Copies of the activations of each family, (n_samples, n_units * n_each)."""
    pieces: dict[Key, Tensor] = {}
    wanted = _wanted(families)
    reader.visit(state, batch, wanted, lambda key, values: pieces.update({key: values.clone()}))
    return {
        family.name: torch.cat([pieces[family.name, i] for i in range(len(family.readings))], dim=1)
        for family in families
    }


def _wanted(families: Sequence[ObservedFamily]) -> list[tuple[Key, Reading]]:
    """The readings of each family, under its name and their numbers."""
    return [((family.name, i), reading) for family in families for i, reading in enumerate(family.readings)]


class _Pass:
    """One pass for `jobs`: the endpoints' weights as they are read, and room for their activations of one batch."""

    def __init__(self, reader: Reader, states: States, jobs: Sequence[_Job], sizes: _Sizes) -> None:
        self.jobs = jobs
        self._reader, self._sizes = reader, sizes
        self._read_in: dict[int, dict[str, ObservedFamily]] = {}
        for family, pair in jobs:
            for k in pair:
                self._read_in.setdefault(k, {})[family.name] = family
        self._states = {k: reader.prepare(states[k]) for k in self._read_in}
        self._room = {
            (name, k): sizes.seen[name].new_empty(sizes.n_rows(name) * sizes.batch_size, family.n_channels)
            for k, families in self._read_in.items()
            for name, family in families.items()
        }
        widest = max(family.n_channels for family, _ in jobs)
        self._scratch = {seen.dtype: seen.new_empty(max(ROWS_IN_CACHE, widest)) for seen in sizes.seen.values()}

    def add_up(self, images: Tensor) -> _Sums:
        """Return the sums of all jobs over all of `images`."""
        sums = _Sums(
            {member: [RunningMoments() for _ in self._family(*member).readings] for member in self._room},
            {(family.name, pair): RunningProducts(family.n_each) for family, pair in self.jobs},
        )
        for batch in images.split(self._sizes.batch_size):
            for k in self._read_in:
                self._read(k, batch, sums)
            for family, (a, b) in self.jobs:
                n_samples = self._sizes.n_rows(family.name) * len(batch)
                left, right = (self._room[family.name, k][:n_samples] for k in (a, b))
                sums.products[family.name, (a, b)].add(left, right)
        return sums

    def _read(self, k: int, batch: Tensor, sums: _Sums) -> None:
        """Run endpoint `k`: count in its activations, and leave them in its room, less their origins."""

        def receive(key: Key, values: Tensor) -> None:
            name, i = key
            family = self._family(name, k)
            _check_rows(family.readings[i], len(values), self._sizes.n_rows(name), len(batch))
            into = self._room[name, k][: len(values), family.channels[i]]
            sums.moments[name, k][i].center(values, into, self._scratch[values.dtype])

        self._reader.visit(self._states[k], batch, _wanted(list(self._read_in[k].values())), receive)

    def _family(self, name: str, k: int) -> ObservedFamily:
        return self._read_in[k][name]


@dataclass(frozen=True)
class _Sums:
    """Sums over some images: `moments` of every reading, by family and endpoint, `products` by family and pair."""

    moments: dict[tuple[str, int], list[RunningMoments]]
    products: dict[tuple[str, tuple[int, int]], RunningProducts]

    def of(self, name: str, k: int) -> RunningMoments:
        """Return the moments of a whole family in endpoint `k`."""
        return RunningMoments.joined(self.moments[name, k])

    def covariances(self, name: str, pair: tuple[int, int]) -> Tensor:
        """Return those of a family in A and B; their products are not kept."""
        return self.products.pop((name, pair)).covariances(*(self.of(name, k) for k in pair))


def _exact(one_pass: _Pass, images: Tensor) -> Iterator[UnitCorrelations]:
    """Yields the correlations of all samples."""
    jobs, sums = one_pass.jobs, one_pass.add_up(images)
    # What comes next, the assignment above all, needs the memory.
    del one_pass
    for family, pair in jobs:
        covariances = sums.covariances(family.name, pair)
        yield _correlate(family, pair, covariances, *(sums.of(family.name, k).result() for k in pair))


def _published(one_pass: _Pass, images: Tensor, batch_size: int) -> Iterator[UnitCorrelations]:
    """Yields correlations by the authors' estimator: over batches, the mean of their products, less the product of the
    means of their means, over the product of the means of their unbiased standard deviations and 1e-4.

    Batches weigh the same, however many images they have.
    """
    jobs, batches = one_pass.jobs, images.split(batch_size)
    covariances: dict[tuple[str, tuple[int, int]], Tensor] = {}
    moments: dict[tuple[str, int], list[Moments]] = {}
    for batch in batches:
        sums = one_pass.add_up(batch)
        for name, k in sums.moments:
            moments.setdefault((name, k), []).append(sums.of(name, k).unbiased())
        for family, pair in jobs:
            found = sums.covariances(family.name, pair)
            key = family.name, pair
            covariances[key] = covariances[key].add_(found) if key in covariances else found
    del one_pass
    for family, pair in jobs:
        covariance = covariances.pop((family.name, pair)).div_(len(batches))
        of_both = [moments[family.name, k] for k in pair]
        means_a, means_b = (torch.stack([one.mean for one in of_one]) for of_one in of_both)
        # The mean of products is the mean of covariances and what lies between the means of the batches.
        for channel, between in enumerate(covariance):
            left, right = ((means - means.mean(0))[:, channel :: family.n_each] for means in (means_a, means_b))
            between.addmm_(left.T, right, alpha=1 / len(batches))
        averages = (
            Moments(means.mean(0), torch.stack([one.sd for one in of_one]).mean(0))
            for means, of_one in zip((means_a, means_b), of_both, strict=True)
        )
        yield _correlate(family, pair, covariance, *averages, epsilon=PUBLISHED_EPSILON)


def _check_rows(reading: Reading, n_rows: int, n_each: int, n_images: int) -> None:
    """ValueError where a batch does not give `n_each` samples per image."""
    if n_rows != n_each * n_images:
        raise ValueError(
            f"{reading.module or reading.node} gives {n_rows} samples of a batch of {n_images} images, where one image "
            f"gives {n_each}: how the forward pass computes a batch depends on its size, so that units cannot be "
            "observed on every image; let it compute a batch at once, or take matcher weight"
        )


def _correlate(
    family: ObservedFamily,
    pair: tuple[int, int],
    covariances: Tensor,
    a: Moments,
    b: Moments,
    epsilon: float | None = None,
) -> UnitCorrelations:
    """Return correlations from `covariances` (n_each, n_units, n_units), which are overwritten; `epsilon` is added to
    the product of standard deviations."""
    (dead_a, dead_b), (sds_a, sds_b) = (
        [of_one.view(-1, family.n_each) for of_one in of_both] for of_both in ((a.dead(), b.dead()), (a.sd, b.sd))
    )
    for channel, of_channel in enumerate(covariances):
        off_b, sd_b = dead_b[:, channel], sds_b[:, channel]
        # A few rows at a time: an outer product of a wide axis takes as much memory as its correlations.
        for block, off_a, sd_a in zip(
            *(part.split(BLOCK_ROWS) for part in (of_channel, dead_a[:, channel], sds_a[:, channel])), strict=True
        ):
            if epsilon is None:
                # Dividing a dead unit's row by 1 leaves it finite; it is then set to 0.
                block /= torch.where(off_a, 1.0, sd_a)[:, None]
                block /= torch.where(off_b, 1.0, sd_b)[None, :]
            else:
                block /= torch.outer(sd_a, sd_b).add_(epsilon)
            block[off_a, :] = 0
            block[:, off_b] = 0
        if channel:
            covariances[0] += of_channel
    correlations = covariances[0].div_(family.n_each)
    dead = (off.all(1).cpu().numpy() for off in (dead_a, dead_b))
    return UnitCorrelations(family, pair, correlations.cpu().numpy(), *dead)
