"""Weights files of anybody's: state dicts read from safetensors or torch files, and written as safetensors.

What a file is, is told by its content, never by its name. A torch file is a pickle, and a pickle is a program: torch's
weights-only loader, which knows tensors and plain containers and refuses everything else, is the only one used here.
"""

from __future__ import annotations

import os
import pickle
import re
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from infra.checkpoints import pack
from infra.storage import write_file

SUFFIX = ".safetensors"

CONTAINERS = ("state_dict", "model_state_dict", "model")
"""Under which names training scripts keep a state dict in a larger checkpoint."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put in front of every name."""

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_LENGTH_BYTES = 8
_LONGEST_HEADER_BYTES = 100_000_000


class WeightsError(Exception):
    """A weights file cannot be read or written; the message says which, why, and the way out."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in `path`, on the CPU. Nothing in the file is run.

    A state dict in a larger checkpoint is found under its usual names, and a prefix that DataParallel or torch.compile
    put before every name is taken off. Raises WeightsError for a file that is missing, damaged, of another kind, or
    that would have to be run to be read.
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
    if start[_LENGTH_BYTES:] == b"{" and length < _LONGEST_HEADER_BYTES:
        return _unwrapped(_read_safetensors(path), path)
    if start.startswith((_ZIP, _PICKLE)):
        return _unwrapped(_read_torch(path), path)
    raise WeightsError(f"{path} is neither a safetensors file nor one that torch.save wrote")


def check_target(path: str | Path) -> None:
    """WeightsError where `write_weights` would refuse `path`, before any work is done for it."""
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
    """Writes a state dict as safetensors, whole or not at all; `header`, JSON, tells how it was made.

    Names that share memory are written each with its own copy, so that `load_state_dict(strict=True)` finds them all.
    Raises WeightsError where the name is not one of safetensors, is taken, or cannot be written.
    """
    check_target(path)
    own: dict[str, Tensor] = {}
    written: set[int] = set()
    for name, tensor in weights.items():
        place = tensor.untyped_storage().data_ptr()
        own[name] = tensor.detach().clone() if place in written else tensor.detach()
        written.add(place)
    try:
        made = write_file(Path(path), pack(own, dict(header or {})), overwrite=False)
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
            with path.open("rb") as file:
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


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    """The dict of tensors in a checkpoint."""
    found = content
    while isinstance(found, Mapping) and not _is_state_dict(found):
        inner = next((found[name] for name in CONTAINERS if isinstance(found.get(name), Mapping)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping) or len(found) == 0:
        kind = "nothing" if isinstance(found, Mapping) else type(content).__name__
        raise WeightsError(f"{path} holds {kind} where a state dict is expected: save network.state_dict()")
    if not _is_state_dict(found):
        names = [name for name, value in found.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
        raise WeightsError(
            f"{path} is no state dict: {str(names[0])[:80]!r} in it is no tensor; save network.state_dict() alone, or "
            f"under one of {', '.join(CONTAINERS)}"
        )
    weights = cast(dict[str, Tensor], dict(found))
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in weights)), None):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _damaged(path: Path, error: Exception) -> WeightsError:
    sentence = re.split(r"\.\s|\n", str(error).strip())[0].removesuffix(".")
    reason = re.sub(r"[^\x20-\x7e]", "?", sentence)[:200] or type(error).__name__
    return WeightsError(f"{path} is damaged or cut short ({reason}): fetch or save it again")
