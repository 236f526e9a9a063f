"""The table `width_laws`: the power law of each series of barriers in the width, and the width needed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import special

from tasks.science.specs.identity import spec_id, stream
from tasks.science.statistics.jackknife import CONFIDENCE, UNDEFINED
from tasks.science.statistics.width_law import Barriers, answer, answer_sentence, fit_width_law
from tasks.tables import schema
from tasks.tables.ablation import BARRIER_METRICS
from tasks.tables.factors import series
from tasks.tables.frames import Row, read_frame

THRESHOLD = 0.01
"""Threshold of the accuracy barrier: one point of error rate. Losses have none, and no answer."""

_PATH = ["matcher", "correction", "measurement", "split", "metric"]


def tabulate_width_laws(cells: pd.DataFrame, ablation: pd.DataFrame) -> pd.DataFrame:
    """Return the `width_laws` table: a law per path, split and barrier of every series of at least two widths."""
    accuracies = ablation[ablation["metric"] == "endpoint_accuracy"].set_index(["cell_id", *_PATH[:-1]])["mean"]
    rows: list[Row] = []
    for shared, of_series in series(read_frame(cells), "width").items():
        if len(of_series) < 2:
            continue
        first = of_series[0]
        columns = {name: first[name] for name in schema.CELL if name not in ("cell_id", "width")}
        columns |= {name: first.get(name) for name in schema.TIME}
        columns["series_id"] = spec_id((), shared)
        chosen = ablation[ablation["cell_id"].isin([cell["cell_id"] for cell in of_series])]
        chosen = chosen[chosen["metric"].isin(BARRIER_METRICS)]
        for path, frame in chosen.groupby(_PATH, sort=True):
            words = [str(word) for word in path]
            ends = [accuracies.get((cell_id, *words[:-1]), np.nan) for cell_id in frame["cell_id"]]
            rows.append(columns | dict(zip(_PATH, words, strict=True)) | _law(first, columns, words, frame, ends))
    return pd.DataFrame(rows, columns=list(schema.WIDTH_LAWS.columns))


def _law(cell: Row, columns: Row, words: list[str], frame: pd.DataFrame, accuracies: list[float]) -> Row:
    """Return the columns of the law of one path, split and metric, whose means are in `frame`."""
    metric = words[-1]
    ceilings = np.full(len(frame), np.inf)
    if "accuracy" in metric:
        # The highest error rate of an interpolated network is that of guessing.
        ceilings = np.asarray(accuracies) - 1 / cell["data_n_classes"]
    barriers = _barriers(frame.assign(ceiling=ceilings), n_samples=2 if cell["data_halves"] else 1)
    threshold = THRESHOLD if "accuracy" in metric else None
    law = fit_width_law(barriers, threshold, stream("width law", columns["series_id"], *words))
    row: Row = {"n_measured_widths": len(barriers.widths), "n_widths": law.n_widths if law else 0}
    for name in ("c", "p", "floor"):
        found = getattr(law, name) if law else UNDEFINED
        row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    row["fit_probability"] = law.fit_probability if law else float("nan")
    if threshold is None:
        return row
    found = answer(barriers, threshold, law)
    widest = float(barriers.widths[-1]) if len(barriers.widths) else float("nan")
    return row | {
        "threshold": threshold,
        "answer": found.kind,
        "width": found.width,
        "width_low": found.low,
        "width_high": found.high,
        "answer_text": answer_sentence(found, _in_words(columns, words), f"{100 * threshold:g} %", widest),
    }


def _barriers(frame: pd.DataFrame, n_samples: int) -> Barriers:
    """Return the rows of an ablation that have an interval, by width, with the standard errors of these intervals."""
    known = frame[frame["low"].notna()].sort_values("width")
    degrees = known["n_seeds"].to_numpy(dtype=np.float64) - n_samples
    reach = (known["high"] - known["low"]).to_numpy(dtype=np.float64) / 2
    return Barriers(
        widths=known["width"].to_numpy(dtype=np.float64),
        means=known["mean"].to_numpy(dtype=np.float64),
        errors=reach / special.stdtrit(degrees, (1 + CONFIDENCE) / 2),
        degrees=degrees,
        ceilings=known["ceiling"].to_numpy(dtype=np.float64),
    )


def _in_words(columns: Row, words: list[str]) -> str:
    matcher, correction, _, split, metric = words
    network = columns["architecture"]
    if network == "mlp":
        network += f" of {columns['depth']} hidden layers"
    if columns["normalization"] != "none":
        network += f" with normalization {columns['normalization']}"
    if (epoch := columns["epoch"]) is not None and not pd.isna(epoch):
        network += f" after epoch {epoch:g}"
    if (epoch := columns["spawn_epoch"]) is not None and not pd.isna(epoch):
        network += f" spawned at epoch {epoch:g}"
    path = "direct path" if matcher == "none" else f"aligned by {matcher}"
    path += "" if correction == "none" else f", corrected by {correction}"
    return f"The {metric.replace('_', ' ')} of {network} on {columns['dataset']} ({path}, {split} split)"
