"""A study as it comes: a grid, its recipes, how it measures, and what it is meant to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from tasks.science.matchers import parse_matcher, published_modules
from tasks.science.networks import ARCHITECTURES, build_network
from tasks.science.specs import Cell, DataSpec, Measurement, Recipe, Request, override

MAX_SEEDS = 10_000

DEFAULT_MEASUREMENT = Measurement("default")


@dataclass(frozen=True)
class Preset:
    """The grid of a study: every network at every width and depth on every data set.

    `networks` pairs architectures with normalizations; an architecture of one depth is not varied over `depths`.
    `recipes` by the word that asks for them, the default first; where normalizations need different ones, by
    normalization.
    """

    name: str
    question: str
    datasets: tuple[str, ...]
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    n_seeds: int
    recipes: Mapping[str, Recipe | Mapping[str, Recipe]]
    networks: tuple[tuple[str, str], ...] = (("mlp", "none"),)
    matchers: tuple[str, ...] = ("none", "activation")
    corrections: tuple[str, ...] = ("none", "repair")
    measurement: Measurement = DEFAULT_MEASUREMENT

    def request(
        self,
        describe: Callable[[str], DataSpec],
        datasets: Sequence[str] | None = None,
        widths: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        n_seeds: int | None = None,
        recipe: str | None = None,
        epochs: int | None = None,
        alphas: int | None = None,
    ) -> Request:
        """What is asked of the study when some of its own values are replaced; `describe` looks a data set up.

        Raises ValueError for a word or number that cannot be, before anything runs.
        """
        if recipe is not None and recipe not in self.recipes:
            raise ValueError(f"{self.name} has no recipe {recipe!r}; known: {', '.join(self.recipes)}")
        if n_seeds is not None and not 2 <= n_seeds <= MAX_SEEDS:
            raise ValueError(
                f"seeds must be at least 2, so that there is a pair to interpolate, and at most {MAX_SEEDS}, "
                f"got {n_seeds}"
            )
        word = recipe if recipe is not None else next(iter(self.recipes))
        measurement = self.measurement if alphas is None else override(self.measurement, alphas=alphas)
        described = [describe(name) for name in dict.fromkeys(datasets or self.datasets)]
        cells: list[Cell] = []
        for data, (architecture, normalization), width in product(
            described, self.networks, dict.fromkeys(widths or self.widths)
        ):
            chosen = self._recipe(word, normalization)
            if epochs is not None:
                chosen = override(chosen, epochs=epochs)
            only_depth = ARCHITECTURES[architecture].depth
            for depth in dict.fromkeys(depths or self.depths) if only_depth is None else [only_depth]:
                cells.append(Cell(data, architecture, normalization, width, depth, chosen))
        published = any(parse_matcher(matcher).options.get("reading") == "published" for matcher in self.matchers)
        for cell in cells:
            network = build_network(cell)
            if published:
                published_modules(network)
        return Request(
            study=self.name,
            cells=tuple(cells),
            seeds=tuple(range(n_seeds if n_seeds is not None else self.n_seeds)),
            matchers=self.matchers,
            corrections=self.corrections,
            measurement=measurement,
        )

    def _recipe(self, word: str, normalization: str) -> Recipe:
        recipe = self.recipes[word]
        return recipe if isinstance(recipe, Recipe) else recipe[normalization]
