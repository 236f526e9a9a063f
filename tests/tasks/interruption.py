"""A training that dies, for tests of what it goes on from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tasks.science.training.optimization import Updates


@contextmanager
def dying(n_steps: int) -> Iterator[None]:
    """Training raises after `n_steps`."""
    step, taken = Updates.step, [0]

    def fail(self: Updates, rate: float) -> None:
        taken[0] += 1
        if taken[0] > n_steps:
            raise RuntimeError("the power is off")
        step(self, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Updates, "step", fail)
        with pytest.raises(RuntimeError, match="the power is off"):
            yield
