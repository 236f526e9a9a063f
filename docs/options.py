"""Writes the tables of docs/options.md that list a study's options, from flows/declaration.py and flows/options.py.

python docs/options.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flows.declaration import OptionInfo, RunOptions
from flows.deployed import StudyForm
from flows.options import OwnStudy

PAGE = Path(__file__).with_suffix(".md")


def page() -> str:
    """The text of docs/options.md."""
    options = [name for name, field in RunOptions.model_fields.items() if not OptionInfo.of(field).is_argument]
    own = [name for name in OwnStudy.model_fields if name not in RunOptions.model_fields or name == "recipe"]
    return _replaced(_replaced(PAGE.read_text(), "options", map(_option, options)), "fields", map(_field, own))


def _replaced(text: str, name: str, rows: Iterable[str]) -> str:
    pattern = rf"(<!-- {name}: docs/options.py -->\n(?:\|.*\n){{2}})(?:\|.*\n)*"
    return re.sub(pattern, lambda found: found[1] + "".join(rows), text)


def _option(name: str) -> str:
    field = RunOptions.model_fields[name]
    option = OptionInfo.of(field)
    flag = f"--{name.replace('_', '-')}"
    words = f"`{flag}`, `--no-{flag[2:]}`" if field.annotation == bool | None else f"`{flag}`"
    told = f"{field.description}. {option.page}" if option.page else str(field.description)
    places = [place for place, model in (("file", OwnStudy), ("form", StudyForm)) if name in model.model_fields]
    return f"| {words} | {told} | {_value(option.default)} | {', '.join(places)} |\n"


def _value(default: Any) -> str:
    if isinstance(default, list):
        return ", ".join(f"`{word}`" for word in default)
    return "" if default is None else {True: "yes", False: "no"}[default] if isinstance(default, bool) else f"{default}"


def _field(name: str) -> str:
    field = OwnStudy.model_fields[name]
    return f"| `{name}` | {field.description} | {'required' if field.is_required() else 'optional'} |\n"


if __name__ == "__main__":
    PAGE.write_text(page())
