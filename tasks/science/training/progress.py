"""The state of a training between two epochs, and where such states are kept while a training runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tasks.science.specs.state import State


@dataclass(frozen=True)
class TrainingState:
    """Everything that the training of one seed goes on from between two epochs, on the CPU."""

    epoch: int
    """Epochs of the recipe's schedule that are done."""
    weights: State
    """Parameters and buffers of the network that is trained, in the type it is trained in."""
    memory: State
    """The optimizer's memory, as `Updates.memory` gives it."""
    last_finite: int
    """Epochs, counted from the first, after each of which all weights were finite."""
    n_skipped: int
    seconds: float


class Progress(Protocol):
    """A place where trainings leave their states as they run, and find them when they start again."""

    def load(self, seed: int, latest: int) -> TrainingState | None:
        """Return the last state of the training of `seed` after at most `latest` epochs; None where there is none."""
        ...

    def is_due(self) -> bool:
        """Return whether it is time to save again: asked after every epoch."""
        ...

    def save(self, seed: int, state: TrainingState) -> None: ...
