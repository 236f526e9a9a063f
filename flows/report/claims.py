"""The text of the report's claim: the finding of a study, in sentences."""

from __future__ import annotations

import pandas as pd

from flows.report.labels import SIZE_FACTORS, label_value, main_factor
from flows.report.summary import tell_interval
from tasks.science.statistics.jackknife import MIN_SEEDS

_NETWORK = ["dataset", "architecture", "normalization", "width", "depth"]


def make_claim(ablation: pd.DataFrame) -> str:
    """Return the share of aligned barriers that REPAIR removes, in a sentence for each of the hardest cells.

    A study of several sizes has a sentence for each normalization, at the largest depth and smallest width with a
    barrier. A study of one size has one for each of its networks; one that sweeps another field, for the smallest and
    the largest value.
    """
    factor = main_factor(ablation)
    test = ablation[(ablation["split"] == "test") & (ablation["matcher"] == "activation")]
    removed = test[(test["metric"] == "accuracy_barrier_reduction") & (test["correction"] == "repair")]
    known = removed[removed["mean"].notna()].sort_values([factor, "dataset"])
    if not ablation["n_pairs"].max():
        return "No pair was measured, so there is no claim."
    if "repair" not in set(test["correction"]):
        return "No pair was aligned by activations and corrected by REPAIR, so there is no claim."
    if known.empty and ablation["n_seeds"].max() < MIN_SEEDS:
        return f"With fewer than {MIN_SEEDS} trained seeds there are no intervals, so there is no claim."
    if known.empty:
        return (
            "No cell of this study has an aligned barrier whose 95 % interval excludes zero, so REPAIR has no barrier "
            "to remove."
        )
    if factor in SIZE_FACTORS and known[factor].nunique() > 1:
        other = "width" if factor == "depth" else "depth"
        hardest_first = known.sort_values(
            [factor, other, "dataset"], ascending=[factor == "width", other == "width", True]
        )
        hardest = hardest_first.drop_duplicates("normalization").sort_values("normalization")
        return _claim_of(hardest, test)
    if factor not in SIZE_FACTORS:
        # The study asks which value is hardest.
        ends = known.iloc[[0, -1]] if len(known) > 1 else known
        return _claim_of(ends, test, factor)
    return _claim_of(known, test)


def answer_widths(laws: pd.DataFrame) -> list[str]:
    """Return the widths that aligned and repaired networks need, a sentence for each series of the table `laws`."""
    asked = laws[(laws["split"] == "test") & (laws["metric"] == "accuracy_barrier")]
    asked = asked[(asked["matcher"] == "activation") & (asked["correction"] == "repair")]
    return list(dict.fromkeys(asked["answer_text"]))


def _claim_of(cells: pd.DataFrame, test: pd.DataFrame, swept: str = "") -> str:
    """Return a sentence for each of `cells`, rows of `test`; equal counts of pairs and seeds are given once.

    `swept` is the factor that distinguishes the cells.
    """
    sentences = [_removed(cell, test, swept) for _, cell in cells.iterrows()]
    counts = [f"over {cell['n_pairs']} pairs of {cell['n_seeds']} seeds" for _, cell in cells.iterrows()]
    tails = [f" (means {count}, 95 % intervals over seeds)" for count in counts]
    if len(set(counts)) == 1:
        tails = ["" for _ in sentences[1:]] + tails[-1:]
    return " ".join(f"{sentence}{tail}." for sentence, tail in zip(sentences, tails, strict=True))


def _removed(removed: pd.Series, test: pd.DataFrame, swept: str) -> str:
    """Return the aligned barrier of one cell in words, and the share that REPAIR `removed`."""
    before = test[(test["cell_id"] == removed["cell_id"]) & (test["metric"] == "accuracy_barrier")]
    before = before[(before["correction"] == "none") & (before["measurement"] == removed["measurement"])].iloc[0]
    network = f"At width {removed['width']} and {removed['depth']} hidden layers"
    if removed["architecture"] != "mlp":
        network = f"For {removed['architecture']} of width {removed['width']}"
    if test["normalization"].nunique() > 1 or removed["architecture"] != "mlp":
        network += f" with normalization {removed['normalization']}"
    alike = test[(test[_NETWORK] == removed[_NETWORK]).all(axis=1)]
    if alike["recipe"].nunique() > 1 and not swept:
        network += f", trained by {removed['recipe']},"
    if swept:
        network += f", with {swept} {label_value(removed[swept], swept)},"
    doubt = ", and may remove nothing" if removed["low"] <= 0 else ""
    return (
        f"{network} on {removed['dataset']}, alignment alone leaves an accuracy barrier of "
        f"{tell_interval(before, 100)} points; REPAIR removes {tell_interval(removed, 100, digits=0)} % of it{doubt}"
    )
