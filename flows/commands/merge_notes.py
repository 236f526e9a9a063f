"""Known reasons for a merge that did not work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from tasks.science.evaluation.metrics import Evaluation
from tasks.science.merging import Merged

HELPED = 0.25
"""Share of the accuracy lost on the direct path that alignment must win back to have helped."""

LOST = 0.02
"""Loss of accuracy on the direct path below which there is nothing to explain."""

_ATTENTION = (
    "known: in attention networks permutations of units leave most of the barrier (a ViT on CIFAR-10 aligned by "
    "activations keeps 1.27 of 1.69 nats); rotations of the residual stream and within heads, which are not tried "
    "here, remove far more (arXiv 2506.22712, table 2)"
)
_WIDTH = (
    "known: the barrier that is left after alignment falls with width and grows with depth, and networks that were "
    "trained on other data or with another recipe align worse (arXiv 2110.06296, 2209.04836, 2211.08403)"
)
_CORRECTION = (
    "the correction made it worse: it gives every unit its mean and standard deviation back, which helps where matched "
    "units respond to the same inputs; try --correction none"
)


def explain(merged: Merged, ends: Sequence[Evaluation], direct: Evaluation, aligned: Evaluation) -> list[str]:
    """Return the known reasons where alignment wins back under a quarter of the direct path's loss; else nothing.

    `ends`, `direct` and `aligned` are evaluations on the same examples.
    """
    reached = (1 - merged.alpha) * ends[0].accuracy + merged.alpha * ends[1].accuracy
    lost = reached - direct.accuracy
    if not merged.permutation or lost < LOST or aligned.accuracy - direct.accuracy >= HELPED * lost:
        return []
    before, after = (f"{100 * one.accuracy:.1f} %" for one in (direct, aligned))
    how_much = "did not help" if aligned.accuracy <= direct.accuracy + LOST else "helped little"
    lines = [f"alignment {how_much}: accuracy {before} before, {after} after, {100 * reached:.1f} % at the ends"]
    axes = [axis for axis in merged.match.axes if not np.isnan(axis.matched_correlation)]
    if axes:
        sizes = [axis.size for axis in axes]
        matched, at_start = (
            np.average([getattr(axis, name) for axis in axes], weights=sizes)
            for name in ("matched_correlation", "identity_correlation")
        )
        lines[0] += f"; matched units have a mean similarity of {matched:.2f}, units at equal places {at_start:.2f}"
    attends = any(axis.family.endswith(".heads") for axis in merged.spec.axes) or any(
        isinstance(module, nn.MultiheadAttention) for module in merged.network.modules()
    )
    return [*lines, _ATTENTION if attends else _WIDTH]


def explain_correction(aligned: Evaluation, corrected: Evaluation) -> list[str]:
    """Return the known reason where a correction lowered the accuracy of the aligned network; else nothing."""
    return [_CORRECTION] if corrected.accuracy < aligned.accuracy - LOST else []
