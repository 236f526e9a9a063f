"""Moments added up batch by batch, against plain float64 references that see all samples at once, in two passes."""

from __future__ import annotations

import numpy as np
import pretend_device
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.science.evaluation import moments as module
from tasks.science.evaluation.moments import Moments, RunningMoments, RunningProducts, covariances


def moments_plainly(rows: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each column in float64: first the mean, then the squares about it."""
    rows = rows.astype(np.float64)
    mean = rows.mean(0)
    return mean, np.sqrt(np.square(rows - mean).mean(0))


def covariances_plainly(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Covariances in float64 of the columns of `a` with those of `b`."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a - a.mean(0)).T @ (b - b.mean(0)) / len(a)


def draw(n_samples: int, n_units: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Values whose units differ in mean and spread, drift over the samples, and depend on each other. Unit 1 is
    constant, unit 2 is silent in the first third."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n_samples, n_units, generator=generator, dtype=torch.float64)
    values = values @ torch.randn(n_units, n_units, generator=generator, dtype=torch.float64)
    values += torch.linspace(0, 3, n_samples, dtype=torch.float64)[:, None] + torch.arange(n_units)
    values[:, 1] = 7
    values[: n_samples // 3, 2] = 0
    return values.to(dtype)


TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}


def assert_close(found: Moments, rows: Tensor, tolerance: float) -> None:
    mean, sd = moments_plainly(rows.numpy())
    scale = np.sqrt(np.square(mean) + np.square(sd))
    assert found.mean.dtype == found.sd.dtype == torch.float64
    assert (np.abs(found.mean.numpy() - mean) / scale).max() < tolerance
    assert (np.abs(found.sd.numpy() - sd) / scale).max() < tolerance
    assert found.dead().tolist() == [position == 1 for position in range(len(sd))]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("batch_size", [1, 7, 300, 10_000])
def test_moments_of_rows_are_those_of_two_passes(dtype: torch.dtype, batch_size: int):
    rows = draw(1000, 6, dtype)
    added, centered = RunningMoments(), RunningMoments()
    for batch in rows.split(batch_size):
        added.add(batch, 1)
        centered.center(batch)
    for running in (added, centered):
        assert running.n_samples == 1000
        assert_close(running.result(), rows, TOLERANCE[dtype])


@pytest.mark.parametrize("layout", ["channels first", "channels last", "units last"])
def test_moments_of_maps_are_those_of_all_their_positions(layout: str):
    rows = draw(70 * 12 * 12, 5)
    maps = rows.view(70, 12, 12, 5).movedim(-1, 1)
    dim = 1
    if layout == "channels first":
        maps = maps.contiguous()
    elif layout == "units last":
        maps, dim = maps.movedim(1, -1).contiguous(), -1
    running = RunningMoments()
    for batch, of_batch in zip(maps.split(32), rows.split(32 * 12 * 12), strict=True):
        alone = running.add(batch, dim).result()
        mean, sd = moments_plainly(of_batch.numpy())
        assert np.allclose(alone.mean.numpy(), mean, rtol=1e-5, atol=1e-5)
        assert np.allclose(alone.sd.numpy(), sd, rtol=1e-5, atol=1e-5)
    assert_close(running.result(), rows, 2e-6)


def test_a_large_mean_costs_no_accuracy():
    rows = draw(100_000, 4) + 1000
    for dtype in TOLERANCE:
        running = RunningMoments()
        for batch in rows.to(dtype).split(30_000):
            running.center(batch)
        _, sd = moments_plainly(rows.numpy())
        live = sd > 0
        assert np.allclose(running.result().sd.numpy()[live], sd[live], rtol=1e-5)


def test_parts_count_by_their_samples():
    rows = draw(1000, 6, torch.float64)
    parts = [rows[:10], rows[10:400], rows[400:]]
    means = torch.stack([part.mean(0) for part in parts])
    variances = torch.stack([part.var(0, correction=0) for part in parts])
    at_once, one_by_one = RunningMoments(), RunningMoments()
    at_once.add_parts([len(part) for part in parts], means, variances)
    for i, part in enumerate(parts):
        one_by_one.add_parts([len(part)], means[i : i + 1], variances[i : i + 1])
    for running in (at_once, one_by_one):
        assert_close(running.result(), rows, 1e-12)


def test_centered_values_are_less_the_mean_of_the_first_batch_and_land_where_they_are_wanted():
    rows = draw(500, 6)
    running, into = RunningMoments(), torch.full((200, 8), torch.nan)
    for batch in rows.split(200):
        centered = running.center(batch, into[: len(batch), 1:7], torch.empty(20))
        assert torch.equal(centered, batch - rows[:200].mean(0))
        assert torch.equal(into[: len(batch), 1:7], centered)
    assert_close(running.result(), rows, 2e-6)
    assert into[:, [0, 7]].isnan().all()


def test_batches_about_one_origin_keep_it_and_have_their_own_moments():
    """A unit that is silent in a batch alone has no spread in it, however far its values are from the origin."""
    rows = draw(900, 6)
    first = RunningMoments()
    first.center(rows[600:])
    batch = RunningMoments(first.origin)
    for part in rows[:300].split(90):
        assert torch.equal(batch.center(part), part - rows[600:].mean(0))
    mean, sd = moments_plainly(rows[:300].numpy())
    assert np.allclose(batch.result().mean.numpy(), mean, atol=1e-5)
    assert np.allclose(batch.result().sd.numpy(), sd, atol=1e-6)
    assert torch.allclose(batch.offset, batch.result().mean - first.origin)
    assert batch.result().dead().tolist() == [False, True, True, False, False, False]
    joined = RunningMoments.joined([batch, batch])
    assert torch.equal(joined.offset, torch.cat([batch.offset] * 2))


def test_joined_moments_are_those_of_each_part():
    one, other = draw(300, 6), draw(300, 4, seed=1)
    parts = [RunningMoments() for _ in range(2)]
    for part, values in zip(parts, (one, other), strict=True):
        part.center(values)
    joined = RunningMoments.joined(parts)
    for name in ("mean", "sd"):
        each = [getattr(part.result(), name) for part in parts]
        assert torch.equal(getattr(joined.result(), name), torch.cat(each))
    assert joined.n_samples == 300


def test_the_unbiased_deviation_needs_two_samples():
    running = RunningMoments()
    running.center(draw(50, 6)[20:21])
    with pytest.raises(ValueError, match="single sample"):
        running.unbiased_sd()
    running.center(draw(50, 6)[21:])
    expected = draw(50, 6)[20:].double().std(0, correction=1)
    assert torch.allclose(running.unbiased_sd(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_each", [1, 2])
@pytest.mark.parametrize("longest", [1, 250, module.LONGEST_SUM])
def test_covariances_are_those_of_two_passes(n_each: int, longest: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LONGEST_SUM", longest)
    monkeypatch.setattr(module, "BLOCK_ROWS", 2)
    a, b = draw(1000, 6), draw(1000, 6, seed=1)
    moments, products = [RunningMoments() for _ in range(2)], RunningProducts(n_each)
    for batch in zip(a.split(300), b.split(300), strict=True):
        products.add(*(one.center(values) for one, values in zip(moments, batch, strict=True)))
    found = covariances(products.mean(), *(one.offset for one in moments))
    assert found.dtype == torch.float64
    assert found.shape == (n_each, 6 // n_each, 6 // n_each)
    expected = covariances_plainly(a.numpy(), b.numpy())
    scale = np.outer(*(moments_plainly(one.numpy())[1].max(keepdims=True) for one in (a, b)))
    for channel in range(n_each):
        assert (np.abs(found[channel].numpy() - expected[channel::n_each, channel::n_each]) / scale).max() < 1e-6


def test_without_samples_there_is_no_result():
    moments, products = RunningMoments(), RunningProducts()
    for result in (moments.result, products.mean):
        with pytest.raises(ValueError, match="no samples"):
            result()
    centered = moments.center(draw(50, 6))
    products.add(centered, centered)
    products.mean()
    with pytest.raises(ValueError, match="no samples"):
        products.mean()


def test_sums_stay_on_the_device_of_the_values():
    """Nothing is brought to the CPU, or waited for, until a result is."""
    device = pretend_device.register()
    a, b = draw(1000, 6), draw(1000, 6, seed=1)

    def add_up(device: torch.device) -> list[Tensor]:
        added, one, other, products = RunningMoments(), RunningMoments(), RunningMoments(), RunningProducts(2)
        for left, right in zip(a.to(device).split(300), b.to(device).split(300), strict=True):
            added.add(left, 1)
            products.add(one.center(left), other.center(right))
        results = [added.result(), RunningMoments.joined([one, other]).result()]
        found = covariances(products.mean(), one.offset, other.offset)
        return [*(part for one in results for part in (one.mean, one.sd, one.dead())), one.unbiased_sd(), found]

    expected = add_up(torch.device("cpu"))
    with pretend_device.PretendDevice() as seen:
        found = add_up(device)
        assert all(part.device == device for part in found)
        assert set(seen) <= {"to_device"}
        found = [part.cpu() for part in found]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
