"""Parameters of the commands, generated from the models that declare their options."""

from __future__ import annotations

import functools
import inspect
import os
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic_settings import BaseSettings

from flows.declaration import OptionInfo
from flows.refusals import checking_words
from infra.settings import DEVICES, RUNNERS, Settings, load_settings

Command = Callable[..., None]


def takes(
    parameter: str, model: type[BaseModel], *names: str, make: Callable[..., Any] | None = None
) -> Callable[[Command], Command]:
    """Return a decorator that gives a command the fields of `model` as options, all of them or those in `names`.

    The command's function receives `make(**given)` as `parameter`, by default an instance of the model; WrongWordsError
    is raised where that raises ValueError.
    """
    fields = names or tuple(model.model_fields)

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def called(**words: Any) -> None:
            given = {name: words.pop(name) for name in fields if name in words}
            with checking_words():
                made = (make or model)(**_read(model, given))
            command(**words, **{parameter: made})

        signature = inspect.signature(command, eval_str=True)
        others = [each for each in signature.parameters.values() if each.name != parameter]
        parameters = [*(_parameter(model, name) for name in fields), *others]
        called.__signature__ = signature.replace(  # pyright: ignore[reportAttributeAccessIssue]
            parameters=[each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
        )
        return called

    return decorate


def takes_settings(*names: str) -> Callable[[Command], Command]:
    """Return a decorator that gives a command these fields of `Settings` as options, and its function `settings`."""
    return takes("settings", Settings, *names, make=_settings)


def _settings(**given: str) -> Settings:
    """Return the settings with these values, which hold for all processes that are started."""
    for name, words in (("runner", RUNNERS), ("device", DEVICES)):
        if given.get(name, words[0]) not in words:
            raise ValueError(f"--{name} takes {', '.join(words[:-1])} or {words[-1]}, got {given[name]}")
    for name, value in given.items():
        os.environ[f"REPAIRLAB_{name.upper()}"] = value
    return load_settings()


def _read(model: type[BaseModel], words: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the options that were given, lists of words turned into what their fields hold."""
    values: dict[str, Any] = {}
    for name, value in words.items():
        read = OptionInfo.of(model.model_fields[name]).read
        if value not in (None, []):
            values[name] = read(_dashed(model, name), value) if read is not None else value
    return values


def _parameter(model: type[BaseModel], name: str) -> inspect.Parameter:
    field = model.model_fields[name]
    option = OptionInfo.of(field)
    is_setting = issubclass(model, BaseSettings)
    kind = list[str] if option.read is not None else _plain(field.annotation)
    default = inspect.Parameter.empty if field.is_required() else None
    if not (field.is_required() or is_setting or option.read is not None):
        default = field.default
    flag = f"--{_dashed(model, name)}"
    if kind is bool and default is None:
        flag = f"{flag}/--no-{flag[2:]}"
    told = field.description or ""
    if is_setting:
        default_place = f", {field.default}" if isinstance(field.default, str) else ""
        told = f"{told} [REPAIRLAB_{name.upper()}{default_place}]"
    elif option.read is not None and not option.is_argument:
        told = f"{told}; repeatable"
    info = typer.Argument(help=told) if option.is_argument else typer.Option(flag, help=told, metavar=option.metavar)
    annotation = Annotated[kind if field.is_required() else kind | None, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _dashed(model: type[BaseModel], name: str) -> str:
    return OptionInfo.of(model.model_fields[name]).flag or name.replace("_", "-")


def _plain(annotation: Any) -> Any:
    """Return the type of a single value on a command line: `int` of `int | None`, and `str` of a literal."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    return str if get_origin(annotation) is Literal else annotation
