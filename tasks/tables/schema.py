"""The tables that people open: a public contract, kept by a test, each change in the CHANGELOG.

What their columns mean stands in columns.py; `docs/tables.py` makes the page from both.
"""

from __future__ import annotations

from infra.tables import Table
from tasks.tables.columns import (
    ALPHA,
    AXIS,
    BARRIER,
    CELL,
    CONTRAST,
    CORRECTION,
    COUNTS,
    DATA,
    ENDPOINT,
    INTERVAL,
    LAYER,
    MATCH,
    MATCHER,
    MEAN,
    MEASUREMENT,
    MEMBERS,
    MERGE_ID,
    METHOD,
    METRIC,
    NEW_PAIR,
    PAIR,
    POINT,
    PUBLISHED,
    PUBLISHED_POINT,
    RECIPE,
    SERIES_ID,
    SOURCE,
    SPLIT,
    TIME,
    VERDICT,
    WIDTH_LAW,
)

PATH_ROWS = Table(
    "paths", MERGE_ID | METHOD | CORRECTION | POINT, ("merge_id", "method", "correction", "alpha", "split")
)
"""What a row file of a path holds; the name of the measurement is stamped on when tables are gathered."""

LAYER_ROWS = Table(
    "layers",
    MERGE_ID | CORRECTION | LAYER,
    ("merge_id", "correction", "alpha", "layer"),
    added=("mean_correlation", "sd_correlation", "left_out"),
)

END_ROWS = Table("ends", {name: column for name, column in POINT.items() if name not in ALPHA}, ("split",))
"""What was seen of an endpoint as it was trained, which all uncorrected paths that end in it share."""

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

It has every field of the recipe as `recipe_*`, of which docs/recipes.md lists the values, and of the data set as \
`data_*`. Of endpoints that were imported, what is not known of the recipe is null.""",
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
    "A pair of seeds under a matcher: how well it matched, and the proof that the permutation left the function "
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

A raw loss mixes what a network tells apart with how sure it is. Interpolation changes both, and the second can be \
mended by one number: a `loss` that is high where `calibrated_loss` is not means confidence, not answers. A \
temperature changes no accuracy.""",
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
weights that the correction made. Where BatchNorm takes a layer's shift, the mean is the one that it sees. `reset` \
does not touch pre-activations: what it restores stands behind the BatchNorm, and its `sd_error` here tells how far \
they are from the goal of `repair`.

Every linear map of a network is a layer, except those that make the logits. One that a correction cannot reach (it \
runs more than once, shares its weight, has no parameter to take a scale or a shift) has a row with its reason in \
`left_out`.""",
)

AXES = Table("axes", PAIR | AXIS, ("merge_id", "axis"), "How well the units of one layer found partners.")

ABLATION = Table(
    "ablation",
    CELL | MATCHER | CORRECTION | MEASUREMENT | SPLIT | METRIC | MEAN | INTERVAL | NEW_PAIR | COUNTS,
    ("cell_id", "matcher", "correction", "measurement", "split", "metric"),
    """\
A mean over all pairs of a cell with its 95 % interval, and where a new pair would fall: what a paper's figure shows.

Metrics: `endpoint_loss`, `endpoint_accuracy`, `midpoint_loss`, `midpoint_accuracy`; the four barriers; on the test \
split also `endpoint_calibrated_loss`, `midpoint_calibrated_loss` and the two calibrated barriers; and for corrected \
paths `*_reduction`, the share of the mean barrier of the same matcher that the correction removes (1 minus a ratio of \
means), null unless the interval of the uncorrected mean lies above 0.""",
)

PAPER = Table(
    "paper",
    CELL | PUBLISHED_POINT | MEASUREMENT | SPLIT | METRIC | PUBLISHED | MEAN | NEW_PAIR | VERDICT | COUNTS | SOURCE,
    ("point", "cell_id", "measurement", "split", "metric"),
    """\
A figure that the authors of REPAIR saved, beside ours, with a verdict: what `repairlab compare STUDY` prints and draws.

Every figure that they saved for the study's networks stands here; none where they saved none. A study's networks are \
its triples of data set, architecture and normalization. Theirs are the objects beside the code of \
https://github.com/KellerJordan/REPAIR at commit e90263d, each of one pair of networks; `tasks/published_points.csv` \
holds them. One row per published figure, cell of ours, measurement, split and metric: `midpoint_accuracy` and \
`midpoint_loss` at alpha 1/2, `endpoint_accuracy` and `endpoint_loss`, the mean of both ends. A width, depth or method \
that was not run has a row without ours, and counts of zero. `mean`, `new_pair_low` and `new_pair_high` are ours, as \
in `ablation`.

Only accuracies are judged. The midpoint losses of pairs are ruled by a few images, and saved ones range from .02 to \
14 nats, so there is no width at which an interval of them tells something everywhere: losses are shown with their \
difference alone.

The saved VGGs have no known norm. Their accuracies, and the mark that the authors' figure gives them, say BatchNorm \
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
A difference, with its 95 % interval, between two paths of a cell or between two cells that differ in one factor: two \
intervals of `ablation` that overlap do not say that there is no difference. The columns `study` to `recipe` and \
`cell_id` are of the first, *this*.

Within a cell (`other_cell_id` is `cell_id`) every two paths are compared, that is, matcher and correction, over the \
pairs that both have. All barriers, on the test split the calibrated ones too. Midpoint values have no rows: all paths \
of a pair share one chord, so they differ by what their midpoint barriers differ by.

Across cells every two are compared that differ in exactly one of data set, architecture, normalization, width, depth, \
recipe, `epoch`, `spawn_seed` and `spawn_epoch`, under the same matcher, correction and measurement; the two loss and \
the two accuracy barriers. Of widths, depths and epochs neighbours alone are compared, so a value asked for later \
between two others replaces their row by two. The depth of a network that is no MLP follows from its architecture.

What an interval covers is the choice of seeds. It does not cover other test examples, other samples for statistics, \
or another data set. Across cells the seeds are taken as independent; equal seeds see the examples in the same order, \
and where that makes their barriers alike the interval is too wide rather than too narrow. In simulation it holds the \
truth in .94-.97 of cases, in .92 where 3 seeds meet 16.

There are many rows, and nothing is adjusted for that: where nothing differs, one interval in twenty still leaves out \
0. A contrast that was named before looking stands as it is. To search the table instead, multiply the level: for one \
claim among `m` rows, compute an interval of level 1 - .05 / m from `barriers` (Bonferroni), or read a difference as a \
suggestion and measure it again with new seeds.""",
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
How a barrier falls with width, and how wide a network must be for one below 1 %.

The law is b(w) = c w^-p + floor, fitted to the mean barriers of the cells that differ in width alone, so that every \
epoch has a law of its own, by least squares weighted with the inverse squared standard errors; c and floor at least \
0, p between .05 and 8. One row per series of at least two widths, matcher, correction, measurement, split, and loss \
and accuracy barrier, over all alphas and at the midpoint.

The law says nothing of networks that are saturated, and they are left out: every width up to the widest whose \
accuracy barrier reaches .8 of the endpoints' accuracy less that of guessing; and from the narrowest on those whose \
barrier is not above the next one's by more than one standard error of the difference, with the one that ends the run.

The answers `between` and `at most` rest on measured widths alone. `beyond` and `never` believe that the law goes on \
where nobody looked; its intervals cover other seeds, not another law. In simulation they hold the true p and floor in \
.91-.97 of cases.""",
)

TABLES = (CELLS, ENDPOINTS, MERGES, PATHS, BARRIERS, LAYERS, AXES, ABLATION, PAPER, CONTRASTS, WIDTH_LAWS)
