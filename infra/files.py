"""Files in a local folder, written whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_file(path: Path, data: bytes, *, overwrite: bool) -> bool:
    """Write `path` unless it is there and may not be overwritten, and return whether this call wrote it.

    A hidden temporary file beside it takes the content first, so that no reader sees half of it after a crash.
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
