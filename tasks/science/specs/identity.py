"""Ids of specs, digests of weights, and named streams of random numbers.

An id is the sha256 of canonical JSON: the resolved spec, the schema version, and the revision of each verb that made
the artifact. Specs say what is computed, never where: no path, device or number of workers enters an id. A spec enters
whole, or by a whole part of it (`part_of`), so that a new field enters with it. A field at its default is left out, so
that ids from before the field was added stay as they are. Labels, such as the name of a recipe, are left out as well,
so that two studies that ask for the same training share it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA_VERSION = 1

REVISIONS: Mapping[str, int] = {"train": 1, "match": 2, "correct": 2, "evaluate": 3}
"""The revision of each verb, raised with a CHANGELOG line when its numbers change: everything that it made is then made
again."""

USER_DEFINED_REVISIONS: Mapping[str, int] = {**REVISIONS, "correct": 3}
"""The revisions for user-defined networks, some of which are corrected at layers that networks that ship do not have.
"""

LABEL = {"label": True}
"""The metadata of a field that enters no id, such as a name. A field with a `key` enters ids under that name."""

KEPT = {"kept": True}
"""The metadata of a field that enters ids at its default as well."""

_Part = TypeVar("_Part", bound="DataclassInstance")


def part_of(spec: DataclassInstance, kind: type[_Part]) -> _Part:
    """Return the `kind` with the values that `spec` has in fields of the same names."""
    return kind(**{f.name: getattr(spec, f.name) for f in dataclasses.fields(kind)})


def canonical(value: Any) -> Any:
    """Return the JSON form of a spec that ids are made from: no labels, and no fields at their defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            key: canonical(item)
            for name, key, default in _hashed_fields(type(value))
            if (item := getattr(value, name)) != default
        }
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    return value


@cache
def _hashed_fields(spec: type) -> list[tuple[str, str, Any]]:
    """Return the name of every field that enters ids, its key in them, and the value at which it is left out."""
    return [
        (f.name, f.metadata.get("key", f.name), dataclasses.MISSING if f.metadata.get("kept") else f.default)
        for f in dataclasses.fields(spec)
        if not f.metadata.get("label")
    ]


def canonical_json(value: Any) -> str:
    """Return the one text of a spec, with sorted keys and no spaces. Raises ValueError for NaN and infinity."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def spec_id(verbs: tuple[str, ...], spec: Any, revisions: Mapping[str, int] = REVISIONS) -> str:
    """Return the first 32 hex digits of the sha256 of `spec`, the schema version and the `revisions` of `verbs`."""
    of_verbs = {verb: revisions[verb] for verb in verbs}
    text = canonical_json({"schema": SCHEMA_VERSION, "revisions": of_verbs, "spec": spec})
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 (64 hex digits) of every tensor's name, type, shape and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def stream(purpose: str, *names: int | str) -> np.random.Generator:
    """Return the random numbers of one purpose: the same names give the same draws, whatever was drawn elsewhere.

    They are of NumPy's Philox rather than torch's Mersenne Twister: torch keeps 32 bits of a CPU seed, so streams could
    collide.
    """
    key = hashlib.sha256(json.dumps([purpose, *names]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "big")))


def safe_name(name: str) -> str:
    """Return `name` if it can be one part of a store key. Raises ValueError for one that could leave its folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or ".." in name:
        raise ValueError(
            f"{name!r} is no name: use letters, digits, '-', '_' and '.', and begin with a letter or digit"
        )
    return name
