"""Trust in code that a study's file or a store names: it runs only where the command names it too, or trusts all."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable
from pathlib import Path

from flows.presets.preset import Preset
from tasks.science.specs.cell import Cell
from tasks.science.specs.user_code import names_code, split_place
from tasks.user_code import search_current_folder


def admit_code(preset: Preset, named: Collection[str], *, trusted: bool) -> None:
    """Let the code that a study names be imported from the current folder, where it is `trusted` or `named`.

    Nothing is imported yet. ValueError, with both ways out, where any grid, size or imported cell names another place.
    """
    grids = [*preset.grids, *(grid for size in preset.sizes.values() for grid in size.grids)]
    cells = [endpoint.cell for endpoint in preset.imported]
    words = {
        "--network": [*(network for grid in grids for network, _ in grid.networks), *(c.architecture for c in cells)],
        "--data": [*(name for grid in grids for name in grid.datasets), *(cell.data.name for cell in cells)],
    }
    if not trusted:
        unnamed = {option: _unnamed(of_option, named, option) for option, of_option in words.items()}
        options = [f"{option} {','.join(places)}" for option, places in unnamed.items() if places]
        if options:
            raise ValueError(
                f"{preset.name} names code, which runs only where you name it too: give {' '.join(options)}, or "
                "--trust-code to run all code that it names"
            )
    if any(names_code(word) for of_option in words.values() for word in of_option):
        search_current_folder()


def check_cell_code(owner: str, cell: Cell) -> None:
    """Raise ValueError where a `cell` of a store has user-defined code. Imports nothing."""
    places = [*_unnamed([cell.architecture], (), "--network"), *_unnamed([cell.data.name], (), "--data")]
    if places:
        raise ValueError(
            f"{owner} names code, {' and '.join(places)}, which runs only where you trust it: trust_code=True runs it"
        )


def check_folder(folder: Path) -> None:
    """Raise ValueError where Prefect reads settings from a file in `folder`, the current one.

    They may name code, by a configuration of its log or by its server, and a study's file may come with such a file.
    """
    if (name := _settings_file(folder)) is not None:
        raise ValueError(
            f"{name} in this folder configures Prefect, which may run code: give the command in another folder, or "
            "--trust-code where you trust it"
        )


def _settings_file(folder: Path) -> str | None:
    if (folder / "prefect.toml").exists():
        return "prefect.toml"
    if "prefect" in _text(folder / ".env").lower():
        return ".env"
    try:
        tools = tomllib.loads(_text(folder / "pyproject.toml")).get("tool", {})
    except tomllib.TOMLDecodeError:
        return None  # Prefect does not read it either.
    return "pyproject.toml" if "prefect" in tools else None


def _text(path: Path) -> str:
    """Return the text of a file; empty for a file that is missing or cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _unnamed(words: Iterable[str], named: Collection[str], option: str) -> list[str]:
    """Return the places of code among `words` that are not `named`, each once. ValueError for a malformed place."""
    places = [word for word in dict.fromkeys(words) if names_code(word) and word not in named]
    for place in places:
        split_place(place, option)
    return places
