"""Errors that the user can mend."""

from __future__ import annotations


class StackError(Exception):
    """Error of a stack that cannot be brought up; the message is one sentence with the way out."""
