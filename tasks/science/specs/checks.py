"""What fields of specs may hold, said in one sentence where they hold something else."""

from __future__ import annotations

import reprlib
from typing import Any, get_args

from tasks.science.specs.bounds import MAX_NUMBER, BoundError

_LONGEST = 80
"""Characters of a value that a message repeats."""


class _Brief(reprlib.Repr):
    """Reads a little of a value, however large or deep it is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _LONGEST

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write longer numbers out in decimal digits.
        return super().repr_int(x, level) if abs(x) < 10**1000 else f"a number of {x.bit_length()} bits"


def shown(value: object) -> str:
    """`value` as a message repeats it: on one line, cut to a few words, with all that is not printable escaped."""
    return _Brief().repr(value)


def check_positive(owner: str, at_most: int = MAX_NUMBER, **values: int) -> None:
    """ValueError, beginning with `owner`, for a value that is no whole number of at least 1; BoundError for one beyond
    `at_most`."""
    for name, value in values.items():
        if not is_whole(value, 1):
            raise ValueError(f"{owner}{name} must be a positive whole number, got {shown(value)}")
        if value > at_most:
            raise BoundError(f"{owner}{name} must be at most {at_most}, got {shown(value)}")


def check_count(what: str, n: int, at_most: int) -> None:
    """BoundError where a study has more than `at_most` of `what`."""
    if n > at_most:
        raise BoundError(f"a study has at most {at_most:,} {what}, got {shown(n)}")


def check_words(owner: str, **values: object) -> None:
    """ValueError, beginning with `owner`, for a value that is no text."""
    for name, value in values.items():
        if not isinstance(value, str):
            raise ValueError(f"{owner}{name} must be text, got {shown(value)}")


def check_switches(owner: str, **values: object) -> None:
    """ValueError, beginning with `owner`, for a value that is neither True nor False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{owner}{name} must be True or False, got {shown(value)}")


def is_whole(value: Any, least: int, largest: int | None = None) -> bool:
    """Whether `value` is a whole number from `least` to `largest`; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return value >= least and (largest is None or value <= largest)


def check_choice(owner: str, field_name: str, value: object, words: object) -> None:
    """ValueError, naming those there are, for a value that is none of the literal type `words`."""
    known = get_args(words)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{owner}{field_name} must be one of {', '.join(known)}, got {shown(value)}")
