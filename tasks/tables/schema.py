"""The tables of a study, a public contract: a test keeps it, and CHANGELOG.md lists every change.

Their columns stand in columns.py and derived_columns.py; `docs/tables.py` makes docs/tables.md from all three.
"""

from __future__ import annotations

from infra.tables import Table
from tasks.tables.columns import (
    ALPHA,
    AXIS,
    BARRIER,
    CELL,
    CORRECTION,
    DATA,
    ENDPOINT,
    LAYER,
    MATCH,
    MATCHER,
    MEASUREMENT,
    MEMBERS,
    MERGE_ID,
    METHOD,
    METRIC,
    PAIR,
    POINT,
    RECIPE,
    SPLIT,
    TIME,
)
from tasks.tables.derived_columns import (
    CONTRAST,
    COUNTS,
    INTERVAL,
    MEAN_OVER_PAIRS,
    NEW_PAIR,
    PUBLISHED,
    PUBLISHED_POINT,
    SERIES_ID,
    SOURCE,
    VERDICT,
    WIDTH_LAW,
)

PATH_ROWS = Table(
    "paths", MERGE_ID | METHOD | CORRECTION | POINT, ("merge_id", "method", "correction", "alpha", "split")
)
"""Row file of a path; the measurement's name is added when tables are gathered."""

LAYER_ROWS = Table(
    "layers",
    MERGE_ID | CORRECTION | LAYER,
    ("merge_id", "correction", "alpha", "layer"),
    added=("mean_correlation", "sd_correlation", "left_out"),
)

END_ROWS = Table("ends", {name: column for name, column in POINT.items() if name not in ALPHA}, ("split",))
"""Row file of an endpoint's own evaluation, which all uncorrected paths that end in it share."""

MERGE_ROWS = Table("merges", MERGE_ID | MATCH, ("merge_id",))

AXIS_ROWS = Table("axes", MERGE_ID | AXIS, ("merge_id", "axis"))

CELLS = Table(
    "cells",
    CELL
    | TIME
    | {f"recipe_{name}": column for name, column in RECIPE.items()}
    | {f"data_{name}": column for name, column in DATA.items()},
    ("cell_id",),
    """\
A point of the grid: data set, architecture, normalization, width, depth, recipe.

It has every field of the recipe as `recipe_*`, whose values docs/recipes.md lists, and of the data set as `data_*`. \
For imported endpoints, unknown fields of the recipe are null.""",
)

ENDPOINTS = Table(
    "endpoints",
    CELL | ENDPOINT,
    ("endpoint_id",),
    "A trained network, with its status, losses and accuracies.",
)

MERGES = Table(
    "merges",
    PAIR | MEMBERS | MATCH,
    ("merge_id",),
    "A pair of seeds under a matcher: the quality of the match, and the proof that the permutation left the function "
    "unchanged.",
)

PATHS = Table(
    "paths",
    PAIR | METHOD | CORRECTION | MEASUREMENT | POINT,
    ("merge_id", "method", "correction", "measurement", "alpha", "split"),
    """\
One point of a path: loss, accuracy and calibrated loss at an alpha, on train or test.

At alpha 0 and 1 an uncorrected path has the raw endpoints' values; a corrected path has those of the corrected \
endpoints.

A raw loss mixes discrimination with confidence. Interpolation changes both, and one temperature corrects the \
confidence: if `loss` is high and `calibrated_loss` is not, the network is too confident, not wrong more often. A \
temperature does not change the accuracy.""",
)

BARRIERS = Table(
    "barriers",
    PAIR | CORRECTION | MEASUREMENT | SPLIT | BARRIER,
    ("merge_id", "correction", "measurement", "split"),
    "The height of one path above the chord between its endpoints.",
)

LAYERS = Table(
    "layers",
    PAIR | CORRECTION | MEASUREMENT | LAYER,
    ("merge_id", "correction", "measurement", "alpha", "layer"),
    """\
The variance of one layer's pre-activations along a path, beside REPAIR's goal.

Uncorrected paths are measured at alpha 1/2, corrected ones at every alpha, on the statistics samples, with the \
weights that the correction made. If BatchNorm takes over a layer's shift, the mean is that of the BatchNorm's input. \
`reset` does not change pre-activations: it restores the BatchNorm's output, and its `sd_error` here is the distance \
of the pre-activations from the goal of `repair`.

Every linear map of a network is a layer, except those that make the logits. A layer that a correction cannot reach \
(it runs more than once, shares its weight, or has no parameter to take a scale or a shift) has a row with the reason \
in `left_out`.""",
)

AXES = Table("axes", PAIR | AXIS, ("merge_id", "axis"), "The correlation of the matched units of one axis.")

ABLATION = Table(
    "ablation",
    CELL | MATCHER | CORRECTION | MEASUREMENT | SPLIT | METRIC | MEAN_OVER_PAIRS | INTERVAL | NEW_PAIR | COUNTS,
    ("cell_id", "matcher", "correction", "measurement", "split", "metric"),
    """\
A mean over all pairs of a cell with its 95 % interval, and the prediction interval of a new pair.

Metrics: `endpoint_loss`, `endpoint_accuracy`, `midpoint_loss`, `midpoint_accuracy`; the four barriers; on the test \
split also `endpoint_calibrated_loss`, `midpoint_calibrated_loss` and the two calibrated barriers; and for corrected \
paths `*_reduction`, the share of the mean barrier of the same matcher that the correction removes (1 minus a ratio of \
means), null unless the interval of the uncorrected mean lies above 0.""",
)

PAPER = Table(
    "paper",
    CELL
    | PUBLISHED_POINT
    | MEASUREMENT
    | SPLIT
    | METRIC
    | PUBLISHED
    | MEAN_OVER_PAIRS
    | NEW_PAIR
    | VERDICT
    | COUNTS
    | SOURCE,
    ("point", "cell_id", "measurement", "split", "metric"),
    """\
A figure that the authors of REPAIR saved, beside ours, with a verdict; `repairlab compare STUDY` prints and draws it.

The table has every figure that they saved for the study's networks, that is, its triples of data set, architecture \
and normalization, and is empty if they saved none. Theirs are the objects beside the code of \
https://github.com/KellerJordan/REPAIR at commit e90263d, each of one pair of networks; \
`tasks/tables/published_points.csv` holds them. One row per published figure, cell of ours, measurement, split and \
metric: `midpoint_accuracy` and `midpoint_loss` at alpha 1/2, `endpoint_accuracy` and `endpoint_loss`, the mean of \
both ends. A width, depth or method that was not run has a row without ours, and counts of zero. `mean`, \
`new_pair_low` and `new_pair_high` are ours, as in `ablation`.

Only accuracies are judged. A few images dominate the midpoint loss of a pair, and saved losses range from .02 to 14 \
nats, so no width of an interval is informative everywhere: losses are shown with their difference only.

The norm of the saved VGGs is unknown. Their accuracies, and their mark in the authors' figure, point to BatchNorm \
with re-estimated statistics, so they are compared with normalization `batch`, and their `repair` with `reset`.""",
)

CONTRASTS = Table(
    "contrasts",
    CELL | CONTRAST,
    (
        "cell_id", "other_cell_id", "matcher", "other_matcher", "correction", "other_correction", "measurement",
        "split", "metric",
    ),
    """\
A difference, with its 95 % interval, between two paths of a cell or between two cells that differ in one factor: \
overlapping intervals in `ablation` do not show that there is no difference. The columns `study` to `recipe` and \
`cell_id` are those of the first, *this*.

Within a cell (`other_cell_id` is `cell_id`) every two paths, that is, matchers and corrections, are compared over the \
pairs that both have: all barriers, on the test split the calibrated ones too. Midpoint values have no rows: all paths \
of a pair share one chord, so their differences are those of the midpoint barriers.

Across cells, every two cells are compared that differ in exactly one of data set, architecture, normalization, width, \
depth, recipe, `epoch`, `spawn_seed` and `spawn_epoch`, under the same matcher, correction and measurement: the two \
loss and the two accuracy barriers. For widths, depths and epochs only neighbours are compared, so a value added later \
between two others replaces their row by two. The depth of a network other than an MLP follows from its architecture.

An interval covers the choice of seeds. It does not cover other test examples, other samples for statistics, or \
another data set. Across cells the seeds are taken as independent; equal seeds see the examples in the same order, and \
if that correlates their barriers, the interval is too wide rather than too narrow. In simulation it holds the truth \
in .94-.97 of cases, in .92 for 3 seeds against 16.

Intervals are not adjusted for the number of rows: without any difference, one interval in twenty still excludes 0. A \
contrast chosen before looking needs no adjustment. To search the table, adjust the level: for one claim among `m` \
rows, compute an interval of level 1 - .05 / m from `barriers` (Bonferroni), or measure the difference again with new \
seeds.""",
)  # fmt: skip

WIDTH_LAWS = Table(
    "width_laws",
    {"study": CELL["study"]}
    | SERIES_ID
    | {name: column for name, column in CELL.items() if name not in ("study", "cell_id", "width")}
    | TIME
    | MATCHER
    | CORRECTION
    | MEASUREMENT
    | SPLIT
    | METRIC
    | WIDTH_LAW,
    ("series_id", "matcher", "correction", "measurement", "split", "metric"),
    """\
The power law of a barrier in the width, and the width that a network needs for a barrier below 1 %.

The law is b(w) = c w^-p + floor, fitted to the mean barriers of cells that differ only in width (every epoch has its \
own law), by least squares weighted with the inverse squared standard errors; c and floor at least 0, p between .05 \
and 8. One row per series of at least two widths, matcher, correction, measurement, split, and loss and accuracy \
barrier, over all alphas and at the midpoint.

Saturated widths do not follow the law and are left out: every width up to the widest whose accuracy barrier reaches \
.8 of the endpoints' accuracy less that of guessing; and from the narrowest on those whose barrier does not exceed the \
next one's by more than one standard error of the difference, with the one that ends the run.

The answers `between` and `at most` rest on measured widths only. `beyond` and `never` extrapolate the law; its \
intervals cover other seeds, not another law. In simulation they hold the true p and floor in .91-.97 of cases.""",
)

TABLES = (CELLS, ENDPOINTS, MERGES, PATHS, BARRIERS, LAYERS, AXES, ABLATION, PAPER, CONTRASTS, WIDTH_LAWS)
