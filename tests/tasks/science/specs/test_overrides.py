from __future__ import annotations

import pytest

from tasks.science.specs.measurement import Measurement
from tasks.science.specs.overrides import override
from tasks.science.specs.recipe import Recipe


def test_an_override_tells_what_it_changed_and_nothing_else():
    recipe = Recipe("mlp", 2000, 100, 0.1, 0.05)
    assert override(recipe, epochs=5).name == "mlp/epochs=5"
    assert override(recipe, epochs=100) is recipe
    assert override(Measurement("default"), alphas=25).name == "default/alphas=25"
    with pytest.raises(ValueError, match=r"recipe has no field 'epoch'; known: batch_size, .*, epochs, "):
        override(recipe, epoch=5)
