"""The fields of every spec, and the ids that each of them enters.

A field that is missing in the table fails `test_the_table_names_every_field_of_every_spec`: say there which ids change
with it, and what follows shows whether they do.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tasks.science import specs
from tasks.science.specs.cell import Cell, Endpoint, NetworkSpec, Origin
from tasks.science.specs.corrections import Correction
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import part_of
from tasks.science.specs.matchers import Matcher, MatcherChoice, Option, parse_matcher
from tasks.science.specs.measurement import Measurement, Samples, Viewing, statistics_set
from tasks.science.specs.pairing import Member, Pairing
from tasks.science.specs.path import EnsemblePath, JointPath, LogitShiftPath, UnmergedPath, WeightPath
from tasks.science.specs.recipe import Augmentation, Recipe
from tasks.science.specs.recipes import KnownRecipe
from tasks.science.specs.request import Request

RECIPE = Recipe("quick", 40, 6, 0.05, 0.1, warmup_from=0.01, skip_nonfinite=True, flip=True)
DATA = DataSpec("blobs", "f" * 64, 240, 80, 4, (3, 8, 8), halves=True)
CELL = Cell(DATA, "resnet20", "batch", 2, 20, RECIPE)
ORIGIN = Origin("published")
MEASUREMENT = Measurement("default", statistics=100)
A, B = Member(0, "a", "weights-a"), Member(1, "b", "weights-b")
JOINT_A, JOINT_B = Member(0, "c", "weights-c"), Member(1, "d", "weights-d")
PAIRING = Pairing(CELL, A, B, "activation", MEASUREMENT.samples)
PATHS = (
    WeightPath(PAIRING, "repair", MEASUREMENT),
    EnsemblePath(CELL, A, B, MEASUREMENT),
    LogitShiftPath(CELL, A, B, MEASUREMENT),
    JointPath(CELL, A, B, MEASUREMENT, JOINT_A, JOINT_B),
)
REQUEST = Request("test", (CELL,), (0, 1), ("none", "activation"), ("none", "repair"), (MEASUREMENT,))

EVERY_PATH = "weights ensemble shift joint"
OF_TRAINING = "endpoint request"
OF_STATISTICS = "permutation moments weights request"
OF_AUGMENTATION = f"endpoint {OF_STATISTICS}"
OF_EVALUATION = f"evaluation {EVERY_PATH} request"
OF_CELL = f"endpoint permutation {EVERY_PATH} request"
"""The ids that early checkpoints and imported cells enter: those of pairs too, since another cell may have the same
weights."""
OF_NETWORK = f"{OF_CELL} moments evaluation"
NOTHING = ""

Row = tuple[Any, str]
"""Another value of a field, and the ids that change with it."""

TABLE: dict[type, dict[str, Row]] = {
    DataSpec: {
        "name": ("other", OF_TRAINING),
        "fingerprint": ("e" * 64, OF_NETWORK),
        "n_train": (230, OF_TRAINING),
        "n_test": (70, OF_TRAINING),
        "n_classes": (5, OF_TRAINING),
        "shape": ((1, 8, 8), OF_TRAINING),
        "halves": (False, OF_TRAINING),
    },
    Augmentation: {
        "flip": (False, OF_AUGMENTATION),
        "translate": (2, OF_AUGMENTATION),
        "cutout": (3, OF_AUGMENTATION),
        "resized_crop": (7, OF_AUGMENTATION),
    },
    Recipe: {
        "name": ("other", NOTHING),
        "batch_size": (20, OF_TRAINING),
        "epochs": (7, OF_TRAINING),
        "learning_rate": (0.06, OF_TRAINING),
        "warmup": (0.2, OF_TRAINING),
        "momentum": (0.8, OF_TRAINING),
        "weight_decay": (0.01, OF_TRAINING),
        "flip": (False, OF_AUGMENTATION),
        "translate": (2, OF_AUGMENTATION),
        "optimizer": ("adam", OF_TRAINING),
        "schedule": ("cosine", OF_TRAINING),
        "initialization": ("he-normal", OF_TRAINING),
        "precision": ("bfloat16", OF_TRAINING),
        "warmup_from": (0.02, OF_TRAINING),
        "cutout": (3, OF_AUGMENTATION),
        "label_smoothing": (0.1, OF_TRAINING),
        "decayed_norms": ("none", OF_TRAINING),
        "skip_nonfinite": (False, OF_TRAINING),
        "clip_norm": (1.0, OF_TRAINING),
        "resized_crop": (7, OF_AUGMENTATION),
    },
    Origin: {"name": ("other", OF_CELL), "known": (("epochs",), OF_CELL)},
    NetworkSpec: {
        "architecture": ("resnet18", OF_NETWORK),
        "normalization": ("layer", OF_NETWORK),
        "width": (3, OF_NETWORK),
        "depth": (18, OF_NETWORK),
        "graph": ("0" * 64, OF_NETWORK),
    },
    Cell: {
        "data": (replace(DATA, fingerprint="e" * 64), OF_NETWORK),
        "architecture": ("resnet18", OF_NETWORK),
        "normalization": ("layer", OF_NETWORK),
        "width": (3, OF_NETWORK),
        "depth": (18, OF_NETWORK),
        "recipe": (replace(RECIPE, batch_size=20), OF_TRAINING),
        "epoch": (3, OF_CELL),
        "spawn": ((0, 2), OF_TRAINING),
        "graph": ("0" * 64, OF_NETWORK),
        "origin": (ORIGIN, OF_CELL),
    },
    Endpoint: {"cell": (replace(CELL, epoch=3), "endpoint"), "seed": (1, "endpoint")},
    Samples: {
        "statistics": (50, OF_STATISTICS),
        "draw": (1, OF_STATISTICS),
        "augmented": (False, OF_STATISTICS),
    },
    Viewing: {
        "flip_averaged": (True, OF_EVALUATION),
        "evaluated_in": ("bfloat16", OF_EVALUATION),
    },
    Measurement: {
        "name": ("other", NOTHING),
        "alphas": (25, "weights ensemble request"),
        "statistics": (50, OF_STATISTICS),
        "evaluation": (10, OF_EVALUATION),
        "draw": (1, OF_STATISTICS),
        "augmented": (False, OF_STATISTICS),
        "flip_averaged": (True, OF_EVALUATION),
        "evaluated_in": ("bfloat16", OF_EVALUATION),
    },
    Member: {
        "seed": (7, NOTHING),
        "endpoint_id": ("other", NOTHING),
        "weights_sha256": ("other", f"permutation moments evaluation {EVERY_PATH}"),
    },
    MatcherChoice: {
        "name": ("weight", "permutation weights request"),
        "options": ({"reading": "pre", "solver": "scipy"}, "permutation weights request"),
    },
    Pairing: {
        "cell": (replace(CELL, width=3), "permutation weights"),
        "a": (B, "permutation weights"),
        "b": (A, "permutation weights"),
        "matcher": ("weight", "permutation weights"),
        "samples": (Samples(50), "permutation weights"),
        "permuted_self": (True, "permutation weights"),
    },
    WeightPath: {
        "pairing": (replace(PAIRING, matcher="weight"), "weights"),
        "correction": ("reset", "weights"),
        "measurement": (replace(MEASUREMENT, alphas=25), "weights"),
    },
    EnsemblePath: {
        "cell": (replace(CELL, width=3), "ensemble"),
        "a": (B, "ensemble"),
        "b": (A, "ensemble"),
        "measurement": (replace(MEASUREMENT, alphas=25), "ensemble"),
    },
    LogitShiftPath: {
        "cell": (replace(CELL, width=3), "shift"),
        "a": (B, "shift"),
        "b": (A, "shift"),
        "measurement": (replace(MEASUREMENT, evaluation=10), "shift"),
        "chosen_on": ("test", "shift"),
    },
    JointPath: {
        "cell": (replace(CELL, width=3), "joint"),
        "a": (replace(A, weights_sha256="other"), "joint"),
        "b": (replace(B, weights_sha256="other"), "joint"),
        "measurement": (replace(MEASUREMENT, evaluation=10), "joint"),
        "joint_a": (replace(JOINT_A, weights_sha256="other"), "joint"),
        "joint_b": (replace(JOINT_B, weights_sha256="other"), "joint"),
    },
    Request: {
        "study": ("other", "request"),
        "cells": ((replace(CELL, width=3),), "request"),
        "seeds": ((0, 1, 2), "request"),
        "matchers": (("none",), "request"),
        "corrections": (("none",), "request"),
        "measurements": ((replace(MEASUREMENT, alphas=25),), "request"),
        "swept": (("epochs",), "request"),
        "controls": (True, "request"),
        "ensembles": (True, "request"),
        "logit_shifts": (True, "request"),
        "joint_training": (True, "request"),
    },
}

NO_SPECS = {Correction, Matcher, Option, KnownRecipe, UnmergedPath}
"""Rows of tables that are looked up by name, and what kinds of path have in common."""


def ids_of(spec: Any) -> dict[str, str]:
    """The ids of a small world in which `spec` stands in its place, and of nothing that has no such place."""
    if isinstance(spec, DataSpec | Recipe | Origin):
        place = {DataSpec: "data", Recipe: "recipe", Origin: "origin"}[type(spec)]
        return ids_of(replace(CELL, **{place: spec}))
    if isinstance(spec, Augmentation):
        return ids_of(replace(RECIPE, **dataclasses.asdict(spec)))
    if isinstance(spec, NetworkSpec):
        return ids_of(replace(CELL, **dataclasses.asdict(spec)))
    if isinstance(spec, Samples | Viewing):
        return ids_of(replace(MEASUREMENT, **dataclasses.asdict(spec)))
    if isinstance(spec, Endpoint):
        return {"endpoint": spec.id}
    if isinstance(spec, Pairing):
        measurement = replace(MEASUREMENT, **dataclasses.asdict(spec.samples))
        return {"permutation": spec.id} | ids_of(WeightPath(spec, "repair", measurement))
    for kind, word in zip(PATHS, EVERY_PATH.split(), strict=True):
        if isinstance(spec, type(kind)):
            return {word: spec.id}
    if isinstance(spec, Request):
        return {"request": spec.id}
    if isinstance(spec, Cell):
        return {"endpoint": Endpoint(spec, 0).id} | _derived(cell=spec)
    given = {Measurement: "measurement", Member: "a", MatcherChoice: "matcher"}[type(spec)]
    return _derived(**{given: spec})


def _derived(
    cell: Cell = CELL,
    a: Member = A,
    matcher: MatcherChoice = PAIRING.choice,
    measurement: Measurement = MEASUREMENT,
) -> dict[str, str]:
    pairing = Pairing(cell, a, B, matcher.text, measurement.samples)
    request = replace(REQUEST, cells=(cell,), matchers=("none", matcher.text), measurements=(measurement,))
    ids = {
        "permutation": pairing.id,
        "moments": a.moments_id(cell, measurement.samples, blocks=False),
        "evaluation": a.evaluation_id(cell, measurement),
        "weights": WeightPath(pairing, "repair", measurement).id,
        "ensemble": EnsemblePath(cell, a, B, measurement).id,
        "request": request.id,
    }
    if cell.data.halves:
        joint = replace(JOINT_A, seed=a.seed)
        ids["shift"] = LogitShiftPath(cell, a, B, measurement).id
        ids["joint"] = JointPath(cell, a, B, measurement, joint, JOINT_B).id
    return ids


def base_of(kind: type) -> Any:
    """The spec of this kind that rows of the table change."""
    parts = [CELL, DATA, RECIPE, ORIGIN, CELL.network, RECIPE.augmentation, Endpoint(CELL, 0), MEASUREMENT, A]
    parts += [MEASUREMENT.samples, MEASUREMENT.viewing, PAIRING.choice, PAIRING, *PATHS, REQUEST]
    return next(part for part in parts if type(part) is kind)


def changed(base: Any, field: str, value: Any) -> Any:
    """`base` with another value of one field, and with what has to go with it."""
    if isinstance(base, Cell | NetworkSpec) and field == "graph":
        return replace(base, graph=value, architecture="my.code:build")
    if isinstance(base, Cell) and field == "spawn":
        return replace(base, spawn=value, data=replace(base.data, halves=False))
    if isinstance(base, MatcherChoice) and field == "name":
        return parse_matcher(value)
    return replace(base, **{field: value})


def test_the_table_names_every_field_of_every_spec():
    found = {
        kind
        for module in pkgutil.iter_modules(specs.__path__)
        for kind in vars(importlib.import_module(f"{specs.__name__}.{module.name}")).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    }
    assert found - NO_SPECS == TABLE.keys()
    for kind, rows in TABLE.items():
        assert list(rows) == [field.name for field in dataclasses.fields(kind)], kind


@pytest.mark.parametrize(
    ("kind", "field"), [pytest.param(k, f, id=f"{k.__name__}.{f}") for k, rows in TABLE.items() for f in rows]
)
def test_a_field_changes_the_ids_that_the_table_says(kind: type, field: str):
    value, expected = TABLE[kind][field]
    base = base_of(kind)
    assert value != getattr(base, field)
    before, after = ids_of(base), ids_of(changed(base, field, value))
    both = before.keys() & after.keys()
    assert {name for name in both if before[name] != after[name]} == set(expected.split()) & both


def test_a_part_has_the_defaults_of_the_spec_that_it_is_of():
    for part, whole in ((Augmentation, Recipe), (Samples, Measurement), (Viewing, Measurement), (NetworkSpec, Cell)):
        defaults = {field.name: field.default for field in dataclasses.fields(whole)}
        assert {field.name: field.default for field in dataclasses.fields(part)}.items() <= defaults.items()


def test_a_new_field_of_a_part_enters_ids_by_itself_and_at_its_default_leaves_them_as_they_are():
    @dataclass(frozen=True)
    class Rotation(Augmentation):
        rotate: int = 0

    @dataclass(frozen=True)
    class RotatingRecipe(Recipe):
        rotate: int = 0

        @property
        def augmentation(self) -> Augmentation:
            return part_of(self, Rotation)

    @dataclass(frozen=True)
    class Shuffled(Samples):
        shuffled: bool = False

    def seen(rotate: int, shuffled: bool) -> dict[str, Any]:
        recipe = RotatingRecipe(**dataclasses.asdict(RECIPE), rotate=rotate)
        return statistics_set(replace(CELL, recipe=recipe), Shuffled(100, shuffled=shuffled))

    usual = statistics_set(CELL, MEASUREMENT.samples)
    assert seen(0, shuffled=False) == usual
    assert seen(3, shuffled=False) == usual | {"rotate": 3}
    assert seen(0, shuffled=True) == usual | {"shuffled": True}
