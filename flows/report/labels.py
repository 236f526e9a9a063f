"""Labels of cells and paths in figures and in the report, as short as the study allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tasks.tables.sweep import FIELDS

SIZE_FACTORS = ["depth", "width"]
NETWORK = ["dataset", "architecture", "normalization"]
SERIES = [*NETWORK, "recipe", "measurement"]


def label_path(matcher: str, correction: str) -> str:
    """Return a path in words: the matcher of B, and the correction of the interpolated network."""
    aligned = {"none": "direct", "activation": "aligned"}.get(matcher, f"aligned by {matcher}")
    return aligned if correction == "none" else f"{aligned}, {'REPAIR' if correction == 'repair' else correction}"


def swept_factors(ablation: pd.DataFrame) -> list[str]:
    """Return the swept fields of recipes and measurements, which have columns in the table."""
    return [name for name in ablation.columns if name in FIELDS]


def main_factor(ablation: pd.DataFrame) -> str:
    """Return the factor of the horizontal axis: depth, width or the swept field with most values."""
    return max([*SIZE_FACTORS, *swept_factors(ablation)], key=lambda factor: ablation[factor].nunique(dropna=False))


def label_value(value: Any, factor: str = "") -> str:
    """Return a factor's value on an axis; null is `all` images, the `last` epoch, or `none` for spawning."""
    if pd.isna(value):
        return {"epoch": "last", "spawn_seed": "none", "spawn_epoch": "none"}.get(factor, "all")
    return f"{value:g}" if isinstance(value, float) else str(value)


def label_points(frame: pd.DataFrame, aside: str = "") -> pd.Series:
    """Return a short label per row that distinguishes its cell and measurement, without the factor `aside`."""
    swept = swept_factors(frame)
    if aside == "depth":
        # VGGs differ only in depth. ResNets of other depths are other designs, so their names stay.
        frame = frame.assign(architecture=frame["architecture"].replace(r"^vgg\d+$", "vgg", regex=True))
    names = [*NETWORK, *SIZE_FACTORS, *swept, *([] if swept else ["recipe", "measurement"])]
    return _labels(frame, distinguishing(frame, [name for name in names if name != aside]))


def label_lines(frame: pd.DataFrame) -> pd.Series:
    """Return the label of each row's line, with lines along the one factor that makes the fewest."""
    labels = [label_points(frame, factor) for factor in [*SIZE_FACTORS, *swept_factors(frame)]]
    return min(labels, key=lambda of_rows: of_rows.nunique())


def distinguishing(frame: pd.DataFrame, names: list[str]) -> list[str]:
    """Return the columns that distinguish rows, without those that follow from the columns before them.

    The depth of a VGG, for example, follows from its architecture.
    """
    chosen: list[str] = []
    for name in names:
        distinct = len(frame[chosen].drop_duplicates()) if chosen else 1
        if len(frame[[*chosen, name]].drop_duplicates()) > distinct:
            chosen.append(name)
    return chosen


def _labels(frame: pd.DataFrame, names: list[str]) -> pd.Series:
    """Return the values of the columns `names`, as one label per row."""
    if not names:
        return pd.Series("", index=frame.index)
    return frame[names].apply(lambda row: _label(row, names), axis=1)


def _label(row: pd.Series, names: Sequence[str]) -> str:
    return ", ".join(str(row[name]) if name in SERIES else f"{name} {label_value(row[name], name)}" for name in names)


def cell_names(frame: pd.DataFrame) -> pd.Series:
    """Return the name of each row's cell and measurement, the same in every table."""
    return frame["cell_id"] + "/" + frame["measurement"]


def cells_of(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the label and the rows of each cell and measurement, ordered by network, size and swept values."""
    names = [*NETWORK, *SIZE_FACTORS, *swept_factors(frame), "cell_id", "measurement"]
    labels = label_points(frame.drop_duplicates(names))
    return [(str(labels[group.index[0]]), group) for _, group in frame.groupby(names, sort=True, dropna=False)]
