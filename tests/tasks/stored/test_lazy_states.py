"""States that are read when they are asked for."""

from __future__ import annotations

import pytest
import torch

from tasks.stored.artifacts import LazyStates

STATE_BYTES = 400


@pytest.mark.parametrize(("kept_bytes", "n_kept"), [(0, 1), (STATE_BYTES, 1), (2 * STATE_BYTES, 2), (10_000, 4)])
def test_states_are_read_again_only_beyond_what_is_kept(kept_bytes: int, n_kept: int):
    read: list[int] = []

    def load(index: int):
        read.append(index)
        return {"weight": torch.full((100,), float(index))}

    states = LazyStates(load, kept_bytes)
    for index in (0, 1, 2, 3):
        assert float(states[index]["weight"][0]) == index
        assert states[index] is states[index]
    assert read == [0, 1, 2, 3]
    assert list(states.kept) == [0, 1, 2, 3][-n_kept:]
    assert float(states[0]["weight"][0]) == 0
    assert read == ([0, 1, 2, 3, 0] if n_kept < 4 else [0, 1, 2, 3])
