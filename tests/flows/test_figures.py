from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest
from made_tables import ablation_rows, layer_rows, path_rows
from matplotlib.axes import Axes

from flows.claims import make_claim
from flows.figures import CURVES, draw_barriers, draw_closed_form, draw_errors, draw_predictions
from flows.labels import label_points, main_factor
from flows.summary import summarise_ablation
from tasks import schema


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The labels on the horizontal axis of every panel that is drawn."""
    shown: list[list[str]] = []
    set_xticks = Axes.set_xticks

    def look(self, positions, labels=None, **options):
        if labels is not None:
            shown.append(list(labels))
        return set_xticks(self, positions, labels, **options)

    monkeypatch.setattr(Axes, "set_xticks", look)
    return shown


def test_the_end_of_training_is_the_last_epoch_of_axis_table_and_claim(ticks: list[list[str]]):
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
    assert draw_barriers(ablation)
    assert ticks == [["0", "2", "10", "last"]] * 2


def test_cells_stand_side_by_side_where_no_line_joins_them_or_too_many_would(ticks: list[list[str]]):
    def study(*networks: tuple[str, str, int]) -> pd.DataFrame:
        cells = [
            pd.DataFrame(ablation_rows(depths=(depth,))).assign(architecture=architecture, normalization=normalization)
            for architecture, normalization, depth in networks
        ]
        return pd.concat(cells, ignore_index=True)

    assert draw_barriers(study(("resnet20", "batch", 20), ("resnet20", "layer", 20)))
    assert ticks == [["batch", "layer"]] * 2
    ticks.clear()
    assert draw_barriers(study(*((f"vgg{depth}", norm, depth) for norm in ("batch", "none") for depth in (19, 11))))
    assert ticks == [["11", "19"]] * 4
    ticks.clear()
    names = ["mlp", "resnet18", "resnet20", "resnet50", "wide-resnet50-2"]
    assert draw_barriers(study(*((name, "batch", depth) for name in names for depth in (2, 4))))
    assert ticks == [[f"{name}, depth {depth}" for name in names for depth in (2, 4)]] * 2


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """Every call that puts points on axes, in order: the axes, x, y, and the other arguments."""
    calls: list[SimpleNamespace] = []
    for name in ("plot", "errorbar"):
        method = getattr(Axes, name)

        def look(self, x, y, *, _method=method, **options):
            if len(x) and options.get("label") == "_":
                calls.append(SimpleNamespace(axes=self, x=list(x), y=list(y), **options))
            return _method(self, x, y, **options)

        monkeypatch.setattr(Axes, name, look)
    return calls


def test_a_cell_is_a_point_of_its_barrier_against_the_error_of_its_endpoints(drawn: list):
    ablation = pd.DataFrame(ablation_rows(depths=(2, 4, 16)))
    # What a correction makes of the endpoints is not what was trained.
    ends = (ablation["metric"] == "endpoint_accuracy") & (ablation["correction"] == "repair")
    assert draw_errors(ablation.assign(mean=ablation["mean"].mask(ends, 0.5)))
    aligned, repaired = drawn
    assert aligned.x == repaired.x == pytest.approx([3, 3, 3])
    assert aligned.y == pytest.approx([5, 10, 40])
    assert repaired.y == pytest.approx([1.25, 2.5, 10])
    assert (aligned.color, repaired.color) == (CURVES[2].color, CURVES[3].color)
    # Low and high are half and 1.1 of the mean: of the accuracy .97, too.
    assert aligned.yerr[:, 2] == pytest.approx([20, 4])
    assert aligned.xerr[:, 2] == pytest.approx([9.7, 48.5])
    assert (aligned.axes.get_xscale(), aligned.axes.get_yscale()) == ("linear", "log")
    assert aligned.axes.get_ylim() == repaired.axes.get_ylim()


def test_cells_without_error_or_barrier_are_points_on_an_axis_from_0(drawn: list):
    ablation = pd.DataFrame(ablation_rows(depths=(0, 4, 16)))
    assert draw_errors(ablation.assign(mean=ablation["mean"].replace(0.97, 1.0), low=None, high=None))
    assert drawn[0].x == [0, 0, 0]
    assert drawn[0].y == pytest.approx([0, 10, 40])
    assert not drawn[0].yerr.any()
    assert drawn[0].axes.get_yscale() == "linear"


def test_barriers_stand_against_errors_where_three_cells_have_both(drawn: list):
    assert draw_errors(pd.DataFrame(ablation_rows(depths=(4, 16)))) is None
    ablation = pd.DataFrame(ablation_rows(depths=(2, 4, 16)))
    untrained = ablation["depth"] == 2
    assert draw_errors(ablation.assign(mean=ablation["mean"].mask(untrained))) is None
    assert draw_errors(ablation[ablation["matcher"] == "none"]) is None
    assert not drawn
    assert draw_errors(ablation[(ablation["correction"] == "none") | ~untrained])
    assert [call.color for call in drawn] == [CURVES[2].color]


def test_measurements_of_a_cell_are_not_cells():
    cells = [
        pd.DataFrame(ablation_rows()).assign(measurement=str(n_images), statistics=n_images) for n_images in (100, 1000)
    ]
    assert draw_errors(pd.concat(cells, ignore_index=True)) is None


def test_a_pair_is_a_point_of_closed_form_against_forward(drawn: list):
    rows = path_rows({"none": 0.2, "repair": 0.8, "repair-closed-form": 0.7})
    rows += path_rows({"repair": 0.9, "repair-closed-form": 0.4}, "n")
    rows += path_rows({"repair": 0.9}, "o") + path_rows({"repair-closed-form": 0.5}, "p")
    rows += path_rows({"repair": 0.3, "repair-closed-form": 0.1}, "q", matcher="none")
    rows += path_rows({"repair": 0.3, "repair-closed-form": 0.1}, "m", method="ensemble")
    rows += path_rows({"repair": 0.3, "repair-closed-form": 0.1}, "m", split="train")
    assert draw_closed_form(pd.DataFrame(rows))
    accuracy, loss = drawn
    assert (accuracy.x, accuracy.y) == (pytest.approx([80, 90]), pytest.approx([70, 40]))
    assert (loss.x, loss.y) == (pytest.approx([1.2, 1.1]), pytest.approx([1.3, 1.6]))
    assert accuracy.axes.get_xlim() == accuracy.axes.get_ylim()
    assert loss.axes.get_xlim() == loss.axes.get_ylim()


def test_points_of_different_cells_differ_in_their_marker(drawn: list):
    both = {"repair": 0.8, "repair-closed-form": 0.7}
    rows = path_rows(both, "m", depth=2) + path_rows(both, "n", depth=11) + path_rows(both, "o", depth=11)
    assert draw_closed_form(pd.DataFrame(rows))
    accuracy = [call for call in drawn if call.axes is drawn[0].axes]
    assert [len(call.x) for call in accuracy] == [1, 2]
    assert len({(call.marker, call.fillstyle) for call in accuracy}) == 2
    assert drawn[0].axes.get_legend_handles_labels()[1] == ["depth 2", "depth 11", "equal"]


def test_a_loss_that_overflowed_is_no_point(drawn: list):
    rows = path_rows({"repair": 0.8}) + path_rows({"repair-closed-form": 0.1}, loss=float("inf"))
    assert draw_closed_form(pd.DataFrame(rows))
    assert [(call.x, call.y) for call in drawn] == [(pytest.approx([80]), pytest.approx([10]))]


def test_every_matcher_has_panels_of_its_own(drawn: list):
    both = {"repair": 0.8, "repair-closed-form": 0.7}
    rows = path_rows(both) + path_rows({"repair": 0.6, "repair-closed-form": 0.5}, "w", matcher="weight")
    assert draw_closed_form(pd.DataFrame(rows))
    assert [call.axes.get_title() for call in drawn] == ["aligned"] * 2 + ["aligned by weight"] * 2
    assert len({call.axes for call in drawn}) == 4
    assert {call.color for call in drawn[:2]}.isdisjoint({call.color for call in drawn[2:]})


def test_without_both_corrections_there_is_no_closed_form_to_compare():
    assert draw_closed_form(pd.DataFrame(path_rows({"none": 0.1, "repair": 0.8}))) is None
    assert draw_closed_form(pd.DataFrame(path_rows({"none": 0.1, "repair-closed-form": 0.8}))) is None
    assert draw_closed_form(pd.DataFrame(columns=list(schema.PATHS.columns))) is None


def test_how_well_the_closed_form_predicts_is_drawn_by_layer(monkeypatch: pytest.MonkeyPatch):
    lines: dict[str, list[float]] = {}
    plot = Axes.plot

    def look(self, x, y, *styles, **options):
        lines[options["label"]] = list(y)
        return plot(self, x, y, *styles, **options)

    monkeypatch.setattr(Axes, "plot", look)
    nothing: list[float | None] = [None, None]
    rows = layer_rows({"repair-closed-form": [1.0, 0.8], "repair": nothing, "none": nothing})
    rows += layer_rows({"repair-closed-form": [1.0, 0.6], "repair": nothing}, merge_id="n")
    rows += layer_rows({"repair-closed-form": [1.0, 0.1]}, merge_id="o", matcher="none")
    assert draw_predictions(pd.DataFrame(rows))
    assert set(lines) == {"deviation, aligned", "mean, aligned"}
    assert lines["deviation, aligned"] == pytest.approx([1.0, 0.7])
    assert draw_predictions(pd.DataFrame(layer_rows({"repair": nothing}))) is None
