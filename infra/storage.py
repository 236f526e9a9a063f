"""Store behind one URL: a local folder or anything fsspec reaches, such as `s3://bucket/prefix`.

Every write is whole or not at all: a temporary file and a rename in a local folder, a single put elsewhere. `create`
never overwrites a finished file: the second writer learns so and uses what is there. Reads may fall back on another
store, an upstream, which is never written to.
"""

from __future__ import annotations

import errno
import mimetypes
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from infra.faults import is_transient
from infra.files import write_file
from infra.s3_answers import check_answers

_UNWRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
)

_WAYS_OUT = {
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the limit on open files (ulimit -n)",
}
"""Ways out other than more space or permissions."""

PATIENCE_SECONDS = 60.0
"""For how long a store that does not answer is asked again before a task fails: a server that starts anew is back."""

PROTOCOLS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")
"""Schemes of a store's URL: object storage, of which s3 is tested."""

_WAITS_SECONDS = (0.2, 0.5, 1.0, 2.0)

_VERSION = ("ETag", "etag", "LastModified", "last_modified", "ino", "mtime", "size")
"""Facts of a file that change when it is written again, as file systems name them."""

RUN_AGAIN = "run the study again to make it anew"
"""Remedy that makes a deleted file anew."""

T = TypeVar("T")


class StoreError(Exception):
    """Error of a store that cannot be used; the message says why and what to do. Trying again does not help."""


class UnreachableError(StoreError, ConnectionError):
    """Error of a store that does not answer. It may soon, so a task is tried again."""


class DamagedError(StoreError):
    """Error of a file in the store that is not what was written there."""


@dataclass(frozen=True)
class Entry:
    """File in a store: its key, its size and when it was written."""

    key: str
    n_bytes: int
    modified: datetime

    @property
    def is_temporary(self) -> bool:
        """Whether the file was left by a writer that was killed."""
        return Path(self.key).name.startswith(".")


class Store:
    """Whole files under `url`, read and written. Cheap to make, safe to send to another process.

    A file that is not there is read from `upstream`, if one is given. A store that is not a folder and does not answer
    is asked again for `patience_seconds`.
    """

    def __init__(self, url: str, upstream: str | None = None, patience_seconds: float = PATIENCE_SECONDS) -> None:
        _check_url(url)
        self.url = url.rstrip("/") or "/"
        self.patience_seconds = patience_seconds
        self.upstream = Store(upstream, patience_seconds=patience_seconds) if upstream else None

    def __reduce__(self) -> tuple[type[Store], tuple[str, str | None, float]]:
        return Store, (self.url, self.upstream.url if self.upstream else None, self.patience_seconds)

    def __repr__(self) -> str:
        return f"Store({self.url!r})" if self.upstream is None else f"Store({self.url!r}, {self.upstream.url!r})"

    @cached_property
    def own(self) -> Store:
        """Store without the upstream."""
        return self if self.upstream is None else Store(self.url, patience_seconds=self.patience_seconds)

    @cached_property
    def _filesystem(self) -> tuple[Any, str]:
        try:
            # Others write while we read: what was listed a moment ago says nothing about what is there.
            filesystem, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except Exception as error:  # Whatever a file system's own package says, or that it is not installed.
            raise StoreError(
                f"{self.url!r} is no store: give a folder, or a URL such as s3://bucket/prefix ({error})"
            ) from error
        if "s3" in filesystem.protocol:
            try:
                check_answers(filesystem)
            except Exception as error:  # Whatever is wrong with a profile or an address.
                raise self._unusable(error) from error
        return filesystem, str(root).rstrip("/")

    @cached_property
    def _theirs(self) -> Store | None:
        """Upstream after a check that it can be read: one that cannot is not taken for an empty one."""
        if self.upstream is not None:
            self.upstream.check_readable()
        return self.upstream

    @property
    def is_local(self) -> bool:
        return "file" in self._filesystem[0].protocol

    def locate(self, key: str) -> str:
        """Return the path or URL at which a user finds `key`."""
        if self._theirs is not None and not self.own.exists(key) and self._theirs.exists(key):
            return self._theirs.locate(key)
        filesystem, _ = self._filesystem
        return self._full(key) if self.is_local else str(filesystem.unstrip_protocol(self._full(key)))

    def damaged(self, key: str, reason: str, remedy: str = RUN_AGAIN) -> DamagedError:
        """Return the error for a file that cannot be used, with the way out: delete it and do what `remedy` says."""
        place = self.locate(key)
        if self.upstream is not None and not self.own.exists(key):
            return DamagedError(f"{place}, upstream, is damaged ({reason}): leave out --upstream to make your own")
        return DamagedError(f"{place} is damaged ({reason}): delete it and {remedy}")

    def versions(self, prefix: str) -> dict[str, str]:
        """Return, by name, a version of every file directly in the folder `prefix` of this store, without its upstream.

        A version changes whenever the file is written again. One request, for any number of files.
        """
        filesystem, full = self._filesystem[0], self._full(prefix)
        try:
            entries = self._reach(lambda: filesystem.ls(full, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        files = {Path(entry["name"]).name: entry for entry in entries if entry["type"] == "file"}
        return {name: " ".join(str(entry.get(part)) for part in _VERSION) for name, entry in files.items()}

    def check_readable(self) -> None:
        """Raise StoreError if there is nothing to read, not even an empty folder."""
        filesystem, root = self._filesystem
        try:
            self._reach(lambda: next(Path(root or "/").iterdir(), None) if self.is_local else filesystem.ls(root))
        except (FileNotFoundError, NotADirectoryError) as error:
            what = "no folder" if self.is_local else "no bucket, or nothing in it,"
            raise StoreError(f"there is {what} to read at {self.url}: check its name, or leave it out") from error

    def check_writable(self) -> None:
        """Raise StoreError if nothing can be written."""
        key = f".writable-{uuid.uuid4().hex}"
        try:
            self.replace(key, b"")
            self.remove(key)
        except StoreError:
            raise
        except OSError as error:
            raise self._unwritable(error) from error

    def exists(self, key: str) -> bool:
        filesystem, full = self._filesystem[0], self._full(key)
        # fsspec takes a folder that may not be read for one that is not there.
        if self._reach(lambda: _is_there(full) if self.is_local else filesystem.exists(full)):
            return True
        return self._theirs is not None and self._theirs.exists(key)

    def size_bytes(self, key: str) -> int:
        filesystem, full = self._filesystem[0], self._full(key)
        try:
            return int(self._reach(lambda: filesystem.size(full)))
        except (FileNotFoundError, NotADirectoryError) as error:
            if self._theirs is None:
                raise FileNotFoundError(*error.args) from error
            return self._theirs.size_bytes(key)

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes of `key` from `start` up to `end`. Raises FileNotFoundError if there is no such key."""
        filesystem, full = self._filesystem[0], self._full(key)
        try:
            return bytes(self._reach(lambda: filesystem.cat_file(full, start=start, end=end)))
        except (FileNotFoundError, NotADirectoryError) as error:
            if self._theirs is None:
                raise FileNotFoundError(*error.args) from error
            return self._theirs.read(key, start, end)

    def names(self, prefix: str) -> list[str]:
        """Return the sorted names of the finished files directly in the folder `prefix`, if it exists."""
        return self._list(prefix, "file")

    def folders(self, prefix: str) -> list[str]:
        """Return the sorted names of the folders directly in the folder `prefix`."""
        return self._list(prefix, "directory")

    def _list(self, prefix: str, kind: str) -> list[str]:
        filesystem, full = self._filesystem[0], self._full(prefix)
        upstream = set(self._theirs._list(prefix, kind)) if self._theirs is not None else set[str]()
        try:
            entries = self._reach(lambda: filesystem.ls(full, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return sorted(upstream)
        names = {Path(entry["name"]).name for entry in entries if entry["type"] == kind}
        return sorted(upstream | {name for name in names if name and not name.startswith(".")})

    def entries(self) -> list[Entry]:
        """Return every file of this store itself, sorted by key, with those that killed writers have left."""
        filesystem, root = self._filesystem
        try:
            found = self._reach(lambda: filesystem.find(root, detail=True))
        except FileNotFoundError:
            return []
        return sorted(
            (
                Entry(name.removeprefix(f"{root}/"), int(info["size"]), _modified(info))
                for name, info in found.items()
                if info["type"] == "file"
            ),
            key=lambda entry: entry.key,
        )

    def create(self, key: str, data: bytes) -> bool:
        """Write `key` unless it is in the store or its upstream, and return whether this call wrote it."""
        if self._theirs is not None and self._theirs.exists(key):
            return False
        return self._write(key, data, overwrite=False)

    def replace(self, key: str, data: bytes) -> None:
        """Write `key`, in place of what was there."""
        self._write(key, data, overwrite=True)

    def remove(self, key: str) -> None:
        """Remove `key` if it is there; never from the upstream."""
        filesystem, full = self._filesystem[0], self._full(key)
        with suppress(FileNotFoundError):
            self._reach(lambda: filesystem.rm_file(full))

    def _full(self, key: str) -> str:
        if key.startswith("/") or ".." in key.split("/") or "\\" in key or "\0" in key:
            raise StoreError(f"{key!r} would leave the store")
        return f"{self._filesystem[1]}/{key}"

    def _write(self, key: str, data: bytes, *, overwrite: bool) -> bool:
        full = self._full(key)
        try:
            if self.is_local:
                return write_file(Path(full), data, overwrite=overwrite)
            if not overwrite and self.own.exists(key):
                return False
            return self._put(full, data, overwrite=overwrite)
        except StoreError:
            raise
        except OSError as error:
            # Nothing is missing for a put but the bucket, nor for a file but a folder that was there a moment ago.
            if error.errno in _UNWRITABLE or isinstance(error, FileNotFoundError):
                raise self._unwritable(error) from error
            raise

    def _put(self, full: str, data: bytes, *, overwrite: bool) -> bool:
        """Put `data`, on condition that nobody was first if the server knows conditions."""
        filesystem, _ = self._filesystem
        kind = self._kind_of(full)
        if not overwrite:
            try:
                self._reach(lambda: filesystem.pipe_file(full, data, mode="create", **kind))
            except FileExistsError:
                return False
            except NotImplementedError:
                overwrite = True  # Such a server keeps the last of those who write in the same moment.
        if overwrite:
            self._reach(lambda: filesystem.pipe_file(full, data, **kind))
        return True

    def _kind_of(self, full: str) -> dict[str, str]:
        """Return the content type that S3 tells a browser, which otherwise saves a page instead of showing it."""
        kind, _ = mimetypes.guess_type(full)
        return {"ContentType": kind} if kind and "s3" in self._filesystem[0].protocol else {}

    def _reach(self, call: Callable[[], T]) -> T:
        """Return what `call` returns, trying again for `patience_seconds` while an object store does not answer.

        What then still fails raises StoreError with one sentence.
        """
        begun = time.monotonic()
        for wait in chain(_WAITS_SECONDS, repeat(_WAITS_SECONDS[-1])):
            try:
                return call()
            except (FileNotFoundError, NotADirectoryError, FileExistsError, NotImplementedError):
                raise
            except Exception as error:
                if self.is_local:
                    if isinstance(error, OSError) and not is_transient(error):
                        raise self._refused("used", error) from error
                    raise
                if _was_taken(error):
                    raise FileExistsError(str(error)) from error
                if is_transient(error):
                    if time.monotonic() + wait - begun < self.patience_seconds:
                        time.sleep(wait)
                        continue
                    raise UnreachableError(f"the store {self.url} does not answer ({_reason(error)})") from error
                if isinstance(error, OSError) and error.errno == errno.ENOSYS:
                    raise NotImplementedError from error
                if isinstance(error, OSError) or type(error).__module__.startswith("botocore"):
                    raise self._unusable(error) from error
                raise
        raise AssertionError  # The waits never end.

    def _unusable(self, error: Exception) -> StoreError:
        return StoreError(
            f"the store {self.url} cannot be used ({_reason(error)}): check its name and your credentials, "
            "or name another with --store or REPAIRLAB_STORE"
        )

    def _unwritable(self, error: OSError) -> StoreError:
        return self._refused("written", error)

    def _refused(self, what: str, error: OSError) -> StoreError:
        way_out = _WAYS_OUT.get(error.errno or 0, "free or unlock it")
        return StoreError(
            f"the store {self.url} cannot be {what} ({error.strerror or error}): {way_out}, "
            "or name another with --store or REPAIRLAB_STORE"
        )


def _check_url(url: str) -> None:
    """Raise StoreError for a URL that is no store, or may be a slip; parts that may hold a secret are not repeated."""
    scheme, _, place = url.partition("://") if "://" in url else ("", "", "")
    if "@" in place or "?" in place or "#" in place:
        raise StoreError(
            "a store's URL holds no password, key or other words after its path, for it is written into logs and "
            "tables: give s3://bucket/prefix, and credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a "
            "profile as AWS_PROFILE"
        )
    is_slip = not url.strip() or not url.strip("/") or "::" in url or re.match(r"[A-Za-z][A-Za-z0-9]+:/(?!/)", url)
    # Elsewhere a store would be gone with the process, or be a request to any server that is named.
    is_elsewhere = "://" in url and (scheme not in PROTOCOLS or not place.strip("/") or "//" in place)
    if is_slip or is_elsewhere:
        raise StoreError(f"{url!r} is no store: give a folder, or a URL such as s3://bucket/prefix")


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _is_there(path: str) -> bool:
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _was_taken(error: Exception) -> bool:
    """Return whether S3 refused a put because the key was there, which s3fs raises as an invalid argument."""
    response: Any = getattr(error.__cause__, "response", None)
    return isinstance(response, dict) and response["Error"].get("Code") in ("PreconditionFailed", "412")


def _modified(info: dict[str, Any]) -> datetime:
    """Return when a file was written, or now if the file system does not tell."""
    told = info.get("LastModified", info.get("mtime"))
    if isinstance(told, datetime):
        return told if told.tzinfo else told.replace(tzinfo=UTC)
    return datetime.now(UTC) if told is None else datetime.fromtimestamp(float(told), UTC)
