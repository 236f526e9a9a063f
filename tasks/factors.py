"""What two cells of a study differ in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations, pairwise, product
from typing import Any

FACTORS = ("dataset", "architecture", "normalization", "width", "depth", "recipe")
ORDERED_FACTORS = ("width", "depth")
"""Numbers, of which neighbours are compared; of the others every value with every other."""

Row = Mapping[str, Any]


def factor_values(cell: Row) -> dict[str, Hashable]:
    """A row of the table `cells` as one value per factor: a data set and a recipe are all of their fields, whatever
    their names.

    The depth of a network other than an MLP is that in its architecture's name, so it is no factor of its own there.
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
    }


def neighbours(cells: Sequence[Row]) -> list[tuple[Row, Row, str]]:
    """Every two cells that differ in exactly one factor, with that factor; of widths and depths adjacent ones alone.

    The first has the smaller width or depth; else `none` comes first, then the alphabet.
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
    for cell in sorted(cells, key=lambda cell: (none_first(cell[factor]), cell["cell_id"])):
        groups[tuple(value for name, value in factor_values(cell).items() if name != factor)].append(cell)
    return groups


def none_first(value: Any) -> tuple[bool, Any]:
    """A key that sorts `none` before every other word."""
    return value != "none", value
