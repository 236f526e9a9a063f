"""Correlations between the units of endpoints, for every hidden axis and every pair, from passes over the same samples.

Permuting an axis only reorders the activations of the others, so no correlation depends on another axis' permutation:
one pass over the data gives all of them. Activations are multiplied in float32, after a shift by the units' means over
the first batch (which keeps the cancellation in cov = E[ab] - E[a]E[b] harmless), and added up in float64.

A position of a feature map, or a token, is a sample like any other. A unit of several channels (a group whose channels
keep their order) has as correlation the mean of its channels' correlations.
"""

from __future__ import annotations

import dataclasses
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
from tasks.science.correction.preactivations import DEAD_SHARE
from tasks.science.evaluation.functional import mode
from tasks.science.specs.matchers import published_modules
from tasks.science.specs.state import State
from tasks.science.symmetry.permutation import Axis, PermutationSpec, Reading

BATCH_SIZE, BATCH_BYTES = 2000, 2**24
"""Where a unit is seen once per image: images per forward pass, and bytes of the activations of all axes together."""

MAP_BATCH_SIZE, MAP_BYTES = 125, 2**24
"""The same where units are seen at many places: few enough for the maps of a small network to stay in the caches."""

WEIGHT_BYTES = 2**25
"""Weights of more bytes than a pass' activations would make its time: up to here passes grow with them."""

MEMORY_BYTES = 2**30
"""What one pass may hold in sums of products and activations; what needs more is spread over several passes."""

ROWS = 2**14
"""Longest float32 sum: more samples than this are added in float64."""

CHUNK = 2**18
"""Values that are counted in at a time: few enough to stay in a cache."""

BLOCK_ROWS = 512
"""Rows of a product that are worked on at a time, where a temporary copy of all of them would count."""

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
            yield from _one_pass(reader, states, jobs, images, sizes, published_batch)


_Job = tuple[ObservedFamily, tuple[int, int]]


@dataclass(frozen=True)
class _Sizes:
    """`batch_size` images per forward pass. By family: samples per image, the type of its activations, and the bytes of
    those of a batch in one endpoint, and of the sums of products of one pair."""

    batch_size: int
    n_rows: Mapping[str, int]
    dtypes: Mapping[str, torch.dtype]
    activation_bytes: Mapping[str, int]
    product_bytes: Mapping[str, int]


def _measure(
    reader: Reader, state: State, families: Sequence[ObservedFamily], images: Tensor, published_batch: int | None
) -> _Sizes:
    seen = _read(reader, state, images[:1], families)
    image_bytes = {name: values.numel() * values.element_size() for name, values in seen.items()}
    n_rows = {name: len(values) for name, values in seen.items()}
    most, n_bytes = (MAP_BATCH_SIZE, MAP_BYTES) if max(n_rows.values()) > 1 else (BATCH_SIZE, BATCH_BYTES)
    # Weights are read once per pass, whatever its size.
    weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    n_bytes = max(n_bytes, min(weight_bytes, WEIGHT_BYTES))
    most = min(most, len(images), published_batch or len(images))
    batch_size = int(np.clip(n_bytes // sum(image_bytes.values()), 1, most))
    product_bytes: dict[str, int] = {}
    for family in families:
        itemsize = seen[family.name].element_size()
        if published_batch or n_rows[family.name] * len(images) > ROWS:
            itemsize += 8
        product_bytes[family.name] = family.n_units**2 * family.n_each * itemsize
    return _Sizes(
        batch_size,
        n_rows,
        {name: values.dtype for name, values in seen.items()},
        {name: n_bytes * batch_size for name, n_bytes in image_bytes.items()},
        product_bytes,
    )


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


class _Tap:
    """What one reading gives in one endpoint: the activations of the batch at hand, and sums over all batches.

    Activations are less the means of the first batch. They are written to `into` (n_samples, n_channels). `sums`
    (2, n_channels) float64 are of these and of their squares. `scratch` is room for work.
    """

    def __init__(self, into: Tensor, scratch: Tensor, *, published: bool) -> None:
        n_rows = min(max(1, len(scratch) // into.shape[1]), len(into))
        self.into, self.scratch = into, scratch[: n_rows * into.shape[1]].view(n_rows, -1)
        self.published = published
        self.shift: Tensor | None = None
        # Of the batch at hand: a unit that stays silent in it has no deviation, which its distance from the means of
        # another batch must not blur.
        self.local: Tensor | None = None
        self.sums = torch.zeros(2, into.shape[1], dtype=torch.float64)
        self.of_chunk = into.new_empty(2, into.shape[1])
        self.total_of_chunk, self.square_of_chunk = self.of_chunk
        self.n_rows = 0
        # Of the published estimator: the sums over finished batches of their means and deviations.
        self.finished = torch.zeros(2, into.shape[1], dtype=torch.float64)

    def take(self, values: Tensor) -> None:
        """Takes over and counts in `values` (n_samples, n_channels)."""
        if self.shift is None:
            self.shift = values.mean(0)
        if self.published and self.local is None:
            self.local = values.mean(0) - self.shift
        step = len(self.scratch)
        for first in range(0, len(values), step):
            rows = values[first : first + step]
            shifted, scratch = self.into[first : first + len(rows)], self.scratch[: len(rows)]
            counted = torch.sub(rows, self.shift, out=shifted)
            if self.local is not None:
                counted = torch.sub(shifted, self.local, out=scratch)
            torch.sum(counted, 0, out=self.total_of_chunk)
            torch.sum(torch.square(counted, out=scratch), 0, out=self.square_of_chunk)
            self.sums.add_(self.of_chunk)
        self.n_rows += len(values)

    def close_batch(self) -> None:
        """Turns the sums of one published batch into its mean and unbiased deviation, and begins the next."""
        if self.n_rows < 2:
            raise ValueError("a batch of a single sample has no deviation; choose another size of batch")
        mean = self.sums[0] / self.n_rows
        variance = (self.sums[1] - self.n_rows * mean.square()) / (self.n_rows - 1)
        self.finished[0] += mean + (0.0 if self.local is None else self.local)
        self.finished[1] += variance.clamp_min(0).sqrt()
        self.sums.zero_()
        self.n_rows, self.local = 0, None

    def moments(self, n_batches: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (still shifted), deviation and shift; over `n_batches` published ones, or exact where that is 0."""
        shift = torch.as_tensor(self.shift)
        if n_batches:
            return self.finished[0] / n_batches, self.finished[1] / n_batches, shift
        mean = self.sums[0] / self.n_rows
        return mean, (self.sums[1] / self.n_rows - mean.square()).clamp_min(0).sqrt(), shift


class _Products:
    """Sums over samples of the products of A's and B's units, (n_each, n_units, n_units): up to ROWS samples in the
    type of the activations, beyond that in float64."""

    def __init__(self, n_each: int) -> None:
        self.n_each = n_each
        self.near: Tensor | None = None
        self.far: Tensor | None = None
        self.n_rows = 0

    def add(self, left: Tensor, right: Tensor, divisor: int) -> None:
        """Counts in samples of both, (n_samples, n_units * n_each); in the end their products are divided."""
        if self.near is None:
            n_units = left.shape[1] // self.n_each
            self.near = left.new_zeros(self.n_each, n_units, n_units)
        for rows_a, rows_b in zip(left.split(ROWS), right.split(ROWS), strict=True):
            if self.n_rows + len(rows_a) > ROWS:
                self.fold(divisor)
            for channel, near in enumerate(self.near):
                near.addmm_(rows_a[:, channel :: self.n_each].T, rows_b[:, channel :: self.n_each])
            self.n_rows += len(rows_a)

    def fold(self, divisor: int) -> None:
        """Adds what is not in the float64 sums yet to them, divided."""
        near = torch.as_tensor(self.near)
        if self.far is None:
            self.far = torch.zeros(near.shape, dtype=torch.float64)
        # A few rows at a time: in one piece, torch would make a float64 copy of all of them.
        for channel in range(self.n_each):
            for into, added in zip(self.far[channel].split(BLOCK_ROWS), near[channel].split(BLOCK_ROWS), strict=True):
                into += added if divisor == 1 else added.double().div_(divisor)
        near.zero_()
        self.n_rows = 0

    def total(self) -> Tensor:
        """The sums in float64; nothing is kept."""
        if self.far is not None and self.n_rows:
            self.fold(1)
        near, far, self.near, self.far = self.near, self.far, None, None
        return torch.as_tensor(near).double() if far is None else far


def _one_pass(
    reader: Reader,
    states: States,
    jobs: Sequence[_Job],
    images: Tensor,
    sizes: _Sizes,
    published_batch: int | None,
) -> Iterator[UnitCorrelations]:
    of_member: dict[int, dict[str, ObservedFamily]] = {}
    for family, pair in jobs:
        for k in pair:
            of_member.setdefault(k, {})[family.name] = family
    families = {family.name: family for family, _ in jobs}
    prepared = {k: reader.prepare(states[k]) for k in of_member}
    values = {(name, k): _samples(family, sizes) for k, of in of_member.items() for name, family in of.items()}
    widest = max(family.n_units * family.n_each for family, _ in jobs)
    scratch = {dtype: torch.empty(max(CHUNK, widest), dtype=dtype) for dtype in sizes.dtypes.values()}
    taps: dict[int, dict[Key, _Tap]] = {}
    for k, of in of_member.items():
        taps[k] = {
            (name, i): _Tap(values[name, k][:, channels], scratch[sizes.dtypes[name]], published=bool(published_batch))
            for name, family in of.items()
            for i, channels in enumerate(family.channels)
        }
    products = {(family.name, pair): _Products(family.n_each) for family, pair in jobs}

    outer = published_batch or len(images)
    for begin in range(0, len(images), outer):
        end = min(begin + outer, len(images))
        # In the published estimator batches weigh the same, however many samples they have.
        divisors = {name: n * (end - begin) if published_batch else 1 for name, n in sizes.n_rows.items()}
        for start in range(begin, end, sizes.batch_size):
            batch = images[start : min(start + sizes.batch_size, end)]
            for k, of in of_member.items():

                def take(key: Key, seen: Tensor, of: Mapping[Key, _Tap] = taps[k], n_images: int = len(batch)) -> None:
                    name, i = key
                    _check_rows(families[name].readings[i], len(seen), sizes.n_rows[name], n_images)
                    of[key].take(seen)

                reader.visit(prepared[k], batch, _wanted(list(of.values())), take)
            for family, (a, b) in jobs:
                n_samples = sizes.n_rows[family.name] * len(batch)
                left, right = (values[family.name, k][:n_samples] for k in (a, b))
                products[family.name, (a, b)].add(left, right, divisors[family.name])
        if published_batch:
            for of_one in taps.values():
                for tap in of_one.values():
                    tap.close_batch()
            for family, pair in jobs:
                products[family.name, pair].fold(divisors[family.name])

    n_batches = -(-len(images) // outer) if published_batch else 0
    moments = {
        (name, k): _Moments.of(family, [taps[k][name, i].moments(n_batches) for i in range(len(family.readings))])
        for k, of in of_member.items()
        for name, family in of.items()
    }
    # What comes next, the assignment above all, needs the memory.
    del prepared, values, scratch, taps
    for family, (a, b) in jobs:
        n_added = n_batches or len(images) * sizes.n_rows[family.name]
        product = products.pop((family.name, (a, b))).total().div_(n_added)
        of_pair = moments[family.name, a], moments[family.name, b]
        yield _correlate(family, (a, b), product, *of_pair, published=published_batch is not None)


def _check_rows(reading: Reading, n_rows: int, n_each: int, n_images: int) -> None:
    """ValueError where a batch does not give `n_each` samples per image."""
    if n_rows != n_each * n_images:
        raise ValueError(
            f"{reading.module or reading.node} gives {n_rows} samples of a batch of {n_images} images, where one image "
            f"gives {n_each}: how the forward pass computes a batch depends on its size, so that units cannot be "
            "observed on every image; let it compute a batch at once, or take matcher weight"
        )


def _samples(family: ObservedFamily, sizes: _Sizes) -> Tensor:
    """Room for the activations of a family in one batch."""
    n_samples = sizes.n_rows[family.name] * sizes.batch_size
    return torch.empty(n_samples, family.n_units * family.n_each, dtype=sizes.dtypes[family.name])


@dataclass(frozen=True)
class _Moments:
    """Of one family in one endpoint, each (n_units, n_each); `mean` is less `shift`."""

    mean: Tensor
    deviation: Tensor
    shift: Tensor

    @classmethod
    def of(cls, family: ObservedFamily, pieces: Sequence[tuple[Tensor, Tensor, Tensor]]) -> _Moments:
        """From those of its readings."""
        mean, deviation, shift = (torch.cat(of_all).view(-1, family.n_each) for of_all in zip(*pieces, strict=True))
        return cls(mean, deviation, shift)

    @property
    def dead(self) -> Tensor:
        """Channels (n_units, n_each) bool whose spread float32 cannot tell from none, beside the scale of their
        axis."""
        scale = (self.deviation.square() + (self.mean + self.shift).square()).mean().sqrt()
        return self.deviation <= DEAD_SHARE * scale


def _correlate(
    family: ObservedFamily, pair: tuple[int, int], product: Tensor, a: _Moments, b: _Moments, *, published: bool
) -> UnitCorrelations:
    """From mean products to correlations; `product` is overwritten."""
    dead_a, dead_b = a.dead, b.dead
    for channel in range(family.n_each):
        # A few rows at a time: an outer product of a wide axis takes as much memory as its correlations.
        for rows in torch.arange(family.n_units).split(BLOCK_ROWS):
            block = product[channel, rows[0] : rows[-1] + 1]
            off_a, off_b = dead_a[rows, channel], dead_b[:, channel]
            block.sub_(torch.outer(a.mean[rows, channel], b.mean[:, channel]))
            if published:
                block /= torch.outer(a.deviation[rows, channel], b.deviation[:, channel]).add_(PUBLISHED_EPSILON)
            else:
                # Dividing a dead unit's row by 1 leaves it finite; it is then set to 0.
                block /= torch.where(off_a, 1.0, a.deviation[rows, channel])[:, None]
                block /= torch.where(off_b, 1.0, b.deviation[:, channel])[None, :]
            block[off_a, :] = 0
            block[:, off_b] = 0
        if channel:
            product[0] += product[channel]
    correlation = product[0]
    if family.n_each > 1:
        correlation = correlation.div_(family.n_each)
    return UnitCorrelations(family, pair, correlation.numpy(), dead_a.all(1).numpy(), dead_b.all(1).numpy())
