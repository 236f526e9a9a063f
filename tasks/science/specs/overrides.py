"""Changed recipes and measurements under a name of their own."""

from __future__ import annotations

import dataclasses
from typing import Any

from tasks.science.specs.checks import shown


def override(spec: Any, **changes: Any) -> Any:
    """`spec` with `changes`, its name telling what really changed: `mlp` becomes `mlp/epochs=5`.

    Works on recipes and measurements. A change to the value that is already there changes nothing, the name included.
    """
    known = {f.name for f in dataclasses.fields(spec)} - {"name"}
    for name in changes:
        if name not in known:
            raise ValueError(f"{type(spec).__name__.lower()} has no field {name!r}; known: {', '.join(sorted(known))}")
    changed = {name: value for name, value in changes.items() if value != getattr(spec, name)}
    if not changed:
        return spec
    suffix = ",".join(f"{name}={_worded(value)}" for name, value in changed.items())
    return dataclasses.replace(spec, name=f"{spec.name}/{suffix}", **changed)


def _worded(value: object) -> str:
    """A changed value in a name: as it is, unless it is none that a field takes."""
    is_plain = isinstance(value, float) or (isinstance(value, str) and len(value) < 80)
    return str(value) if is_plain else shown(value)
