"""Digests inside stored files, so that no file is taken for what it is not.

A file is sealed with the SHA-256 of its key and its content. The digest stands in the file itself, in place of a `SLOT`
in its metadata, and counts as zeros when it is computed. Because the key takes part, a file that was put in the place
of another is refused as well.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

from infra.storage import RUN_AGAIN, Store

_MARK = b"repairlab-sha256:"
_BLANK = b"0" * 64

SLOT = (_MARK + _BLANK).decode()
"""The text that a writer puts where the digest is to stand."""

NO_DIGEST = "it is cut short, or of a version without digests, which `repairlab check --seal` adds"
"""Why a file without a digest is refused."""

_PNG_END = 12
"""Bytes of the chunk that ends a PNG file."""


def seal(data: bytes, key: str) -> bytes:
    """Return `data` with the digest of `key` and `data` in place of the last `SLOT` in it."""
    start = data.rindex(SLOT.encode()) + len(_MARK)
    return b"".join((data[:start], _digest(data, start, key), data[start + len(_BLANK) :]))


def find_damage(data: bytes, key: str) -> str | None:
    """Return why `data` is not what was sealed under `key`, or None if it is."""
    found = data.rfind(_MARK)
    start = found + len(_MARK)
    if found < 0 or start + len(_BLANK) > len(data):
        return NO_DIGEST
    if _digest(data, start, key) != data[start : start + len(_BLANK)]:
        return "its content is not what was written under its name"
    return None


def _digest(data: bytes, start: int, key: str) -> bytes:
    """Return the digest of `key` and `data`, with zeros for the digest at `start`."""
    view = memoryview(data)
    digest = hashlib.sha256(key.encode() + b"\0")
    for part in (view[:start], _BLANK, view[start + len(_BLANK) :]):
        digest.update(part)
    return digest.hexdigest().encode()


def read_sealed(store: Store, key: str, remedy: str = RUN_AGAIN) -> bytes:
    """Return the content of a sealed file. Raises DamagedError if it is not what was written there."""
    data = store.read(key)
    if (reason := find_damage(data, key)) is not None:
        raise store.damaged(key, reason, remedy)
    return data


def pack_document(key: str, fields: Mapping[str, Any]) -> bytes:
    """Return `fields` as a sealed JSON file for `key`."""
    return seal(json.dumps({**fields, "digest": SLOT}, indent=1, sort_keys=True).encode(), key)


def read_document(store: Store, key: str, remedy: str = RUN_AGAIN) -> dict[str, Any]:
    """Return the fields of a sealed JSON file. Raises DamagedError if it is none."""
    data = read_sealed(store, key, remedy)
    try:
        fields = json.loads(data)
        del fields["digest"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise store.damaged(key, "it is no JSON document of repairlab", remedy) from error
    return fields


def seal_page(page: str, key: str) -> bytes:
    """Return an HTML page, sealed in a comment at its end."""
    return seal(f"{page.rstrip()}\n<!-- {SLOT} -->\n".encode(), key)


def seal_png(picture: bytes, key: str) -> bytes:
    """Return a PNG file with the digest in a text chunk before its last one."""
    return picture[:-_PNG_END] + _png_chunk(picture, key) + picture[-_PNG_END:]


def read_png(store: Store, key: str) -> bytes:
    """Return a PNG file that `seal_png` sealed. Raises DamagedError if it is not what was written there."""
    data = store.read(key)
    if (reason := find_png_damage(data, key)) is not None:
        raise store.damaged(key, reason)
    return data


def find_png_damage(data: bytes, key: str) -> str | None:
    """Return why `data` is not what `seal_png` sealed under `key`, or None if it is."""
    start = len(data) - _PNG_END - len(_png_chunk(b"", key))
    chunk, picture = data[max(0, start) : -_PNG_END], data[: max(0, start)] + data[-_PNG_END:]
    if _MARK not in chunk:
        return NO_DIGEST
    return None if chunk == _png_chunk(picture, key) else "its content is not what was written under its name"


def _png_chunk(picture: bytes, key: str) -> bytes:
    digest = hashlib.sha256(key.encode() + b"\0" + picture).hexdigest().encode()
    body = b"tEXtdigest\0" + _MARK + digest
    return (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
