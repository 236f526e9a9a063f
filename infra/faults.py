"""Which faults pass by themselves, and are worth another try."""

from __future__ import annotations

import errno

RETRY_DELAYS_SECONDS = [1.0, 5.0, 20.0]

_TRANSIENT = (errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.EIO, errno.ENETUNREACH, errno.EHOSTUNREACH)


def is_transient(error: BaseException) -> bool:
    """True for a connection that broke or timed out; False for anything that another try would meet again."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError):
        return error.errno in _TRANSIENT
    # Botocore's connection errors share no base class with Python's.
    return type(error).__module__.startswith("botocore") and any(
        word in type(error).__name__ for word in ("Connect", "Timeout", "HTTPClient")
    )
