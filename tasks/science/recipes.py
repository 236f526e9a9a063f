"""Training recipes as data. Each is named, and says where its numbers come from."""

from __future__ import annotations

from tasks.science.specs import Recipe

DIGITS = Recipe("digits", batch_size=128, epochs=60, learning_rate=0.01, warmup=0.05)
"""Ours: small enough for every seed of 16 hidden layers to train to the end within seconds, without augmentation."""

MLP = Recipe("mlp", batch_size=2000, epochs=100, learning_rate=0.1, warmup=0.05, translate=4)
"""Table 1's MLP column at half its learning rate: at .2, in float32, about half the seeds of a deep MLP diverge."""

TABLE1_MLP = Recipe("table1", batch_size=2000, epochs=100, learning_rate=0.2, warmup=0.05, translate=4)
"""The MLP column of Table 1 of REPAIR (arXiv 2211.08403); the warm-up and the 4 pixels are the authors' code's."""
