"""A pretend accelerator for tests: a torch device of its own whose tensors lie in CPU memory and refuse CPU tensors.

It shows without a GPU what a GPU would show: an operation that mixes devices, a `.numpy()` on the device, a factory
call that forgot `device=`, how often the host waits for the device (`item`), and how much is copied either way. It
shows nothing about speed, CUDA graphs, streams, or float16. Values are those of the CPU, so results can be compared to
the bit. Autograd, optimizers, `functional_call`, convolutions and BatchNorm work on it (torch 2.14).

    DEVICE = register()  # once per process
    with PretendDevice() as seen:
        x = torch.ones(3, 4).to(DEVICE)
        y = x + torch.zeros(4, device=DEVICE)
        float(y.sum())
    seen                                        # {'to_device': 1, 'item': 1}

`vmap` and `torch.compile` were not tried. Written against torch's experimental Python backend for PrivateUse1
(`torch.utils.backend_registration`); a test should fail, not be skipped, where torch no longer has it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
DEVICE: torch.device | None = None  # set by `register`: torch does not know the name before
aten = torch.ops.aten
_seen: Counter[str] = Counter()


def register() -> torch.device:
    """Makes the device known to torch, once per process, and returns it."""
    global DEVICE
    if DEVICE is None:
        _setup_privateuseone_for_python_backend(NAME)
        DEVICE = torch.device(f"{NAME}:0")
    return DEVICE


class _Held(Tensor):
    """A tensor on the pretend device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> _Held:
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE, requires_grad=inner.requires_grad,
        )  # fmt: skip

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"on {NAME}: {self.inner}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, _ = tree_flatten((args, kwargs))
    held = [x for x in flat if isinstance(x, _Held)]
    other = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, _Held)]
    asked = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    moves = func in (aten._to_copy.default, aten.copy_.default)
    if func in (aten._local_scalar_dense.default, aten.is_nonzero.default) and held:
        _seen["item"] += 1
    if held and not moves and any(x.dim() and x.device.type == "cpu" for x in other):
        raise RuntimeError(
            f"{func}: a tensor on {NAME} meets one on the CPU of shape {[tuple(x.shape) for x in other]}"
        )
    inner = dict(kwargs, device=torch.device("cpu")) if asked is not None and asked.type == NAME else kwargs
    bare = tree_map(lambda x: x.inner if isinstance(x, _Held) else x, (args, inner))
    out = func(*bare[0], **bare[1])
    here = asked.type == NAME if asked is not None else bool(held)
    if func is aten.copy_.default:
        here = isinstance(args[0], _Held)
    if func is aten._to_copy.default and asked is not None and here != bool(held):
        _seen["to_device" if here else "to_cpu"] += 1
    if func is aten.copy_.default and isinstance(args[0], _Held) != isinstance(args[1], _Held):
        _seen["to_device" if here else "to_cpu"] += 1
    if not here:
        return out
    out = tree_map(lambda x: _Held(x) if isinstance(x, Tensor) and not isinstance(x, _Held) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if held else out


class PretendDevice(TorchDispatchMode):
    """While it is open, tensors can be made on the device; what it returns counts waits and copies."""

    def __enter__(self) -> Counter[str]:  # type: ignore[override]
        register()
        _seen.clear()
        # `torch.tensor(values, device=...)` then makes a CPU tensor and copies it, which comes by here.
        self._lifts_only_cpu = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        super().__enter__()
        return _seen

    def __exit__(self, *error: object) -> None:
        torch._C._set_only_lift_cpu_tensors(self._lifts_only_cpu)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})
