"""What every column of the tables means, as it stands in the files themselves and in docs/tables.md.

A column that several tables have is described once. Lines of a description that begin with a word in backquotes say
what that word means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from infra.tables import Column
from tasks.science.specs.data import DataSpec
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.recipe import Recipe

_text, _int, _float, _bool = (partial(Column, kind) for kind in (pa.string(), pa.int64(), pa.float64(), pa.bool_()))

CELL = {
    "study": _text("The study's name."),
    "cell_id": _text("Identity of the cell: the same cell in another study has the same id."),
    "dataset": _text("What the network is trained on."),
    "architecture": _text("What the network is; `package.module:function` where it is a person's own."),
    "normalization": _text("`none`, `batch`, `batch-fused` (BatchNorm, folded after training), `layer` or `fixup`."),
    "width": _int("Neurons of each hidden layer of an MLP; elsewhere what multiplies every layer's channels."),
    "depth": _int("Hidden layers of an MLP; elsewhere the number in the architecture's name."),
    "recipe": _text("How it is trained; overrides stand behind a slash, as in `mlp/epochs=5`."),
}

TIME = {
    "epoch": _int(
        "After how many epochs of the recipe's schedule the weights are taken, 0 before any step; null at its end. "
        "Every epoch is a cell of its own, and one training of a seed passes through all of them."
    ),
    "spawn_seed": _int(
        "Where endpoints are spawned, the seed of the training that they start from; else null. A child has the "
        "parent's weights and optimizer memory, the schedule goes on, and each child, named by its own seed, has "
        "examples in an order and under augmentation of its own."
    ),
    "spawn_epoch": _int("After which epoch of that training they start; null where they are not spawned."),
}

MATCHER = {
    "matcher": _text(
        "How B was permuted: `none` (the direct path), `activation`, `activation-published`, `weight`, `random`; "
        "options that are not at their defaults follow, as in `activation/reading=pre`. `reading`: units are observed "
        "after their nonlinearity (`post`, the default), before it (`pre`), or where the authors of REPAIR did in the "
        "two networks where that is neither (`published`): in ResNet18 for small images at the convolutions' outputs, "
        "before the norm, a stream at the stem's or its stage's first block's; in ResNet20 with BatchNorm the last "
        "stage's stream at its second block instead of its third."
    )
}

MERGE_ID = {"merge_id": _text("Identity of these weights under this matcher.")}

PAIR = (
    CELL
    | MERGE_ID
    | {
        "kind": _text("`pair`, or `control`, which takes part in no mean."),
        "control": _text(
            "Which control it is; null for a pair.\n"
            "`random-permutation`: B's units are shuffled instead of aligned, which should do no better and no worse "
            "than the direct path.\n"
            "`permuted-self`: B is A with its units shuffled, which alignment should undo, with a barrier below 1e-6, "
            "but for units that fire for none of the images that they are matched on and for others do."
        ),
        "seed_a": _int(
            "The seed of A, the endpoint at alpha 0. The smaller seed comes first; where the train split is in halves, "
            "the seed of the first half does."
        ),
        "seed_b": _int("The seed of B, the endpoint at alpha 1."),
    }
    | MATCHER
)

CORRECTION = {"correction": _text("What is done to the interpolated network: `none`, or one of docs/corrections.md.")}

MEASUREMENT = {
    "measurement": _text(
        "Which samples and alphas: `default` is all of them and 11; else what differs, as in "
        "`default/alphas=25,statistics=5000`. With `flip_averaged=True` losses and accuracies are of logits averaged "
        "over each image and its mirror image, of ensembles and shifted endpoints as well; with "
        "`evaluated_in=bfloat16` they are computed in bfloat16, statistics and corrections in float32 as ever."
    )
}

ALPHA = {"alpha": _float("Where between A (0) and B (1).")}

SPLIT = {
    "split": _text(
        "`train` or `test`, never augmented. `train` is the whole train split, whichever half of it A and B were "
        "trained on."
    )
}

METRIC = {"metric": _text("What the figures are of.")}

ENDPOINT = {
    "endpoint_id": _text("Identity of one training."),
    "seed": _int("Its seed, from 0."),
    "train_subset": _text(
        "The images it was trained on: `all` of the train split, or its `first` or `second` half (even and odd seeds) "
        "where the data set is in halves, as `cifar100_split` is. Joint training, on `all` of such a data set, is a "
        "cell of its own, with `data_halves` false in `cells` and no pairs; `paths` has it beside the pairs across the "
        "halves."
    ),
    "checkpoint_epoch": _int(
        "After how many epochs of its training the weights were taken, 0 before any step; null at the end."
    ),
    "origin": _text(
        "`trained` here, or `imported`: of those it is not known how long training took and which steps were skipped."
    ),
    "status": _text(
        "Only `trained` ones take part in pairs. Weights of an earlier epoch are `trained` wherever they are finite, "
        "however little they have learned, for that is what was asked.\n"
        "`diverged`: non-finite.\n"
        "`untrained`: train loss above .95 ln of the number of classes at the end of training.\n"
        "`failed`: no result."
    ),
    "message": _text("Why it is not `trained`."),
    "train_loss": _float(
        "Of these weights, without augmentation, on the images it was trained on (of ImageNet on a fixed random choice "
        "of 5,000 of them); null where it diverged."
    ),
    "train_accuracy": _float("On the same images; null where it diverged."),
    "test_loss": _float("Of these weights on the whole test split; null where it diverged."),
    "test_accuracy": _float("On the whole test split; null where it diverged."),
    "n_train_examples": _int(
        "How many images `train_loss` and `train_accuracy` are of: all that it was trained on, but for ImageNet."
    ),
    "n_parameters": _int("Parameters of the network."),
    "n_skipped_steps": _int(
        "Steps that were skipped because some gradient was not finite, where the recipe skips such steps; else 0. Of a "
        "child those after it was spawned."
    ),
    "train_seconds": _float("How long training took up to these weights, of a child from where it was spawned."),
    "device": _text("What it was trained on."),
    "weights_sha256": _text("Digest of the weights, which everything derived from them is keyed by."),
}

MEMBERS = {
    "members": _text("The two endpoint ids."),
    "train_subset_a": _text("What A was trained on: `all`, or `first` where the data set is in halves."),
    "train_subset_b": _text("What B was trained on: `all`, or `second` where the data set is in halves."),
    "n_statistics": _int("How many images the matcher saw; null for one that needs none."),
}

MATCH = {
    "matcher_options": _text("All options of the matcher, as JSON."),
    "objective": _float(
        "Sum of matched correlations over all axes, or for `weight` the inner product of all weights that move; null "
        "without a matcher."
    ),
    "function_error": _float(
        "In float64, the largest difference between logits of B and of its permuted self, over the largest absolute "
        "logit; above 1e-9 the pair is stopped. Null without a matcher."
    ),
    "match_seconds": _float("The pair's share of its cell's alignment."),
}

METHOD = {
    "method": _text(
        "What is averaged.\n"
        "`weights`: the weights are interpolated. The other tables are of these paths alone.\n"
        "`ensemble`: the two endpoints' probabilities are averaged, with weights 1 - alpha and alpha.\n"
        "`logit-shift`: each endpoint alone, A at alpha 0 and B at alpha 1, where the train split is in halves: one "
        "constant is added to its logits of the upper half of the classes, the one with the smallest mean loss on the "
        "half of the train split that the endpoint was not trained on (its partner was), each class weighted to its "
        "share of the whole train split.\n"
        "`logit-shift/chosen=test`: the same with the constant whose loss is smallest on the test images themselves, "
        "as in the published figure: what it shows on `test` is the best of all shifts and no estimate for other "
        "images.\n"
        "`joint`: networks trained on both halves at once, with A's seed at alpha 0 and with B's at alpha 1, where "
        "both are `trained`."
    )
}

POINT = (
    ALPHA
    | SPLIT
    | {
        "loss": _float("Of the network at that point."),
        "accuracy": _float("Of the network at that point."),
        "n_examples": _int("How many images both are of."),
        "temperature": _float(
            "Geometric mean of the two temperatures of `calibrated_loss`, sought between 1/20 and 20; above 1 the "
            "network is too sure of itself, below 1 not sure enough."
        ),
        "calibrated_loss": _float(
            "The test loss with logits divided by one temperature. The test examples are cut into two halves, drawn "
            "once per data set; the temperature fitted on each half judges the other, so no example is judged by a "
            "temperature that has seen it, and the mean is over all. Null on the train split, and where some logit is "
            "not finite."
        ),
        "temperature_at_bound": _bool(
            "Either temperature ended at 1/20 or 20: then the calibrated loss is that of the bound."
        ),
    }
)

_OWN_CHORD = (
    "The same, over all alphas, above the chord between the path's *own* values at alpha 0 and 1, which a correction "
    "moves: what the published ImageNet figures show. Without a correction it is the barrier itself."
)

BARRIER = {
    "loss_barrier": _float(
        "Highest rise of the loss above the chord between the *raw* endpoints, over all alphas; never negative."
    ),
    "accuracy_barrier": _float(
        "Highest rise of the error rate above the chord between the *raw* endpoints, over all alphas; never negative."
    ),
    "midpoint_loss_barrier": _float("The rise of the loss at alpha 1/2, signed."),
    "midpoint_accuracy_barrier": _float("The rise of the error rate at alpha 1/2, signed."),
    "own_chord_loss_barrier": _float(_OWN_CHORD),
    "own_chord_accuracy_barrier": _float(_OWN_CHORD),
    "calibrated_loss_barrier": _float(
        "As `loss_barrier`, of `calibrated_loss`, its chord between the raw endpoints' calibrated losses; null on the "
        "train split."
    ),
    "midpoint_calibrated_loss_barrier": _float("The rise of `calibrated_loss` at alpha 1/2, signed; null likewise."),
}

_CLOSED_FORM = (
    "Of `repair-closed-form`: the correlation, over live units, of the {} that the closed form takes the layer to "
    "have with those that it has, behind layers that are corrected already; null for other corrections, and in rows "
    "that were measured before there was this column."
)

LAYER = ALPHA | {
    "layer": _text(
        "The layer whose pre-activations these are (what it puts out, before any norm); with `repair-block` also the "
        "residual blocks whose outputs these are."
    ),
    "position": _int("Its place among the corrected layers, from 0 at the front."),
    "n_units": _int("Its units."),
    "n_dead": _int("Units without spread, in the goal or in the interpolated network."),
    "variance_ratio": _float("Mean over units of the variance, over the mean of the two endpoints' such means."),
    "variance_ratio_target": _float("The same for REPAIR's goal."),
    "mean_error": _float(
        "Root mean square over units of the distance to the goal's mean, in units of the root mean square of the "
        "goal's deviation."
    ),
    "sd_error": _float("The same of the distance to the goal's deviation."),
    "mean_correlation": _float(_CLOSED_FORM.format("means")),
    "sd_correlation": _float(_CLOSED_FORM.format("deviations")),
    "left_out": _text(
        "Why the correction does not reach this layer, of which nothing else is measured; null for a layer that it "
        "corrects, and in rows that were measured before there was this column."
    ),
}

AXIS = {
    "axis": _text("A hidden axis."),
    "size": _int("Its number of units."),
    "n_dead": _int("Matched positions where at least one of the two units is constant."),
    "matched_correlation": _float("Mean correlation of A's units with their partners, over live positions."),
    "identity_correlation": _float("The same with B's unit at the same position."),
}

MEAN = {"mean": _float("Mean over all pairs of the cell.")}

INTERVAL = {
    "low": _float(
        "Lower end of the mean's 95 % interval: delete-one-seed jackknife, Student's t on `n_seeds` - 1; null below 3 "
        "seeds. Where pairs lie across two halves, the halves are two samples whose variances add, with t on "
        "`n_seeds` - 2, and no interval below 2 seeds of each."
    ),
    "high": _float("Upper end of the mean's 95 % interval."),
}

NEW_PAIR = {
    "new_pair_low": _float(
        "Lower end of the 95 % prediction interval of one more pair of two new seeds: what a figure of a single pair, "
        "such as a published one, is to be judged by. From the fit y_ij = m + a_i + a_j + e_ij it is m ± t(n - 1) "
        "√(se² + 2 s_a² + s_e²), with `se` the jackknife's and the variances by Henderson's method 3, which allows "
        "for missing pairs; where pairs lie across two halves, each has a variance of its own, with t(n - 2). It is "
        "not cut off at what a metric can be. Null for reductions, which are ratios of means and no pair's own; below "
        "4 seeds; and where so many pairs are missing that a pair's own share cannot be told from its seeds'."
    ),
    "new_pair_high": _float("Upper end of the same interval."),
}

COUNTS = {
    "n_seeds": _int("Seeds that the mean is over."),
    "n_pairs": _int("Pairs that the mean is over."),
    "n_diverged": _int("Endpoints of the cell that were left out because they diverged."),
    "n_untrained": _int("Endpoints of the cell that were left out because they had not learned."),
}

PUBLISHED_POINT = {
    "point": _text("The published figure, as in `mnist/mlp/none/w32/d11/aligned+repair`."),
    "method": _text("How the authors made it."),
    "matcher": _text("What it is compared with: `activation` where they aligned, else `none`."),
    "correction": _text(
        "What it is compared with: `none`, `reset`, `repair`, `repair-closed-form`, or `repair-block` for their "
        "`repair_block` and `repair_plus`."
    ),
}

PUBLISHED = {
    "published": _float("Theirs."),
    "published_recipe": _text(
        "Which of our recipes (docs/recipes.md) made it, or our guess; null where it cannot even be guessed."
    ),
    "published_recipe_known": _bool("Whether that is known; else it is a guess."),
}

VERDICT = {
    "difference": _float("Ours minus theirs."),
    "verdict": _text(
        "The first of these that holds; null for losses.\n"
        "`not run`: no pair of ours was measured.\n"
        "`unconverged`: their endpoints had not learned.\n"
        "`other recipe`: ours were trained otherwise. Recipes are the same where all fields are but the name, "
        "`precision` and `skip_nonfinite`: theirs trained in float16 under a gradient scaler, which skips steps, and "
        "a CPU can do neither. MLPs of width 2048 and more on Fashion-MNIST were visibly trained by another recipe "
        "than smaller ones, and nobody knows which.\n"
        "`other measurement`: statistics came from fewer images than the train split has, accuracy from fewer than "
        "the split has, or it is flip-averaged. Endpoints and the direct path need no statistics; alphas and draws do "
        "not matter.\n"
        "`uninformative`: the prediction interval is wider than 10 points to either side, or there is none; on "
        "whichever side of it the figure lies, else wide intervals would count only where they fail.\n"
        "`inside`, `outside`: their figure lies in the prediction interval of a new pair, bounds included, or does "
        "not."
    ),
}

SOURCE = {"source": _text("The saved object."), "note": _text("What is uncertain about the figure.")}

CONTRAST = (
    {"other_cell_id": _text("The cell of the other; within a cell the same.")}
    | MATCHER
    | {"other_matcher": _text("The matcher of the other.")}
    | CORRECTION
    | {"other_correction": _text("The correction of the other.")}
    | MEASUREMENT
    | SPLIT
    | METRIC
    | {
        "factor": _text(
            "What the two differ in: `matcher`, `correction`, `path` (both), or the factor of the cells. *This* has "
            "the smaller width, depth or epoch, the end of training (`last`) being the largest; else `none` comes "
            "first, then the alphabet."
        ),
        "value": _text("The factor's value of *this*."),
        "other_value": _text("The factor's value of the other."),
        "difference": _float("Mean of the other less mean of this: below 0 the other has the lower barrier."),
        "low": _float(
            "Lower end of the difference's 95 % interval. Within a cell, and between two epochs, over the pairs that "
            "both have: jackknife that drops a seed from both. Across other cells: the two variances add, Student's t "
            "with Welch and Satterthwaite's degrees of freedom. Null below 3 seeds on either side."
        ),
        "high": _float("Upper end of the difference's 95 % interval."),
        "n_seeds": _int(
            "Seeds that the mean of *this* is over; within a cell and between two epochs of the pairs that both have."
        ),
        "other_n_seeds": _int("The same of the other."),
        "n_pairs": _int("Pairs that the mean of *this* is over; likewise."),
        "other_n_pairs": _int("The same of the other."),
    }
)

SERIES_ID = {
    "series_id": _text("Identity of what the cells share: data, architecture, normalization, depth and recipe.")
}

_LAW = {
    "c": "The barrier above the floor at width 1, far from what was measured, in the unit of the barrier.",
    "p": "The power that it falls with.",
    "floor": "What it falls to, in the unit of the barrier.",
}
_RESAMPLED = (
    "Lower end of its interval: the central 95 % of 1000 fits to barriers drawn around the law (parametric resampling, "
    "Student's t with each width's own degrees of freedom); null with fewer than 4 widths below saturation."
)

WIDTH_LAW = {
    f"{name}{end}": _float(meaning)
    for name, told in _LAW.items()
    for end, meaning in (("", told), ("_low", _RESAMPLED), ("_high", "Upper end of the same interval."))
} | {
    "fit_probability": _float(
        "Share of these fits that miss their data by as much as the real one: near 0 the barriers follow no such law."
    ),
    "n_widths": _int("Widths below saturation, which the law is of."),
    "n_measured_widths": _int("All widths that have an interval."),
    "threshold": _float(
        ".01 for accuracy barriers: how wide for an error that rises by less than a point? Null for losses, as are the "
        "answers."
    ),
    "answer": _text(
        "How wide a network must be for a barrier below the threshold.\n"
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
    "width": _float("Of the answer `beyond`: the law's width."),
    "width_low": _float("Where the answer lies, lower end: a measured width, or that of the law's 95 % interval."),
    "width_high": _float("Upper end of the same."),
    "answer_text": _text("The answer as a sentence."),
}

_KINDS = {"int": pa.int64(), "int | None": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


def _of_fields(owner: type, meanings: Mapping[str, str]) -> dict[str, Column]:
    """A column for every field of a spec but its name; a tuple, as a choice of words, stands as text."""
    fields: list[dataclasses.Field[Any]] = [f for f in dataclasses.fields(owner) if f.name != "name"]
    return {f.name: Column(_KINDS.get(str(f.type), pa.string()), meanings[f.name]) for f in fields}


RECIPE = _of_fields(
    Recipe,
    {
        "batch_size": "Images per step.",
        "epochs": "How often every image is seen.",
        "learning_rate": "The peak, reached after the warm-up, from where it falls to 0.",
        "warmup": "The fraction of all steps over which the learning rate rises.",
        "momentum": "Of Adam this is beta 1, the decay of the mean gradient; beta 2 is .999.",
        "weight_decay": "Added to the gradient, as often the weight; by Adam as well.",
        "flip": "Whether images are mirrored at random, left for right.",
        "translate": "Largest random shift, in pixels, along each axis; what moves in is black.",
        "optimizer": "`sgd` or `adam`.",
        "schedule": "How the learning rate falls: along a straight line (`linear`), or half a period of a `cosine`.",
        "initialization": "`published`: as the network's authors have it; `he-normal`: every weight normal with "
        "variance 2 / fan-in, every bias 0.",
        "precision": "What the forward and backward passes of training compute in: `float32`, `bfloat16` or `float16`.",
        "warmup_from": "The learning rate that the warm-up begins at.",
        "cutout": "Side, in pixels, of the square that is cut out of every image at random; 0 for none.",
        "label_smoothing": "The share of every label that is spread evenly over all classes.",
        "decayed_norms": "The norms whose parameters are decayed: `all`, `none`, or those on `shortcuts` alone.",
        "skip_nonfinite": "Whether a step is skipped where some gradient is not finite.",
        "clip_norm": "Length that the gradient of all parameters is shortened to; 0 leaves it as it is.",
        "resized_crop": "Side, in pixels, that a random part of the image is resized to; 0 for all of it as it is.",
    },
)

DATA = _of_fields(
    DataSpec,
    {
        "fingerprint": "sha256 of the images and labels: other data are other endpoints.",
        "n_train": "Images of the train split.",
        "n_test": "Images of the test split.",
        "n_classes": "How many classes there are.",
        "shape": "Channels, height and width of an image, as in `1x8x8`.",
        "halves": "Whether endpoints are trained on one of two halves of the train split, and pairs lie across them.",
    },
)

MEASURED = _of_fields(
    Measurement,
    {
        "alphas": "How many points of a path are measured.",
        "statistics": "How many images of the train split matchers and corrections see; null for all.",
        "evaluation": "On how many images of each split a point of a path is evaluated; null for all.",
        "draw": "Which random choice and augmentation of the images statistics come from.",
        "augmented": "Whether statistics come from images under the recipe's own augmentation.",
        "flip_averaged": "Whether losses and accuracies are of logits averaged over each image and its mirror image.",
        "evaluated_in": "What points of a path are computed in: `float32` or `bfloat16`.",
    },
)
