from __future__ import annotations

import pandas as pd
from made_tables import ablation_rows, layer_rows

from flows.report.claims import make_claim
from flows.report.figures.ablation import chart_barriers
from flows.report.figures.curves import CURVES, curves_of
from flows.report.labels import label_points, main_factor
from flows.report.summary import section_starts, summarise_ablation, uncorrected_layers


def test_the_summary_has_a_row_per_cell_and_path_and_gaps_as_gaps(ablation: pd.DataFrame):
    summary = summarise_ablation(ablation)
    assert len(summary) == 2 * len(CURVES)
    assert summary["path"].tolist()[:4] == [curve.label for curve in CURVES]
    assert summary["accuracy removed, %"].tolist()[0] == "-"
    assert summary["accuracy barrier, points"].tolist()[2] == "10.0 [5.0, 11.0]"
    assert "dataset" not in summary.columns


def test_every_matcher_and_correction_of_a_study_is_in_its_table_and_figures(ablation: pd.DataFrame):
    wide = pd.concat([
        ablation, *(
            ablation[ablation["matcher"] == "activation"].assign(matcher=matcher, correction=correction)
            for matcher, correction in (("weight/restarts=5", "reset"), ("none", "repair-block"))
        )
    ], ignore_index=True)  # fmt: skip
    labels = [curve.label for curve in curves_of(wide)]
    assert labels == [*(curve.label for curve in CURVES), "direct, repair-block", "aligned by weight/restarts=5, reset"]
    assert len({(curve.color, curve.marker) for curve in curves_of(wide)}) == 6
    summary = summarise_ablation(wide)
    assert summary["path"].unique().tolist() == labels
    assert section_starts(summary) == [0, len(labels)]
    assert section_starts(summary.iloc[:, list(summary.columns).index("path") :]) == [0]
    assert chart_barriers(wide) is not None


def test_what_a_study_sweeps_is_its_axis_its_column_and_its_claim():
    cells = [
        pd.DataFrame(ablation_rows(depths=(4,), repaired=repaired)).assign(
            recipe=f"r/learning_rate={rate}", cell_id=str(rate), learning_rate=rate, statistics=None
        )
        for rate, repaired in ((0.001, 0.1), (0.01, 0.2), (0.1, 0.3))
    ]
    ablation = pd.concat(cells, ignore_index=True)
    assert main_factor(ablation) == "learning_rate"
    assert set(label_points(ablation, "learning_rate")) == {""}
    claim = make_claim(ablation)
    assert claim.count("REPAIR removes") == 2
    assert "with learning_rate 0.001, on digits, alignment alone" in claim
    assert "with learning_rate 0.1, on digits, alignment alone" in claim
    summary = summarise_ablation(ablation)
    assert "recipe" not in summary.columns
    assert set(summary["learning_rate"]) == {"0.001", "0.01", "0.1"}
    assert chart_barriers(ablation)


def test_all_images_are_a_value_of_what_is_swept():
    cells = [
        pd.DataFrame(ablation_rows(depths=(4,))).assign(measurement=str(n_images), statistics=n_images)
        for n_images in (100, 1000, None)
    ]
    ablation = pd.concat(cells, ignore_index=True)
    assert list(dict.fromkeys(summarise_ablation(ablation)["statistics"])) == ["100", "1000", "all"]
    assert "with statistics 100, on digits" in make_claim(ablation)
    assert "with statistics all, on digits" in make_claim(ablation)


def test_layers_that_no_correction_reaches_are_told_once_with_their_reason():
    rows = layer_rows({"none": [None], "repair": [None, None]})
    rows[-1] |= {"layer": "gru.weight_hh_l0", "left_out": "it runs more than once"}
    rows[-2] |= {"layer": "gru.weight_hh_l0", "left_out": "it runs more than once"}
    assert uncorrected_layers(pd.DataFrame(rows)) == [
        "In mlp, repair does not reach gru.weight_hh_l0: it runs more than once."
    ]
    assert uncorrected_layers(pd.DataFrame(layer_rows({"repair": [None]}))) == []
