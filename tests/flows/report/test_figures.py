from __future__ import annotations

import io
import itertools

import numpy as np
import pandas as pd
import pytest
from made_tables import ablation_rows, axis_rows, layer_rows, path_rows
from PIL import Image

from flows.report.claims import make_claim
from flows.report.figures.ablation import PUBLISHED_LABEL, chart_against, chart_barriers, chart_errors, factors_varied
from flows.report.figures.chart import Chart, Line, marks
from flows.report.figures.curves import ALIGNED, CURVES, REPAIRED
from flows.report.figures.drawing import draw, draw_png
from flows.report.figures.pairs import (
    chart_closed_form,
    chart_correlation,
    chart_paths,
    chart_predictions,
    chart_variance,
)
from flows.report.labels import label_points, main_factor
from flows.report.summary import summarise_ablation
from tasks.tables import schema


def known(chart: Chart | None) -> Chart:
    assert chart is not None
    return chart


def ticks(chart: Chart | None) -> list[list[str]]:
    """The labels on the horizontal axis of every panel."""
    return [[label for _, label in panel.x.ticks] for panel in known(chart).panels]


def lines(chart: Chart | None) -> list[Line]:
    return [line for panel in known(chart).panels for line in panel.lines]


def test_the_end_of_training_is_the_last_epoch_of_axis_table_and_claim():
    cells = [
        pd.DataFrame(ablation_rows(depths=(4,))).assign(cell_id=str(epoch), epoch=epoch) for epoch in (None, 10, 2, 0)
    ]
    # As a table is read: whole numbers beside nulls are floats.
    ablation = pd.concat(cells, ignore_index=True).astype({"epoch": float})
    assert main_factor(ablation) == "epoch"
    assert set(label_points(ablation, "epoch")) == {""}
    assert list(dict.fromkeys(summarise_ablation(ablation)["epoch"])) == ["0", "2", "10", "last"]
    claim = make_claim(ablation)
    assert claim.count("REPAIR removes") == 2
    assert "with epoch 0, on digits" in claim
    assert "with epoch last, on digits" in claim
    assert ticks(chart_barriers(ablation)) == [["0", "2", "10", "last"]] * 2


def test_cells_stand_side_by_side_where_no_line_joins_them_or_too_many_would():
    def study(*networks: tuple[str, str, int]) -> pd.DataFrame:
        cells = [
            pd.DataFrame(ablation_rows(depths=(depth,))).assign(architecture=architecture, normalization=normalization)
            for architecture, normalization, depth in networks
        ]
        return pd.concat(cells, ignore_index=True)

    side_by_side = chart_barriers(study(("resnet20", "batch", 20), ("resnet20", "layer", 20)))
    assert ticks(side_by_side) == [["batch", "layer"]] * 2
    assert not any(line.is_joined for line in lines(side_by_side))
    vggs = study(*((f"vgg{depth}", norm, depth) for norm in ("batch", "none") for depth in (19, 11)))
    assert ticks(chart_barriers(vggs)) == [["11", "19"]] * 4
    names = ["mlp", "resnet18", "resnet20", "resnet50", "wide-resnet50-2"]
    many = study(*((name, "batch", depth) for name in names for depth in (2, 4)))
    assert ticks(chart_barriers(many)) == [[f"{name}, depth {depth}" for name in names for depth in (2, 4)]] * 2


@pytest.fixture
def grid() -> pd.DataFrame:
    """Two normalizations at three depths and two widths."""
    cells = [
        pd.DataFrame(ablation_rows(depths=(2, 4, 16))).assign(
            width=width, normalization=word, cell_id=lambda frame, at=f"{word}-{width}": frame["cell_id"] + at
        )
        for word in ("none", "batch")
        for width in (64, 128)
    ]
    return pd.concat(cells, ignore_index=True).assign(new_pair_low=0.1, new_pair_high=0.2)


def test_barriers_stand_against_every_factor_that_varies_with_all_other_cells_as_panels(grid: pd.DataFrame):
    assert factors_varied(grid) == ["depth", "width", "normalization"]
    nothing = pd.DataFrame()
    by_depth = known(chart_against(grid, "depth", "accuracy_barrier", nothing))
    assert ticks(by_depth) == [["2", "4", "16"]] * 4
    assert {panel.title for panel in by_depth.panels} == {
        f"{word}, width {width}" for word in ("none", "batch") for width in (64, 128)
    }
    assert ticks(chart_against(grid, "normalization", "accuracy_barrier", nothing)) == [["batch", "none"]] * 6
    aligned = next(line for line in by_depth.panels[0].lines if line.path == ALIGNED.label)
    assert aligned.y == pytest.approx((5, 10, 40))
    assert aligned.y_low == pytest.approx((2.5, 5, 20))
    assert aligned.notes == ("6 pairs of 4 seeds; a new pair: 10 to 20",) * 3
    assert len(set(aligned.cells)) == 3


def test_the_papers_points_stand_at_their_width_with_their_verdict(grid: pd.DataFrame):
    common = {"split": "test", "dataset": "digits", "architecture": "mlp", "normalization": "none", "depth": 4}
    common |= {"verdict": "inside"}
    rows = [
        common | {"width": width, "matcher": "activation", "correction": "repair", "method": "aligned+repair"}
        | {"metric": metric, "published": value, "point": f"{width}/{metric}"}
        | {"cell_id": f"digits-4none-{width}" if width < 512 else None, "measurement": "default"}
        for width, at_middle, at_ends in ((64, 0.5, 0.8), (128, 0.7, 0.9), (512, 0.8, 0.9))
        for metric, value in (("midpoint_accuracy", at_middle), ("endpoint_accuracy", at_ends))
    ]  # fmt: skip
    paper = pd.DataFrame(rows).reindex(columns=list(schema.PAPER.columns))
    for metric, wanted in (("midpoint_accuracy", (50, 70)), ("accuracy_barrier", (30, 20))):
        theirs = [line for line in lines(chart_against(grid, "width", metric, paper)) if line.label == PUBLISHED_LABEL]
        assert [line.path for line in theirs] == [REPAIRED.label]
        assert theirs[0].y == pytest.approx(wanted)
        assert np.round(theirs[0].x).tolist() == [0, 1]
        assert theirs[0].notes == ("published midpoint, aligned+repair: inside",) * 2
    assert not any(line.label == PUBLISHED_LABEL for line in lines(chart_against(grid, "width", "loss_barrier", paper)))


def test_a_verdict_stands_beside_the_cell_and_measurement_that_it_is_of():
    """All images are a value of what is swept that is null in a table."""
    verdicts = {"all": "outside", "500": "other measurement"}
    cells = [
        pd.DataFrame(ablation_rows(depths=(4,))).assign(statistics=n, measurement=name, new_pair_low=None)
        for n, name in ((None, "all"), (500.0, "500"))
    ]  # fmt: skip
    ablation = pd.concat(cells, ignore_index=True)
    point = {"split": "test", "dataset": "digits", "architecture": "mlp", "normalization": "none", "depth": 4}
    point |= {"width": 128, "matcher": "activation", "correction": "none", "method": "aligned", "point": "p"}
    rows = [
        point | {"cell_id": "digits-4", "measurement": name, "verdict": verdict, "metric": metric, "published": 0.5}
        for name, verdict in verdicts.items()
        for metric in ("midpoint_accuracy", "endpoint_accuracy")
    ]
    paper = pd.DataFrame(rows).reindex(columns=list(schema.PAPER.columns))
    (panel,) = known(chart_against(ablation, "statistics", "midpoint_accuracy", paper)).panels
    assert [label for _, label in panel.x.ticks] == ["500", "all"]
    (theirs,) = (line for line in panel.lines if line.label == PUBLISHED_LABEL)
    beside = {panel.x.ticks[round(x)][1]: note for x, note in zip(theirs.x, theirs.notes, strict=True)}
    assert beside == {name: f"published midpoint, aligned: {verdict}" for name, verdict in verdicts.items()}
    assert set(theirs.cells) == {"digits-4/all", "digits-4/500"}


def test_a_cell_is_a_point_of_its_barrier_against_the_error_of_its_endpoints():
    ablation = pd.DataFrame(ablation_rows(depths=(2, 4, 16)))
    # What a correction makes of the endpoints is not what was trained.
    ends = (ablation["metric"] == "endpoint_accuracy") & (ablation["correction"] == "repair")
    chart = known(chart_errors(ablation.assign(mean=ablation["mean"].mask(ends, 0.5))))
    aligned, repaired = lines(chart)
    assert aligned.x == repaired.x == pytest.approx([3, 3, 3])
    assert aligned.y == pytest.approx([5, 10, 40])
    assert repaired.y == pytest.approx([1.25, 2.5, 10])
    assert (aligned.color, repaired.color) == (ALIGNED.color, REPAIRED.color)
    # Low and high are half and 1.1 of the mean: of the accuracy .97, too.
    assert (aligned.y_low[2], aligned.y_high[2]) == pytest.approx((20, 44))
    assert (aligned.x_low[2], aligned.x_high[2]) == pytest.approx((3 - 9.7, 51.5))
    assert (chart.panels[0].x.scale, chart.panels[0].y.scale) == ("linear", "log")
    assert chart.panels[0].y == chart.panels[1].y


def test_cells_without_error_or_barrier_are_points_on_an_axis_from_0():
    ablation = pd.DataFrame(ablation_rows(depths=(0, 4, 16)))
    chart = known(chart_errors(ablation.assign(mean=ablation["mean"].replace(0.97, 1.0), low=None, high=None)))
    aligned = lines(chart)[0]
    assert aligned.x == (0, 0, 0)
    assert aligned.y == pytest.approx([0, 10, 40])
    assert aligned.y_low == aligned.y_high == aligned.y
    assert chart.panels[0].y.scale == "linear"


def test_barriers_stand_against_errors_where_three_cells_have_both():
    assert chart_errors(pd.DataFrame(ablation_rows(depths=(4, 16)))) is None
    ablation = pd.DataFrame(ablation_rows(depths=(2, 4, 16)))
    untrained = ablation["depth"] == 2
    assert chart_errors(ablation.assign(mean=ablation["mean"].mask(untrained))) is None
    assert chart_errors(ablation[ablation["matcher"] == "none"]) is None
    some = chart_errors(ablation[(ablation["correction"] == "none") | ~untrained])
    assert [line.path for line in lines(some)] == [ALIGNED.label]


def test_measurements_of_a_cell_are_not_cells():
    cells = [
        pd.DataFrame(ablation_rows()).assign(measurement=str(n_images), statistics=n_images) for n_images in (100, 1000)
    ]
    assert chart_errors(pd.concat(cells, ignore_index=True)) is None


def test_a_path_is_the_mean_over_pairs_in_a_band_from_the_worst_to_the_best():
    rows = path_rows({"none": 0.2, "repair": 0.8}) + path_rows({"none": 0.4, "repair": 0.6}, "n")
    rows += path_rows({"none": 0.0}, "o", split="train") + path_rows({"none": 0.0}, "p", method="ensemble")
    (panel,) = known(chart_paths(pd.DataFrame(rows))).panels
    none, repair = panel.lines
    assert none.x == (0.5, 0.6)
    assert none.y == pytest.approx((30, 40))
    assert (none.y_low[0], none.y_high[0]) == pytest.approx((20, 40))
    assert repair.y[0] == pytest.approx(70)
    assert panel.cell == "c/default"


def test_the_variance_of_repaired_layers_stands_under_the_goal():
    rows = layer_rows({"none": [1.0, 0.5], "repair": [1.0, 1.0]})
    frame = pd.DataFrame(rows).assign(variance_ratio=lambda frame: frame["sd_correlation"], variance_ratio_target=0.95)
    (panel,) = known(chart_variance(frame)).panels
    by_label = {line.label: line for line in panel.lines}
    assert list(by_label) == [ALIGNED.label, REPAIRED.label, "goal of REPAIR"]
    assert by_label[ALIGNED.label].x == (1, 2)
    assert by_label[ALIGNED.label].y == (1, 0.5)
    assert by_label["goal of REPAIR"].y == pytest.approx((0.95, 0.95))


def test_layers_match_in_their_order_as_a_person_counts_them():
    names = [f"hidden.{i}" for i in range(11)]
    rows = axis_rows({name: 0.1 * i for i, name in enumerate(names)})
    (panel,) = known(chart_correlation(pd.DataFrame(rows))).panels
    matched, before = panel.lines
    assert matched.x == tuple(range(1, 12))
    assert matched.y == pytest.approx([0.1 * i for i in range(11)])
    assert set(before.y) == {0.05}
    assert panel.x.title == "hidden layer"
    branched = pd.DataFrame(axis_rows({"stages.1.0.inner": 0.5, "stages.0.0.inner": 0.4}))
    (panel,) = known(chart_correlation(branched)).panels
    assert [label for _, label in panel.x.ticks] == ["stages.0.0.inner", "stages.1.0.inner"]
    assert chart_correlation(branched.assign(matched_correlation=None)) is None


def test_a_pair_is_a_point_of_closed_form_against_forward():
    rows = path_rows({"none": 0.2, "repair": 0.8, "repair-closed-form": 0.7})
    rows += path_rows({"repair": 0.9, "repair-closed-form": 0.4}, "n")
    rows += path_rows({"repair": 0.9}, "o") + path_rows({"repair-closed-form": 0.5}, "p")
    rows += path_rows({"repair": 0.3, "repair-closed-form": 0.1}, "q", matcher="none")
    rows += path_rows({"repair": 0.3, "repair-closed-form": 0.1}, "m", method="ensemble")
    rows += path_rows({"repair": 0.3, "repair-closed-form": 0.1}, "m", split="train")
    chart = known(chart_closed_form(pd.DataFrame(rows)))
    accuracy, loss = lines(chart)
    assert (accuracy.x, accuracy.y) == (pytest.approx((80, 90)), pytest.approx((70, 40)))
    assert (loss.x, loss.y) == (pytest.approx((1.2, 1.1)), pytest.approx((1.3, 1.6)))
    for panel in chart.panels:
        assert panel.has_diagonal
        assert panel.x.limits == panel.y.limits


def test_points_of_different_cells_differ_in_their_marker():
    both = {"repair": 0.8, "repair-closed-form": 0.7}
    rows = path_rows(both, "m", depth=2) + path_rows(both, "n", depth=11) + path_rows(both, "o", depth=11)
    accuracy = known(chart_closed_form(pd.DataFrame(rows))).panels[0].lines
    assert [len(line.x) for line in accuracy] == [1, 2]
    assert [line.label for line in accuracy] == ["depth 2", "depth 11"]
    assert len({(line.marker, line.fill) for line in accuracy}) == 2
    assert len(set(itertools.islice(marks(), 36))) == 36


def test_a_loss_that_overflowed_is_no_point():
    rows = path_rows({"repair": 0.8}) + path_rows({"repair-closed-form": 0.1}, loss=float("inf"))
    drawn = [(line.x, line.y) for line in lines(chart_closed_form(pd.DataFrame(rows)))]
    assert drawn == [(pytest.approx((80,)), pytest.approx((10,)))]


def test_every_matcher_has_panels_of_its_own():
    both = {"repair": 0.8, "repair-closed-form": 0.7}
    rows = path_rows(both) + path_rows({"repair": 0.6, "repair-closed-form": 0.5}, "w", matcher="weight")
    chart = known(chart_closed_form(pd.DataFrame(rows)))
    assert [panel.title for panel in chart.panels] == ["aligned"] * 2 + ["aligned by weight"] * 2
    colors = [line.color for line in lines(chart)]
    assert set(colors[:2]).isdisjoint(colors[2:])


def test_without_both_corrections_there_is_no_closed_form_to_compare():
    assert chart_closed_form(pd.DataFrame(path_rows({"none": 0.1, "repair": 0.8}))) is None
    assert chart_closed_form(pd.DataFrame(path_rows({"none": 0.1, "repair-closed-form": 0.8}))) is None
    assert chart_closed_form(pd.DataFrame(columns=list(schema.PATHS.columns))) is None


def test_how_well_the_closed_form_predicts_is_drawn_by_layer():
    nothing: list[float | None] = [None, None]
    rows = layer_rows({"repair-closed-form": [1.0, 0.8], "repair": nothing, "none": nothing})
    rows += layer_rows({"repair-closed-form": [1.0, 0.6], "repair": nothing}, merge_id="n")
    rows += layer_rows({"repair-closed-form": [1.0, 0.1]}, merge_id="o", matcher="none")
    drawn = {line.label: line.y for line in lines(chart_predictions(pd.DataFrame(rows)))}
    assert set(drawn) == {"standard deviation, aligned", "mean, aligned"}
    assert drawn["standard deviation, aligned"] == pytest.approx([1.0, 0.7])
    assert chart_predictions(pd.DataFrame(layer_rows({"repair": nothing}))) is None


def test_a_picture_has_every_line_bar_band_and_label_of_its_chart(grid: pd.DataFrame):
    chart = known(chart_against(grid, "depth", "accuracy_barrier", pd.DataFrame()))
    figure = draw(chart)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == [panel.title for panel in chart.panels]
    for axes, panel in zip(shown, chart.panels, strict=True):
        assert [text.get_text() for text in axes.get_xticklabels()] == ["2", "4", "16"]
        drawn = list(axes.containers)
        assert len(drawn) == len(panel.lines)
        for container, line in zip(drawn, panel.lines, strict=True):
            data, _, (bars,) = container.lines  # pyright: ignore
            assert tuple(data.get_ydata()) == pytest.approx(line.y)
            ends = np.array([segment[:, 1] for segment in bars.get_segments()])
            assert ends[:, 0] == pytest.approx(line.y_low)
            assert ends[:, 1] == pytest.approx(line.y_high)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [curve.label for curve in CURVES]
    banded = known(chart_paths(pd.DataFrame(path_rows({"none": 0.2, "repair": 0.8}))))
    assert len(draw(banded).axes[0].collections) == 2
    picture = Image.open(io.BytesIO(draw_png(banded)))
    assert picture.format == "PNG"
    assert len(picture.convert("RGB").getcolors(maxcolors=2**24)) > 20
