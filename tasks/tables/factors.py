"""The factors of a study: the differences of its cells, and the series of cells along one factor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import combinations, pairwise, product
from typing import Any

from tasks.tables import schema
from tasks.tables.frames import Row

TIMES = tuple(schema.TIME)
CELL_FACTORS = ("dataset", "architecture", "normalization", "width", "depth", "recipe", *TIMES)
ORDERED_FACTORS = ("width", "depth", "epoch", "spawn_epoch")
"""Factors whose neighbouring values are compared; for others, every value with every other."""


def factor_values(cell: Row) -> dict[str, Hashable]:
    """Return the value of each factor of a row of the table `cells`.

    The value of a data set or a recipe is all of its fields, without the recipe's name. The depth of a network other
    than an MLP follows from its architecture, so it is None. A time is None at the end of training, and if the cell is
    not spawned.
    """

    def described(prefix: str) -> Hashable:
        return tuple((name, value) for name, value in cell.items() if name.startswith(prefix))

    return {
        "dataset": (cell["dataset"], described("data_")),
        "architecture": cell["architecture"],
        "normalization": cell["normalization"],
        "width": cell["width"],
        "depth": cell["depth"] if cell["architecture"] == "mlp" else None,
        "recipe": described("recipe_"),
        **{name: _whole(cell.get(name)) for name in TIMES},
    }


def neighbours(cells: Sequence[Row]) -> list[tuple[Row, Row, str]]:
    """Return every two cells that differ in exactly one factor, with that factor; only neighbours if it is ordered.

    The first has the smaller width, depth or epoch, the end of training being the largest; for other factors `none`
    comes first, then alphabetical order.
    """
    found: list[tuple[Row, Row, str]] = []
    for factor in CELL_FACTORS:
        for of_rest in series(cells, factor).values():
            by_value: dict[Hashable, list[Row]] = defaultdict(list)
            for cell in of_rest:
                by_value[factor_values(cell)[factor]].append(cell)
            choose = pairwise(by_value.values()) if factor in ORDERED_FACTORS else combinations(by_value.values(), 2)
            found += [(a, b, factor) for these, others in choose for a, b in product(these, others)]
    return found


def series(cells: Sequence[Row], factor: str) -> dict[tuple[Hashable, ...], list[Row]]:
    """Return the series of cells that differ only in `factor`, in its order, by their other values."""
    groups: dict[tuple[Hashable, ...], list[Row]] = defaultdict(list)
    for cell in sorted(cells, key=lambda cell: (_place(cell, factor), cell["cell_id"])):
        values = {name: value for name, value in factor_values(cell).items() if name != factor}
        # Cells without times are compared as if the study had none.
        shared = tuple(value for name, value in values.items() if name not in TIMES)
        times = tuple((name, values[name]) for name in TIMES if values.get(name) is not None)
        groups[shared + times].append(cell)
    return groups


def label_factor(cell: Row, factor: str) -> str:
    """Return the value of a cell's factor as text."""
    if factor not in TIMES:
        return str(cell[factor])
    value = _whole(cell.get(factor))
    return ("last" if factor == "epoch" else "none") if value is None else str(value)


def _place(cell: Row, factor: str) -> tuple[bool, Any]:
    """Return a key that sorts cells by `factor`, those without a time last."""
    if factor in TIMES:
        value = _whole(cell.get(factor))
        return value is None, value or 0
    return none_first(cell[factor])


def _whole(value: Any) -> int | None:
    """Return a time as an integer, None for null: a column with nulls has floats."""
    return None if value is None or value != value else int(value)


def none_first(value: Any) -> tuple[bool, Any]:
    """Return a key that sorts `none` before every other word."""
    return value != "none", value
