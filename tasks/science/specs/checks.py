"""Checks of the values in specs: each error says in one sentence what a field must hold."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from tasks.science.specs.bounds import MAX_NUMBER, BoundError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_LONGEST = 80
"""Characters of a value that a message repeats."""


class _Brief(reprlib.Repr):
    """A representation that reads a little of a value, however large or deep the value is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _LONGEST

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write longer numbers out in decimal digits.
        return super().repr_int(x, level) if abs(x) < 10**1000 else f"a number of {x.bit_length()} bits"


def shown(value: object) -> str:
    """Return `value` as messages repeat it: on one line, shortened, with unprintable characters escaped."""
    return _Brief().repr(value)


def check_positive(owner: str, at_most: int = MAX_NUMBER, **values: int) -> None:
    """Raise ValueError for a value that is not a whole number of at least 1, and BoundError for one above `at_most`.

    The message begins with `owner`, as all messages of these checks do.
    """
    check_whole(owner, 1, at_most, **values)


def check_whole(owner: str, least: int, at_most: int, **values: int) -> None:
    """Raise ValueError for a value that is not a whole number of at least 0 or 1, and BoundError above `at_most`."""
    for name, value in values.items():
        if not is_whole(value, least):
            kind = "a positive whole number" if least else "a whole number of at least 0"
            raise ValueError(f"{owner}{name} must be {kind}, got {shown(value)}")
        if value > at_most:
            raise BoundError(f"{owner}{name} must be at most {at_most}, got {shown(value)}")


def check_count(what: str, n: int, at_most: int) -> None:
    """Raise BoundError if a study has more than `at_most` of `what`."""
    if n > at_most:
        raise BoundError(f"a study has at most {at_most:,} {what}, got {shown(n)}")


def check_words(owner: str, **values: object) -> None:
    """Raise ValueError for a value that is not text."""
    for name, value in values.items():
        if not isinstance(value, str):
            raise ValueError(f"{owner}{name} must be text, got {shown(value)}")


def is_whole(value: Any, least: int, largest: int | None = None) -> bool:
    """Return whether `value` is a whole number from `least` to `largest`, and no boolean."""
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return value >= least and (largest is None or value <= largest)


def is_own(word: str) -> bool:
    """Whether a word for a network or a data set is `package.module:function`, a person's own."""
    return ":" in word


def check_choice(owner: str, field_name: str, value: object, words: object) -> None:
    """Raise ValueError, naming the choices, for a value that is none of the literal type `words`."""
    known = get_args(words)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{owner}{field_name} must be one of {', '.join(known)}, got {shown(value)}")


def check_types(owner: str, spec: DataclassInstance) -> None:
    """Raise ValueError for a field of `spec` that is not the text, boolean or word that its type says.

    Fields of other types are left to the spec.
    """
    for name, kind in _types_of(type(spec)).items():
        value = getattr(spec, name)
        if kind is str:
            check_words(owner, **{name: value})
        elif kind is bool and not isinstance(value, bool):
            raise ValueError(f"{owner}{name} must be True or False, got {shown(value)}")
        elif get_origin(kind) is Literal:
            check_choice(owner, name, value, kind)


def read_finite(owner: str, name: str, given: Any) -> float:
    """Return `given` as a float. Raises ValueError unless it is finite and at least 0."""
    try:
        value = float(given)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{owner}{name} must be a finite number of at least 0, got {shown(given)}")
    return value


def names_of_type(spec: type[DataclassInstance], kind: type) -> list[str]:
    """Return the names of the fields that are declared with the type `kind`."""
    return [name for name, declared in _types_of(spec).items() if declared is kind]


@cache
def _types_of(spec: type[DataclassInstance]) -> dict[str, Any]:
    hints = get_type_hints(spec)
    return {f.name: hints[f.name] for f in dataclasses.fields(spec)}
