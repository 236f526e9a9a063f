"""What fields of specs may hold, said in one sentence where they hold something else."""

from __future__ import annotations

from typing import Any, get_args


def check_positive(owner: str, **values: int) -> None:
    """ValueError, beginning with `owner`, for a value that is no whole number of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{owner}{name} must be a positive whole number, got {value!r}")


def is_whole(value: Any, least: int, largest: int | None = None) -> bool:
    """Whether `value` is a whole number from `least` to `largest`; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return value >= least and (largest is None or value <= largest)


def is_own(word: str) -> bool:
    """Whether a word for a network or a data set is `package.module:function`, a person's own."""
    return ":" in word


def check_choice(owner: str, field_name: str, value: object, words: object) -> None:
    """ValueError, naming those there are, for a value that is none of the literal type `words`."""
    known = get_args(words)
    if value not in known:
        raise ValueError(f"{owner}{field_name} must be one of {', '.join(known)}, got {value!r}")
