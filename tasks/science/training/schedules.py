"""Learning-rate schedules: a linear warm-up, then a linear or cosine decay to 0."""

from __future__ import annotations

import math

from tasks.science.specs.recipe import Recipe


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step, counted from 0.

    It rises linearly from `warmup_from` to the peak over the warm-up, then falls to 0 at the end of training, linearly
    or along half a cosine.
    """
    total = recipe.epochs * steps_per_epoch
    warmup = recipe.warmup * total
    if step < warmup:
        return recipe.warmup_from + (recipe.learning_rate - recipe.warmup_from) * step / warmup
    if recipe.schedule == "cosine":
        return recipe.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
    return recipe.learning_rate * (total - step) / (total - warmup)
