"""Correlations between the units of endpoints, for every hidden axis and every pair, from passes over the same samples.

Permuting an axis only reorders the activations of the others, so no correlation depends on another axis' permutation:
one pass over the data gives all of them. Each batch is multiplied in float32, after a shift by the units' means over
the first batch (which keeps the cancellation in cov = E[ab] - E[a]E[b] harmless), and added up in float64.

A position of a feature map, or a token, is a sample like any other. A unit of several channels (a group whose channels
keep their order) has as correlation the mean of its channels' correlations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.science.evaluation import mode
from tasks.science.matchers import published_modules
from tasks.science.permutation import Axis, PermutationSpec, Reading
from tasks.science.preactivations import DEAD_SHARE
from tasks.science.reading import MisreadError, Reader, make_reader
from tasks.science.specs import State

BATCH_SIZE = 1000
"""Images per forward pass where a unit is seen once per image."""

MAP_BATCH_SIZE, MAP_BYTES = 125, 2**23
"""Where units are seen at many places: at most so many images, and so many bytes of any one axis' activations. Small
batches stay in the caches; all axes of a ResNet20 of width 4 then hold 60 MB per endpoint."""

MEMORY_BYTES = 2**28
"""What one pass may hold in sums of products and activations; what needs more is spread over several passes."""

ROWS = 2**14
"""Longest float32 sum of products: more samples than this are added in float64."""

PUBLISHED_EPSILON = 1e-4

CORRELATION_ROWS = 512
"""Rows of a product that are worked on at a time, where a temporary copy of all of them would count."""


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
) -> list[ObservedFamily]:
    """`observed_families` without readings that hold for the traced size of batch alone: where a layer folds the
    samples of a batch into its units (InstanceNorm), another batch has other positions.

    Raises ValueError for the reading `published` of a network that was not published with one.
    """
    published = published_modules(network) if reading == "published" else frozenset[str]()
    avoid: set[str] = set()
    while True:
        families = observed_families(spec, reading, avoid, published)
        try:
            one, two = (read_activations(network, state, images[:n], families) for n in (1, 2))
        except MisreadError as error:
            avoid.add(error.reading.node)
            continue
        n_images = min(len(images), 2)
        folded = [f for f in families if len(two[f.name]) != n_images * len(one[f.name])]
        if not folded:
            return families
        avoid |= {r.node for family in folded for r in family.readings}


def unit_correlations(
    network: nn.Module,
    states: Sequence[State],
    pairs: Sequence[tuple[int, int]],
    families: Sequence[ObservedFamily],
    images: Tensor,
    published_batch: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> Iterator[UnitCorrelations]:
    """Yields the correlations of each family in turn, for `pairs` of indices into `states`, over all of `images`.

    One pass serves as many families and pairs as fit into `memory_bytes`, and at least one. How they are grouped
    changes no bit of the result. `published_batch`: the authors' estimator, over batches of so many images: the mean
    of their means, products and unbiased deviations, and cov / (sd_a sd_b + 1e-4); None for exact moments.
    Raises ValueError where there is no image, or a published batch has a single sample.
    """
    if len(images) == 0:
        raise ValueError("there is no image to measure activations on")
    if not families or not pairs:
        return
    reader = make_reader(network, [r for family in families for r in family.readings])
    with mode(network, training=False), torch.no_grad():
        image_bytes, n_rows = _footprint(reader, states[pairs[0][0]], families, images)
        batch_size = BATCH_SIZE
        if max(n_rows.values()) > 1:
            batch_size = int(np.clip(MAP_BYTES // max(image_bytes.values()), 1, MAP_BATCH_SIZE))
        batch_size = min(batch_size, published_batch or batch_size)

        group: list[_Job] = []
        kept: set[tuple[str, int]] = set()
        n_bytes = 0
        for family, pair in [(family, pair) for family in families for pair in pairs]:
            products = family.n_units**2 * family.n_each * 8
            activations = image_bytes[family.name] * min(batch_size, len(images))
            new = {(family.name, k) for k in pair}
            if group and n_bytes + products + activations * len(new - kept) > memory_bytes:
                yield from _one_pass(reader, states, group, images, batch_size, published_batch)
                group, kept, n_bytes = [], set(), 0
            n_bytes += products + activations * len(new - kept)
            group.append((family, pair))
            kept |= new
        yield from _one_pass(reader, states, group, images, batch_size, published_batch)


_Job = tuple[ObservedFamily, tuple[int, int]]


def read_activations(
    network: nn.Module, state: State, images: Tensor, families: Sequence[ObservedFamily]
) -> dict[str, Tensor]:
    """The activations of each family by name, (n_samples, n_units), or (n_samples, n_units, n_each) where units have
    several channels; all of `images` in one pass. `network` is left as it was."""
    reader = make_reader(network, [r for family in families for r in family.readings])
    with mode(network, training=False), torch.no_grad():
        seen = _read(reader, state, images, families, lambda _name, values: values.clone())
    return {name: values.squeeze(2) if values.shape[2] == 1 else values for name, values in seen.items()}


def _read(
    reader: Reader,
    state: State,
    batch: Tensor,
    families: Sequence[ObservedFamily],
    keep: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """What `keep` makes of each family's activations (n_samples, n_units, n_each), which later layers may overwrite."""
    pieces: dict[str, dict[int, Tensor]] = {family.name: {} for family in families}
    wanted = [((family.name, i), r) for family in families for i, r in enumerate(family.readings)]
    whole = {family.name for family in families if len(family.readings) == 1}

    def receive(key: tuple[str, int], values: Tensor) -> None:
        name, piece = key
        pieces[name][piece] = keep(name, values) if name in whole else values.clone()

    reader.visit(state, batch, wanted, receive)
    out: dict[str, Tensor] = {}
    for family in families:
        found = pieces.pop(family.name)
        if len(found) < len(family.readings):
            raise ValueError(f"the forward pass did not reach where axis {family.name} is read")
        if family.name in whole:
            out[family.name] = found[0]
        else:
            out[family.name] = keep(family.name, torch.cat([found[i] for i in sorted(found)], dim=1))
    return out


def _footprint(
    reader: Reader, state: State, families: Sequence[ObservedFamily], images: Tensor
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of activations per image, and samples per image, of each family."""
    seen = _read(reader, state, images[:1], families, lambda _name, values: values.clone())
    image_bytes = {name: values.numel() * values.element_size() for name, values in seen.items()}
    return image_bytes, {name: len(values) for name, values in seen.items()}


class _Sums:
    """Sums over samples of one family's shifted activations in one endpoint, each (n_units, n_each) float64."""

    def __init__(self, *, published: bool) -> None:
        self.published = published
        self.shift: Tensor | None = None
        # Of the batch at hand: a unit that stays silent in it has no deviation, which its distance from the means of
        # another batch must not blur.
        self.local: Tensor | None = None
        self.total: Tensor | float = 0.0
        self.square: Tensor | float = 0.0
        self.n_rows = 0
        # Of the published estimator: the sums over finished batches of their means and deviations.
        self.means: Tensor | float = 0.0
        self.deviations: Tensor | float = 0.0

    def shifted(self, values: Tensor) -> Tensor:
        """A copy of `values` (n_samples, n_units, n_each) less the means of the first batch; counted in."""
        if self.shift is None:
            self.shift = values.mean(0)
        shifted = values - self.shift
        counted = shifted
        if self.published:
            if self.local is None:
                self.local = shifted.mean(0)
            counted = shifted - self.local
        for rows in counted.split(ROWS):
            self.total = self.total + rows.sum(0).double()
            self.square = self.square + rows.square().sum(0).double()
        self.n_rows += len(values)
        return shifted

    def close_batch(self) -> None:
        """Turns the sums of one published batch into its mean and unbiased deviation, and begins the next."""
        if self.n_rows < 2:
            raise ValueError("a batch of a single sample has no deviation; choose another size of batch")
        mean = torch.as_tensor(self.total) / self.n_rows
        variance = (torch.as_tensor(self.square) - self.n_rows * mean.square()) / (self.n_rows - 1)
        self.means = self.means + mean + (0.0 if self.local is None else self.local)
        self.deviations = self.deviations + variance.clamp_min(0).sqrt()
        self.total, self.square, self.n_rows, self.local = 0.0, 0.0, 0, None

    def moments(self, n_batches: int) -> tuple[Tensor, Tensor]:
        """Mean (still shifted) and deviation; over `n_batches` published ones, or exact where that is 0."""
        if n_batches:
            return torch.as_tensor(self.means) / n_batches, torch.as_tensor(self.deviations) / n_batches
        mean = torch.as_tensor(self.total) / self.n_rows
        return mean, (torch.as_tensor(self.square) / self.n_rows - mean.square()).clamp_min(0).sqrt()


def _one_pass(
    reader: Reader,
    states: Sequence[State],
    jobs: Sequence[_Job],
    images: Tensor,
    batch_size: int,
    published_batch: int | None,
) -> Iterator[UnitCorrelations]:
    families = {family.name: family for family, _ in jobs}
    of_member: dict[int, list[ObservedFamily]] = {}
    for k in sorted({index for _, pair in jobs for index in pair}):
        of_member[k] = [f for f in families.values() if any(f.name == g.name and k in pair for g, pair in jobs)]
    sums = {
        (family.name, k): _Sums(published=published_batch is not None) for k, of in of_member.items() for family in of
    }
    products = {
        (family.name, pair): torch.zeros(family.n_each, family.n_units, family.n_units, dtype=torch.float64)
        for family, pair in jobs
    }
    outer = published_batch or len(images)
    for begin in range(0, len(images), outer):
        end = min(begin + outer, len(images))
        for start in range(begin, end, batch_size):
            batch = images[start : min(start + batch_size, end)]
            shifted = {
                k: _read(reader, states[k], batch, of, lambda name, values, k=k: sums[name, k].shifted(values))
                for k, of in of_member.items()
            }
            for family, (a, b) in jobs:
                left, right = shifted[a][family.name], shifted[b][family.name]
                total = products[family.name, (a, b)]
                # In the published estimator batches weigh the same, however many samples they have.
                share = (end - begin) * (len(left) // len(batch)) if published_batch else 1
                for rows_a, rows_b in zip(left.split(ROWS), right.split(ROWS), strict=True):
                    for channel in range(family.n_each):
                        product = rows_a[:, :, channel].T @ rows_b[:, :, channel]
                        # A few rows at a time: in one piece, torch would make a float64 copy of the whole product.
                        for first in range(0, family.n_units, CORRELATION_ROWS):
                            block = slice(first, first + CORRELATION_ROWS)
                            added = product[block]
                            total[channel, block] += added if share == 1 else added.double() / share
            del shifted
        if published_batch:
            for of_one in sums.values():
                of_one.close_batch()
    n_batches = -(-len(images) // published_batch) if published_batch else 0
    for family, (a, b) in jobs:
        product = products.pop((family.name, (a, b)))
        yield _correlate(family, (a, b), product, (sums[family.name, a], sums[family.name, b]), n_batches)


def _correlate(
    family: ObservedFamily,
    pair: tuple[int, int],
    product: Tensor,
    sums: tuple[_Sums, _Sums],
    n_batches: int,
) -> UnitCorrelations:
    """From sums to correlations; `product` is overwritten."""
    (mean_a, sd_a), (mean_b, sd_b) = (of_one.moments(n_batches) for of_one in sums)
    dead_a = _dead(mean_a, sd_a, sums[0])
    dead_b = _dead(mean_b, sd_b, sums[1])
    n = n_batches or sums[0].n_rows
    for channel in range(family.n_each):
        # A few rows at a time: an outer product of a wide axis takes as much memory as its correlations.
        for rows in torch.arange(family.n_units).split(CORRELATION_ROWS):
            block = product[channel, rows[0] : rows[-1] + 1]
            off_a, off_b = dead_a[rows, channel], dead_b[:, channel]
            block.div_(n).sub_(torch.outer(mean_a[rows, channel], mean_b[:, channel]))
            if n_batches:
                block /= torch.outer(sd_a[rows, channel], sd_b[:, channel]).add_(PUBLISHED_EPSILON)
            else:
                # Dividing a dead unit's row by 1 leaves it finite; it is then set to 0.
                block /= torch.where(off_a, 1.0, sd_a[rows, channel])[:, None]
                block /= torch.where(off_b, 1.0, sd_b[:, channel])[None, :]
            block[off_a, :] = 0
            block[:, off_b] = 0
        if channel:
            product[0] += product[channel]
    correlation = product[0]
    if family.n_each > 1:
        correlation = correlation.div_(family.n_each)
    return UnitCorrelations(family, pair, correlation.numpy(), dead_a.all(1).numpy(), dead_b.all(1).numpy())


def _dead(mean: Tensor, deviation: Tensor, sums: _Sums) -> Tensor:
    """Channels (n_units, n_each) bool whose spread float32 cannot tell from none, beside the scale of their axis."""
    shift = 0.0 if sums.shift is None else sums.shift
    scale = (deviation.square() + (mean + shift).square()).mean().sqrt()
    return deviation <= DEAD_SHARE * scale
