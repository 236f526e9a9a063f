from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flows.options import StudyOptions
from flows.plan import (
    forward_flops,
    group_size,
    make_plan,
    measure_flops_per_second,
    request_flops,
    task_seconds,
    training_flops,
)
from flows.presets import PRESETS
from infra.storage import Store
from tasks.data.datasets import describe_dataset
from tasks.science.networks import build_network
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.request import Request


def request_of(tmp_path: Path, **options) -> Request:
    return StudyOptions(**options).resolve(lambda name: describe_dataset(name, tmp_path))


def test_a_plan_of_an_empty_store_is_all_to_do(store: Store, tmp_path: Path):
    plan = make_plan(store, request_of(tmp_path, study="digits-depth"), 2)
    assert (plan.n_endpoints, plan.n_pairs, plan.n_missing_endpoints, plan.n_missing_pairs) == (16, 24, 16, 24)
    assert plan.describe().startswith("16 endpoints, 24 pairs, ")
    assert 0 < plan.hours < 1
    assert not Path(store.url).exists()


def test_a_plan_counts_the_checkpoints_of_a_seed_as_one_training(store: Store, tmp_path: Path):
    options = {"study": "digits-depth", "depth": [2], "epochs": 20}
    plain, over_time, early = (
        make_plan(store, request_of(tmp_path, **options, sweep={"epoch": epochs}), 1)
        for epochs in ([None], [0, 5, None], [0, 5])
    )
    assert (over_time.n_endpoints, over_time.n_missing_endpoints, over_time.n_missing_pairs) == (12, 12, 18)
    assert over_time.training_flops == plain.training_flops == 4 * early.training_flops
    assert over_time.measuring_flops == 3 * plain.measuring_flops


def test_a_plan_counts_a_parent_once_and_its_children_from_where_they_part(store: Store, tmp_path: Path, monkeypatch):
    request = request_of(tmp_path, study="digits-depth", depth=[2], epochs=20)
    preset = dataclasses.replace(PRESETS["digits-depth"], spawns=((0, 5), (0, 15)))
    monkeypatch.setitem(PRESETS, "digits-depth", preset)
    spawned = request_of(tmp_path, study="digits-depth", depth=[2], epochs=20)
    whole = training_flops(request.cells[0])
    expected = whole * (4 * 15 + 4 * 5 + 15) / 20
    assert make_plan(store, spawned, 1).training_flops == pytest.approx(expected)
    assert request_flops(spawned) - request_flops(request) == pytest.approx(
        expected - 4 * whole + make_plan(store, request, 1).measuring_flops
    )


def test_a_plan_without_data_counts_everything_and_says_so(store: Store, tmp_path: Path):
    plan = make_plan(store, request_of(tmp_path, study="mlp-width", dataset=["mnist"], width=[32]), 1)
    assert (plan.n_missing_endpoints, plan.n_missing_pairs) == (5, 10)
    assert "mnist was not found, so all of it counts as missing" in plan.describe()


def test_a_plan_counts_pairs_across_halves_alone_and_half_the_images_of_a_training(store: Store, tmp_path: Path):
    whole, split = (
        request_of(tmp_path, study="mlp-width", dataset=[name], width=[32], seeds=4)
        for name in ("cifar100", "cifar100_split")
    )
    plan = make_plan(store, split, 1)
    assert (plan.n_endpoints, plan.n_pairs, plan.n_missing_pairs) == (4, 4, 4)
    assert training_flops(split.cells[0]) == training_flops(whole.cells[0]) / 2


def test_a_plan_counts_joint_training_beside_halves_as_trainings_without_pairs(store: Store, tmp_path: Path):
    asked = {"study": "mlp-width", "dataset": ["cifar100_split"], "width": [32], "seeds": 4}
    apart, joint = (request_of(tmp_path, **asked, joint_training=wanted) for wanted in (False, True))
    plans = [make_plan(store, request, 1) for request in (apart, joint)]
    assert [(plan.n_endpoints, plan.n_missing_endpoints) for plan in plans] == [(4, 4), (8, 8)]
    assert [(plan.n_pairs, plan.n_missing_pairs) for plan in plans] == [(4, 4)] * 2
    # Whole data are twice the images of a half.
    assert plans[1].training_flops == 3 * plans[0].training_flops
    assert request_flops(joint) - request_flops(apart) == plans[1].training_flops - plans[0].training_flops


def test_more_workers_take_fewer_hours(store: Store, tmp_path: Path):
    request = request_of(tmp_path, study="digits-depth")
    assert make_plan(store, request, 8).hours < make_plan(store, request, 1).hours / 4


def test_arithmetic_is_two_operations_per_weight_forward_and_four_backward(tmp_path: Path):
    (cell,) = request_of(tmp_path, study="digits-depth", depth=[1], width=[10], epochs=2).cells
    assert training_flops(cell) == 6 * (64 * 10 + 10 * 10) * 1437 * 2


def test_the_measured_rate_is_that_of_a_computer():
    assert 1e8 < measure_flops_per_second() < 1e13


@pytest.mark.parametrize(("seconds", "size"), [(0, 20_000), (0.01, 2000), (5, 4), (300, 1)])
def test_tasks_carry_about_twenty_seconds(seconds: float, size: int):
    assert group_size(seconds) == size


def test_tasks_of_a_small_stage_are_short_enough_for_every_worker_to_have_some_and_never_tiny():
    assert task_seconds(10_000, 2) == 20
    assert task_seconds(80, 2) == 10
    assert task_seconds(80, 8) == 2.5
    assert task_seconds(1, 2) == 2


def test_a_convolution_counts_once_per_pixel():
    data = DataSpec("d", "f", 10, 10, 10, (3, 32, 32))
    resnet20 = Cell(data, "resnet20", "batch", 1, 20, Recipe("r", 5, 1, 0.1, 0.1))
    published_multiplications = 40.8e6 + 3 * 3 * (16 * 32 * 16 * 16 + 32 * 64 * 8 * 8)  # with 3x3 shortcuts
    assert forward_flops(resnet20) == pytest.approx(2 * published_multiplications, rel=0.02)


@pytest.mark.parametrize(
    ("architecture", "normalization", "depth"),
    [("mlp", "batch", 3), ("vgg11", "batch", 11), ("resnet20", "layer", 20), ("resnet18", "batch", 18)],
)
def test_the_arithmetic_of_a_network_is_that_of_its_whole_forward_pass(
    architecture: str, normalization: str, depth: int
):
    cell = Cell(
        DataSpec("", "", 1, 1, 10, (1, 8, 8)), architecture, normalization, 1, depth, Recipe("", 1, 1, 1.0, 0.0)
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build_network(cell)(torch.zeros((1, 1, 8, 8), device="meta"))
    assert forward_flops(cell) == counter.get_total_flops() > 0
