from __future__ import annotations

import pandas as pd

from flows.report.labels import cells_of, label_lines, label_points, main_factor


def test_panels_tell_the_epoch_of_their_cell_and_stand_in_its_order():
    points = pd.DataFrame(
        [
            {"cell_id": cell_id, "epoch": epoch, "dataset": "digits", "architecture": "mlp", "normalization": "none"}
            | {"width": 8, "depth": 2, "recipe": "r", "measurement": "default"}
            for cell_id, epoch in (("a", None), ("b", 10), ("c", 2))
        ]
    )
    assert [label for label, _ in cells_of(points)] == ["epoch 2", "epoch 10", "epoch last"]


def test_cells_that_were_measured_in_several_ways_are_told_apart_by_what_is_swept():
    points = pd.DataFrame(
        [
            {"cell_id": "a", "statistics": n, "dataset": "digits", "architecture": "mlp", "normalization": "none"}
            | {"width": 8, "depth": 2, "recipe": "r", "measurement": ""}
            for n in (None, 100, 10, 100)
        ]
    )
    found = cells_of(points)
    assert [label for label, _ in found] == ["statistics 10", "statistics 100", "statistics all"]
    assert [len(rows) for _, rows in found] == [1, 2, 1]


def test_the_axis_is_what_the_study_varies(ablation: pd.DataFrame):
    assert main_factor(ablation) == "depth"
    assert main_factor(ablation.assign(width=range(len(ablation)), depth=1)) == "width"
    assert set(label_points(ablation, "depth")) == {""}
    two = pd.concat([ablation, ablation.assign(dataset="mnist", width=64)], ignore_index=True)
    assert set(label_points(two, "depth")) == {"digits", "mnist"}


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
