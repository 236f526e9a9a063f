"""What two cells of a study differ in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations, pairwise, product
from typing import Any

from tasks.tables import schema

TIMES = tuple(schema.TIME)
FACTORS = ("dataset", "architecture", "normalization", "width", "depth", "recipe", *TIMES)
ORDERED_FACTORS = ("width", "depth", "epoch", "spawn_epoch")
"""Numbers, of which neighbours are compared; of the others every value with every other."""

Row = Mapping[str, Any]


def factor_values(cell: Row) -> dict[str, Hashable]:
    """A row of the table `cells` as one value per factor: a data set and a recipe are all of their fields, whatever
    their names.

    The depth of a network other than an MLP is that in its architecture's name, so it is no factor of its own there.
    A time that a cell does not have is None: the end of training, or not spawned.
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
    """Every two cells that differ in exactly one factor, with that factor; of widths and depths adjacent ones alone.

    The first has the smaller width, depth or epoch, of which the end of training is the largest; else `none` comes
    first, then the alphabet.
    """
    found: list[tuple[Row, Row, str]] = []
    for factor in FACTORS:
        for of_rest in series(cells, factor).values():
            by_value: dict[Hashable, list[Row]] = defaultdict(list)
            for cell in of_rest:
                by_value[factor_values(cell)[factor]].append(cell)
            choose = pairwise(by_value.values()) if factor in ORDERED_FACTORS else combinations(by_value.values(), 2)
            found += [(a, b, factor) for these, others in choose for a, b in product(these, others)]
    return found


def series(cells: Sequence[Row], factor: str) -> dict[tuple[Hashable, ...], list[Row]]:
    """The cells that differ in `factor` alone, in its order, by what they share."""
    groups: dict[tuple[Hashable, ...], list[Row]] = defaultdict(list)
    for cell in sorted(cells, key=lambda cell: (_place(cell, factor), cell["cell_id"])):
        values = {name: value for name, value in factor_values(cell).items() if name != factor}
        # A time that a cell does not have says nothing: then what cells share is what it was before there were times.
        shared = tuple(value for name, value in values.items() if name not in TIMES)
        times = tuple((name, values[name]) for name in TIMES if values.get(name) is not None)
        groups[shared + times].append(cell)
    return groups


def label_factor(cell: Row, factor: str) -> str:
    """The value of a cell's factor as text."""
    if factor not in TIMES:
        return str(cell[factor])
    value = _whole(cell.get(factor))
    return ("last" if factor == "epoch" else "none") if value is None else str(value)


def _place(cell: Row, factor: str) -> tuple[bool, Any]:
    """A key that sorts cells by `factor`, without a time last."""
    if factor in TIMES:
        value = _whole(cell.get(factor))
        return value is None, value or 0
    return none_first(cell[factor])


def _whole(value: Any) -> int | None:
    """A time, where a table may have nulls for nothing and hence fractions for whole numbers."""
    return None if value is None or value != value else int(value)


def none_first(value: Any) -> tuple[bool, Any]:
    """A key that sorts `none` before every other word."""
    return value != "none", value
