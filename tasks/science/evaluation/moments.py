"""Means, standard deviations and covariances of units over samples, added up batch by batch.

Sums are float64, stay on the device of the values, and are taken about an origin per unit: the mean of the values shown
first. That keeps the cancellation in E[x^2] - E[x]^2 harmless, and lets values be multiplied in float32 without losing
the digits that a large mean would take.

A batch is summed in its own type, by the kernel that is fastest for its layout in memory:

- `RunningMoments.add`, for units along any dimension: BatchNorm's own, 4 to 10 times as fast as torch.var_mean (one
  thread of an AMD EPYC, torch 2.14). It returns the moments of the batch too.
- `RunningMoments.center`, for units along the last dimension: sums over rows. It leaves values less their origin, which
  products need.
- `RunningMoments.add_parts`: the moments of parts that were measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DEAD_SHARE = 1e-6
"""A unit is dead where its standard deviation is below this share of the root mean square of its layer's, or axis',
values: float32 cannot tell it from a constant."""

CENTERED_VALUES = 2**18
"""Values centered at a time: few enough to stay in a cache."""

LONGEST_SUM = 2**14
"""Samples whose products are summed in the type of the values; more are added up in float64."""

BLOCK_ROWS = 512
"""Rows of a matrix of covariances worked on at a time, where a temporary copy of all of them would count."""

_MOST_WAITING = 64
"""Parts whose moments are counted in at a time."""

_PART = 4096
"""Values per unit that BatchNorm's kernel sums in their own type. With channels innermost torch adds them one after
another: sums of 500,000 float32 values near 1000 are off by .4 %, those of 4,096 by 2e-6."""


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (n_units,) of units over samples."""

    mean: Tensor
    sd: Tensor

    def reorder(self, indices: Tensor) -> Moments:
        """Return the moments of the permuted network, whose position i holds unit indices[i]."""
        return Moments(self.mean[indices], self.sd[indices])

    def dead(self) -> Tensor:
        """Return which units (n_units,) bool have no spread that float32 can tell beside the scale of their layer."""
        scale = (self.mean.square() + self.sd.square()).mean().sqrt()
        return self.sd <= DEAD_SHARE * scale


class RunningMoments:
    """Sums of units' values and of their squares over the samples shown so far.

    `origin` is the mean of the first values, or that of earlier samples where it is given: then sums are about the mean
    of the first values all the same, so that a unit which is constant in these samples has no spread in them.
    """

    def __init__(self, origin: Tensor | None = None) -> None:
        self._n = 0
        self._origin = origin
        self._start: Tensor | None = None
        self._sums = torch.zeros(())
        self._waiting: list[tuple[int, Tensor, Tensor]] = []

    @staticmethod
    def joined(parts: Sequence[RunningMoments]) -> RunningMoments:
        """Return the moments of the units of all `parts`, one part after the other, over the same samples."""
        whole = RunningMoments(torch.cat([part.origin for part in parts]))
        starts = [part._start for part in parts if part._start is not None]
        whole._start = torch.cat(starts) if starts else None
        whole._sums = torch.cat([part._sums for part in parts], dim=1)
        whole._n = parts[0].n_samples
        return whole

    def add(self, values: Tensor, dim: int) -> RunningMoments:
        """Count in `values`, whose units lie along `dim`, and return the moments of these values alone."""
        if dim % values.ndim != 1:
            values = values.movedim(dim, -1).reshape(-1, values.shape[dim])
        per_row = values[0, 0].numel()
        parts = [
            (len(rows) * per_row, *torch.batch_norm_update_stats(rows, None, None, 0.0))
            for rows in values.split(max(1, _PART // per_row))
        ]
        batch = RunningMoments()
        for running in (self, batch):
            running._waiting += parts
        if len(self._waiting) > _MOST_WAITING:
            self._settle()
        return batch

    def add_parts(self, counts: Sequence[int], means: Tensor, variances: Tensor) -> None:
        """Count in parts of so many samples each, by their means and biased variances (n_parts, n_units)."""
        means = means.double()
        if not self._n:
            self._begin(means[0])
        weights = torch.tensor(counts, dtype=torch.float64, device=means.device)[:, None]
        drifts = means - self.origin
        if self._start is not None:
            drifts -= self._start
        self._sums[0] += (weights * drifts).sum(0)
        self._sums[1] += (weights * (variances + drifts.square())).sum(0)
        self._n += sum(counts)

    def center(self, values: Tensor, into: Tensor | None = None, scratch: Tensor | None = None) -> Tensor:
        """Count in `values` (n_samples, n_units) and return them less the origin.

        The result is written `into` a tensor that the caller keeps, if given. `scratch`, of at least n_units values, is
        room for work.
        """
        n_units = values.shape[1]
        into = torch.empty_like(values) if into is None else into
        scratch = values.new_empty(max(CENTERED_VALUES, n_units)) if scratch is None else scratch
        if not self.n_samples:
            self._begin(values.mean(0))
        origin, step = self.origin, len(scratch) // n_units
        sums = values.new_empty(2, n_units)
        total, squares = sums
        for rows, centered in zip(values.split(step), into.split(step), strict=True):
            counted, spare = torch.sub(rows, origin, out=centered), scratch[: rows.numel()].view(rows.shape)
            if self._start is not None:
                counted = torch.sub(centered, self._start, out=spare)
            torch.sum(counted, 0, out=total)
            torch.sum(torch.square(counted, out=spare), 0, out=squares)
            self._sums.add_(sums)
        self._n += len(values)
        return into

    def _begin(self, mean: Tensor) -> None:
        """Begin sums about the `mean` of the first values."""
        self._sums = torch.zeros(2, len(mean), dtype=torch.float64, device=mean.device)
        if self._origin is None:
            self._origin = mean
        else:
            self._start = mean - self._origin

    def _settle(self) -> None:
        """Count in the batches that wait: all at once, for each alone would cost more than its kernel."""
        if self._waiting:
            counts, means, variances = zip(*self._waiting, strict=True)
            self._waiting = []
            self.add_parts(counts, torch.stack(means), torch.stack(variances))

    @property
    def n_samples(self) -> int:
        """Samples shown so far."""
        self._settle()
        return self._n

    @property
    def origin(self) -> Tensor:
        """Values (n_units,) that `center` takes off. ValueError before there is a sample."""
        self._settle()
        if self._origin is None:
            raise ValueError("there are no samples to take moments of")
        return self._origin

    @property
    def offset(self) -> Tensor:
        """Mean less the origin (n_units,) float64."""
        offset = self._sums[0] / self.n_samples
        return offset if self._start is None else offset + self._start

    def result(self) -> Moments:
        """Return the moments (n_units,) float64 of all samples."""
        origin = self.origin
        mean, square = self._sums / self._n
        offset = mean if self._start is None else mean + self._start
        return Moments(offset + origin, (square - mean.square()).clamp_min(0).sqrt())

    def unbiased_sd(self) -> Tensor:
        """Return the unbiased standard deviation (n_units,). ValueError for a single sample, which has none."""
        if self.n_samples < 2:
            raise ValueError("a batch of a single sample has no deviation; choose another size of batch")
        mean = self._sums[0] / self._n
        squares = self._sums[1] - self._n * mean.square()
        return (squares / (self._n - 1)).clamp_min(0).sqrt()


class RunningProducts:
    """Sums over samples of the products of A's units with B's, (n_each, n_units, n_units), both less their origins.

    A unit may have `n_each` channels, side by side. Products are summed in the type of the values over `LONGEST_SUM`
    samples, beyond that in float64.
    """

    def __init__(self, n_each: int = 1) -> None:
        self.n_samples = 0
        self._n_each = n_each
        self._near: Tensor | None = None
        self._far: Tensor | None = None
        self._n_near = 0

    def add(self, left: Tensor, right: Tensor) -> None:
        """Count in samples of A and B, (n_samples, n_units * n_each), as `RunningMoments.center` returns them."""
        if self._near is None:
            n_units = left.shape[1] // self._n_each
            self._near = left.new_zeros(self._n_each, n_units, n_units)
        for rows_a, rows_b in zip(left.split(LONGEST_SUM), right.split(LONGEST_SUM), strict=True):
            if self._n_near + len(rows_a) > LONGEST_SUM:
                self._fold(self._near)
            for channel, near in enumerate(self._near):
                near.addmm_(rows_a[:, channel :: self._n_each].T, rows_b[:, channel :: self._n_each])
            self._n_near += len(rows_a)
        self.n_samples += len(left)

    def _fold(self, near: Tensor) -> None:
        """Add the sums in the type of the values to those in float64."""
        if self._far is None:
            self._far = torch.zeros_like(near, dtype=torch.float64)
        # A few rows at a time: in one piece, torch would make a float64 copy of all of them.
        for far_rows, near_rows in zip(self._far.split(BLOCK_ROWS, 1), near.split(BLOCK_ROWS, 1), strict=True):
            far_rows += near_rows
        near.zero_()
        self._n_near = 0

    def mean(self) -> Tensor:
        """Return the mean products in float64; the sums are handed over and not kept."""
        if self._near is None:
            raise ValueError("there are no samples to take products of")
        if self._far is not None and self._n_near:
            self._fold(self._near)
        sums = self._near.double() if self._far is None else self._far
        self._near = self._far = None
        return sums.div_(self.n_samples)


def covariances(products: Tensor, offset_a: Tensor, offset_b: Tensor) -> Tensor:
    """Return the covariances of A's units with B's, written over their mean `products` (n_each, n_units, n_units).

    The offsets (n_units * n_each,) are those of the means from the origins.
    """
    offsets_a, offsets_b = (offset.view(-1, len(products)) for offset in (offset_a, offset_b))
    for channel, product in enumerate(products):
        # An outer product of a wide axis in one piece takes as much memory as its covariances.
        for rows, offsets in zip(product.split(BLOCK_ROWS), offsets_a[:, channel].split(BLOCK_ROWS), strict=True):
            rows -= torch.outer(offsets, offsets_b[:, channel])
    return products
