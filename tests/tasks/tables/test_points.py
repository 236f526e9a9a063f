from __future__ import annotations

import fnmatch
import math
import tomllib
from pathlib import Path

from tasks.tables.points import FILE, read_points

ROOT = Path(__file__).parents[3]


def test_every_published_point_is_read():
    points = read_points()
    assert len(points) == 753
    first = points[0]
    assert (first.dataset, first.architecture, first.normalization, first.width, first.depth) == (
        "cifar10", "resnet20", "batch", 1, 20,
    )  # fmt: skip
    assert (first.method, first.alpha, first.test_accuracy, first.train_loss) == ("endpoint", 0.0, 0.9347, 0.01245)
    assert first.source == "batchnorm_resnet20_barriers.pt"


def test_a_pair_has_one_point_of_a_method_at_an_alpha():
    places = [
        (p.dataset, p.architecture, p.normalization, p.width, p.depth, p.method, p.alpha)
        for p in read_points()
        if p.alpha is not None
    ]
    assert len(set(places)) == len(places)


def test_values_are_fractions_and_losses_and_what_was_not_saved_is_nan():
    points = read_points()
    assert all(0 <= p.train_accuracy <= 1 and 0 <= p.test_accuracy <= 1 for p in points)
    (without,) = (p for p in points if math.isnan(p.test_loss))
    assert (without.depth, without.method) == (49, "aligned+repair_closed_form")
    assert any(p.alpha is None for p in points)


def test_what_a_note_says_of_convergence_and_recipe_is_told():
    failed = {(p.dataset, p.architecture, p.width) for p in read_points() if not p.is_converged and p.width == 4096}
    assert failed == {("cifar10", "mlp", 4096), ("fashion_mnist", "mlp", 4096)}
    assert {(p.dataset, p.width) for p in read_points() if not p.has_recipe_of_family} == {
        ("fashion_mnist", 2048), ("fashion_mnist", 4096),
    }  # fmt: skip


def test_a_wheel_takes_the_points_along():
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert any(fnmatch.fnmatch(FILE, pattern) for pattern in package_data["tasks.tables"])
