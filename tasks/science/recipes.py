"""Training recipes as data. Each is named, and says where its numbers come from."""

from __future__ import annotations

from tasks.science.specs import Recipe, override

DIGITS = Recipe("digits", batch_size=128, epochs=60, learning_rate=0.01, warmup=0.05)
"""Ours: small enough for every seed of 16 hidden layers to train to the end within seconds, without augmentation."""

MLP = Recipe("mlp", batch_size=2000, epochs=100, learning_rate=0.1, warmup=0.05, translate=4)
"""Table 1's MLP column at half its learning rate: at .2, in float32, about half the seeds of a deep MLP diverge."""

TABLE1_MLP = Recipe("table1", batch_size=2000, epochs=100, learning_rate=0.2, warmup=0.05, translate=4)
"""The MLP column of Table 1 of REPAIR (arXiv 2211.08403); the warm-up and the 4 pixels are the authors' code's."""

MLP_BATCH = Recipe("mlp-batch", batch_size=2000, epochs=50, learning_rate=0.05, warmup=0.1)
"""The depth study's: MLPs with BatchNorm, folded afterwards; from the authors' code (50 epochs, 5 of warm-up)."""

SMOKE = Recipe("smoke", batch_size=32, epochs=2, learning_rate=0.01, warmup=0.1, precision="bfloat16")
"""Ours: just enough steps on a small data set for networks with BatchNorm to leave chance, to see that they run."""

SMOKE_PLAIN = override(SMOKE, initialization="he-normal")
"""The same for networks without a norm, which from their own initialization would take far longer."""

SMOKE_SLOW = override(SMOKE, batch_size=16, epochs=4)
"""The same for ResNet20 with LayerNorm and Fixup, whose first steps are small."""

R20_SHORT = Recipe("r20-short", 500, 10, 0.4, 0.1, weight_decay=5e-4, flip=True, translate=4, precision="bfloat16")
"""The authors' 100-epoch demo of ResNet20 with BatchNorm, cut to 10 epochs: takes no verdict against their points."""

R20_SHORT_LAYER = Recipe(
    "r20-short", 100, 10, 0.1, 0.1, weight_decay=1e-4, flip=True, translate=4, precision="bfloat16"
)
"""The same for LayerNorm, which the authors train at a quarter of the rate and a fifth of the batch."""
