"""Faults that pass by themselves, so that another try is worth making."""

from __future__ import annotations

import errno
from typing import Any

RETRY_DELAYS_SECONDS = [1.0, 5.0, 20.0]

SERVER_FAULTS = "500,504"
"""With what a Prefect server answers whose database is away, beside 502 and 503, for its clients to ask again: they do
so for a minute."""

_TRANSIENT = (
    *(errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.EIO, errno.ENETUNREACH, errno.EHOSTUNREACH),
    getattr(errno, "EREMOTEIO", errno.EIO),  # s3fs' word for a server's internal error; macOS has none.
)

_BROKEN_ANSWERS = ("Connect", "Timeout", "HTTPClient", "Disconnected", "Payload", "IncompleteRead", "ResponseParser")
"""Words in the names of what botocore and aiohttp raise for a connection that broke, or an answer that was cut off:
neither shares a base class with Python's own."""


_PASSING_STATUS = (408, 409, 429)
_NOT_IMPLEMENTED = 501


def _http_status(error: BaseException) -> int | None:
    """Return the status of a refused request; s3fs raises the same error for every code that it does not know."""
    response: Any = getattr(error.__cause__, "response", None)
    if not isinstance(response, dict):
        return None
    told: Any = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return told if isinstance(told, int) else None


def is_transient(error: BaseException) -> bool:
    """Return True for a connection that broke or timed out, and False for a fault that another try would meet again."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if (status := _http_status(error)) is not None:
        return (status >= 500 and status != _NOT_IMPLEMENTED) or status in _PASSING_STATUS
    if isinstance(error, OSError):
        return error.errno in _TRANSIENT
    return type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp")) and any(
        word in type(error).__name__ for word in _BROKEN_ANSWERS
    )
