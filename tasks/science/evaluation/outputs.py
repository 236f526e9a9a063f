"""What of a network's output are its logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def logits_in(output: Any) -> Any:
    """The tensor that a mapping or dataclass calls `logits`, or its only tensor; any other output as it is.

    What stands beside them (a cache of keys and values, a loss, hidden states) is no output of the function that is
    permuted and merged. A tuple is left alone: none of its tensors says what it is.
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
    """What lets a network put out logits alone, where `logits_in` cannot tell them from the rest of `output`."""
    names = output if isinstance(output, Mapping) else dir(output)
    holds_cache = "past_key_values" in names or (
        isinstance(output, list | tuple) and any("Cache" in type(part).__name__ for part in output)
    )
    return "call it with use_cache=False" if holds_cache else "let its forward pass return the logits alone"
