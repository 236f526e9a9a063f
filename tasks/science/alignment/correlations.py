"""Correlations between the units of endpoints, from one pass over the samples: exact, or by the authors' estimator."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.science.alignment.reading import Key, ObservedFamily, Reader, keyed_readings
from tasks.science.evaluation.moments import (
    BLOCK_ROWS,
    CENTERED_VALUES,
    Moments,
    RunningMoments,
    RunningProducts,
    covariances,
)
from tasks.science.specs.state import State
from tasks.science.symmetry.permutation import Reading

PUBLISHED_EPSILON = 1e-4
"""The authors add it to the product of two standard deviations."""

EndpointFamily = tuple[str, int]
"""A family, by name, in an endpoint, by its position."""

Job = tuple[ObservedFamily, tuple[int, int]]
"""A family and the pair of endpoints in which its units are correlated."""


class States(Protocol):
    """The weights of endpoints by position: a list, or an object that reads them when they are asked for."""

    def __getitem__(self, index: int, /) -> State: ...


@dataclass(frozen=True)
class UnitCorrelations:
    """Correlations between the units of one family in one pair of endpoints A and B.

    `correlations` (n_units, n_units) float64: entry i, j is the correlation of A's unit i with B's unit j, 0 where
    either is dead. `dead_a`, `dead_b` (n_units,) bool.
    """

    family: ObservedFamily
    pair: tuple[int, int]
    correlations: NDArray[np.float64]
    dead_a: NDArray[np.bool_]
    dead_b: NDArray[np.bool_]


@dataclass(frozen=True)
class Sizes:
    """Sizes of one pass over the images.

    `batch_size` counts images per forward pass. By family: the activations `seen` of one image, the bytes of the
    activations of a batch in one endpoint, and the bytes of the sums of products of one pair.
    """

    batch_size: int
    seen: Mapping[str, Tensor]
    activation_bytes: Mapping[str, int]
    product_bytes: Mapping[str, int]

    def n_samples(self, name: str, n_images: int) -> int:
        """Return how many samples so many images give."""
        return len(self.seen[name]) * n_images

    def of_activations(self, members: Collection[EndpointFamily]) -> int:
        """Return the bytes of the activations of so many families and endpoints."""
        return sum(self.activation_bytes[name] for name, _ in members)


@dataclass(frozen=True)
class Sums:
    """Sums over some images: moments of every reading of a family in an endpoint, and products of every job."""

    moments: dict[EndpointFamily, list[RunningMoments]]
    products: dict[tuple[str, tuple[int, int]], RunningProducts]

    def of(self, member: EndpointFamily) -> RunningMoments:
        """Return the moments of all units of a family."""
        return RunningMoments.joined(self.moments[member])


class OnePass:
    """A pass for `jobs`: the weights of its endpoints, and room for their activations of one batch."""

    def __init__(self, reader: Reader, states: States, jobs: Sequence[Job], sizes: Sizes) -> None:
        self.jobs = jobs
        self._reader, self._sizes = reader, sizes
        self._families: dict[int, dict[str, ObservedFamily]] = {}
        for family, pair in jobs:
            for k in pair:
                self._families.setdefault(k, {})[family.name] = family
        self._states = {k: reader.prepare(states[k]) for k in self._families}
        self._room = {
            (name, k): seen.new_empty(sizes.n_samples(name, sizes.batch_size), seen.shape[1])
            for k, families in self._families.items()
            for name, seen in sizes.seen.items()
            if name in families
        }
        widest = max(seen.shape[1] for seen in sizes.seen.values())
        self._scratch = {seen.dtype: seen.new_empty(max(CENTERED_VALUES, widest)) for seen in sizes.seen.values()}

    def add_up(self, images: Tensor, like: Sums | None = None) -> Sums:
        """Return the sums of all jobs over all of `images`, about the same origins as those `like` them."""
        moments = {
            (name, k): [
                RunningMoments(like and like.moments[name, k][i].origin)
                for i in range(len(self._families[k][name].readings))
            ]
            for name, k in self._room
        }
        sums = Sums(moments, {(family.name, pair): RunningProducts(family.n_each) for family, pair in self.jobs})
        for batch in images.split(self._sizes.batch_size):
            for k in self._families:
                self._read(k, batch, sums)
            for family, (a, b) in self.jobs:
                n_samples = self._sizes.n_samples(family.name, len(batch))
                left, right = (self._room[family.name, k][:n_samples] for k in (a, b))
                sums.products[family.name, (a, b)].add(left, right)
        return sums

    def _read(self, k: int, batch: Tensor, sums: Sums) -> None:
        """Run one endpoint: count in its activations and leave them, less their origins, in its room."""
        families = self._families[k]

        def receive(key: Key, values: Tensor) -> None:
            name, i = key
            _check_samples(families[name].readings[i], values, self._sizes.n_samples(name, 1), len(batch))
            into = self._room[name, k][: len(values), families[name].channels[i]]
            sums.moments[name, k][i].center(values, into, self._scratch[values.dtype])

        self._reader.visit(self._states[k], batch, keyed_readings(list(families.values())), receive)


def _check_samples(reading: Reading, values: Tensor, n_each: int, n_images: int) -> None:
    """ValueError where a batch does not give `n_each` samples per image."""
    if len(values) != n_each * n_images:
        raise ValueError(
            f"{reading.module or reading.node} gives {len(values)} samples of a batch of {n_images} images, where one "
            f"image gives {n_each}: how the forward pass computes a batch depends on its size, so that units cannot be "
            "observed on every image; let it compute a batch at once, or take matcher weight"
        )


def exact_correlations(one_pass: OnePass, images: Tensor) -> Iterator[UnitCorrelations]:
    """Yield the correlations of every job over all samples at once."""
    jobs, sums = one_pass.jobs, one_pass.add_up(images)
    # What comes next, the assignment above all, needs the memory.
    del one_pass
    for family, pair in jobs:
        a, b = (sums.of((family.name, k)) for k in pair)
        found = covariances(sums.products.pop((family.name, pair)).mean(), a.offset, b.offset)
        yield _correlate(family, pair, found, a.result(), b.result())


def published_correlations(one_pass: OnePass, images: Tensor, batch_size: int) -> Iterator[UnitCorrelations]:
    """Yield the correlations of every job by the authors' estimator, over batches of so many images.

    It averages over batches, which weigh the same: (E[ab] - E[a] E[b]) / (sd_a sd_b + 1e-4), from the averages of their
    mean products, of their means, and of their unbiased standard deviations.
    """
    jobs, batches = one_pass.jobs, images.split(batch_size)
    products: dict[tuple[str, tuple[int, int]], Tensor] = {}
    averages: dict[EndpointFamily, Tensor] = {}
    sums = None
    for batch in batches:
        sums = one_pass.add_up(batch, like=sums)
        for member in sums.moments:
            found = sums.of(member)
            added = torch.stack([found.offset, found.result().mean, found.unbiased_sd()])
            averages[member] = added + averages.get(member, 0.0)
        for job, product in sums.products.items():
            products[job] = product.mean().add_(products.get(job, 0.0))
    del one_pass
    for family, pair in jobs:
        (offset_a, *a), (offset_b, *b) = (averages[family.name, k] / len(batches) for k in pair)
        found = covariances(products.pop((family.name, pair)).div_(len(batches)), offset_a, offset_b)
        yield _correlate(family, pair, found, Moments(*a), Moments(*b), epsilon=PUBLISHED_EPSILON)


def _correlate(
    family: ObservedFamily,
    pair: tuple[int, int],
    found: Tensor,
    a: Moments,
    b: Moments,
    epsilon: float | None = None,
) -> UnitCorrelations:
    """Return correlations, written over the covariances `found` (n_each, n_units, n_units).

    `epsilon` is added to the product of standard deviations.
    """
    (dead_a, dead_b), (sds_a, sds_b) = (
        [of_one.view(-1, family.n_each) for of_one in of_both] for of_both in ((a.dead(), b.dead()), (a.sd, b.sd))
    )
    for channel, of_channel in enumerate(found):
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
            found[0] += of_channel
    correlations = found[0].div_(family.n_each)
    dead = (off.all(1).cpu().numpy() for off in (dead_a, dead_b))
    return UnitCorrelations(family, pair, correlations.cpu().numpy(), *dead)
