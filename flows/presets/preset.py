"""A study with its own values: grids, recipes, measurement, question, and other sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from flows.declaration import Choices, Extras, MeasurementFields, TrainingFields, study_default
from tasks.science.networks import build_network, find_architecture
from tasks.science.specs.bounds import MAX_CELLS, MAX_VALUES
from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.specs.checks import check_count, shown
from tasks.science.specs.data import DataSpec
from tasks.science.specs.matchers import parse_matcher, published_modules
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.overrides import override
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.request import Request
from tasks.user_code import count_layers

DEFAULT_MEASUREMENT = Measurement("default")

Network = tuple[str, str]
"""An architecture with a normalization; an empty one is the default of a user-defined network."""

_CELL_FACTORS = ("dataset", "architecture", "normalization", "width", "depth")
"""Options that replace or choose the cells of a study."""

_FACTORS = (*_CELL_FACTORS, "matcher", "correction", "seeds")
"""Options that a sweep cannot vary."""

_RECIPE_FIELDS = [f.name for f in dataclasses.fields(Recipe) if f.name != "name"]
_MEASUREMENT_FIELDS = [f.name for f in dataclasses.fields(Measurement) if f.name != "name"]


@dataclass(frozen=True)
class Grid:
    """Every network at every width and depth on every data set.

    An architecture of one depth is not varied over `depths`; a user-defined network has no width and no depth unless
    they are given. `recipes` maps the word of `--recipe` to the recipe, the default first.
    """

    datasets: tuple[str, ...]
    networks: tuple[Network, ...]
    widths: tuple[int, ...]
    recipes: Mapping[str, Recipe]
    depths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Size:
    """The values of a study at another size; its own sweep and matchers stay unless they are given."""

    grids: tuple[Grid, ...]
    n_seeds: int
    measurement: Measurement
    sweep: Mapping[str, tuple[Any, ...]] | None = None
    matchers: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Preset:
    """A study by its name.

    `extras`: measurements beside the paths, each the default unless given. `sweep`: fields of recipes or measurements
    with several values, or `epoch`, at which weights are taken. `checkpoints`: such epochs, and `spawns`: parents
    (`Cell.spawn`) that every cell is spawned from; a recipe has those that it reaches. `imported`: the endpoints of a
    study that trains none. `figure`: the paper's figure, by the name of its file in the authors' repository; empty
    otherwise. `ran`: the parts that were run with this package, and their data.
    """

    name: str
    question: str
    grids: tuple[Grid, ...]
    n_seeds: int = study_default("seeds")
    matchers: tuple[str, ...] = tuple(study_default("matcher"))
    corrections: tuple[str, ...] = tuple(study_default("correction"))
    extras: Extras = field(default_factory=Extras)
    measurement: Measurement = DEFAULT_MEASUREMENT
    sweep: Mapping[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])
    sizes: Mapping[str, Size] = field(default_factory=dict[str, Size])
    checkpoints: tuple[int | None, ...] = ()
    spawns: tuple[tuple[int, int], ...] = ()
    imported: tuple[Endpoint, ...] = ()
    figure: str = ""
    ran: str = "not run"

    @property
    def recipes(self) -> tuple[str, ...]:
        """The words that every grid has a recipe for, the default first."""
        first, *others = (grid.recipes for grid in self.grids)
        return tuple(word for word in first if all(word in recipes for recipes in others))

    @property
    def default_recipes(self) -> tuple[str, ...]:
        """The word of each grid's default."""
        return tuple(dict.fromkeys(next(iter(grid.recipes)) for grid in self.grids))

    @property
    def times(self) -> tuple[str, ...]:
        """The times of its cells that it varies: columns of its tables."""
        return (*(("epoch",) if self.checkpoints else ()), *(("spawn_seed", "spawn_epoch") if self.spawns else ()))

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for grid in self.grids for name in grid.datasets))

    def resized(self, word: str | None) -> Preset:
        """Return this study at another size, and itself for None. ValueError for a size that it does not have."""
        if word is None or (word == "paper" and self.figure and word not in self.sizes):
            return self
        if word not in self.sizes:
            known = f"; known: {', '.join(self.sizes)}" if self.sizes else ": it has one size"
            raise ValueError(f"{self.name} has no size {shown(word)}{known}")
        size = self.sizes[word]
        return dataclasses.replace(
            self,
            grids=size.grids,
            n_seeds=size.n_seeds,
            measurement=size.measurement,
            sweep=self.sweep if size.sweep is None else size.sweep,
            matchers=size.matchers or self.matchers,
        )

    def request(self, describe: Callable[[str], DataSpec], choices: Choices | None = None) -> Request:
        """Return the request of this study with `choices` in place of its own values; `describe` looks a data set up.

        Raises ValueError for a word or number that cannot be, before anything runs.
        """
        choices = choices or Choices()
        measured = choices.given(MeasurementFields)
        replaced = measured | choices.given(TrainingFields)
        swept = {name: values for name, values in self.sweep.items() if name not in replaced} | (choices.sweep or {})
        of_recipes, of_measurements, epochs = _split_sweep(swept)
        if self.imported:
            if choices.recipe is not None or choices.given(TrainingFields) or of_recipes or epochs is not None:
                raise ValueError(f"the endpoints of {self.name} were imported: none is trained here, in whatever way")
            cells, seeds = self._imported(choices)
        else:
            cells = self._trained_cells(describe, choices, self._recipes_of(choices, _combinations(of_recipes)), epochs)
            seeds = range(choices.seeds or self.n_seeds)
        matchers = tuple(dict.fromkeys(choices.matcher or self.matchers))
        _check_networks(cells, matchers)
        base = override(self.measurement, **measured)
        return Request(
            study=self.name,
            cells=tuple(dict.fromkeys(cells)),
            seeds=tuple(seeds),
            matchers=matchers,
            corrections=tuple(dict.fromkeys(choices.correction or self.corrections)),
            measurements=tuple(dict.fromkeys(override(base, **change) for change in _combinations(of_measurements))),
            swept=tuple(dict.fromkeys([*swept, *self.times, *self._varied(cells)])),
            **self._extras(choices),
        )

    def _extras(self, choices: Choices) -> dict[str, bool]:
        defaults = {name: study_default(name) for name in Extras.model_fields}
        return defaults | self.extras.given(Extras) | choices.given(Extras)

    def _recipes_of(self, choices: Choices, changes: Sequence[Mapping[str, Any]]) -> Callable[[Grid], list[Recipe]]:
        """Return a function from a grid to its recipe as `choices` change it, once for each of `changes`."""
        word = choices.recipe
        if word is not None and word not in self.recipes:
            raise ValueError(f"{self.name} has no recipe {shown(word)}; known: {', '.join(self.recipes)}")

        def recipes(grid: Grid) -> list[Recipe]:
            own = grid.recipes[word if word is not None else next(iter(grid.recipes))]
            chosen = override(own, **choices.given(TrainingFields))
            return [override(chosen, **change) for change in changes]

        return recipes

    def _trained_cells(
        self,
        describe: Callable[[str], DataSpec],
        choices: Choices,
        recipes: Callable[[Grid], Sequence[Recipe]],
        epochs: Sequence[Any] | None,
    ) -> list[Cell]:
        """Return the cells of the grids, with the factors that are given in place of their own."""
        cells: list[Cell] = []
        for grid in self._grids(choices):
            chosen = recipes(grid)
            n_times = max(1, len(self.checkpoints if epochs is None else epochs)) * max(1, len(self.spawns))
            of_grid = (grid.datasets, grid.networks, grid.widths, grid.depths)
            n_cells = math.prod(max(1, len(set(values))) for values in of_grid) * len(chosen) * n_times
            check_count("cells", len(cells) + n_cells, MAX_CELLS)
            times = [time for recipe in chosen for time in self._times(recipe, epochs)]
            specs = [describe(name) for name in dict.fromkeys(grid.datasets)]
            for data, network in product(specs, grid.networks):
                for fields in _described(network, data, grid.widths, grid.depths):
                    cells += [
                        Cell(data, recipe=recipe, epoch=epoch, spawn=spawn, **fields) for recipe, epoch, spawn in times
                    ]
        return cells

    def _imported(self, choices: Choices) -> tuple[list[Cell], list[int]]:
        """Return the imported cells that have the factors that are given, and their seeds."""
        every = list(dict.fromkeys(endpoint.cell for endpoint in self.imported))
        wanted = {factor: values for factor in _CELL_FACTORS if (values := getattr(choices, factor))}

        def value(cell: Cell, factor: str) -> Any:
            return cell.data.name if factor == "dataset" else getattr(cell, factor)

        for factor, values in wanted.items():
            there = {value(cell, factor) for cell in every}
            if lacking := [each for each in values if each not in there]:
                raise ValueError(f"no network that was imported as {self.name} has {factor} {lacking[0]}")
        cells = [cell for cell in every if all(value(cell, factor) in values for factor, values in wanted.items())]
        seeds = sorted({endpoint.seed for endpoint in self.imported if endpoint.cell in cells})
        if choices.seeds is not None and choices.seeds > len(seeds):
            raise ValueError(f"{self.name} has {len(seeds)} seeds that were imported, got {choices.seeds}")
        return cells, seeds[: choices.seeds]

    def _varied(self, cells: Sequence[Cell]) -> list[str]:
        """Return the fields of recipes that are known of all imported cells, and differ."""
        known = [set(cell.origin.known) for cell in cells if cell.origin is not None]
        names = sorted(set.intersection(*known)) if known else []
        return [name for name in names if len({getattr(cell.recipe, name) for cell in cells}) > 1]

    def _times(
        self, recipe: Recipe, epochs: Sequence[Any] | None
    ) -> list[tuple[Recipe, int | None, tuple[int, int] | None]]:
        """Return `recipe` with every epoch at which weights are taken, by default the study's own, and every parent."""
        if epochs is None:
            reached = [epoch for epoch in self.checkpoints if epoch is None or epoch <= recipe.epochs]
            epochs = reached or self.checkpoints or [None]
        # Where a recipe reaches none of them, the cell says so.
        spawns = [spawn for spawn in self.spawns if spawn[1] < recipe.epochs] or self.spawns or [None]
        return [(recipe, epoch, spawn) for spawn in spawns for epoch in epochs]

    def _grids(self, choices: Choices) -> list[Grid]:
        """Return the parts of the grids with these data sets, architectures and normalizations, at these sizes.

        Every grid of the study's first data set takes a data set that is not the study's own.
        """
        datasets, architectures, normalizations = choices.dataset, choices.architecture, choices.normalization
        networks = tuple(dict.fromkeys(network for grid in self.grids for network in grid.networks))
        for wanted, position, word in ((architectures, 0, "architecture"), (normalizations, 1, "normalization")):
            known = list(dict.fromkeys(network[position] for network in networks))
            for name in wanted or ():
                if name not in known:
                    raise ValueError(f"{self.name} has no {word} {shown(name)}; it has {', '.join(known)}")
        chosen: list[Grid] = []
        for grid in self.grids:
            kept = tuple(
                (architecture, normalization)
                for architecture, normalization in grid.networks
                if (not architectures or architecture in architectures)
                and (not normalizations or normalization in normalizations)
            )
            names = grid.datasets
            if datasets:
                takes_others = self.datasets[0] in grid.datasets
                names = tuple(
                    name for name in datasets if name in grid.datasets or (takes_others and name not in self.datasets)
                )
            if kept and names:
                widths, depths = tuple(choices.width or grid.widths), tuple(choices.depth or grid.depths)
                chosen.append(dataclasses.replace(grid, networks=kept, datasets=names, widths=widths, depths=depths))
        if not chosen:
            listed = ", ".join(f"{architecture} with {normalization}" for architecture, normalization in networks)
            raise ValueError(
                f"{self.name} has no network of that architecture, normalization and data set; it has {listed}"
            )
        return chosen


def _check_networks(cells: Sequence[Cell], matchers: Sequence[str]) -> None:
    """Build every network once. ValueError where one cannot be, or has no published reading that a matcher asks for."""
    published = any(parse_matcher(matcher).options.get("reading") == "published" for matcher in matchers)
    # Cells that differ in their data or recipe have the same network.
    distinct = {(cell.network, cell.data.shape, cell.data.n_classes): cell for cell in cells}
    for cell in distinct.values():
        network = build_network(cell)
        if published:
            published_modules(network)


def _described(network: Network, data: DataSpec, widths: Sequence[int], depths: Sequence[int]) -> list[dict[str, Any]]:
    """Return the fields of a cell that define its network, for `network` at each width and depth that it can have."""
    architecture, normalization = network
    return find_architecture(architecture).describe_grid(data, widths, depths, normalization, count_layers)


def _split_sweep(
    swept: Mapping[str, Sequence[Any]],
) -> tuple[dict[str, Sequence[Any]], dict[str, Sequence[Any]], list[Any] | None]:
    """Return the swept fields of recipes and of measurements, and the epochs at which weights are taken, if any.

    Raises ValueError, naming the known fields, for any other field.
    """
    for name, values in swept.items():
        if name in _FACTORS:
            raise ValueError(f"{name} has an option of its own: --{name}")
        if name not in [*_RECIPE_FIELDS, *_MEASUREMENT_FIELDS, "epoch"]:
            raise ValueError(
                f"there is no field {shown(name)} to sweep; known, of recipes: {', '.join(_RECIPE_FIELDS)}; of "
                f"measurements: {', '.join(_MEASUREMENT_FIELDS)}; and epoch"
            )
        if not values:
            raise ValueError(f"a sweep of {name} needs at least one value")
    n_combinations = math.prod(len(values) for values in swept.values())
    if n_combinations > MAX_VALUES:
        raise ValueError(f"a sweep has at most {MAX_VALUES} combinations of values, got {n_combinations}")
    return (
        {name: values for name, values in swept.items() if name in _RECIPE_FIELDS},
        {name: values for name, values in swept.items() if name in _MEASUREMENT_FIELDS},
        [None if epoch == "last" else epoch for epoch in swept["epoch"]] if "epoch" in swept else None,
    )


def _combinations(swept: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every choice of one value for each field; a single empty choice where no field is swept."""
    return [dict(zip(swept, values, strict=True)) for values in product(*swept.values())]
