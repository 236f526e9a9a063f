"""Columns of what is trained, matched and measured, with the descriptions that the files and docs/tables.md give.

Columns of means, comparisons and fits stand in derived_columns.py. A column that several tables have is described once.
In a description, a line that begins with a word in backquotes explains that word.
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

text, integer, real, boolean = (partial(Column, kind) for kind in (pa.string(), pa.int64(), pa.float64(), pa.bool_()))

CELL = {
    "study": text("The study's name."),
    "cell_id": text("Identity of the cell: the same cell in another study has the same id."),
    "dataset": text("The data set that the network is trained on."),
    "architecture": text("The network's architecture; `package.module:function` if it is user-defined."),
    "normalization": text("`none`, `batch`, `batch-fused` (BatchNorm, folded after training), `layer` or `fixup`."),
    "width": integer(
        "Neurons per hidden layer of an MLP; for other networks, the multiplier of every layer's channels."
    ),
    "depth": integer("Hidden layers of an MLP; for other networks, the number in the architecture's name."),
    "recipe": text("The training recipe; overrides follow a slash, as in `mlp/epochs=5`."),
}

TIME = {
    "epoch": integer(
        "Number of epochs of the recipe's schedule after which the weights are taken, 0 before any step; null at its "
        "end. Every epoch is a cell, and one training of a seed passes through all of them."
    ),
    "spawn_seed": integer(
        "Seed of the training that spawned endpoints start from; null if they are not spawned. A child starts with the "
        "parent's weights, optimizer state and position in the schedule; its own seed decides the order and the "
        "augmentation of its examples."
    ),
    "spawn_epoch": integer("Epoch of that training after which they start; null if they are not spawned."),
}

MATCHER = {
    "matcher": text(
        "The matcher that permuted B: `none` (the direct path), `activation`, `activation-published`, `weight`, "
        "`random`; options that are not at their defaults follow, as in `activation/reading=pre`. `reading`: units are "
        "observed after their nonlinearity (`post`, the default), before it (`pre`), or where the authors of REPAIR "
        "observed them, which differs in two networks (`published`): in ResNet18 for small images at the "
        "convolutions' outputs, before the norm, and a stream at the stem's or its stage's first block's; in ResNet20 "
        "with BatchNorm the last stage's stream at its second block instead of its third."
    )
}

MERGE_ID = {"merge_id": text("Identity of these weights under this matcher.")}

PAIR = (
    CELL
    | MERGE_ID
    | {
        "kind": text("`pair`, or `control`, which is part of no mean."),
        "control": text(
            "The control; null for a pair.\n"
            "`random-permutation`: B's units are shuffled instead of aligned, which should do no better and no worse "
            "than the direct path.\n"
            "`permuted-self`: B is A with its units shuffled. Alignment should undo this, with a barrier below 1e-6, "
            "except for units that are constant on the matching images but not on others."
        ),
        "seed_a": integer(
            "The seed of A, the endpoint at alpha 0: the smaller seed, or the seed of the first half if the train "
            "split is in halves."
        ),
        "seed_b": integer("The seed of B, the endpoint at alpha 1."),
    }
    | MATCHER
)

CORRECTION = {"correction": text("The correction of the interpolated network: `none`, or one of docs/corrections.md.")}

MEASUREMENT = {
    "measurement": text(
        "The samples and alphas: `default` is all samples and 11 alphas; other names list what differs, as in "
        "`default/alphas=25,statistics=5000`. With `flip_averaged=True`, losses and accuracies are of logits averaged "
        "over each image and its mirror image, for ensembles and shifted endpoints as well; with "
        "`evaluated_in=bfloat16` they are computed in bfloat16, statistics and corrections still in float32."
    )
}

ALPHA = {"alpha": real("The position between A (0) and B (1).")}

SPLIT = {
    "split": text(
        "`train` or `test`, never augmented. `train` is the whole train split, even if A and B were trained on halves "
        "of it."
    )
}

METRIC = {"metric": text("The metric that the row is about.")}

ENDPOINT = {
    "endpoint_id": text("Identity of one training."),
    "seed": integer("The seed of the training, from 0."),
    "train_subset": text(
        "The images that it was trained on: `all` of the train split, or its `first` or `second` half (even and odd "
        "seeds) if the data set is in halves, as `cifar100_split` is. Joint training, on `all` of such a data set, is "
        "a cell with `data_halves` false in `cells` and without pairs; in `paths` it stands beside the pairs across "
        "the halves."
    ),
    "checkpoint_epoch": integer(
        "Number of epochs of its training after which the weights were taken, 0 before any step; null at the end."
    ),
    "origin": text("`trained` here, or `imported`: then the duration of training and the skipped steps are unknown."),
    "status": text(
        "Only `trained` endpoints take part in pairs. Weights of an earlier epoch are `trained` if they are finite, "
        "however little they have learned.\n"
        "`diverged`: non-finite.\n"
        "`untrained`: train loss above .95 ln of the number of classes at the end of training.\n"
        "`failed`: no result."
    ),
    "message": text("The reason why it is not `trained`."),
    "train_loss": real(
        "Loss of these weights on the images that they were trained on, without augmentation (for ImageNet on a fixed "
        "random choice of 5,000 of them); null if it diverged."
    ),
    "train_accuracy": real("Accuracy on the same images; null if it diverged."),
    "test_loss": real("Loss of these weights on the whole test split; null if it diverged."),
    "test_accuracy": real("Accuracy on the whole test split; null if it diverged."),
    "n_train_examples": integer(
        "Number of images behind `train_loss` and `train_accuracy`: all that it was trained on, except for ImageNet."
    ),
    "n_parameters": integer("Number of parameters of the network."),
    "n_skipped_steps": integer(
        "Steps skipped because of a non-finite gradient, if the recipe skips such steps; else 0. For a child, those "
        "after it was spawned."
    ),
    "train_seconds": real("Duration of training up to these weights; for a child, from where it was spawned."),
    "device": text("The device that it was trained on."),
    "weights_sha256": text("Digest of the weights, part of the key of everything derived from them."),
}

MEMBERS = {
    "members": text("The two endpoint ids."),
    "train_subset_a": text("The train subset of A: `all`, or `first` if the data set is in halves."),
    "train_subset_b": text("The train subset of B: `all`, or `second` if the data set is in halves."),
    "n_statistics": integer("Number of images that the matcher saw; null if it needs none."),
}

MATCH = {
    "matcher_options": text("All options of the matcher, as JSON."),
    "objective": real(
        "Sum of matched correlations over all axes, or for `weight` the inner product of all permuted weights; null "
        "without a matcher."
    ),
    "function_error": real(
        "In float64, the largest difference between logits of B and of its permuted self, over the largest absolute "
        "logit; above 1e-9 the pair is stopped. Null without a matcher."
    ),
    "match_seconds": real("The pair's share of the duration of its cell's alignment."),
}

METHOD = {
    "method": text(
        "The way in which A and B are combined.\n"
        "`weights`: the weights are interpolated. The other tables are about these paths only.\n"
        "`ensemble`: the two endpoints' probabilities are averaged, with weights 1 - alpha and alpha.\n"
        "`logit-shift`: each endpoint alone, A at alpha 0 and B at alpha 1, if the train split is in halves. One "
        "constant is added to its logits of the upper half of the classes: the one with the smallest mean loss on the "
        "half of the train split that its partner was trained on, each class weighted to its share of the whole train "
        "split.\n"
        "`logit-shift/chosen=test`: the same with the constant of the smallest loss on the test images themselves, as "
        "in the published figure: its value on `test` is the best of all shifts and no estimate for other images.\n"
        "`joint`: networks trained on both halves at once, with A's seed at alpha 0 and B's at alpha 1, if both "
        "are `trained`."
    )
}

POINT = (
    ALPHA
    | SPLIT
    | {
        "loss": real("Loss of the network at that point."),
        "accuracy": real("Accuracy of the network at that point."),
        "n_examples": integer("Number of images behind both."),
        "temperature": real(
            "Geometric mean of the two temperatures of `calibrated_loss`, sought between 1/20 and 20; above 1 the "
            "network is overconfident, below 1 underconfident."
        ),
        "calibrated_loss": real(
            "The test loss with logits divided by a temperature. The test examples are cut into two halves, drawn once "
            "per data set; the temperature fitted on one half evaluates the other, and the mean is over all. Null on "
            "the train split, and if some logit is not finite."
        ),
        "temperature_at_bound": boolean(
            "True if either temperature ended at 1/20 or 20: then the calibrated loss is that of the bound."
        ),
    }
)

_OWN_CHORD = (
    "The same, over all alphas, above the chord between the path's *own* values at alpha 0 and 1, which a correction "
    "changes: the quantity of the published ImageNet figures. Without a correction it is the barrier itself."
)

BARRIER = {
    "loss_barrier": real(
        "Highest rise of the loss above the chord between the *raw* endpoints, over all alphas; never negative."
    ),
    "accuracy_barrier": real(
        "Highest rise of the error rate above the chord between the *raw* endpoints, over all alphas; never negative."
    ),
    "midpoint_loss_barrier": real("The rise of the loss at alpha 1/2, signed."),
    "midpoint_accuracy_barrier": real("The rise of the error rate at alpha 1/2, signed."),
    "own_chord_loss_barrier": real(_OWN_CHORD),
    "own_chord_accuracy_barrier": real(_OWN_CHORD),
    "calibrated_loss_barrier": real(
        "Like `loss_barrier`, for `calibrated_loss` above the chord between the raw endpoints' calibrated losses; null "
        "on the train split."
    ),
    "midpoint_calibrated_loss_barrier": real(
        "The rise of `calibrated_loss` at alpha 1/2, signed; null on the train split."
    ),
}

_CLOSED_FORM = (
    "For `repair-closed-form`: the correlation, over live units, of the {} that the closed form predicts for the layer "
    "with the actual ones behind layers that are corrected already; null for other corrections, and in rows that were "
    "measured before there was this column."
)

LAYER = ALPHA | {
    "layer": text(
        "The layer whose pre-activations are measured (its output, before any norm); with `repair-block` also the "
        "residual blocks, whose outputs are measured."
    ),
    "position": integer("Its position among the corrected layers, from 0 at the front."),
    "n_units": integer("Number of its units."),
    "n_dead": integer("Units that are constant in the goal or in the interpolated network."),
    "variance_ratio": real("Mean over units of the variance, over the mean of the two endpoints' such means."),
    "variance_ratio_target": real("The same for REPAIR's goal."),
    "mean_error": real(
        "Root mean square over units of the difference from the goal's mean, in units of the root mean square of the "
        "goal's standard deviation."
    ),
    "sd_error": real("The same for the difference from the goal's standard deviation."),
    "mean_correlation": real(_CLOSED_FORM.format("means")),
    "sd_correlation": real(_CLOSED_FORM.format("standard deviations")),
    "left_out": text(
        "The reason why the correction does not reach this layer, for which nothing else is measured; null for a layer "
        "that it corrects, and in rows that were measured before there was this column."
    ),
}

AXIS = {
    "axis": text("A hidden axis."),
    "size": integer("Number of its units."),
    "n_dead": integer("Matched positions where at least one of the two units is constant."),
    "matched_correlation": real("Mean correlation of A's units with their partners, over live positions."),
    "identity_correlation": real("The same with B's unit at the same position."),
}

_KINDS = {"int": pa.int64(), "int | None": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


def _field_columns(owner: type, meanings: Mapping[str, str]) -> dict[str, Column]:
    """Return a column for every field of a spec but its name; tuples and literals are text."""
    fields: list[dataclasses.Field[Any]] = [f for f in dataclasses.fields(owner) if f.name != "name"]
    return {f.name: Column(_KINDS.get(str(f.type), pa.string()), meanings[f.name]) for f in fields}


RECIPE = _field_columns(
    Recipe,
    {
        "batch_size": "Images per step.",
        "epochs": "Number of times that every image is seen.",
        "learning_rate": "The peak, reached after the warm-up, from which it falls to 0.",
        "warmup": "The fraction of all steps over which the learning rate rises.",
        "momentum": "Momentum of SGD; for Adam beta 1, the decay of the mean gradient, with beta 2 at .999.",
        "weight_decay": "L2 coefficient: this share of the weight is added to its gradient, by Adam as well.",
        "flip": "True if images are mirrored at random, left for right.",
        "translate": "Largest random shift, in pixels, along each axis; pixels that move in are black.",
        "optimizer": "`sgd` or `adam`.",
        "schedule": "Shape of the decay of the learning rate: a straight line (`linear`), or half a period of a "
        "`cosine`.",
        "initialization": "`published`: as the network's authors have it; `he-normal`: every weight normal with "
        "variance 2 / fan-in, every bias 0.",
        "precision": "Precision of the forward and backward passes of training: `float32`, `bfloat16` or `float16`.",
        "warmup_from": "The learning rate at the start of the warm-up.",
        "cutout": "Side, in pixels, of the square that is cut out of every image at random; 0 for none.",
        "label_smoothing": "The share of every label that is spread evenly over all classes.",
        "decayed_norms": "The norms whose parameters are decayed: `all`, `none`, or those on `shortcuts` only.",
        "skip_nonfinite": "True if steps with a non-finite gradient are skipped.",
        "clip_norm": "Largest norm of the gradient of all parameters, to which it is clipped; 0 for no clipping.",
        "resized_crop": "Side, in pixels, that a random crop of the image is resized to; 0 for no crop.",
    },
)

DATA = _field_columns(
    DataSpec,
    {
        "fingerprint": "sha256 of the images and labels: other data make other endpoints.",
        "n_train": "Images of the train split.",
        "n_test": "Images of the test split.",
        "n_classes": "Number of classes.",
        "shape": "Channels, height and width of an image, as in `1x8x8`.",
        "halves": "True if endpoints are trained on one of two halves of the train split, and pairs lie across them.",
    },
)

MEASURED = _field_columns(
    Measurement,
    {
        "alphas": "Number of points at which a path is measured.",
        "statistics": "Number of images of the train split that matchers and corrections see; null for all.",
        "evaluation": "Number of images of each split on which a point of a path is evaluated; null for all.",
        "draw": "Number of the random choice and augmentation of the images for statistics.",
        "augmented": "True if statistics come from images under the recipe's own augmentation.",
        "flip_averaged": "True if losses and accuracies are of logits averaged over each image and its mirror image.",
        "evaluated_in": "Precision in which points of a path are evaluated: `float32` or `bfloat16`.",
    },
)
