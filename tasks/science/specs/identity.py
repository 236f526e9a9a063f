"""The identity of everything: what is asked for, as canonical JSON, and what is drawn at random, by name.

An id is the sha256 of canonical JSON: the resolved spec, the schema version, and the revision of each verb that made
the thing. Specs say *what*, never *where*: no path, device or worker count takes part in an id. A field at its default
is left out of the JSON, so a field added later leaves old ids as they are; labels (the name of a recipe) are left out
as well, so two studies that ask for the same training share it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

SCHEMA_VERSION = 1

REVISIONS: Mapping[str, int] = {"train": 1, "match": 2, "correct": 2, "evaluate": 3}
"""Raised, with a CHANGELOG line, when the numbers of that verb change: then all that it made is made anew."""

USER_DEFINED_REVISIONS: Mapping[str, int] = {**REVISIONS, "correct": 3}
"""The same for user-defined networks, some of which are corrected where networks that ship are not."""

LABEL = {"label": True}
"""The metadata of a field that takes no part in an identity, such as a name."""


def canonical(value: Any) -> Any:
    """The JSON form of a spec that its identity is made from: no labels, no fields at their defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: canonical(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if not f.metadata.get("label") and (f.default is dataclasses.MISSING or getattr(value, f.name) != f.default)
        }
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    return value


def canonical_json(value: Any) -> str:
    """One text for one spec: sorted keys, no spaces, NaN and infinity refused with ValueError."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def spec_id(verbs: tuple[str, ...], spec: Any, revisions: Mapping[str, int] = REVISIONS) -> str:
    """Return the first 32 hex digits of the sha256 of `spec`, the schema version and the `revisions` of `verbs`."""
    of_verbs = {verb: revisions[verb] for verb in verbs}
    text = canonical_json({"schema": SCHEMA_VERSION, "revisions": of_verbs, "spec": spec})
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 (64 hex digits) over the name, type, shape and bytes of every tensor, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def stream(purpose: str, *names: int | str) -> np.random.Generator:
    """The random numbers of one purpose: the same names give the same draws, whatever was drawn elsewhere.

    NumPy's Philox rather than torch's Mersenne Twister: torch keeps 32 bits of a CPU seed, so streams could collide.
    """
    key = hashlib.sha256(json.dumps([purpose, *names]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "big")))


def safe_name(name: str) -> str:
    """`name` where it can stand as one part of a store key; ValueError where it could leave its folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or ".." in name:
        raise ValueError(
            f"{name!r} is no name: letters, digits, '-', '_' and '.' only, beginning with a letter or digit"
        )
    return name
