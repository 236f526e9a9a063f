"""Columns of what is computed from measurements: means with intervals, verdicts, contrasts and width laws."""

from __future__ import annotations

from tasks.tables.columns import CORRECTION, MATCHER, MEASUREMENT, METRIC, SPLIT, boolean, integer, real, text

MEAN_OVER_PAIRS = {"mean": real("Mean over all pairs of the cell.")}

INTERVAL = {
    "low": real(
        "Lower end of the mean's 95 % interval: delete-one-seed jackknife, Student's t on `n_seeds` - 1; null below 3 "
        "seeds. If pairs lie across two halves, the halves are two samples whose variances add, with t on "
        "`n_seeds` - 2, and no interval below 2 seeds of each."
    ),
    "high": real("Upper end of the mean's 95 % interval."),
}

NEW_PAIR = {
    "new_pair_low": real(
        "Lower end of the 95 % prediction interval of one more pair of two new seeds, which a figure of a single pair, "
        "such as a published one, is to be judged by. From the fit y_ij = m + a_i + a_j + e_ij it is m ± t(n - 1) "
        "√(se² + 2 s_a² + s_e²), with `se` the jackknife's and the variances by Henderson's method 3, which allows "
        "for missing pairs; if pairs lie across two halves, each has its own variance, with t(n - 2). It is not "
        "clipped to the range of the metric. Null for reductions, which are ratios of means and not defined for one "
        "pair; below 4 seeds; and if so many pairs are missing that the variances cannot be separated."
    ),
    "new_pair_high": real("Upper end of the same interval."),
}

COUNTS = {
    "n_seeds": integer("Number of seeds that the mean is over."),
    "n_pairs": integer("Number of pairs that the mean is over."),
    "n_diverged": integer("Endpoints of the cell that were left out because they diverged."),
    "n_untrained": integer("Endpoints of the cell that were left out because they had not learned."),
}

PUBLISHED_POINT = {
    "point": text("The published figure, as in `mnist/mlp/none/w32/d11/aligned+repair`."),
    "method": text("The authors' method."),
    "matcher": text("The matcher that it is compared with: `activation` if they aligned, else `none`."),
    "correction": text(
        "The correction that it is compared with: `none`, `reset`, `repair`, `repair-closed-form`, or `repair-block` "
        "for their `repair_block` and `repair_plus`."
    ),
}

PUBLISHED = {
    "published": real("The authors' value."),
    "published_recipe": text(
        "The one of our recipes (docs/recipes.md) that made it, or our guess; null if it cannot even be guessed."
    ),
    "published_recipe_known": boolean("True if that recipe is known, false if it is a guess."),
}

VERDICT = {
    "difference": real("Ours minus theirs."),
    "verdict": text(
        "The first of these that holds; null for losses.\n"
        "`not run`: no pair of ours was measured.\n"
        "`unconverged`: their endpoints had not learned.\n"
        "`other recipe`: ours were trained by another recipe. Recipes are the same if all fields are equal except the "
        "name, `precision` and `skip_nonfinite`: theirs trained in float16 under a gradient scaler, which skips steps, "
        "and a CPU can do neither. MLPs of width 2048 and more on Fashion-MNIST were visibly trained by another recipe "
        "than smaller ones, and it is not known which.\n"
        "`other measurement`: statistics came from fewer images than the train split has, accuracy from fewer than "
        "the split has, or it is flip-averaged. Endpoints and the direct path need no statistics; alphas and draws do "
        "not matter.\n"
        "`uninformative`: the prediction interval is wider than 10 points to either side, or there is none. This holds "
        "on whichever side of it the figure lies: otherwise wide intervals would count only where they fail.\n"
        "`inside`, `outside`: their figure lies inside the prediction interval of a new pair, bounds included, or "
        "outside."
    ),
}

SOURCE = {"source": text("The saved object."), "note": text("Known doubts about the figure.")}

CONTRAST = (
    {"other_cell_id": text("The cell of the other; within a cell the same.")}
    | MATCHER
    | {"other_matcher": text("The matcher of the other.")}
    | CORRECTION
    | {"other_correction": text("The correction of the other.")}
    | MEASUREMENT
    | SPLIT
    | METRIC
    | {
        "factor": text(
            "The factor in which the two differ: `matcher`, `correction`, `path` (both), or the factor of the cells. "
            "*This* has the smaller width, depth or epoch, the end of training (`last`) being the largest; for other "
            "factors `none` comes first, then alphabetical order."
        ),
        "value": text("The factor's value of *this*."),
        "other_value": text("The factor's value of the other."),
        "difference": real("Mean of the other less mean of this: below 0 the other has the lower barrier."),
        "low": real(
            "Lower end of the difference's 95 % interval. Within a cell, and between two epochs, over the pairs that "
            "both have: jackknife that drops a seed from both. Across other cells: the two variances add, Student's t "
            "with Welch and Satterthwaite's degrees of freedom. Null below 3 seeds on either side."
        ),
        "high": real("Upper end of the difference's 95 % interval."),
        "n_seeds": integer(
            "Number of seeds that the mean of *this* is over; within a cell and between two epochs, of the pairs that "
            "both have."
        ),
        "other_n_seeds": integer("The same for the other."),
        "n_pairs": integer("Number of pairs that the mean of *this* is over, under the same restriction."),
        "other_n_pairs": integer("The same for the other."),
    }
)

SERIES_ID = {
    "series_id": text("Identity of what the cells share: data, architecture, normalization, depth and recipe.")
}

_LAW = {
    "c": "The barrier above the floor at width 1, far from the measured widths, in the unit of the barrier.",
    "p": "The exponent of its fall.",
    "floor": "The limit that it falls to, in the unit of the barrier.",
}
_RESAMPLED = (
    "Lower end of its interval: the central 95 % of 1000 fits to barriers drawn around the law (parametric bootstrap, "
    "Student's t with each width's own degrees of freedom); null with fewer than 4 widths below saturation."
)

WIDTH_LAW = {
    f"{name}{end}": real(meaning)
    for name, told in _LAW.items()
    for end, meaning in (("", told), ("_low", _RESAMPLED), ("_high", "Upper end of the same interval."))
} | {
    "fit_probability": real(
        "Share of these fits with at least the misfit of the fit to the data: near 0 the barriers do not follow the "
        "law."
    ),
    "n_widths": integer("Number of widths below saturation, which the law is fitted to."),
    "n_measured_widths": integer("Number of all widths that have an interval."),
    "threshold": real(
        ".01 for accuracy barriers, that is, one point of error rate. Null for losses, as are the answers."
    ),
    "answer": text(
        "The width that a network needs for a barrier below the threshold.\n"
        "`between`: `width_low` is the widest measured whose interval lies above the threshold; at `width_high` and "
        "every wider one it lies below.\n"
        "`at most`: at `width_high` and every wider one the interval lies below the threshold, and at no narrower one "
        "surely above.\n"
        "`beyond`: the widest measured lies above; the law is known, and puts the width at `width`.\n"
        "`never`: the widest measured lies above, and so does the interval of the floor.\n"
        "`unsettled`: the interval of the widest measured holds the threshold: more seeds would tell.\n"
        "`not identifiable`: the widest measured lies above, and the law is not known: fewer than 4 widths below "
        "saturation, `fit_probability` below .01, an interval of p whose ends are a factor of 4 apart or at a bound, "
        "or one of the floor that holds the threshold."
    ),
    "width": real("For the answer `beyond`: the law's width."),
    "width_low": real("Lower end of the answer: a measured width, or the end of the law's 95 % interval."),
    "width_high": real("Upper end of the answer."),
    "answer_text": text("The answer as a sentence."),
}
