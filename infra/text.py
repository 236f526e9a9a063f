"""Printable form of foreign text: names from files, archives, stores and modules.

A name may hold what a terminal takes for a command (ESC and the control codes), characters that turn the direction of a
line around, or a line break that lets it pose as a message.
"""

from __future__ import annotations

MOST_CHARACTERS = 2_000
"""Characters of a line that are shown."""


def one_line(text: object) -> str:
    """Return `text` on one line, with every character that is not printable escaped as Python writes it."""
    return _cut("".join(_printable(character) for character in _start(text)))


def printable(text: object) -> str:
    """Return `text` with each line as in `one_line`; indentation by spaces stays."""
    return "\n".join(one_line(line) for line in str(text).split("\n"))


def _start(text: object) -> str:
    return str(text)[: MOST_CHARACTERS + 1]


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def _cut(line: str) -> str:
    return line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]}..."
