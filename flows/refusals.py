"""Errors that a command reports in a sentence: exit code 2 for words that cannot be, else 1."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from flows.terminal import say
from infra.storage import StoreError
from infra.text import one_line


class WrongWordsError(Exception):
    """Words of the command line that cannot be; the message says which can."""


@contextmanager
def checking_words() -> Generator[None]:
    """Raise a ValueError of the block as WrongWordsError: it comes from the user's words, not from the program."""
    try:
        yield
    except ValueError as error:
        raise WrongWordsError(str(error)) from error


def guarded(command: Callable[[], Any]) -> int:
    """Run a command, print the errors that users can mend as one sentence each, and return the exit code."""
    try:
        command()
    except WrongWordsError as error:
        code, sentences = 2, [str(error)]
    except Exception as error:
        if not _is_for_a_person(error):
            raise
        code, sentences = 1, getattr(error, "problems", [str(error)])
    else:
        return 0
    say("repairlab: " + "\n".join(map(one_line, sentences)), err=True)
    return code


def _is_for_a_person(error: Exception) -> bool:
    """Return whether an error's message is a sentence that says what to do, to be printed without a traceback."""
    from infra.weights import WeightsError
    from tasks.science.networks.fitting import MergeError
    from tasks.science.specs.user_code import UserCodeError
    from tasks.science.symmetry.tracing import TraceError

    if isinstance(error, WeightsError | UserCodeError | MergeError | TraceError):
        return True  # Without importing Prefect, which merging does not need.
    from flows.study import UnfinishedError
    from infra.runners import ServerError
    from tasks.data.published import DataError

    return isinstance(error, StoreError | DataError | ServerError | UnfinishedError)
