"""Digests: no bit of a file, and no file in the place of another, is taken for what was written."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest
from matplotlib.figure import Figure

from infra.sealing import (
    SLOT,
    find_damage,
    find_png_damage,
    pack_document,
    read_document,
    read_sealed,
    seal,
    seal_page,
    seal_png,
)
from infra.storage import DamagedError, Store

KEY = "studies/s/x"


def picture() -> bytes:
    buffer = io.BytesIO()
    Figure(figsize=(0.2, 0.2)).savefig(buffer, format="png")
    return buffer.getvalue()


FILES: dict[str, tuple[Callable[[str], bytes], Callable[[bytes, str], str | None]]] = {
    "document": (lambda key: pack_document(key, {"a": [1, 2.5, None], "b": "ü"}), find_damage),
    "page": (lambda key: seal_page("<html>\n<p>one</p>\n</html>\n", key), find_damage),
    "text": (lambda key: seal(f"before {SLOT} after".encode(), key), find_damage),
    "png": (lambda key: seal_png(picture(), key), find_png_damage),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_single_bit_is_under_the_digest(kind: str):
    pack, find = FILES[kind]
    data = pack(KEY)
    assert find(data, KEY) is None
    assert all(find(flip(data, bit), KEY) for bit in range(8 * len(data)))


@pytest.mark.parametrize("kind", FILES)
def test_a_file_cut_or_extended_or_in_the_place_of_another_is_told(kind: str):
    pack, find = FILES[kind]
    data = pack(KEY)
    assert all(find(data[:length], KEY) for length in range(len(data)))
    for other in (data + b"\0", b"\0" + data, data + data):
        assert find(other, KEY)
    assert find(pack("studies/s/y"), KEY)


def test_what_is_sealed_is_read_back(store: Store):
    fields = {"a": [1, 2.5, None], "b": "ü", "c": {"d": SLOT.replace("0", "1")}}
    store.create(KEY, pack_document(KEY, fields))
    assert read_document(store, KEY) == fields
    store.replace(KEY, seal_page("<p>one</p>", KEY))
    assert read_sealed(store, KEY).startswith(b"<p>one</p>\n<!-- repairlab-sha256:")


@pytest.mark.parametrize("told", ['["SLOT"]', "null", "1", '"x"', "{", "[" * 100_000])
def test_a_sealed_file_that_is_no_document_is_refused(store: Store, told: str):
    store.create(KEY, seal(f"{told}{SLOT}".encode(), KEY))
    with pytest.raises(DamagedError, match="no JSON document of repairlab"):
        read_document(store, KEY)


def test_a_document_of_before_there_were_digests_names_the_way_out(store: Store):
    store.create(KEY, json.dumps({"a": 1}).encode())
    with pytest.raises(DamagedError, match="`repairlab check --seal` adds"):
        read_document(store, KEY)


def test_a_sealed_picture_is_still_a_picture():
    from matplotlib.image import imread

    plain, sealed = (imread(io.BytesIO(data)) for data in (picture(), seal_png(picture(), KEY)))
    assert (plain == sealed).all()


def flip(data: bytes, bit: int) -> bytes:
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)
