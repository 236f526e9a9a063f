"""Changed recipes and measurements, named after their changes."""

from __future__ import annotations

import dataclasses
from typing import Any

from tasks.science.specs.checks import shown


def override(spec: Any, **changes: Any) -> Any:
    """Return a recipe or measurement with `changes`, which its name tells: `mlp` becomes `mlp/epochs=5`.

    A change to the present value is none, and does not enter the name.
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
    """Return a changed value as a name has it: as it is, unless no field takes such a value."""
    is_plain = isinstance(value, float) or (isinstance(value, str) and len(value) < 80)
    return str(value) if is_plain else shown(value)
