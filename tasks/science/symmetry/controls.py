"""Controls: paths whose outcome is known beforehand, measured as any other, so that a mistake on the way shows.

*Permuted self*: B is A with its units shuffled. Aligned, it is A again, dead units aside, and there is no barrier.
*Random permutation*: B's units are shuffled instead of aligned. Independently trained networks are no nearer to each
other in one order than in another, so such a path is no different from the direct one.
"""

from __future__ import annotations

import torch

from tasks.science.specs.identity import stream, weights_digest
from tasks.science.specs.state import State
from tasks.science.symmetry.permutation import Permutation, PermutationSpec

PERMUTED_SELF = "permuted-self"


def shuffle(spec: PermutationSpec, state: State, purpose: str) -> Permutation:
    """Draw a permutation of every axis, by the name of `purpose` and of the weights `state`."""
    seed = int(stream(purpose, weights_digest(state)).integers(2**31))
    return spec.random(torch.Generator().manual_seed(seed))


def permuted_self(spec: PermutationSpec, state: State) -> State:
    """Return `state` with its units shuffled: the same function."""
    return spec.apply(state, shuffle(spec, state, PERMUTED_SELF))
