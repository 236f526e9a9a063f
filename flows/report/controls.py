"""The text of a study's controls, which are pairs with a known outcome."""

from __future__ import annotations

import pandas as pd


def independently_initialized(cells: pd.DataFrame, endpoints: pd.DataFrame) -> set[str]:
    """Return the ids of the cells whose endpoints have independent initial weights.

    Endpoints spawned from one training do not have them, and for imported ones it is unknown.
    """
    imported = set(endpoints.loc[endpoints["origin"] == "imported", "cell_id"])
    return set(cells.loc[cells["spawn_seed"].isna(), "cell_id"]) - imported


def tell_controls(barriers: pd.DataFrame, ablation: pd.DataFrame, independent: set[str]) -> list[str]:
    """Return a sentence for each measured control: its outcome and the expected one. Test split, uncorrected.

    A random permutation does not change the distribution of direct barriers between networks with independent initial
    weights: its sentence counts the pairs of the cells in `independent` that lie in the prediction interval of a new
    direct pair.
    """
    test = barriers[(barriers["split"] == "test") & (barriers["correction"] == "none")]
    found = (_tell_itself(test[test["control"] == "permuted-self"]), _tell_random(test, ablation, independent))
    return [sentence for sentence in found if sentence]


def _tell_itself(itself: pd.DataFrame) -> str:
    if itself.empty:
        return ""
    worst = itself[["loss_barrier", "accuracy_barrier"]].max().max()
    reason = (
        " It is not: a unit that is constant on the images used for matching cannot be matched, and may vary on others."
    )
    return (
        f"A network against itself, with its units shuffled and aligned again, in {itself['cell_id'].nunique()} cells: "
        f"the largest barrier is {worst:.1g} (nats or share of the images), and should be below 1e-6."
        f"{reason if worst >= 1e-6 else ''}"
    )


def _tell_random(test: pd.DataFrame, ablation: pd.DataFrame, independent: set[str]) -> str:
    random = test[test["control"] == "random-permutation"]
    if random.empty:
        return ""
    direct = test[(test["matcher"] == "none") & (test["kind"] == "pair")]
    both = random.merge(direct, on=["cell_id", "seed_a", "seed_b", "measurement"], suffixes=("", "_direct"))
    off = (both["midpoint_accuracy_barrier"] - both["midpoint_accuracy_barrier_direct"]) * 100
    spread = direct.groupby("cell_id")["midpoint_accuracy_barrier"].std().max() * 100
    sentence = (
        f"Permuted at random instead of aligned, {len(both)} pairs have midpoint barriers that differ from the direct "
        f"path's by {off.mean():+.1f} points on average (at most {off.abs().max():.1f}); the direct barriers of a "
        f"cell's pairs have a standard deviation of up to {spread:.1f} points."
    )
    expected = ablation[
        (ablation["metric"] == "midpoint_accuracy_barrier") & (ablation["split"] == "test")
        & (ablation["matcher"] == "none") & (ablation["correction"] == "none") & ablation["new_pair_low"].notna()
        & ablation["cell_id"].isin(independent)
    ]  # fmt: skip
    judged = random.merge(expected, on=["cell_id", "measurement"], suffixes=("", "_expected"))
    if judged.empty:
        return sentence
    inside = judged["midpoint_accuracy_barrier"].between(judged["new_pair_low"], judged["new_pair_high"])
    return (
        f"{sentence} Of {len(judged)} with independent initial weights, {inside.sum()} lie in the 95 % prediction "
        "interval of a new direct pair: nearly all should."
    )
