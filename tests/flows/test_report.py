from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from matplotlib.axes import Axes

from flows.figures import CURVES, curves_of, draw_barriers, draw_closed_form, draw_errors, draw_predictions
from flows.labels import cells_of, label_cell, label_lines, label_points, main_factor
from flows.report import answer_widths, make_claim, print_ablation, section_starts, summarise_ablation, write_report
from infra.storage import Store, StoreError
from infra.tables import write_table
from tasks import schema


def ablation_rows(depths=(4, 16), dataset="digits", aligned=0.4, repaired=0.1, low_share=0.5) -> list[dict]:
    """What a study would have found: barriers that grow with depth, of which REPAIR removes three quarters."""
    rows = []
    for depth in depths:
        for curve in CURVES:
            barrier = (repaired if curve.correction == "repair" else aligned) * depth / 16
            values = {
                "endpoint_accuracy": 0.97, "midpoint_accuracy": 0.97 - barrier, "accuracy_barrier": barrier,
                "loss_barrier": 3 * barrier,
            }  # fmt: skip
            if curve.correction == "repair":
                values["accuracy_barrier_reduction"] = 1 - repaired / aligned
            for split in ("train", "test"):
                for metric, mean in values.items():
                    rows.append(
                        dict.fromkeys(schema.ABLATION.columns)
                        | {"study": "s", "cell_id": f"{dataset}-{depth}", "dataset": dataset, "architecture": "mlp"}
                        | {"normalization": "none", "width": 128, "depth": depth, "recipe": "r"}
                        | {"matcher": curve.matcher, "correction": curve.correction, "measurement": "default"}
                        | {"split": split, "metric": metric, "mean": mean, "low": mean * low_share, "high": mean * 1.1}
                        | {"n_seeds": 4, "n_pairs": 6, "n_diverged": 1, "n_untrained": 0}
                    )
    return rows


@pytest.fixture
def ablation() -> pd.DataFrame:
    return pd.DataFrame(ablation_rows()).assign(new_pair_low=float("nan"), new_pair_high=float("nan"))


def test_the_claim_is_of_the_deepest_cell_with_its_interval(ablation: pd.DataFrame):
    claim = make_claim(ablation)
    assert claim.startswith(
        "At width 128 and 16 hidden layers on digits, alignment alone leaves an accuracy barrier of "
    )
    assert "of 40.0 [20.0, 44.0] points; REPAIR removes 75 [38, 82] % of it" in claim
    assert claim.endswith("(means over 6 pairs of 4 seeds, 95 % intervals over seeds).")


def test_the_claim_names_a_network_that_is_not_an_mlp(ablation: pd.DataFrame):
    claim = make_claim(ablation.assign(architecture="resnet20", normalization="layer", depth=20))
    assert claim.startswith("For resnet20 of width 128 with normalization layer on digits, alignment alone leaves")


def test_a_study_of_one_size_has_a_sentence_for_every_network():
    cells = [
        pd.DataFrame(ablation_rows(depths=(20,))).assign(architecture="resnet20", normalization=word, cell_id=word)
        for word in ("batch", "layer")
    ]
    claim = make_claim(pd.concat(cells, ignore_index=True))
    assert claim.count("REPAIR removes 75 [38, 82] % of it") == 2
    assert "with normalization batch on digits" in claim
    assert "with normalization layer on digits" in claim


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
    assert draw_barriers(ablation)


def test_all_images_are_a_value_of_what_is_swept():
    cells = [
        pd.DataFrame(ablation_rows(depths=(4,))).assign(measurement=str(n_images), statistics=n_images)
        for n_images in (100, 1000, None)
    ]
    ablation = pd.concat(cells, ignore_index=True)
    assert list(dict.fromkeys(summarise_ablation(ablation)["statistics"])) == ["100", "1000", "all"]
    assert "with statistics 100, on digits" in make_claim(ablation)
    assert "with statistics all, on digits" in make_claim(ablation)


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


def test_panels_tell_the_epoch_of_their_cell_and_stand_in_its_order():
    points = pd.DataFrame(
        [
            {"cell_id": cell_id, "epoch": epoch, "dataset": "digits", "architecture": "mlp", "normalization": "none"}
            | {"width": 8, "depth": 2, "recipe": "r", "measurement": "default"}
            for cell_id, epoch in (("a", None), ("b", 10), ("c", 2))
        ]
    )
    assert [label_cell(of_cell, points) for of_cell in cells_of(points)] == ["epoch 2", "epoch 10", "epoch last"]


def test_a_study_without_a_barrier_claims_nothing(ablation: pd.DataFrame):
    assert make_claim(ablation.assign(mean=float("nan"), n_seeds=2)).startswith("With fewer than 3 trained seeds")
    assert make_claim(ablation[ablation["metric"] != "accuracy_barrier_reduction"]).startswith("No cell of this study")
    assert make_claim(ablation[ablation["matcher"] == "none"]).startswith("Nothing was aligned by activations and")


def test_the_axis_is_what_the_study_varies(ablation: pd.DataFrame):
    assert main_factor(ablation) == "depth"
    assert main_factor(ablation.assign(width=range(len(ablation)), depth=1)) == "width"
    assert set(label_points(ablation, "depth")) == {""}
    two = pd.concat([ablation, ablation.assign(dataset="mnist", width=64)], ignore_index=True)
    assert set(label_points(two, "depth")) == {"digits", "mnist"}


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
    assert draw_barriers(wide) is not None


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


def test_points_stand_on_lines_along_the_factor_that_leaves_fewest():
    networks = [("resnet20", "batch", 20, width) for width in (1, 2, 4)]
    networks += [("vgg11", "batch", 11, 1), ("vgg13", "batch", 13, 1), ("vgg13", "none", 13, 1)]
    frame = pd.DataFrame(networks, columns=["architecture", "normalization", "depth", "width"])
    frame = frame.assign(dataset="cifar10", recipe="r", measurement="default")
    vgg = ["vgg11, batch", "vgg13, batch", "vgg13, none"]
    assert label_lines(frame).tolist() == ["resnet20, batch"] * 3 + vgg
    # The depth of these networks follows from their names.
    assert label_points(frame).tolist()[:3] == [f"resnet20, batch, width {width}" for width in (1, 2, 4)]
    widths = frame[frame["architecture"] == "resnet20"]
    assert set(label_lines(widths)) == {""}
    assert label_points(widths).tolist() == ["width 1", "width 2", "width 4"]
    assert set(label_points(widths.head(1))) == {""}


def path_rows(accuracies: dict[str, float], merge_id="m", **other) -> list[dict]:
    """A pair's midpoint on the test split under each correction, and a better point beside it."""
    common = {"merge_id": merge_id, "kind": "pair", "seed_a": 0, "seed_b": 1, "matcher": "activation"}
    common |= {"study": "s", "cell_id": "c", "dataset": "digits", "architecture": "mlp", "normalization": "none"}
    common |= {"width": 8, "depth": 2, "recipe": "r", "method": "weights", "measurement": "default", "split": "test"}
    return [
        dict.fromkeys(schema.PATHS.columns)
        | common
        | {"correction": correction, "alpha": alpha, "accuracy": accuracy + alpha - 0.5, "loss": 2 - accuracy}
        | other
        for correction, accuracy in accuracies.items()
        for alpha in (0.5, 0.6)
    ]


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


def test_a_report_shows_a_figure_where_there_is_something_to_draw(store: Store):
    ablation = pd.DataFrame(ablation_rows(depths=(2, 4, 16))).assign(new_pair_low=float("nan"), new_pair_high=0.5)
    both = {"repair": 0.8, "repair-closed-form": 0.7}
    write_study(store, ablation, pd.DataFrame(path_rows(both, kind="control", control="permuted-self")))
    write_report(store, "s")
    figures = Path(store.url) / "studies/s/figures"
    assert {figure.name for figure in figures.iterdir()} == {"barriers.png", "errors.png"}
    write_study(store, ablation, pd.DataFrame(path_rows(both)))
    page = Path(write_report(store, "s")).read_text()
    assert {figure.stem for figure in figures.iterdir()} == {"barriers", "errors", "paths", "closed_form"}
    assert page.count("data:image/png;base64,") == page.count('<img alt="') == 4


def test_a_report_is_one_page_that_needs_nothing_else(store: Store, ablation: pd.DataFrame):
    write_study(store, ablation)
    page = Path(write_report(store, "s")).read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert page.count("data:image/png;base64,") == 1
    assert make_claim(ablation) in page
    assert (Path(store.url) / "studies/s/figures/barriers.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_stranger_wrote_into_a_table_is_text_on_the_page(store: Store):
    hostile = pd.DataFrame(ablation_rows(dataset="<script>alert(1)</script>"))
    more = pd.DataFrame(ablation_rows(dataset="plain"))
    write_study(store, pd.concat([hostile, more]).assign(new_pair_low=float("nan"), new_pair_high=float("nan")))
    page = Path(write_report(store, "s")).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_terminal_shows_whole_numbers_in_80_columns(store: Store, ablation: pd.DataFrame):
    from rich.console import Console

    write_study(store, ablation)
    out = io.StringIO()
    cells = [SimpleNamespace(id="digits-4"), SimpleNamespace(id="digits-16")]
    request: Any = SimpleNamespace(
        study="s", cells=cells, matchers=("none", "activation"), corrections=("none", "repair"),
        measurements=(SimpleNamespace(name="default"),),
    )  # fmt: skip
    print_ablation(store, request, Console(width=80, file=out))
    assert "…" not in out.getvalue()
    assert "40.0 [20.0, 44.0]" in out.getvalue()
    assert "Of 3 endpoints, 2 diverged: left out of pairs" in out.getvalue()
    request.cells = cells[:1]
    print_ablation(store, request, Console(width=80, file=(alone := io.StringIO())))
    assert "40.0 [20.0, 44.0]" not in alone.getvalue()
    assert "10.0 [5.0, 11.0]" in alone.getvalue()


def test_with_two_factors_every_cell_has_a_line_above_its_paths(store: Store):
    from rich.console import Console

    cells = [
        pd.DataFrame(ablation_rows(depths=(20,))).assign(
            architecture=architecture, normalization=word, cell_id=f"{architecture}-{word}", depth=depth
        )
        for architecture, depth in (("resnet20", 20), ("vgg11", 11))
        for word in ("batch", "none")
    ]
    ablation = pd.concat(cells, ignore_index=True)
    write_study(store, ablation)
    request: Any = SimpleNamespace(
        study="s", cells=[SimpleNamespace(id=word) for word in ablation["cell_id"].unique()],
        matchers=("none", "activation"), corrections=("none", "repair"),
        measurements=(SimpleNamespace(name="default"),),
    )  # fmt: skip
    print_ablation(store, request, Console(width=80, file=(out := io.StringIO())))
    words = out.getvalue().split()
    assert words.count("architecture") == 4
    # A depth that follows from the architecture tells nothing more.
    assert "depth" not in words
    assert "depth" not in summarise_ablation(ablation).columns
    assert out.getvalue().count("aligned, REPAIR") == 4


def test_how_wide_a_network_must_be_stands_below_the_claim(store: Store, ablation: pd.DataFrame):
    write_study(store, ablation)
    assert answer_widths(store, "s") == ""
    asked = {"split": "test", "metric": "accuracy_barrier", "matcher": "activation", "correction": "repair"}
    laws = [
        dict.fromkeys(schema.WIDTH_LAWS.columns)
        | asked
        | {"series_id": series, "measurement": "m", "answer_text": text}
        for series, text in (("a", "This wide."), ("b", "So <wide>."))
    ]
    laws.append(laws[0] | {"correction": "none", "answer_text": "Without correction wider."})
    write_table(store, "studies/s/width_laws.parquet", schema.WIDTH_LAWS, pd.DataFrame(laws), {})
    assert "<p>This wide. So &lt;wide&gt;.</p>" in Path(write_report(store, "s")).read_text()
    (Path(store.url) / "studies/s/width_laws.parquet").unlink()
    assert "This wide" not in Path(write_report(store, "s")).read_text()


def test_a_study_that_was_never_run_has_no_report(store: Store):
    with pytest.raises(StoreError, match="holds no tables of s: `repairlab run s` makes them"):
        write_report(store, "s")


def write_study(store: Store, ablation: pd.DataFrame, paths: pd.DataFrame | None = None) -> None:
    provenance = {"repairlab": "0", "commit": "", "torch": "0", "schema": 1, "revisions": {"train": 1}, "requests": []}
    for table in schema.TABLES:
        frame = {"ablation": ablation, "paths": paths}.get(table.name)
        if frame is None:
            frame = pd.DataFrame(columns=list(table.columns))
        if table.name == "endpoints":
            seeds = [
                {"endpoint_id": str(i), "seed": i, "status": s} for i, s in enumerate(["trained", *["diverged"] * 2])
            ]
            frame = pd.DataFrame(seeds, columns=list(table.columns)).assign(
                width=128, depth=4, message="too wild", cell_id="digits-4"
            )
        write_table(store, f"studies/s/{table.name}.parquet", table, frame, provenance)


def layer_rows(correlations: dict[str, list[float | None]], **other) -> list[dict]:
    """Every layer of a pair at the midpoint, and one point beside it, by correction."""
    (common,) = path_rows({"none": 0.5}, **other)[:1]
    common = {name: value for name, value in common.items() if name in schema.LAYERS.columns}
    return [
        dict.fromkeys(schema.LAYERS.columns)
        | common
        | {"correction": correction, "alpha": alpha, "position": position, "layer": f"l{position}"}
        | {"sd_correlation": value, "mean_correlation": value}
        for correction, values in correlations.items()
        for position, value in enumerate(values)
        for alpha in (0.5, 0.6)
    ]


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
