"""Checkpoints sealed with the right digest that hold what repairlab never writes: each is refused by its name."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from pipeline import make_request

from infra.paths import permutation_key
from infra.sealing import SLOT, seal
from infra.storage import DamagedError, Store
from tasks.science.networks.permutation_spec import cell_permutation_spec
from tasks.science.specs.cell import Cell
from tasks.science.specs.pairing import Member
from tasks.stored.artifacts import load_permutation, read_record
from tasks.stored.checkpoints import pack, read_checkpoint, read_header

RECORD: dict[str, Any] = {
    **{"status": "trained", "message": "", "n_train_examples": 10, "n_parameters": 10, "n_skipped_steps": 0},
    **{"train_loss": 0.1, "train_accuracy": 0.9, "test_loss": 0.1, "test_accuracy": 0.9},
    **{"train_seconds": 1.0, "device": "cpu"},
}

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**63, 10**30, 10**4000, -(2**63), 0.0, 0.5, 1.5, -0.5, 7e300),
    *(math.nan, math.inf, -math.inf, "", "trained", "a" * 10**5, "\ud800", "\udfff x", "\x1b[31m\n", "0" * 64),
    *([], [[]], ["trained"], {}, {"a": {}}, {"\ud800": 1}),
)

NESTED: Any = functools.reduce(lambda inner, _: [inner], range(400), [])


def written(store: Store, **fields: Any) -> dict[str, Any]:
    store.replace("x", pack("x", {"w": torch.zeros(1)}, {"record": {**RECORD, **fields}}))
    return read_record(store, "x")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, 10**30) for name in ("n_parameters", "n_train_examples", "n_skipped_steps")],
        *[(name, 2**63) for name in ("n_parameters", "n_train_examples", "n_skipped_steps")],
        *[(name, value) for name in ("message", "device") for value in ("\ud800", "a\udc00")],
        *[(f"{split}_accuracy", value) for split in ("train", "test") for value in (1.01, -0.1, 7e300, math.inf)],
        ("train_seconds", -1.0),
    ],
    ids=repr,
)
def test_a_record_with_a_number_or_text_that_no_table_holds_is_refused(store: Store, name: str, value: Any):
    with pytest.raises(DamagedError, match=f"{name} in its record cannot be .*: delete it and run the study again"):
        written(store, **{name: value})


@pytest.mark.parametrize(
    "fields",
    [
        {"train_loss": math.inf, "test_loss": -math.inf},
        {"train_loss": math.nan, "test_loss": math.nan, "train_accuracy": math.nan, "test_accuracy": math.nan},
        {"train_accuracy": 0.0, "test_accuracy": 1.0, "n_parameters": 2**63 - 1, "message": "é\u2028𝄞"},
    ],
)
def test_losses_of_a_diverged_training_and_other_extremes_are_read(store: Store, fields: dict[str, Any]):
    record = written(store, **fields)
    assert all(record[name] == value or value != value for name, value in fields.items())


def test_any_value_in_any_field_gives_a_record_or_a_damaged_file(store: Store):
    n_read, sentences = 0, list[str]()
    for name, value in itertools.product([*RECORD, "another"], [*VALUES, NESTED]):
        try:
            written(store, **{name: value})
            n_read += 1
        except DamagedError as error:
            sentences.append(str(error))
    assert n_read > 0 < len(sentences)
    assert all(len(sentence) < 400 and "\n" not in sentence for sentence in sentences)
    for value in (*VALUES, NESTED):
        store.replace("x", pack("x", {}, {"record": value}))
        with pytest.raises(DamagedError):
            read_record(store, "x")


def sealed_header(meta: Any) -> bytes:
    text = json.dumps(meta).encode()
    return seal(len(text).to_bytes(8, "little") + text, "x")


def test_any_value_in_the_header_gives_a_header_or_a_damaged_file(store: Store):
    whole = {"tensors_sha256": "0" * 64, "digest": SLOT}

    def told(header: Any = whole, **entries: Any) -> dict[str, Any]:
        return {"__metadata__": {"repairlab": json.dumps(header), "slot": SLOT}, **entries}

    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    hostile: list[Any] = [told({**whole, "tensors_sha256": value}) for value in VALUES if value != "0" * 64]
    hostile += [told(value) for value in VALUES] + [[SLOT, value] for value in VALUES]
    hostile += [told(w={**entry, "data_offsets": [0, value]}) for value in (math.inf, -math.inf, math.nan, "a", [], {})]
    for meta in hostile:
        store.replace("x", sealed_header(meta))
        for read in (read_header, read_checkpoint):
            with pytest.raises(DamagedError):
                read(store, "x")
    for name, value in itertools.product(entry, VALUES):
        store.replace("x", sealed_header(told(w={**entry, name: value})))
        with pytest.raises(DamagedError):  # Also where the header alone tells nothing strange: the digest is another.
            read_checkpoint(store, "x")


@pytest.mark.parametrize(
    "vector",
    [
        torch.tensor(3),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.zeros(3, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([0.5, math.nan]),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(0),
    ],
    ids=str,
)
def test_a_permutation_that_is_no_row_of_whole_numbers_is_refused(store: Store, cell: Cell, vector: torch.Tensor):
    (pairing,) = make_request(dataclasses.replace(cell, width=4, depth=1), n_seeds=2).pairings(
        cell, [Member(0, "a", "a"), Member(1, "b", "b")]
    )[-1:]
    spec = cell_permutation_spec(cell)
    identity: Mapping[str, Any] = spec.identity()
    key = permutation_key(pairing.id)
    vectors = {axis: torch.from_numpy(of) for axis, of in identity.items()}
    store.replace(key, pack(key, vectors, {}))
    assert load_permutation(store, pairing, spec) == identity
    axis = next(iter(vectors))
    store.replace(key, pack(key, {**vectors, axis: vector}, {}))
    with pytest.raises(DamagedError, match=rf"{pairing.id}\S* is damaged \(the vector of axis '{axis}' is of torch\."):
        load_permutation(store, pairing, spec)
    # One whose values would pass for a permutation.
    store.replace(key, pack(key, {**vectors, axis: vectors[axis].double()}, {}))
    with pytest.raises(DamagedError, match=r"is of torch\.float64"):
        load_permutation(store, pairing, spec)
