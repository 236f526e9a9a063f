"""Logits in the output of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def logits_in(output: Any) -> Any:
    """Return the tensor that a mapping or dataclass calls `logits`, or its only tensor; any other output as it is.

    Other parts (a cache of keys and values, a loss, hidden states) do not belong to the function that is permuted and
    merged. A tuple is returned as it is, since its tensors have no names.
    """
    if isinstance(output, Mapping):
        parts = dict(output)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        parts = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    else:
        return output
    tensors = [part for part in parts.values() if isinstance(part, Tensor)]
    if isinstance(logits := parts.get("logits"), Tensor):
        return logits
    return tensors[0] if len(tensors) == 1 else output


def way_to_logits(output: Any) -> str:
    """Return the advice that makes a network put out logits alone, where `logits_in` cannot find them in `output`."""
    names = output if isinstance(output, Mapping) else dir(output)
    holds_cache = "past_key_values" in names or (
        isinstance(output, list | tuple) and any("Cache" in type(part).__name__ for part in output)
    )
    return "call it with use_cache=False" if holds_cache else "let its forward pass return the logits alone"
