"""How a barrier falls with width, and how wide a network must be for it to fall below a threshold.

The law is b(w) = c w^-p + floor, with c and floor at least 0: barriers of wide networks vanish, or stop at a floor. It
is fitted by least squares, each width weighted by its inverse squared standard error. For a given p the best c and
floor are those of a straight line in w^-p, so only p is searched for: on a grid, then on finer ones around the best.

The law cannot hold at the narrow end, where a barrier has nowhere left to rise to. A width is saturated
- where its barrier reaches .8 of the highest that could be seen, if that is known (for accuracies: the accuracy of the
  endpoints less that of guessing), and so is every narrower one;
- where, from the narrowest on, barriers rise with width or stay: the run of widths of which none lies above the next by
  more than one standard error of their difference, with the one that ends the run.

Uncertainty is found by parametric resampling: the barriers that the law gives are blurred by each width's standard
error times Student's t with its degrees of freedom, and fitted again. Intervals are the central 95 % of what comes out
(in simulation they hold the true p and floor in .91-.97 of cases), and the share of resampled fits that miss their data
by as much as the real one tells whether the law describes them.

Which measured widths lie above and below the threshold needs no law: their own intervals say so. The law is asked only
where even the widest lies above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from tasks.science.statistics.jackknife import CONFIDENCE, UNDEFINED, Interval

MIN_WIDTHS = 4
"""Three widths fix c, p and floor, whatever they are: the fourth can disagree."""

SATURATED_SHARE = 0.8
EXPONENTS = (0.05, 8.0)
"""Between which p is searched."""

MAX_EXPONENT_RATIO = 4.0
"""An exponent whose interval's ends lie further apart than this factor is not known."""

MIN_FIT_PROBABILITY = 0.01
LEAST_ERROR_SHARE = 0.05
"""Standard errors below this share of the median are taken as that: pairs that agree by chance, or are all 0, would
else have all the weight."""

N_RESAMPLES = 1000
_N_COARSE, _N_FINE, _N_REFINEMENTS = 240, 21, 3

Word = Literal["between", "at most", "beyond", "never", "unsettled", "not identifiable"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Barriers:
    """Mean barriers by width, all of shape (n_widths,); widths ascend.

    `errors` are standard errors, each estimated with `degrees` of freedom; `ceilings` the highest barriers that could
    be seen, NaN or infinite where not known.

    Raises ValueError for shapes that differ, widths that do not ascend, and numbers that are not finite.
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
        """Without the first `start` widths."""
        return Barriers(*(getattr(self, name)[start:] for name in self.__dataclass_fields__))

    @property
    def reach(self) -> Array:
        """Half the width of each mean's 95 % interval."""
        return special.stdtrit(self.degrees, (1 + CONFIDENCE) / 2) * self.errors


@dataclass(frozen=True)
class WidthLaw:
    """c, p and floor with 95 % intervals; `c` is the barrier above the floor at width 1, so it moves with p.

    `needed` is the width where the law meets the threshold: infinite where it never does, NaN without a threshold.
    `fit_probability` is the share of resampled fits that miss their data by at least as much; `n_widths`
    counts those used.
    """

    c: Interval
    p: Interval
    floor: Interval
    needed: Interval
    fit_probability: float
    n_widths: int


@dataclass(frozen=True)
class Answer:
    """How wide a network must be for a barrier below the threshold.

    `between`: measured widths, the barrier above the threshold at `low` and below it from `high` on. `at most`: below
    it from `high` on, the narrowest width that was measured or the first that is not undecided. `beyond`: above it at
    the widest that was measured, and the law puts the width at `width`, between `low` and `high`. `never`: above it at
    the widest, and so is the law's floor. `unsettled`: the interval at the widest holds the threshold. `not
    identifiable`: above it at the widest, and there is no law to go on by; `reason` says why.
    """

    word: Word
    low: float = float("nan")
    high: float = float("nan")
    width: float = float("nan")
    reason: str = ""


def n_saturated(barriers: Barriers) -> int:
    """How many widths at the narrow end the law cannot hold for."""
    means, errors = barriers.means, barriers.errors
    high = np.flatnonzero(means >= SATURATED_SHARE * barriers.ceilings)
    by_ceiling = int(high[-1]) + 1 if len(high) else 0
    start = by_ceiling
    while start + 1 < len(means) and means[start] - means[start + 1] <= np.hypot(errors[start], errors[start + 1]):
        start += 1
    return start if start == by_ceiling else start + 1


def fit_width_law(barriers: Barriers, threshold: float | None, rng: np.random.Generator) -> WidthLaw | None:
    """The law of the widths below saturation; None where they are fewer than four, or none of them has a spread."""
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
    """How wide for a barrier below `threshold`: from all of `barriers`, and the `law` of those below saturation."""
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
    """Fitted laws, each field of shape (n_fits,); `misfit` is the weighted sum of squares that they leave."""

    c: Array
    p: Array
    floor: Array
    misfit: Array

    def at(self, widths: Array) -> Array:
        """(n_fits, n_widths)"""
        return self.c[:, None] * widths ** -self.p[:, None] + self.floor[:, None]

    def meets(self, threshold: float) -> Array:
        """The widths where the laws meet `threshold`, infinite where the floor is not below it."""
        room = threshold - self.floor
        with np.errstate(divide="ignore", invalid="ignore"):
            widths = (self.c / np.maximum(room, 0.0)) ** (1 / self.p)
        return np.where(room > 0, widths, np.inf)


def fit(widths: Array, values: Array, errors: Array) -> Fits:
    """The weighted least squares fit of every row of `values` (n_fits, n_widths), all of which have these `errors`.

    c and floor are at least 0, p lies within its bounds.
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
    """Slope, offset and weighted sum of squares left of the best line in x^-p, each (n_fits, n_exponents).

    `log_p` is (n_exponents,), the same for all fits, or (n_fits, n_exponents). Slope and offset are at least 0: where
    the free line breaks that, the best lies on a boundary, where one of them is 0.
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
    # Some value that was found, not one between two: of needed widths some are infinite.
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(resampled, ends, method="inverted_cdf")
    return Interval(float(best[0]), float(low), float(high))


def _range(interval: Interval) -> str:
    return f"from {interval.low:.2g} to {interval.high:.2g}"


def describe(found: Answer, what: str, threshold: str, widest: float) -> str:
    """`found` as a sentence: `what` falls below `threshold` at which width; `widest` is the widest measured."""
    low, high = (f"{width:.3g}" if width < 1 else f"{width:.0f}" for width in (found.low, found.high))
    if found.word == "between":
        return f"{what} falls below {threshold} between widths {low} and {high}, both measured."
    if found.word == "at most":
        return f"{what} is below {threshold} at width {high}, and nowhere narrower is it surely above."
    if found.word == "beyond":
        return (
            f"{what} is above {threshold} up to the widest network measured, of width {widest:.0f}; "
            f"the law that it follows puts the fall below {threshold} at width {found.width:.0f} [{low}, {high}]."
        )
    if found.word == "never":
        return f"{what} does not fall below {threshold} at any width, if the law that it follows goes on."
    if found.word == "unsettled":
        return (
            f"Whether {_lower(what)} is below {threshold} at the widest network measured, of width {widest:.0f}, its "
            "interval leaves open: more seeds there would tell."
        )
    return f"How wide a network must be for {_lower(what)} below {threshold} cannot be told: {found.reason}."


def _lower(what: str) -> str:
    return what[0].lower() + what[1:]
