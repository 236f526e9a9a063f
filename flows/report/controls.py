"""What a study's controls show, in words: pairs whose outcome is known before they are measured."""

from __future__ import annotations

import pandas as pd


def began_apart(cells: pd.DataFrame, endpoints: pd.DataFrame) -> set[str]:
    """The ids of the cells whose endpoints each began with initial weights of their own: neither spawned from one
    training, nor imported, of which that is not known."""
    imported = set(endpoints.loc[endpoints["origin"] == "imported", "cell_id"])
    return set(cells.loc[cells["spawn_seed"].isna(), "cell_id"]) - imported


def tell_controls(barriers: pd.DataFrame, ablation: pd.DataFrame, apart: set[str]) -> list[str]:
    """A sentence for each control that was measured: what it shows, and what it ought to. Test split, uncorrected.

    Units of two networks that began apart have nothing to do with one another, so that a random permutation leaves the
    direct path what it is: of the cells in `apart` it is told how many pairs lie where a new direct pair would.
    """
    test = barriers[(barriers["split"] == "test") & (barriers["correction"] == "none")]
    found = (_tell_itself(test[test["control"] == "permuted-self"]), _tell_random(test, ablation, apart))
    return [sentence for sentence in found if sentence]


def _tell_itself(itself: pd.DataFrame) -> str:
    if itself.empty:
        return ""
    worst = itself[["loss_barrier", "accuracy_barrier"]].max().max()
    reason = (
        " It is not: a unit that fired for none of the images that units were matched on has no partner to find, and "
        "may fire for others."
    )
    return (
        f"A network against itself, its units shuffled and aligned again, in {itself['cell_id'].nunique()} cells: "
        f"the largest barrier is {worst:.1g} (nats or share of the images), and ought to be below 1e-6."
        f"{reason if worst >= 1e-6 else ''}"
    )


def _tell_random(test: pd.DataFrame, ablation: pd.DataFrame, apart: set[str]) -> str:
    random = test[test["control"] == "random-permutation"]
    if random.empty:
        return ""
    direct = test[(test["matcher"] == "none") & (test["kind"] == "pair")]
    both = random.merge(direct, on=["cell_id", "seed_a", "seed_b", "measurement"], suffixes=("", "_direct"))
    off = (both["midpoint_accuracy_barrier"] - both["midpoint_accuracy_barrier_direct"]) * 100
    spread = direct.groupby("cell_id")["midpoint_accuracy_barrier"].std().max() * 100
    sentence = (
        f"Permuted at random instead of aligned, {len(both)} pairs have midpoint barriers that are "
        f"{off.mean():+.1f} points off the direct path's (at most {off.abs().max():.1f}); direct barriers of "
        f"one cell's pairs spread by up to {spread:.1f} points (standard deviation)."
    )
    expected = ablation[
        (ablation["metric"] == "midpoint_accuracy_barrier") & (ablation["split"] == "test")
        & (ablation["matcher"] == "none") & (ablation["correction"] == "none") & ablation["new_pair_low"].notna()
        & ablation["cell_id"].isin(apart)
    ]  # fmt: skip
    judged = random.merge(expected, on=["cell_id", "measurement"], suffixes=("", "_expected"))
    if judged.empty:
        return sentence
    inside = judged["midpoint_accuracy_barrier"].between(judged["new_pair_low"], judged["new_pair_high"])
    return (
        f"{sentence} Of {len(judged)} whose endpoints began apart, {inside.sum()} lie where a new direct pair of "
        "theirs would fall (95 %): nearly all ought to."
    )
