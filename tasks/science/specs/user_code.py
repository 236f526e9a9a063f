"""User-defined code by its place, `package.module:function`: networks, and loaders of data.

A place is imported only where the person who gives a command names or trusts it, never because a file or a store names
it: importing a module runs it. Modules are found on Python's path, which nothing here changes.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

_OUR_PACKAGES = ("flows", "tasks", "infra")


class UserCodeError(Exception):
    """A user-defined function that does not do what is asked of it; the message names it and says what is wrong."""


def names_code(word: str) -> bool:
    """Return whether a word for a network or a data set is a place of code, not the name of one that ships."""
    return ":" in word


def split_place(place: str, option: str) -> tuple[str, str]:
    """Return the module and the function of a place. ValueError for a word of another form; `option` asked for it."""
    module_name, colon, name = place.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise ValueError(f"{option} takes package.module:function, got {place!r}")
    return module_name, name


def find_function(place: str, option: str) -> Callable[..., Any]:
    """Return the function at `place`; `option` asked for it.

    Raises ValueError where there is no such place, UserCodeError where importing it raises.
    """
    module_name, name = split_place(place, option)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise UserCodeError(f"{option} {place}: importing it raised {error_line(error)}") from error
        package = error.name.partition(".")[0]
        ours = f"; {package} is a package of repairlab itself" if package in _OUR_PACKAGES else ""
        raise ValueError(
            f"{option} {place}: there is no module {error.name} in this folder or among what is installed{ours}"
        ) from error
    except (Exception, SystemExit) as error:  # A user's module may raise anything; a script without a guard may exit.
        raise UserCodeError(f"{option} {place}: importing it raised {error_line(error)}") from error
    function: Any = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{option} {place}: module {module_name} has no function {name}")
    return function


def call_function(function: Callable[..., Any], place: str, **arguments: Any) -> Any:
    """Return what `function` returns for `arguments`. UserCodeError where it raises; `place` is where it is from."""
    try:
        return function(**arguments)
    except (Exception, SystemExit) as error:  # A user's function may raise anything.
        raise UserCodeError(f"{place} raised {error_line(error)}") from error


def named_parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the parameters that `function` takes by name, with their defaults; `inspect.Parameter.empty` for none."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # Some functions that are not written in Python have no signature.
        return {}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: each.default for name, each in signature.parameters.items() if each.kind in by_name}


def error_line(error: BaseException) -> str:
    """Return the kind of an error that user-defined code raised, and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
