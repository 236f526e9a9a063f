"""What a person can mend."""

from __future__ import annotations


class StackError(Exception):
    """The stack cannot be brought up as it is; the message is one sentence with the way out."""
