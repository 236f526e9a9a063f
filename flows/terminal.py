"""Terminal output in which foreign names can neither control the terminal nor act as markup."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment

from infra.text import one_line, printable


class _Printable:
    """A renderable whose text is printable; the control codes of rich stay."""

    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


class _Printing(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Printable(renderable) for renderable in renderables]


def make_console(**options: Any) -> Console:
    """Return a console that reads no markup and escapes every character that is not printable."""
    console = Console(markup=False, emoji=False, **options)
    console.push_render_hook(_Printing())
    return console


def say(text: str, *, err: bool = False) -> None:
    """Print lines with every character that is not printable escaped."""
    typer.echo(printable(text), err=err)


def tell(console: Console, sentence: str, *, soft_wrap: bool = False) -> None:
    """Print a sentence with foreign names on one line."""
    console.print(one_line(sentence), highlight=False, markup=False, soft_wrap=soft_wrap)
