"""A study as it comes: its grids, its recipes, how it measures, what it is meant to show, and its other sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from tasks.science.networks import build_network, find_architecture
from tasks.science.specs.bounds import MAX_CELLS, MAX_DEPTH, MAX_SEEDS, MAX_VALUES, MAX_WIDTH
from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.specs.checks import check_count, check_positive, is_own, shown
from tasks.science.specs.data import DataSpec
from tasks.science.specs.matchers import parse_matcher, published_modules
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.overrides import override
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.request import Request
from tasks.science.user_cells import describe_own_grid

DEFAULT_MEASUREMENT = Measurement("default")

Network = tuple[str, str]
"""An architecture with a normalization, which is empty where a person's own network says it by itself."""

FACTORS = ("dataset", "architecture", "normalization", "width", "depth", "matcher", "correction", "seeds")
"""What a study varies by options of their own."""

_RECIPE_FIELDS = [f.name for f in dataclasses.fields(Recipe) if f.name != "name"]
_MEASUREMENT_FIELDS = [f.name for f in dataclasses.fields(Measurement) if f.name != "name"]


@dataclass(frozen=True)
class Grid:
    """Every network at every width and depth on every data set.

    An architecture of one depth is not varied over `depths`; a person's own network has none, and no width, where none
    are given. `recipes` by the word that asks for them, the default
    first.
    """

    datasets: tuple[str, ...]
    networks: tuple[Network, ...]
    widths: tuple[int, ...]
    recipes: Mapping[str, Recipe]
    depths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Size:
    """What is other at this size: grids, seeds, measurement; what is swept and the matchers, where these are given."""

    grids: tuple[Grid, ...]
    n_seeds: int
    measurement: Measurement
    sweep: Mapping[str, tuple[Any, ...]] | None = None
    matchers: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Preset:
    """A study by its name.

    `controls`: whether one pair of every cell is measured under them. `ensembles`: whether every pair is also measured
    with its outputs averaged. `logit_shifts`: whether, where data are in halves, endpoints are measured with half of
    their logits shifted. `joint_training`: whether, there too, every seed is trained on both halves as well. `figure`:
    of the paper, by the name its file has in the authors' repository; empty for one of our own. `ran`: what of it was
    run with this package, and on which data. `sweep`: fields of recipes or measurements that it varies, or `epoch`, at
    which weights are taken. `checkpoints`: such epochs, and `spawns`: parents (`Cell.spawn`) that every cell is spawned
    from, of which a recipe has those that it reaches. `imported`: the endpoints of a study that trains none.
    """

    name: str
    question: str
    grids: tuple[Grid, ...]
    n_seeds: int
    matchers: tuple[str, ...] = ("none", "activation")
    corrections: tuple[str, ...] = ("none", "repair")
    measurement: Measurement = DEFAULT_MEASUREMENT
    sweep: Mapping[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])
    sizes: Mapping[str, Size] = field(default_factory=dict[str, Size])
    checkpoints: tuple[int | None, ...] = ()
    spawns: tuple[tuple[int, int], ...] = ()
    controls: bool = False
    ensembles: bool = False
    logit_shifts: bool = False
    joint_training: bool = False
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
        """What of the times of its cells it varies: columns of its tables."""
        return (*(("epoch",) if self.checkpoints else ()), *(("spawn_seed", "spawn_epoch") if self.spawns else ()))

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for grid in self.grids for name in grid.datasets))

    def resized(self, word: str | None) -> Preset:
        """This study at another size; as it comes for None. ValueError for a size that it does not have."""
        if word is None or (word == "paper" and self.figure and word not in self.sizes):
            return self
        if word not in self.sizes:
            known = f"; known: {', '.join(self.sizes)}" if self.sizes else ": it comes in one"
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

    def request(
        self,
        describe: Callable[[str], DataSpec],
        datasets: Sequence[str] | None = None,
        widths: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        n_seeds: int | None = None,
        recipe: str | None = None,
        training: Mapping[str, Any] | None = None,
        architectures: Sequence[str] | None = None,
        normalizations: Sequence[str] | None = None,
        matchers: Sequence[str] | None = None,
        corrections: Sequence[str] | None = None,
        measurement: Mapping[str, Any] | None = None,
        sweep: Mapping[str, Sequence[Any]] | None = None,
        controls: bool | None = None,
        ensembles: bool | None = None,
        logit_shifts: bool | None = None,
        joint_training: bool | None = None,
    ) -> Request:
        """What is asked of the study when some of its own values are replaced; `describe` looks a data set up.

        `architectures` and `normalizations` choose among the study's own networks; `training` and `measurement` set
        fields of every recipe and measurement, and `sweep` gives such a field several values, or `epoch`: None or
        "last" is the end of training.
        Raises ValueError for a word or number that cannot be, before anything runs.
        """
        _check_seeds(n_seeds)
        for name, values, at_most in (("width", widths, MAX_WIDTH), ("depth", depths, MAX_DEPTH)):
            for value in values or ():
                check_positive("", at_most=at_most, **{name: value})
        set_by_hand = {**(training or {}), **(measurement or {})}
        swept = {name: values for name, values in self.sweep.items() if name not in set_by_hand} | dict(sweep or {})
        of_recipes, of_measurements, epochs = _split_sweep(swept)
        factors = {
            "dataset": datasets, "architecture": architectures, "normalization": normalizations, "width": widths,
            "depth": depths,
        }  # fmt: skip
        if self.imported:
            if recipe is not None or training or of_recipes or epochs is not None:
                raise ValueError(f"the endpoints of {self.name} were imported: none is trained here, in whatever way")
            cells = self._imported_cells(factors)
            seeds = sorted({endpoint.seed for endpoint in self.imported if endpoint.cell in cells})
            if n_seeds is not None and n_seeds > len(seeds):
                raise ValueError(f"{self.name} has {len(seeds)} seeds that were imported, got {n_seeds}")
            seeds = seeds[:n_seeds]
        else:
            _check_seeds(self.n_seeds)
            recipes = self._recipes_of(recipe, training or {}, _combinations(of_recipes))
            cells = self._trained_cells(describe, factors, recipes, epochs)
            seeds = list(range(n_seeds if n_seeds is not None else self.n_seeds))
        chosen_matchers = tuple(dict.fromkeys(matchers or self.matchers))
        published = any(parse_matcher(matcher).options.get("reading") == "published" for matcher in chosen_matchers)
        # Cells that differ in what they are trained on or how have the same network.
        distinct = {(cell.network, cell.data.shape, cell.data.n_classes): cell for cell in cells}
        for cell in distinct.values():
            network = build_network(cell)
            if published:
                published_modules(network)
        base = override(self.measurement, **(measurement or {}))
        return Request(
            study=self.name,
            cells=tuple(dict.fromkeys(cells)),
            seeds=tuple(seeds),
            matchers=chosen_matchers,
            corrections=tuple(dict.fromkeys(corrections or self.corrections)),
            measurements=tuple(dict.fromkeys(override(base, **change) for change in _combinations(of_measurements))),
            swept=tuple(dict.fromkeys([*swept, *self.times, *self._varied(cells)])),
            controls=self.controls if controls is None else controls,
            ensembles=self.ensembles if ensembles is None else ensembles,
            logit_shifts=self.logit_shifts if logit_shifts is None else logit_shifts,
            joint_training=self.joint_training if joint_training is None else joint_training,
        )

    def _recipes_of(
        self, word: str | None, training: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]
    ) -> Callable[[Grid], list[Recipe]]:
        """What gives a grid's recipe of that word, its default for None, with `training` set and each of `changes`."""
        if word is not None and word not in self.recipes:
            raise ValueError(f"{self.name} has no recipe {shown(word)}; known: {', '.join(self.recipes)}")

        def recipes(grid: Grid) -> list[Recipe]:
            chosen = override(grid.recipes[word if word is not None else next(iter(grid.recipes))], **training)
            return [override(chosen, **change) for change in changes]

        return recipes

    def _trained_cells(
        self,
        describe: Callable[[str], DataSpec],
        factors: Mapping[str, Sequence[Any] | None],
        recipes: Callable[[Grid], Sequence[Recipe]],
        epochs: Sequence[Any] | None,
    ) -> list[Cell]:
        """The cells of the grids, with the values of `factors` in place of their own, where any are."""
        cells: list[Cell] = []
        widths, depths = factors["width"], factors["depth"]
        for grid in self._grids(factors["dataset"], factors["architecture"], factors["normalization"]):
            chosen = recipes(grid)
            n_times = max(1, len(self.checkpoints if epochs is None else epochs)) * max(1, len(self.spawns))
            of_grid = (grid.datasets, grid.networks, widths or grid.widths, depths or grid.depths)
            n_cells = math.prod(max(1, len(set(values))) for values in of_grid) * len(chosen) * n_times
            check_count("cells", len(cells) + n_cells, MAX_CELLS)
            times = [time for recipe in chosen for time in self._times(recipe, epochs)]
            specs = [describe(name) for name in dict.fromkeys(grid.datasets)]
            for data, network in product(specs, grid.networks):
                for fields in _described(network, data, widths or grid.widths, depths or grid.depths):
                    cells += [
                        Cell(data, recipe=recipe, epoch=epoch, spawn=spawn, **fields) for recipe, epoch, spawn in times
                    ]
        return cells

    def _imported_cells(self, wanted: Mapping[str, Sequence[Any] | None]) -> list[Cell]:
        """The cells of what was brought in that have one of the values wanted of each factor, where any are."""
        every = list(dict.fromkeys(endpoint.cell for endpoint in self.imported))

        def value(cell: Cell, factor: str) -> Any:
            return cell.data.name if factor == "dataset" else getattr(cell, factor)

        for factor, values in wanted.items():
            there = {value(cell, factor) for cell in every}
            if lacking := [each for each in values or () if each not in there]:
                raise ValueError(f"nothing of {self.name} that was brought in has {factor} {lacking[0]}")
        return [cell for cell in every if all(not of or value(cell, factor) in of for factor, of in wanted.items())]

    def _varied(self, cells: Sequence[Cell]) -> list[str]:
        """The fields of recipes that are known of all that was imported, and differ."""
        known = [set(cell.origin.known) for cell in cells if cell.origin is not None]
        names = sorted(set.intersection(*known)) if known else []
        return [name for name in names if len({getattr(cell.recipe, name) for cell in cells}) > 1]

    def _times(
        self, recipe: Recipe, epochs: Sequence[Any] | None
    ) -> list[tuple[Recipe, int | None, tuple[int, int] | None]]:
        """`recipe` with every epoch at which weights are taken, by default the study's own, and every parent."""
        if epochs is None:
            reached = [epoch for epoch in self.checkpoints if epoch is None or epoch <= recipe.epochs]
            epochs = reached or self.checkpoints or [None]
        # Where a recipe reaches none of them, the cell says so.
        spawns = [spawn for spawn in self.spawns if spawn[1] < recipe.epochs] or self.spawns or [None]
        return [(recipe, epoch, spawn) for spawn in spawns for epoch in epochs]

    def _grids(
        self,
        datasets: Sequence[str] | None,
        architectures: Sequence[str] | None,
        normalizations: Sequence[str] | None,
    ) -> list[Grid]:
        """Those parts of the grids that are of these data sets, architectures and normalizations. A data set that is
        not the study's own is taken by every grid of the study's first one."""
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
                chosen.append(dataclasses.replace(grid, networks=kept, datasets=names))
        if not chosen:
            listed = ", ".join(f"{architecture} with {normalization}" for architecture, normalization in networks)
            raise ValueError(
                f"{self.name} has no network of that architecture, normalization and data set; it has {listed}"
            )
        return chosen


def _check_seeds(n_seeds: int | None) -> None:
    """ValueError for a number of seeds that a study cannot have; None is no number of its own."""
    if n_seeds is not None and not 2 <= n_seeds <= MAX_SEEDS:
        raise ValueError(
            f"seeds must be at least 2, so that there is a pair to interpolate, and at most {MAX_SEEDS}, "
            f"got {shown(n_seeds)}"
        )


def _described(network: Network, data: DataSpec, widths: Sequence[int], depths: Sequence[int]) -> list[dict[str, Any]]:
    """The fields of a cell that say which network it is, for `network` at each width and depth that it can have."""
    architecture, normalization = network
    if is_own(architecture):
        return describe_own_grid(architecture, data, widths, depths, normalization)
    known = find_architecture(architecture)
    return [
        {"architecture": architecture, "normalization": normalization, "width": width, "depth": depth}
        for width in dict.fromkeys(widths)
        for depth in (dict.fromkeys(depths) if known.depth is None else [known.depth])
    ]


def _split_sweep(
    swept: Mapping[str, Sequence[Any]],
) -> tuple[dict[str, Sequence[Any]], dict[str, Sequence[Any]], list[Any] | None]:
    """The fields of recipes, those of measurements, and the epochs at which weights are taken, None where these are not
    swept; ValueError, naming those there are, for any other field."""
    for name, values in swept.items():
        if name in FACTORS:
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
    """Every choice of one value for each field; one choice of nothing where no field is swept."""
    return [dict(zip(swept, values, strict=True)) for values in product(*swept.values())]
