"""One store behind one URL: a local folder or anything fsspec reaches, such as `s3://bucket/prefix`.

Every write is whole or not at all: a temporary file and a rename in a local folder, a single put elsewhere. What has
been finished is never overwritten by `create`: who comes second learns so and uses what is there.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec

from infra.faults import is_transient

_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EDQUOT, errno.ENAMETOOLONG)


class StoreError(Exception):
    """The store cannot be used as it is; the message says why and what to do. Trying again does not help."""


class UnreachableError(StoreError, ConnectionError):
    """The store does not answer. It may soon, so a task is tried again."""


class DamagedError(StoreError):
    """A file in the store is not what was written there."""


class Store:
    """Reads and writes whole files under `url`. Cheap to make, safe to send to another process."""

    def __init__(self, url: str) -> None:
        if not url.strip() or "::" in url or re.match(r"[A-Za-z][A-Za-z0-9]+:/(?!/)", url):
            raise StoreError(f"{url!r} is no store: give a folder, or a URL such as s3://bucket/prefix")
        self.url = url.rstrip("/") or "/"

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.url,)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @cached_property
    def _filesystem(self) -> tuple[Any, str]:
        try:
            filesystem, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise StoreError(
                f"{self.url!r} is no store: give a folder, or a URL such as s3://bucket/prefix ({error})"
            ) from error
        return filesystem, str(root).rstrip("/")

    @property
    def is_local(self) -> bool:
        return "file" in self._filesystem[0].protocol

    def locate(self, key: str) -> str:
        """Where a person finds `key`: a path, or a URL."""
        filesystem, _ = self._filesystem
        return self._full(key) if self.is_local else str(filesystem.unstrip_protocol(self._full(key)))

    def check_writable(self) -> None:
        """Raises StoreError where nothing can be written, before any work is done for it."""
        key = f".writable-{uuid.uuid4().hex}"
        try:
            self.replace(key, b"")
            self.remove(key)
        except StoreError:
            raise
        except OSError as error:
            raise self._unwritable(error) from error

    def exists(self, key: str) -> bool:
        filesystem, _ = self._filesystem
        with self._reaching():
            return bool(filesystem.exists(self._full(key)))

    def size_bytes(self, key: str) -> int:
        filesystem, _ = self._filesystem
        with self._reaching():
            return int(filesystem.size(self._full(key)))

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of `key` from `start` to before `end`. FileNotFoundError where there is no such key."""
        filesystem, _ = self._filesystem
        with self._reaching():
            return bytes(filesystem.cat_file(self._full(key), start=start, end=end))

    def names(self, prefix: str) -> list[str]:
        """The names of the finished files directly in the folder `prefix`, sorted; none where it is not there."""
        filesystem, _ = self._filesystem
        filesystem.invalidate_cache()
        try:
            with self._reaching():
                entries = filesystem.ls(self._full(prefix), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = (Path(entry["name"]).name for entry in entries if entry["type"] == "file")
        return sorted(name for name in names if name and not name.startswith("."))

    def create(self, key: str, data: bytes) -> bool:
        """Writes `key` unless it is there; says whether it was this call that wrote it."""
        return self._write(key, data, overwrite=False)

    def replace(self, key: str, data: bytes) -> None:
        """Writes `key`, in place of what was there."""
        self._write(key, data, overwrite=True)

    def remove(self, key: str) -> None:
        """Removes `key`, if it is there."""
        filesystem, _ = self._filesystem
        with self._reaching(), suppress(FileNotFoundError):
            filesystem.rm_file(self._full(key))

    def _full(self, key: str) -> str:
        if key.startswith("/") or ".." in key.split("/"):
            raise StoreError(f"{key!r} would leave the store")
        return f"{self._filesystem[1]}/{key}"

    def _write(self, key: str, data: bytes, *, overwrite: bool) -> bool:
        filesystem, _ = self._filesystem
        full = self._full(key)
        try:
            if self.is_local:
                return write_file(Path(full), data, overwrite=overwrite)
            if not overwrite and self.exists(key):
                return False
            with self._reaching():
                filesystem.pipe_file(full, data)
            return True
        except StoreError:
            raise
        except OSError as error:
            if error.errno in _UNWRITABLE:
                raise self._unwritable(error) from error
            raise

    @contextmanager
    def _reaching(self) -> Generator[None]:
        """Says in a sentence what goes wrong on the way to a store that is not a folder."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise
        except Exception as error:
            if self.is_local:
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            if is_transient(error):
                raise UnreachableError(f"the store {self.url} does not answer ({reason})") from error
            if isinstance(error, OSError) or type(error).__module__.startswith("botocore"):
                raise StoreError(
                    f"the store {self.url} cannot be used ({reason}): check its name and your credentials, "
                    "or name another with --store or REPAIRLAB_STORE"
                ) from error
            raise

    def _unwritable(self, error: OSError) -> StoreError:
        return StoreError(
            f"the store {self.url} cannot be written ({error.strerror or error}): free or unlock it, "
            "or name another with --store or REPAIRLAB_STORE"
        )


def write_file(path: Path, data: bytes, *, overwrite: bool) -> bool:
    """Writes `path` unless it is there and not to be overwritten; says whether it was this call that wrote it.

    Through a hidden temporary file beside it, so that no reader sees half of it, whenever the process dies.
    """
    if not overwrite and path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            temporary.replace(path)
            return True
        try:
            os.link(temporary, path)  # A rename would overwrite what another process has finished in the meantime.
        except FileExistsError:
            return False
        except OSError:
            # No hard links here (some network and FAT file systems): a rename is whole too, only not exclusive.
            temporary.replace(path)
        return True
    finally:
        temporary.unlink(missing_ok=True)
