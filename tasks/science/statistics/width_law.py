"""Power law of a barrier in the width, and the width at which a barrier falls below a threshold.

The law is b(w) = c w^-p + floor, with c and floor at least 0: barriers of wide networks vanish, or stop at a floor. It
is fitted by least squares, each width weighted by its inverse squared standard error. For a given p the best c and
floor are those of a straight line in w^-p, so only p is searched: on a grid, then on finer grids around the best.

The law cannot hold for narrow networks whose barrier is as high as it can be. These widths are saturated:
- every width up to the widest whose barrier reaches .8 of its ceiling, if the ceiling is known (for accuracies: the
  accuracy of the endpoints less that of guessing);
- from there on, the run of widths whose barrier exceeds the next one's by no more than one standard error of their
  difference, and the width that ends the run.

Intervals come from the parametric bootstrap: noise of each width's standard error times Student's t with its degrees of
freedom is added to the barriers of the fitted law, and the law is fitted again. They are the central 95 % of these
fits, and in simulation hold the true p and floor in .91-.97 of cases. The share of these fits whose misfit is at least
that of the data tells whether the law describes the data.

The intervals of measured widths say which of them lie above or below the threshold. The law is used only if even the
widest lies above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from tasks.science.statistics.jackknife import CONFIDENCE, UNDEFINED, Interval

MIN_WIDTHS = 4
"""Fewest widths with a law: three always fit, so only a fourth can disagree."""

SATURATED_SHARE = 0.8
EXPONENTS = (0.05, 8.0)
"""Bounds of p."""

MAX_EXPONENT_RATIO = 4.0
"""Largest ratio of the ends of the interval of p at which p counts as known."""

MIN_FIT_PROBABILITY = 0.01
LEAST_ERROR_SHARE = 0.05
"""Smallest standard error, as a share of the median: pairs that agree by chance, or are all 0, would otherwise have all
the weight."""

N_RESAMPLES = 1000
_N_COARSE, _N_FINE, _N_REFINEMENTS = 240, 21, 3

AnswerKind = Literal["between", "at most", "beyond", "never", "unsettled", "not identifiable"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Barriers:
    """Mean barriers by width, all of shape (n_widths,); widths ascend.

    `errors` are standard errors, each estimated with `degrees` of freedom; `ceilings` are the highest possible
    barriers, NaN or infinite if unknown. Raises ValueError for shapes that differ, widths that do not ascend, and
    numbers that are not finite.
    """

    widths: Array
    means: Array
    errors: Array
    degrees: Array
    ceilings: Array

    def __post_init__(self) -> None:
        fields = (self.widths, self.means, self.errors, self.degrees, self.ceilings)
        if self.widths.ndim != 1 or len({field.shape for field in fields}) > 1:
            raise ValueError(f"every field needs one value per width, got shapes {[field.shape for field in fields]}")
        if (np.diff(self.widths) <= 0).any():
            raise ValueError(f"widths must ascend, got {self.widths.tolist()}")
        if not np.isfinite(np.concatenate(fields[:4])).all() or (self.errors < 0).any():
            raise ValueError("every width needs a finite mean and a standard error of at least 0: leave out the others")

    def beyond(self, start: int) -> Barriers:
        """Return the barriers without the first `start` widths."""
        return Barriers(*(getattr(self, name)[start:] for name in self.__dataclass_fields__))

    @property
    def reach(self) -> Array:
        """Half the width of each mean's 95 % interval."""
        return special.stdtrit(self.degrees, (1 + CONFIDENCE) / 2) * self.errors


@dataclass(frozen=True)
class WidthLaw:
    """A fitted law: c, p and floor with 95 % intervals.

    `c` is the barrier above the floor at width 1, so its error is tied to that of p. `needed` is the width where the
    law meets the threshold: infinite if it never does, NaN without a threshold. `fit_probability` is the share of
    bootstrap fits with at least the misfit of this one; `n_widths` counts the widths used.
    """

    c: Interval
    p: Interval
    floor: Interval
    needed: Interval
    fit_probability: float
    n_widths: int


@dataclass(frozen=True)
class Answer:
    """The width that a network needs for a barrier below the threshold.

    `between`: above the threshold at the measured width `low`, below it from the measured width `high` on. `at most`:
    below it from the measured width `high` on, and surely above it at no narrower one. `beyond`: above it at the widest
    measured, and the law puts the width at `width`, between `low` and `high`. `never`: above it at the widest, and so
    is the law's floor. `unsettled`: the interval at the widest holds the threshold. `not identifiable`: above it at the
    widest, and the law is unknown; `reason` says why.
    """

    kind: AnswerKind
    low: float = float("nan")
    high: float = float("nan")
    width: float = float("nan")
    reason: str = ""


def n_saturated(barriers: Barriers) -> int:
    """Return the number of saturated widths, all at the narrow end."""
    means, errors = barriers.means, barriers.errors
    high = np.flatnonzero(means >= SATURATED_SHARE * barriers.ceilings)
    by_ceiling = int(high[-1]) + 1 if len(high) else 0
    start = by_ceiling
    while start + 1 < len(means) and means[start] - means[start + 1] <= np.hypot(errors[start], errors[start + 1]):
        start += 1
    return start if start == by_ceiling else start + 1


def fit_width_law(barriers: Barriers, threshold: float | None, rng: np.random.Generator) -> WidthLaw | None:
    """Fit the law to the widths below saturation; None if they are fewer than four, or all errors are 0."""
    used = barriers.beyond(n_saturated(barriers))
    if len(used.widths) < MIN_WIDTHS or not used.errors.any():
        return None
    errors = np.maximum(used.errors, LEAST_ERROR_SHARE * np.median(used.errors[used.errors > 0]))
    best = fit(used.widths, used.means[None], errors)
    noise = rng.standard_t(used.degrees, (N_RESAMPLES, len(errors))) * errors
    resampled = fit(used.widths, best.at(used.widths) + noise, errors)
    return WidthLaw(
        c=_interval(best.c, resampled.c),
        p=_interval(best.p, resampled.p),
        floor=_interval(best.floor, resampled.floor),
        needed=UNDEFINED if threshold is None else _interval(best.meets(threshold), resampled.meets(threshold)),
        fit_probability=float((resampled.misfit >= best.misfit).mean()),
        n_widths=len(errors),
    )


def answer(barriers: Barriers, threshold: float, law: WidthLaw | None) -> Answer:
    """Return the width needed for a barrier below `threshold`, from all `barriers` and their `law`."""
    widths = barriers.widths
    if not len(widths):
        return Answer("not identifiable", reason="no width has an interval, which takes three seeds")
    above = np.flatnonzero(barriers.means - barriers.reach > threshold)
    not_below = np.flatnonzero(barriers.means + barriers.reach >= threshold)
    first_below = int(not_below[-1]) + 1 if len(not_below) else 0
    if first_below < len(widths):
        high = float(widths[first_below])
        return Answer("between", float(widths[above[-1]]), high) if len(above) else Answer("at most", high=high)
    if not len(above) or above[-1] != len(widths) - 1:
        return Answer("unsettled", low=float(widths[above[-1]]) if len(above) else float("nan"))
    if law is None:
        n_used = len(widths) - n_saturated(barriers)
        few = f"{n_used} of {len(widths)} widths are below saturation, and the law needs {MIN_WIDTHS}"
        return Answer("not identifiable", reason=few if n_used < MIN_WIDTHS else "no width has a spread")
    if law.fit_probability < MIN_FIT_PROBABILITY:
        return Answer("not identifiable", reason="no power law with a floor describes these barriers")
    if law.floor.low > threshold:
        return Answer("never")
    if not (EXPONENTS[0] < law.p.low and law.p.high < min(EXPONENTS[1], MAX_EXPONENT_RATIO * law.p.low)):
        return Answer("not identifiable", reason=f"the exponent may be anything {_range(law.p)}")
    if law.floor.high >= threshold or not np.isfinite(law.needed.high):
        return Answer("not identifiable", reason=f"the floor may be anything {_range(law.floor)}")
    return Answer("beyond", law.needed.low, law.needed.high, law.needed.mean)


@dataclass(frozen=True)
class Fits:
    """Fitted laws, each field of shape (n_fits,); `misfit` is the weighted residual sum of squares."""

    c: Array
    p: Array
    floor: Array
    misfit: Array

    def at(self, widths: Array) -> Array:
        """Return the barriers at `widths`, shape (n_fits, n_widths)."""
        return self.c[:, None] * widths ** -self.p[:, None] + self.floor[:, None]

    def meets(self, threshold: float) -> Array:
        """Return the widths where the laws meet `threshold`, infinite where the floor is not below it."""
        room = threshold - self.floor
        with np.errstate(divide="ignore", invalid="ignore"):
            widths = (self.c / np.maximum(room, 0.0)) ** (1 / self.p)
        return np.where(room > 0, widths, np.inf)


def fit(widths: Array, values: Array, errors: Array) -> Fits:
    """Fit a law to every row of `values`, shape (n_fits, n_widths), by weighted least squares.

    All rows have the same `errors`; c and floor are at least 0, and p lies within its bounds.
    """
    unit = float(np.exp(np.log(widths).mean()))
    x, weights = widths / unit, errors**-2.0
    low, high = np.log(EXPONENTS)
    grid = np.linspace(low, high, _N_COARSE)
    step = float(grid[1] - grid[0])
    best = grid[_lines(x, values, weights, grid)[2].argmin(1)]
    for _ in range(_N_REFINEMENTS):
        around = np.clip(best[:, None] + np.linspace(-step, step, _N_FINE), low, high)
        chosen = _lines(x, values, weights, around)[2].argmin(1)
        best = around[np.arange(len(best)), chosen]
        step *= 2 / (_N_FINE - 1)
    c, floor, misfit = (of[:, 0] for of in _lines(x, values, weights, best[:, None]))
    p = np.exp(best)
    return Fits(c * unit**p, p, floor, misfit)


def _lines(x: Array, values: Array, weights: Array, log_p: Array) -> tuple[Array, Array, Array]:
    """Return slope, offset and weighted residual sum of squares of the best line in x^-p, each (n_fits, n_exponents).

    `log_p` is (n_exponents,), the same for all fits, or (n_fits, n_exponents). Slope and offset are at least 0: if the
    unconstrained line has a negative one, the best line has one of them at 0.
    """
    basis = x ** -np.exp(log_p)[..., None]
    terms = "ekn,en->ek" if basis.ndim == 3 else "kn,en->ek"
    share = weights / weights.sum()
    mean_x, mean_xx = basis @ share, np.square(basis) @ share
    mean_y, mean_yy = (values @ share)[:, None], (np.square(values) @ share)[:, None]
    mean_xy = np.einsum(terms, basis, values * share)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (mean_xy - mean_x * mean_y) / (mean_xx - np.square(mean_x))
    offset = mean_y - slope * mean_x
    without_offset, without_slope = np.maximum(mean_xy / mean_xx, 0), np.maximum(mean_y, 0)

    def left(slope: Array, offset: Array | float) -> Array:
        square = mean_yy - 2 * slope * mean_xy - 2 * offset * mean_y + np.square(slope) * mean_xx
        return square + 2 * slope * offset * mean_x + np.square(offset)

    free = (slope >= 0) & (offset >= 0)
    steep = left(without_offset, 0.0) <= left(np.zeros_like(slope), without_slope)
    slope = np.where(free, slope, np.where(steep, without_offset, 0.0))
    offset = np.where(free, offset, np.where(steep, 0.0, without_slope))
    return slope, offset, np.maximum(left(slope, offset), 0.0) * weights.sum()


def _interval(best: Array, resampled: Array) -> Interval:
    # No interpolation between two values: some needed widths are infinite.
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(resampled, ends, method="inverted_cdf")
    return Interval(float(best[0]), float(low), float(high))


def _range(interval: Interval) -> str:
    return f"from {interval.low:.2g} to {interval.high:.2g}"


def answer_sentence(found: Answer, what: str, threshold: str, widest: float) -> str:
    """Return `found` as a sentence: the width at which `what` falls below `threshold`, `widest` being measured."""
    low, high = (f"{width:.3g}" if width < 1 else f"{width:.0f}" for width in (found.low, found.high))
    if found.kind == "between":
        return f"{what} falls below {threshold} between widths {low} and {high}, both measured."
    if found.kind == "at most":
        return f"{what} is below {threshold} at width {high}, and at no narrower width is it surely above."
    if found.kind == "beyond":
        return (
            f"{what} is above {threshold} up to the widest network measured, of width {widest:.0f}; "
            f"the fitted law falls below {threshold} at width {found.width:.0f} [{low}, {high}]."
        )
    if found.kind == "never":
        return f"{what} does not fall below {threshold} at any width, if the fitted law holds for wider networks."
    if found.kind == "unsettled":
        return (
            f"{what} may lie on either side of {threshold} at the widest network measured, of width {widest:.0f}: its "
            "interval contains it, and more seeds there would tell."
        )
    return f"The width at which {what[0].lower()}{what[1:]} falls below {threshold} cannot be told: {found.reason}."
