from __future__ import annotations

import dataclasses

import pytest

from tasks.science.specs.recipe import Recipe


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": 0}, "epochs must be a positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"warmup": 1.0}, "warmup is a fraction"),
        ({"translate": -1}, "translate must be a whole number"),
        ({"cutout": 2.5}, "cutout must be a whole number of at least 0, got 2.5"),
        ({"cutout": True}, "cutout must be a whole number of at least 0, got True"),
        ({"resized_crop": -1}, "resized_crop must be a whole number of at least 0, got -1"),
        ({"resized_crop": 4, "cutout": 5}, "cutout must be at most resized_crop, 4 pixels, got 5"),
        ({"warmup_from": -1e-6}, "warmup_from must be a finite number of at least 0"),
        ({"warmup_from": 0.1}, "warmup_from is where a warm-up begins, below the learning rate of 0.05, got 0.1 with"),
        ({"warmup_from": 1e-6, "warmup": 0.0}, "below the learning rate of 0.05, got 1e-06 with a warmup of 0"),
        ({"momentum": 1}, "momentum must be below 1, got 1"),
        ({"label_smoothing": 1.0}, "label_smoothing must be below 1, got 1"),
        ({"label_smoothing": float("inf")}, "label_smoothing must be a finite number"),
        ({"flip": "yes"}, "flip must be True or False, got 'yes'"),
        ({"skip_nonfinite": 1}, "skip_nonfinite must be True or False, got 1"),
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adam, got 'lion'"),
        ({"schedule": "step"}, "schedule must be one of linear, cosine, got 'step'"),
        ({"initialization": "zero"}, "initialization must be one of published, he-normal, got 'zero'"),
        ({"precision": "half"}, "precision must be one of float32, bfloat16, float16, got 'half'"),
        ({"precision": "float16"}, "precision=float16 needs skip_nonfinite=True, since the scale of its loss"),
        ({"decayed_norms": "some"}, "decayed_norms must be one of all, shortcuts, none, got 'some'"),
    ],
)
def test_an_impossible_recipe_is_refused(recipe: Recipe, changes: dict, text: str):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(recipe, **changes)
