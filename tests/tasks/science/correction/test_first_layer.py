from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tasks.science.correction import first_layer
from tasks.science.correction.first_layer import Between, FirstLayer

N_UNITS = 5


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def images() -> Tensor:
    return draw(23, 1, 3, 4, seed=0)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_layer, "CHUNK_IMAGES", 10)


def layer(seed: int) -> FirstLayer:
    return FirstLayer("hidden.0.linear", draw(N_UNITS, 12, seed=seed), draw(N_UNITS, seed=seed + 100))


def all_values(of: FirstLayer | Between, images: Tensor) -> Tensor:
    """(n_units, n_examples)"""
    return torch.cat(list(of.values(images)), 1)


def plainly(weight: Tensor, bias: Tensor, images: Tensor) -> Tensor:
    return (images.flatten(1) @ weight.T + bias).T


def test_values_between_two_endpoints_are_those_of_the_interpolated_layer(images: Tensor):
    a, b = layer(1), layer(2)
    order = torch.tensor([3, 0, 4, 1, 2])
    for alpha in (0.0, 0.3, 0.5, 1.0):
        weight, bias = ((1 - alpha) * x + alpha * y[order] for x, y in ((a.weight, b.weight), (a.bias, b.bias)))
        seen = all_values(Between(a, b.reordered(order), alpha), images)
        assert torch.allclose(seen, plainly(weight, bias, images), rtol=1e-12, atol=1e-12)


def test_at_the_ends_values_are_the_endpoints_own_to_the_bit(images: Tensor):
    a, b = layer(1), layer(2)
    # What is not a number in one endpoint does not reach the other.
    a.weight[0, 0] = torch.nan
    assert torch.equal(all_values(Between(a, b, 1.0), images), all_values(b, images))


def test_reordering_twice_is_reordering_by_both_orders(images: Tensor):
    one, other = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([1, 2, 0, 4, 3])
    twice = layer(1).reordered(one).reordered(other)
    assert torch.equal(all_values(twice, images), all_values(layer(1), images)[one][other])


def test_callers_may_change_what_they_are_given(images: Tensor):
    a = layer(1)
    before = all_values(a, images)
    for of in (a, a.reordered(torch.arange(N_UNITS)), Between(a, layer(2), 0.3), Between(a, a, 0.0)):
        for values in of.values(images):
            values.zero_()
        assert torch.equal(all_values(a, images), before)


def test_values_are_made_once_for_all_orders_of_an_endpoint(images: Tensor, monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []
    make = FirstLayer._make

    def counted(self: FirstLayer, images: Tensor) -> Tensor:
        made.append(len(images))
        return make(self, images)

    monkeypatch.setattr(FirstLayer, "_make", counted)
    a = layer(1)
    for of in (a.reordered(torch.tensor([1, 0, 2, 3, 4])), a, Between(a, a.reordered(torch.arange(N_UNITS)), 0.5)):
        all_values(of, images)
    assert made == [10, 10, 3]
    all_values(a, images.clone())  # Other images, of the same values.
    assert made == [10, 10, 3] * 2


def test_what_is_too_large_is_not_kept_and_is_the_same_to_the_bit(images: Tensor, monkeypatch: pytest.MonkeyPatch):
    a = layer(1)
    kept = all_values(a, images)
    assert a.keeps(images)
    monkeypatch.setattr(first_layer, "KEPT_LAYER_BYTES", 23 * N_UNITS * 8 - 1)
    b = layer(1)
    assert not b.keeps(images)
    assert torch.equal(all_values(b, images), kept)
    assert not b._kept
