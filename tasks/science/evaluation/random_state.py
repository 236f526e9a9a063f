"""The random state of the CPU, kept across work that may draw."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def kept_random_state() -> Generator[None]:
    """Leave the CPU's random state as it was; other devices are left alone."""
    before = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(before)
