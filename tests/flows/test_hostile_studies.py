"""Numbers that cannot be meant, and values of the wrong kind, from a file, a command line, a form or a store: each is
one short sentence before anything is made of it."""

from __future__ import annotations

import dataclasses
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.deployed import StudyForm
from flows.options import OwnStudy, StudyOptions, read_study
from infra.paths import request_key
from infra.sealing import pack_document
from infra.storage import DamagedError, Store, StoreError
from tasks.data.datasets import published_shape
from tasks.science.specs.bounds import MAX_STUDY_BYTES
from tasks.science.specs.cell import Cell, Origin
from tasks.science.specs.data import DataSpec
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.request import VARIED, Request
from tasks.stored.requests import TooMuchError, read_requests

STUDY: dict[str, Any] = {
    "name": "rates", "dataset": "digits", "architecture": "mlp", "width": 32, "depth": 4, "seeds": 3,
    "recipe": "small/digits",
}  # fmt: skip

MOST_MEMORY_BYTES = 50_000_000

WRONG = (
    None, True, -1, 0, 2**70, 10**5000, 1.5, float("nan"), float("inf"), 10**400, "", "\x1b[31m", "a" * 10**6, [], [1],
    [[1]], {}, {"a": [{}]}, [None], [10**12] * 100,
)  # fmt: skip


def resolve(**changes: Any) -> Request:
    options: dict[str, Any] = {"study": "rates", "own": OwnStudy(**{**STUDY, **changes})}
    return StudyOptions(**options).resolve(published_shape)


def refused(make: Callable[[], object]) -> str:
    """The sentence that `make` ends in, with little memory; empty where it does not."""
    tracemalloc.start()
    try:
        make()
    except ValueError as error:
        return str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST_MEMORY_BYTES
    return ""


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": 10**9}, "seeds must be at most 10000, got 1000000000"),
        ({"seeds": 10_000}, "a study has at most 1,000,000 pairs, got 49995000"),
        ({"width": 2**70}, "width must be at most 65536, got 1180591620717411303424"),
        ({"width": 10**12}, "width must be at most 65536, got 1000000000000"),
        ({"width": 16**5000}, "width must be at most 65536, got a number of 20001 bits"),
        ({"depth": 10**6}, "depth must be at most 1000, got 1000000"),
        ({"measurement": {"alphas": 10**7 + 1}}, "the number of alphas must be at most 10001, got 10000001"),
        (
            {"measurement": {"statistics": 2**70}},
            "the number of images for statistics must be at most 2147483647, got 1180591620717411303424",
        ),
        ({"measurement": {"draw": 2**70}}, "the draw of statistics must be at most 9223372036854775807, got 1180"),
        ({"recipe": {"base": "small/digits", "epochs": 10**12}}, "epochs must be at most 100000, got 1000000000000"),
        ({"recipe": {"base": "small/digits", "translate": 10**9}}, "translate must be at most 4096, got 1000"),
        ({"recipe": {"base": 3}}, "the base of a recipe must be text, got 3"),
        ({"recipe": {"base": "small/digits", "learning_rate": float("nan")}}, "must be a finite number of at least 0"),
        ({"recipe": {"base": "small/digits", "learning_rate": 10**400}}, "must be a finite number of at least 0"),
        ({"matcher": [f"weight/restarts={n + 1}" for n in range(1001)]}, "at most 1,000 matchers, got 1001"),
        ({"matcher": "weight/restarts=1000000"}, "restarts must be at most 10000, got '1000000'"),
        ({"matcher": "weight/restarts=" + "9" * 10_000}, "restarts must be at most 10000, got '9999"),
        ({"sweep": {"draw": list(range(10**6))}}, "a sweep has at most 10000 combinations of values, got 1000000"),
        ({"width": list(range(1, 10_002))}, "a study has at most 10,000 cells, got 10001"),
        (
            {"width": list(range(1, 10_001)), "depth": list(range(1, 1001)), "checkpoints": [1] * 10**5},
            "a study has at most 10,000 cells, got 1000000000000",
        ),
        ({"architecture": ["mlp"] * 10**5, "normalization": ["none"] * 10**5}, "at most 10,000 cells, got 10000000000"),
        ({"spawn_from": [(0, 1)] * 10**5}, "a study has at most 10,000 cells, got 100000"),
        ({"spawn_from": (2**70, 1)}, "spawn must be a parent's seed and an epoch of its training, got (11805"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_made_of_it(changes: dict[str, Any], sentence: str):
    assert sentence in refused(lambda: resolve(**changes))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seeds": 10**9}, "seeds must be at most 10000, got 1000000000"),
        ({"width": [2**70]}, "width must be at most 65536"),
        ({"width": [1] * 10**5, "depth": [10**6]}, "depth must be at most 1000"),
        ({"alphas": 10**7 + 1}, "alphas must be at most 10001"),
        ({"statistics": 2**70}, "statistics must be at most 2147483647"),
        ({"epochs": 10**12}, "epochs must be at most 100000"),
        ({"sweep": {"alphas": list(range(10**6))}}, "at most 10000 combinations"),
        ({"network": "own:build", "data": "own:load", "recipe": "small/digits", "width": [10**9]}, "width must be at"),
    ],
)
def test_options_of_a_command_line_have_the_same_bounds(options: dict[str, Any], sentence: str):
    study = "mine" if "network" in options else "digits-depth"
    assert sentence in refused(lambda: StudyOptions(study=study, **options).resolve(published_shape))


@pytest.mark.parametrize(
    "field",
    [{"width": [2**70]}, {"depth": [10**6]}, {"seeds": 10**9}, {"alphas": 10**7 + 1}, {"statistics": 2**70}],
)
def test_a_form_has_the_same_bounds(field: dict[str, Any]):
    with pytest.raises(ValidationError, match="less than or equal"):
        StudyForm(**field)


def changed_options(name: str, value: Any) -> Iterator[Callable[[], object]]:
    """Every place where a person may give `value` as the field `name`."""
    if name in (*VARIED, "unheard-of"):
        yield lambda: resolve(sweep={name: [value]})
        yield lambda: resolve(measurement={name: value})
    if name in (*VARIED, "base", "name"):
        yield lambda: resolve(recipe={"base": "small/digits", name: value})
        yield lambda: resolve(recipe={"batch_size": 3, "epochs": 2, "learning_rate": 0.1, "warmup": 0, name: value})
    if name in OwnStudy.model_fields:
        yield lambda: resolve(**{name: value})
    if name in StudyOptions.model_fields:
        fields: dict[str, Any] = {"study": "digits-depth", name: value}
        yield lambda: StudyOptions(**fields).resolve(published_shape)


@pytest.mark.parametrize("name", [*VARIED, *OwnStudy.model_fields, "base", "unheard-of"])
def test_a_value_of_any_kind_in_any_field_is_a_value_error_or_none(name: str):
    for value in WRONG:
        for make in changed_options(name, value):
            with suppress(ValueError):
                make()


REQUEST = Request(
    "rates",
    (
        Cell(
            dataclasses.replace(published_shape("digits"), halves=True), "mlp", "none", 8, 2, Recipe("r", 1, 2, 0.1, 0),
            epoch=2, spawn=None, origin=Origin("rates", ("epochs",)),
        ),
    ),
    (0, 1), ("activation",), ("repair",), (Measurement("default"),), ("epochs",),
)  # fmt: skip

SPECS = (Request, Cell, DataSpec, Recipe, Origin, Measurement)


def fields_of(request: Request) -> dict[str, Any]:
    """What is stored of a request."""
    return json.loads(json.dumps(dataclasses.asdict(request)))


def parts(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of a stored request, in the order of `SPECS`."""
    (cell,), (measurement,) = fields["cells"], fields["measurements"]
    return [fields, cell, cell["data"], cell["recipe"], cell["origin"], measurement]


@pytest.mark.parametrize(
    ("position", "name"),
    [(position, field.name) for position, spec in enumerate(SPECS) for field in dataclasses.fields(spec)],
)
def test_a_stored_request_with_any_value_in_any_field_is_read_or_a_value_error(position: int, name: str):
    assert Request.from_fields(fields_of(REQUEST)) == REQUEST
    for value in WRONG:
        fields = fields_of(REQUEST)
        parts(fields)[position][name] = value
        with suppress(ValueError):  # Also of JSON's writer, which has a limit of digits.
            Request.from_fields(json.loads(json.dumps(fields)))
    fields = fields_of(REQUEST)
    del parts(fields)[position][name]
    with suppress(ValueError):
        Request.from_fields(json.loads(json.dumps(fields)))


@pytest.mark.parametrize(
    ("position", "name", "value", "sentence"),
    [
        (1, "width", 2**70, "width must be at most 65536, got 1180591620717411303424"),
        (1, "depth", 10**6, "depth must be at most 1000, got 1000000"),
        (0, "swept", ["colour"], "a study varies no field 'colour'; known: batch_size, "),
        (0, "swept", ["epochs"] * 10**5, "a study has at most 29 swept fields"),
        (0, "seeds", list(range(10_001)), "a study has at most 10,000 seeds, got 10001"),
        (0, "seeds", list(range(3000)), "a study has at most 1,000,000 pairs, got 2250000"),
        (0, "corrections", ["repair"] * 10**5, "a study has at most 1,000 corrections, got 100000"),
        (0, "controls", "yes", "controls must be True or False, got 'yes'"),
        (2, "n_train", "many", "digits: n_train must be a positive whole number, got 'many'"),
        (
            2,
            "shape",
            [10**9] * 3,
            "an example has at most 67,108,864 values, and 16,777,216 along an axis, got the sha",
        ),
        (2, "shape", [3, 2**12, 2**13], "digits: an example has at most 67,108,864 values, and 16,777,216 along an"),
        (2, "shape", [0], "an example's shape must be one length or three, each a positive whole number, got (0,)"),
        (2, "name", 3, "a data set's name must be text, got 3"),
        (3, "name", [], "a recipe's name must be text, got []"),
        (5, "name", {}, "a measurement's name must be text, got {}"),
    ],
)
def test_a_stored_request_has_the_bounds_of_a_study(position: int, name: str, value: object, sentence: str):
    fields = fields_of(REQUEST)
    parts(fields)[position][name] = value
    assert sentence in refused(lambda: Request.from_fields(json.loads(json.dumps(fields))))


def test_a_stored_request_of_any_size_is_refused_unread(store: Store):
    store.create(request_key("s", "x"), b" " * (2**25 + 1))
    with pytest.raises(TooMuchError, match=r"than this version of repairlab takes \(it has more than 33,554,432 b"):
        read_requests(store, "s")


@pytest.mark.parametrize(
    ("position", "name", "value"),
    [
        *[(0, "seeds", [0, 2**31]), (0, "seeds", list(range(3000))), (0, "matchers", ["weight/restarts=99999"])],
        *[(1, "width", 10**6), (1, "depth", 10**6), (2, "n_train", 2**40), (2, "shape", [3, 2**14, 2**14])],
        *[(3, "epochs", 10**7), (3, "cutout", 5000), (5, "alphas", 99_999), (5, "draw", 2**63)],
    ],
)
def test_a_stored_request_beyond_a_bound_is_never_called_damaged(store: Store, position: int, name: str, value: object):
    fields = fields_of(REQUEST)
    parts(fields)[position][name] = value
    key = request_key(REQUEST.study, "x")
    store.create(key, pack_document(key, fields))
    with pytest.raises(StoreError, match=r"x\.json asks for more than this version of repairlab takes \(") as caught:
        read_requests(store, REQUEST.study)
    assert not isinstance(caught.value, DamagedError)
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 1, 80_000), (80_000,), (3, 4096, 4096), (2**24,)], ids=str)
def test_long_examples_are_taken(shape: tuple[int, ...]):
    assert DataSpec("speech", "f", 10, 10, 2, shape).shape == shape


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"#" * (MAX_STUDY_BYTES + 1), "own.toml has more than 262,144 bytes"),
        (b"a = " + b"[" * 100_000, "own.toml is not TOML: "),
        (b"a = " + b"9" * 100_000, "own.toml is not TOML: Exceeds the limit"),
        (b".".join([b"a"] * 100_000) + b" = 1", "is a name of too many parts"),
        (b"[" + b".".join([b"'a b'"] * 40_000) + b"]", "is a name of too many parts"),
        (b"a = {" + b" . ".join([b'"a"'] * 40_000) + b" = 1}", "is a name of too many parts"),
        (b"name = '\xff'", "own.toml is not text in UTF-8"),
        (b"width = 0x" + b"f" * 50_000, "width must be at most 65536, got a number of 200000 bits"),
        (b"seeds = '\\\\\x1b[31m'", "own.toml is not TOML: "),
    ],
    ids=range(9),
)
def test_a_file_that_would_fill_the_memory_is_one_sentence(tmp_path: Path, text: bytes, sentence: str):
    path = tmp_path / "own.toml"
    path.write_bytes(text)
    assert sentence in refused(lambda: read_study(path))


def test_a_file_that_never_ends_is_not_read(tmp_path: Path):
    os.mkfifo(tmp_path / "own.toml")
    assert refused(lambda: read_study(tmp_path / "own.toml")).endswith("own.toml is not a file")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    assert refused(lambda: read_study(tmp_path / "zero.toml")).endswith("zero.toml is not a file")


def test_pairs_are_counted_without_a_list_of_them():
    data = published_shape("digits")
    assert data.n_pairs(range(10_000)) == 49_995_000
    for halves in (False, True):
        some = dataclasses.replace(data, halves=halves)
        for seeds in ([], [0], [0, 2], [0, 1, 2, 5], [7, 3, 3]):
            assert some.n_pairs(seeds) == len(some.pairs(seeds))
