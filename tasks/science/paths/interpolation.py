"""The straight line between two endpoints' weights."""

from __future__ import annotations

from tasks.science.specs.state import State


def interpolate(a: State, b: State, alpha: float) -> State:
    """Return (1 - alpha) a + alpha b for every tensor, running statistics included.

    Alpha 0 and 1 give the endpoints to the bit. Whole numbers, such as the number of batches that BatchNorm has seen,
    are not interpolated: A's are taken.
    Raises ValueError where names or shapes of the two differ, or where alpha leaves [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha:g}")
    if a.keys() != b.keys():
        raise ValueError(f"the endpoints have different tensors: {', '.join(sorted(a.keys() ^ b.keys()))}")
    for name in a:
        if a[name].shape != b[name].shape:
            raise ValueError(f"{name} has shape {tuple(a[name].shape)} in A and {tuple(b[name].shape)} in B")
    if alpha in (0, 1):
        return dict(b if alpha == 1 else a)
    return {name: (1 - alpha) * a[name] + alpha * b[name] if a[name].is_floating_point() else a[name] for name in a}
