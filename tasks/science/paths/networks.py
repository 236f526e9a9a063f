"""Interpolation of a network's state in which some entries follow from others.

The mean of two singular vectors, masks or orthogonal matrices is not one of them. Such entries are found from the
modules, parametrizations and hooks of the network, and computed anew from the interpolated weights, or refused. Running
statistics of norms are interpolated as weights are, as the literature defines the interpolated network.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _Orthogonal, _SpectralNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm

from tasks.science.evaluation.functional import compute, mode
from tasks.science.paths.interpolation import interpolate
from tasks.science.specs.state import State

_STATISTICS = ("running_mean", "running_var")


@torch.no_grad()
def interpolate_network(network: nn.Module, a: State, b: State, alpha: float) -> State:
    """Return `interpolate` of two states of `network`, with the entries that follow from weights computed anew.

    Spectral norms divide by the largest singular value of the interpolated weight. A pruned weight stays 0 where it is
    in both, and elsewhere lies between the two that the networks compute with. Endpoints are returned as they are.
    Raises ValueError as `interpolate` does, and where orthogonal matrices or unknown masks differ, which it names.
    """
    state = interpolate(a, b, alpha)
    if alpha in (0, 1):
        return state
    for orthogonal in _paths(network, _Orthogonal):
        _refuse_different(f"{orthogonal}.base", a, b, "an orthogonal matrix", "remove the parametrization")
    for key in _unknown_buffers(network, a, b):
        if _is_mask(a[key]) and _is_mask(b[key]):
            _refuse_different(key, a, b, "a mask of 0 and 1", "multiply the weights by it and remove it")
    for weight, mask in _pruned(network):
        state[mask] = torch.maximum(a[mask], b[mask])
        state[weight] = (1 - alpha) * (a[weight] * a[mask]) + alpha * (b[weight] * b[mask])
    for matrix, left, right in _spectral_norms(network, state):
        u, v = _leading_vectors(matrix, state[left])
        state[left], state[right] = u.to(state[left].dtype), v.to(state[right].dtype)
    return state


def averaged_buffers(network: nn.Module, a: State, b: State) -> tuple[str, ...]:
    """Return the buffers that differ between two states of `network` and are interpolated without being known."""
    return tuple(_unknown_buffers(network, a, b))


def _refuse_different(key: str, a: State, b: State, what: str, way_out: str) -> None:
    if key in a and not torch.equal(a[key], b[key]):
        raise ValueError(
            f"{key} is {what} that differs between the two networks, aligned or not, and the mean of two is none: "
            f"{way_out} in both, and give plain weights"
        )


def _paths(network: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [path for path, module in network.named_modules(remove_duplicate=False) if isinstance(module, kind)]


def _hooks(network: nn.Module, kind: type) -> Iterator[tuple[str, nn.Module, object]]:
    """Yield the hooks of `kind` that run before a forward pass, with their module and the prefix of its keys."""
    for path, module in network.named_modules(remove_duplicate=False):
        for hook in module._forward_pre_hooks.values():  # pyright: ignore[reportPrivateUsage]
            if isinstance(hook, kind):
                yield f"{path}." if path else "", module, hook


def _pruned(network: nn.Module) -> list[tuple[str, str]]:
    """Return the keys of each pruned weight and its mask."""
    found: list[tuple[str, str]] = []
    for prefix, module, hook in _hooks(network, BasePruningMethod):
        name = str(getattr(hook, "_tensor_name", ""))
        if f"{name}_mask" in module._buffers:  # pyright: ignore[reportPrivateUsage]
            found.append((f"{prefix}{name}_orig", f"{prefix}{name}_mask"))
    return found


def _spectral_norms(network: nn.Module, state: State) -> Iterator[tuple[Tensor, str, str]]:
    """Yield each matrix that is divided by its largest singular value, and the keys of its singular vectors."""
    for prefix, _, hook in _hooks(network, SpectralNorm):
        if isinstance(hook, SpectralNorm):
            name = prefix + hook.name
            yield _as_matrix(state[f"{name}_orig"], hook.dim), f"{name}_u", f"{name}_v"
    for path, module in network.named_modules(remove_duplicate=False):
        if not isinstance(module, ParametrizationList) or not any(isinstance(step, _SpectralNorm) for step in module):
            continue
        values = [state[key] for key in (f"{path}.{name}" for name in _originals(module))]
        for number, step in enumerate(module):
            prefix = f"{path}.{number}."
            if isinstance(step, _SpectralNorm) and f"{prefix}_u" in state:
                yield _as_matrix(values[0], step.dim), f"{prefix}_u", f"{prefix}_v"
            own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
            with mode(step, training=False):
                values = [compute(step, own, *values)]


def _originals(parametrizations: ParametrizationList) -> list[str]:
    names = [name for name, _ in parametrizations.named_parameters(recurse=False)]
    return names + [name for name, _ in parametrizations.named_buffers(recurse=False)]


def _as_matrix(weight: Tensor, dim: int) -> Tensor:
    return weight.movedim(dim, 0).flatten(1)


def _leading_vectors(matrix: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the left and right singular vectors (float64) of the largest singular value.

    The left one points to the side of `like`. They are any vectors of length 1 for a matrix that is 0 or not finite.
    """
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    if not bool(torch.isfinite(wide).all()):
        wide = torch.zeros_like(wide)
    # Of the smaller of the two products, which is cheaper than singular values of the whole.
    short = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -1]
    long = wide.T @ short
    length = long.norm()
    long = long / length if length > 0 else torch.eye(1, len(long), dtype=long.dtype, device=long.device)[0]
    left, right = (short, long) if wide.shape == matrix.shape else (long, short)
    return (-left, -right) if torch.dot(left, like.double()) < 0 else (left, right)


def _unknown_buffers(network: nn.Module, a: State, b: State) -> list[str]:
    """Return the floating buffers that differ and do not follow from weights in a known way."""
    known = {mask for _, mask in _pruned(network)}
    known |= {key for _, *vectors in _spectral_norms(network, a) for key in vectors}
    return [
        key
        for key, _ in network.named_buffers(remove_duplicate=False)
        if key in a
        and a[key].is_floating_point()
        and key not in known
        and key.rpartition(".")[2] not in _STATISTICS
        and not torch.equal(a[key], b[key])
    ]


def _is_mask(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and bool(((tensor == 0) | (tensor == 1)).all())
