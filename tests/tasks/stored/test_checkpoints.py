from __future__ import annotations

import os
import pickle
import random
import struct

import pytest
import torch

from infra.storage import DamagedError, Store
from tasks.stored.checkpoints import pack, read_checkpoint, read_header

TENSORS = {"w": torch.randn(40, 30), "b": torch.zeros(40, dtype=torch.int64)}
HEADER = {"kind": "endpoint", "loss": float("nan"), "seed": 3}


def test_tensors_and_header_come_back_as_they_were(store: Store):
    store.create("x", pack("x", TENSORS, HEADER))
    tensors, header = read_checkpoint(store, "x")
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert header["seed"] == 3
    assert header["loss"] != header["loss"]
    assert read_header(store, "x")["kind"] == "endpoint"


def test_the_same_content_has_the_same_bytes():
    assert pack("x", TENSORS, HEADER) == pack("x", dict(TENSORS), dict(HEADER))


def test_a_long_header_is_read_whole(store: Store):
    store.create("x", pack("x", {f"tensor_{i}": torch.zeros(1) for i in range(3000)}, HEADER))
    assert read_header(store, "x")["seed"] == 3


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.99, 0.9999])
def test_a_file_cut_short_anywhere_is_told_from_its_header_alone(store: Store, share: float):
    data = pack("x", TENSORS, HEADER)
    store.create("x", data[: int(len(data) * share)])
    for read in (read_header, read_checkpoint):
        with pytest.raises(DamagedError, match=r"is damaged .*: delete it and run the study again"):
            read(store, "x")


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Payload()),
        b"PK\x03\x04" + b"\0" * 200,
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 40) + b'{"__metadata__":{"repairlab":"not json"}}'[:40],
        random.Random(0).randbytes(500),
    ],
)
def test_a_hostile_file_is_refused_and_nothing_in_it_runs(store: Store, data: bytes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store.create("x", data)
    with pytest.raises(DamagedError):
        read_checkpoint(store, "x")
    assert not (tmp_path / "executed").exists()
