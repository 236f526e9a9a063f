"""A study's results in pandas: its tables, its contrasts, its main figure, and the weights behind every point.

from repairlab import open_study

study = open_study("runs", "digits-depth")
study.ablation
study.contrast("repair", "none")
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as Folder
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from flows.report.figures.ablation import chart_width
from flows.report.figures.drawing import draw
from flows.report.gathered import TABLES_BY_NAME, has_tables, mixed_tables
from flows.trust import check_cell_code
from infra.paths import table_key
from infra.settings import load_settings
from infra.storage import Store, StoreError
from infra.tables import open_table, read_descriptions, read_provenance
from tasks.science.paths.curves import CorrectedPath
from tasks.science.paths.networks import interpolate_network
from tasks.science.specs.path import Path, WeightPath
from tasks.stored.expansion import Expansion, StoreView
from tasks.stored.pairs import PairBench
from tasks.stored.requests import read_requests
from tasks.tables import schema


@dataclass(frozen=True)
class StudyResults:
    """The tables of one study, each read when it is first asked for; `describe` explains their columns."""

    store: Store
    name: str

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A row per point of the grid."""
        return self.table("cells")

    @cached_property
    def endpoints(self) -> pd.DataFrame:
        """A row per trained network."""
        return self.table("endpoints")

    @cached_property
    def merges(self) -> pd.DataFrame:
        """A row per pair of endpoints under a matcher."""
        return self.table("merges")

    @cached_property
    def paths(self) -> pd.DataFrame:
        """A row per point of a path and split."""
        return self.table("paths")

    @cached_property
    def barriers(self) -> pd.DataFrame:
        """A row per path and split."""
        return self.table("barriers")

    @cached_property
    def layers(self) -> pd.DataFrame:
        """A row per layer of the network at a point of a path."""
        return self.table("layers")

    @cached_property
    def axes(self) -> pd.DataFrame:
        """A row per axis of a merge: how well its units found partners."""
        return self.table("axes")

    @cached_property
    def ablation(self) -> pd.DataFrame:
        """A row per mean over the pairs of a cell, with its interval."""
        return self.table("ablation")

    @cached_property
    def paper(self) -> pd.DataFrame:
        """A row per published figure, beside ours."""
        return self.table("paper")

    @cached_property
    def contrasts(self) -> pd.DataFrame:
        """A row per difference between two paths of a cell, or two cells that differ in one factor."""
        return self.table("contrasts")

    @cached_property
    def width_laws(self) -> pd.DataFrame:
        """A row per law that barriers follow with width, and the width that it asks for."""
        return self.table("width_laws")

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """The versions, commit, revisions and requests that the tables come from."""
        return read_provenance(self.store, table_key(self.name, "ablation"))

    def table(self, name: str) -> pd.DataFrame:
        """Return a table by its name. Raises ValueError, with the known names, for another name."""
        frame, provenance = open_table(self.store, self._key(name), TABLES_BY_NAME[name])
        if provenance.get("gathering") != self.provenance.get("gathering"):
            now = read_provenance(self.store, table_key(self.name, "ablation"))
            if now.get("gathering") == provenance.get("gathering"):
                raise StoreError(f"{self.name} was gathered anew since it was opened: open it again")
            raise mixed_tables(self.store, self.name)
        return frame

    def describe(self, name: str) -> pd.DataFrame:
        """Return every column of a table, with the `type` and `description` in the table's own file.

        Raises ValueError as `table`.
        """
        return read_descriptions(self.store, self._key(name))

    def _key(self, name: str) -> str:
        if name not in TABLES_BY_NAME:
            raise ValueError(f"there is no table {name!r}; known: {', '.join(TABLES_BY_NAME)}")
        return table_key(self.name, name)

    def contrast(
        self,
        correction: str,
        other: str = "none",
        *,
        matcher: str = "activation",
        metric: str = "accuracy_barrier",
        split: str = "test",
    ) -> pd.DataFrame:
        """Return how much larger `metric` is under `correction` than under `other`, a row per cell and measurement.

        `difference` is the mean over the pairs that both have, `low` and `high` its 95 % interval over seeds. Raises
        ValueError, with what was measured, where one of the two was not.
        """
        found = self.contrasts
        found = found[(found["matcher"] == matcher) & (found["other_matcher"] == matcher)]
        found = found[(found["cell_id"] == found["other_cell_id"]) & (found["split"] == split)]
        found = found[found["metric"] == metric]
        asked, swapped = (
            found[(found["correction"] == this) & (found["other_correction"] == that)]
            for this, that in ((other, correction), (correction, other))
        )
        # The table has every two once, each the other less this.
        turned = swapped.assign(difference=-swapped["difference"], low=-swapped["high"], high=-swapped["low"])
        rows = pd.concat([asked, turned]) if len(turned) else asked
        if rows.empty:
            of_matcher = self.ablation[self.ablation["matcher"] == matcher]
            raise ValueError(
                f"{self.name} has no {metric} of {correction} and {other} under matcher {matcher} on the {split} "
                f"split; measured: corrections {_words(of_matcher['correction'])}, of matchers "
                f"{_words(self.ablation['matcher'])}, metrics {_words(self.contrasts['metric'])}"
            )
        columns = [name for name in self.ablation.columns if name in rows.columns and name in _TELLING]
        swept = [name for name in rows.columns if name not in schema.CONTRASTS.columns]
        kept = [*columns, *swept, "measurement", "difference", "low", "high", "n_seeds", "n_pairs"]
        return rows[kept].sort_values([*columns[1:], *swept, "measurement"], ignore_index=True)

    def plot_width(self, metric: str = "accuracy_barrier", split: str = "test") -> Figure:
        """Draw `metric` against width, a line per path and a panel per series of cells.

        Intervals are of 95 % over seeds, accuracies in percent. Raises ValueError, with what there is, where `metric`
        was not measured.
        """
        return draw(chart_width(self.ablation, metric, split))

    def network(
        self,
        merge_id: str,
        alpha: float,
        correction: str = "none",
        *,
        measurement: str | None = None,
        data_dir: Folder | None = None,
        trust_code: bool = False,
    ) -> nn.Module:
        """Return the network at `alpha` of a path, in evaluation mode with its weights: A at 0, B at 1.

        B is aligned as the merge aligned it. A correction needs the data set that its statistics come from.

        Parameters
        ----------
        measurement
            The measurement whose samples the correction sees, where the study has several.
        data_dir
            The folder of data, as in the settings by default.
        trust_code
            Whether user-defined code that the store names is run.

        Raises
        ------
        ValueError
            Where code would have to be run that may not be, and for a merge, measurement or correction not in the
            study.
        """
        path = self._find(merge_id, correction, measurement)
        if not trust_code:
            check_cell_code(self.name, path.pairing.cell)
        bench = PairBench(self.store, [path], data_dir or load_settings().data_dir)
        sides = bench.aligned(path.pairing)
        if correction == "none":
            network, state = bench.network, interpolate_network(bench.network, sides[0].state, sides[1].state, alpha)
        else:
            corrected = CorrectedPath(sides, correction, bench.statistics).at(alpha)
            network, state = corrected.network, corrected.state
        module = copy.deepcopy(network).to_empty(device="cpu")
        module.load_state_dict(state)
        return module.eval()

    def _find(self, merge_id: str, correction: str, measurement: str | None) -> WeightPath:
        found = [path for path in self._paths if isinstance(path, WeightPath) and path.pairing.id == merge_id]
        if not found:
            raise ValueError(f"{self.name} has no merge {merge_id!r}: take one from the column merge_id of barriers")
        of_correction = [path for path in found if path.correction == correction]
        if not of_correction:
            raise ValueError(
                f"{self.name} has not measured correction {correction!r} of this merge; "
                f"measured: {', '.join(dict.fromkeys(path.correction for path in found))}"
            )
        names = [path.measurement.name for path in of_correction]
        chosen = [path for path in of_correction if measurement in (None, path.measurement.name)]
        if not chosen:
            raise ValueError(f"this merge has no measurement {measurement!r}; it has {', '.join(names)}")
        return chosen[0]

    @cached_property
    def _paths(self) -> list[Path]:
        """The paths that any request of the study asks for and whose endpoints are there."""
        view = StoreView(self.store)
        expansions = [Expansion(request, view) for request in read_requests(self.store, self.name).values()]
        return [measured.path for expansion in expansions for measured in expansion.all_paths()]


_TELLING = ("cell_id", "dataset", "architecture", "normalization", "width", "depth", "recipe")


def open_study(store: str | Store, study: str) -> StudyResults:
    """Return the results of `study` in `store`, a folder or an s3:// URL with keys from the usual AWS variables.

    Raises StoreError, with the studies that have tables, where this one has none.
    """
    opened = store if isinstance(store, Store) else Store(store, patience_seconds=0)
    if not has_tables(opened, study):
        gathered = [name for name in opened.folders("studies") if has_tables(opened, name)]
        there = f"it has tables of {', '.join(gathered)}" if gathered else "it has tables of none"
        raise StoreError(f"{opened.url} has no tables of a study {study!r}; {there}: repairlab run makes them")
    return StudyResults(opened, study)


def _words(column: pd.Series) -> str:
    return ", ".join(dict.fromkeys(str(word) for word in column))
