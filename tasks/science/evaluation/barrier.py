"""Barriers: the rise of a path between two endpoints above the chord, the line between the endpoints' own values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def barrier(values: NDArray[np.float64], alphas: NDArray[np.float64], chord: tuple[float, float]) -> float:
    """Return the highest rise of a path above the chord, 0 where it only sags; it grows with the number of alphas.

    `values` and `alphas` have shape (n_alphas,); alphas ascend within [0, 1], 0 is A. `chord` holds the endpoints'
    own values, in the unit of `values` (nats per example, or an error rate). The result is NaN where a value is.
    Raises ValueError when alphas do not ascend or leave [0, 1].
    Source: Entezari et al. 2022 (arXiv 2110.06296), definition of the loss barrier.
    """
    return float(np.maximum(_rise(values, alphas, chord).max(), 0.0))


def midpoint_barrier(values: NDArray[np.float64], alphas: NDArray[np.float64], chord: tuple[float, float]) -> float:
    """Return the signed rise above the chord at alpha = 1/2, which papers compare; arguments as in `barrier`.

    Raises ValueError also where no alpha is 1/2.
    """
    (middle,) = np.nonzero(alphas == 0.5)
    if len(middle) != 1:
        raise ValueError("the midpoint is not among the alphas; ask for an odd number of them")
    return float(_rise(values, alphas, chord)[middle[0]])


def _rise(values: NDArray[np.float64], alphas: NDArray[np.float64], chord: tuple[float, float]) -> NDArray[np.float64]:
    if alphas.min() < 0 or alphas.max() > 1:
        raise ValueError(f"alphas must lie in [0, 1], got {alphas.min():g} to {alphas.max():g}")
    if (np.diff(alphas) <= 0).any():
        raise ValueError("alphas must ascend")
    return values - ((1 - alphas) * chord[0] + alphas * chord[1])
