"""Weights files from any source: state dicts read from safetensors or torch files, and written as safetensors.

The kind of a file is told by its content, never by its name. A torch file is a pickle, and a pickle is a program:
torch's weights-only loader, which knows tensors and plain containers and refuses everything else, is the only one used
here. Other content that training scripts keep beside weights, such as their arguments, becomes an empty stand-in.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import stat
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from infra.files import write_file
from infra.text import one_line
from infra.weights_limits import CostlyError, check_archive, check_legacy, plain_tensors

SUFFIX = ".safetensors"

CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema")
"""Under which names training scripts keep a state dict in a larger checkpoint; the first that is there is taken."""

PREFIX = "module."
"""The prefix that DataParallel puts in front of every name."""

COMPILED = "_orig_mod"
"""The part of a name that torch.compile adds wherever a module was compiled."""

HARMLESS = (
    "argparse.Namespace", "builtins.frozenset", "builtins.range", "builtins.slice", "datetime.date",
    "datetime.datetime", "datetime.timedelta", "numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar", "numpy.dtype", "numpy.ndarray",
    "pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath", "pathlib.WindowsPath",
    "pathlib._local.PosixPath", "pathlib._local.WindowsPath", "types.SimpleNamespace",
)  # fmt: skip
"""Types that a file may ask for beside tensors and plain containers. None is made: each is left out."""

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_LENGTH_BYTES = 8
_LONGEST_HEADER_BYTES = 2**24
_MOST_LEVELS = 8
"""Depth in a checkpoint at which its state dict is still looked for."""


class WeightsError(Exception):
    """Error of a weights file that cannot be read or written; the message says which, why, and the way out."""


@dataclass(frozen=True)
class WeightsFile:
    """State dict of a file, with sentences about its other content and about names that were changed."""

    weights: dict[str, Tensor]
    notes: tuple[str, ...]


class _LeftOut:
    """Stand-in for content beside weights, which takes any arguments and does nothing."""

    def __new__(cls, *_: object) -> _LeftOut:
        return object.__new__(cls)

    def __init__(self, *_: object) -> None:
        return

    def __setstate__(self, _: object) -> None:
        return


_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (type(name.rpartition(".")[2], (_LeftOut,), {}), name) for name in HARMLESS
]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the weights in `path`, as `open_weights` reads them."""
    return open_weights(path).weights


def open_weights(path: str | Path) -> WeightsFile:
    """Return the state dict in `path`, on the CPU. Nothing in the file is run.

    A state dict in a larger checkpoint is found under its usual names. The prefix that DataParallel puts before every
    name is removed, and so is what torch.compile puts into any. Raises WeightsError for a file that is missing,
    damaged, of another kind, or that would have to be run to be read.
    """
    path = Path(path)
    try:
        status = path.stat()
        # Neither a folder nor a pipe, at which reading would wait for ever.
        if not stat.S_ISREG(status.st_mode):
            raise WeightsError(f"{path} is no file: give a weights file (safetensors, or a torch file)")
        with path.open("rb") as file:
            start = file.read(_LENGTH_BYTES + 1)
    except FileNotFoundError as error:
        raise WeightsError(f"there is no file {path}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # A name with a zero byte.
        raise WeightsError(f"{str(path)!r} is no name of a file") from error
    if not start:
        raise WeightsError(f"{path} is empty")
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    # Asked first: the length of a header may begin with the byte that a pickle begins with.
    try:
        if start[_LENGTH_BYTES:] == b"{" and length <= status.st_size:
            if length > _LONGEST_HEADER_BYTES:
                raise CostlyError(f"has {length:,} bytes beside the numbers of its tensors")
            return _unwrapped(_read_safetensors(path), path)
        if start.startswith(_ZIP):
            check_archive(path)
            return _unwrapped(_read_torch(path), path)
        if start.startswith(_PICKLE):
            check_legacy(path)
            return _unwrapped(_read_torch(path), path)
    except CostlyError as error:
        raise WeightsError(
            f"{path} {error}, and is not read: save network.state_dict() alone, of dense tensors"
        ) from error
    raise WeightsError(f"{path} is neither a safetensors file nor one that torch.save wrote")


def check_target(path: str | Path) -> None:
    """Raise WeightsError if `write_weights` would refuse `path`."""
    path = Path(path)
    if path.suffix != SUFFIX:
        raise WeightsError(f"{path} does not end in {SUFFIX}, the format that is written")
    if os.path.lexists(path):
        raise WeightsError(f"{path} is there already and is not overwritten: name another file, or remove it")
    if not path.parent.is_dir():
        raise WeightsError(f"{path} cannot be written: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise WeightsError(f"{path} cannot be written: the folder {path.parent} is locked")


def write_weights(path: str | Path, weights: Mapping[str, Tensor], header: Mapping[str, Any] | None = None) -> None:
    """Write a state dict as safetensors, whole or not at all; `header`, JSON, tells how it was made.

    Names that share memory are each written with their own copy, so that `load_state_dict(strict=True)` finds them all.
    Raises WeightsError if the name does not end in .safetensors, is taken, or cannot be written.
    """
    check_target(path)
    own: dict[str, Tensor] = {}
    written: set[int] = set()
    for name, tensor in weights.items():
        place = tensor.untyped_storage().data_ptr()
        own[name] = (tensor.detach().clone() if place in written else tensor.detach()).contiguous()
        written.add(place)
    data = safetensors.torch.save(own, metadata={"repairlab": json.dumps(dict(header or {}), sort_keys=True)})
    try:
        made = write_file(Path(path), data, overwrite=False)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({error.strerror or error})") from error
    if not made:
        raise WeightsError(f"{path} has come to be there in the meantime and is not overwritten")


def _read_safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # What it warns of (an archive of TorchScript, an old kind of storage) is refused or harmless.
            warnings.simplefilter("ignore")
            # As an open file: given a name, torch goes by its suffix.
            with path.open("rb") as file, torch.serialization.safe_globals(_STAND_INS):
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Its text is long, and in part the file's own: only a name is taken from it.
        asked = re.search(r"GLOBAL ([\w.]{1,100})", str(error), flags=re.ASCII)
        what = f"asks for {asked[1]} to be called when it is read" if asked else "is a pickle of more than tensors"
        raise WeightsError(
            f"{path} {what}, and nothing in a file is run here: save network.state_dict() alone"
        ) from error
    except Exception as error:  # A damaged file can break the loader anywhere.
        if "TorchScript" in str(error):
            raise WeightsError(
                f"{path} is a TorchScript archive, a program: save network.state_dict() instead"
            ) from error
        raise _damaged(path, error) from error


def _unwrapped(content: Any, path: Path) -> WeightsFile:
    """Return the dict of tensors in a checkpoint."""
    found = content
    trail: list[str] = []
    left: dict[str, Any] = {}
    while isinstance(found, Mapping) and not _is_state_dict(found):
        inner = [name for name in CONTAINERS if isinstance(found.get(name), Mapping)]
        if not inner:
            break
        taken = next((name for name in inner if _is_state_dict(found[name])), inner[0])
        left |= {_shown([*trail, name]): value for name, value in found.items() if name != taken}
        trail.append(taken)
        found = found[taken]
        if len(trail) > _MOST_LEVELS:
            raise WeightsError(
                f"{path} has no state dict at the end of {_shown(trail)}: save network.state_dict() alone"
            )
    if not isinstance(found, Mapping) or len(found) == 0:
        kind = "nothing" if isinstance(found, Mapping) else type(content).__name__
        raise WeightsError(f"{path} holds {kind} where a state dict is expected: save network.state_dict()")
    if not _is_state_dict(found):
        names = [name for name, value in found.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
        raise WeightsError(
            f"{path} is no state dict: {_shown(names[:1])!r} in it is no tensor; save network.state_dict() alone, or "
            f"under one of {', '.join(CONTAINERS)}"
        )
    weights = plain_tensors(cast(Mapping[str, Tensor], found), path.stat().st_size)
    notes: list[str] = []
    if others := [name for name, value in left.items() if isinstance(value, Mapping) and _is_state_dict(value)]:
        notes.append(
            f"{path}: the weights under {_shown(trail)} are taken; to take those under {_some(others)}, save them alone"
        )
    if rest := [name for name in left if name not in others]:
        notes.append(f"{path}: left out beside the weights: {_some(rest)}")
    return _plainly_named(weights, path, notes)


def _plainly_named(weights: dict[str, Tensor], path: Path, notes: list[str]) -> WeightsFile:
    """Return `weights` without what wrappers add to names, and `notes` with what was removed."""
    plain = {".".join(part for part in name.split(".") if part != COMPILED): t for name, t in weights.items()}
    if len(plain) == len(weights) and plain.keys() != weights.keys() and "" not in plain:
        notes.append(f"{path}: {COMPILED}. is taken out of the names of tensors")
        weights = plain
    if all(name.startswith(PREFIX) for name in weights):
        notes.append(f"{path}: {PREFIX} is taken off the name of every tensor")
        while all(name.startswith(PREFIX) for name in weights):
            weights = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    return WeightsFile(weights, tuple(notes))


def _shown(names: Sequence[object]) -> str:
    """Return names from a file in printable form."""
    return ".".join(one_line(name)[:40] if isinstance(name, str | int) else type(name).__name__ for name in names)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _damaged(path: Path, error: Exception) -> WeightsError:
    sentence = re.split(r"\.\s|\n", str(error).strip())[0].removesuffix(".")
    reason = one_line(sentence)[:200] or type(error).__name__
    return WeightsError(f"{path} is damaged or cut short ({reason}): fetch or save it again")
