"""A study as it comes: a grid, its recipes, how it measures, and what it is meant to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from tasks.science.matchers import parse_matcher, published_modules
from tasks.science.networks import ARCHITECTURES, build_network
from tasks.science.request import Request
from tasks.science.specs import Cell, DataSpec, Measurement, Recipe, override

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
        precision: str | None = None,
        alphas: int | None = None,
        architectures: Sequence[str] | None = None,
        normalizations: Sequence[str] | None = None,
        matchers: Sequence[str] | None = None,
        corrections: Sequence[str] | None = None,
        statistics: int | None = None,
        evaluation: int | None = None,
        draw: int | None = None,
    ) -> Request:
        """What is asked of the study when some of its own values are replaced; `describe` looks a data set up.

        `architectures` and `normalizations` choose among the study's own networks.
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
        changes = {"alphas": alphas, "statistics": statistics, "evaluation": evaluation, "draw": draw}
        given = {name: value for name, value in changes.items() if value is not None}
        measurement = override(self.measurement, **given)
        described = [describe(name) for name in dict.fromkeys(datasets or self.datasets)]
        cells: list[Cell] = []
        for data, (architecture, normalization), width in product(
            described, self._networks(architectures, normalizations), dict.fromkeys(widths or self.widths)
        ):
            chosen = self._recipe(word, normalization)
            training = {"epochs": epochs, "precision": precision}
            chosen = override(chosen, **{name: value for name, value in training.items() if value is not None})
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
            matchers=tuple(dict.fromkeys(matchers or self.matchers)),
            corrections=tuple(dict.fromkeys(corrections or self.corrections)),
            measurement=measurement,
        )

    def _networks(
        self, architectures: Sequence[str] | None, normalizations: Sequence[str] | None
    ) -> list[tuple[str, str]]:
        """Those of the study's networks that are of these architectures and normalizations."""
        for wanted, position, word in ((architectures, 0, "architecture"), (normalizations, 1, "normalization")):
            known = list(dict.fromkeys(network[position] for network in self.networks))
            for name in wanted or ():
                if name not in known:
                    raise ValueError(f"{self.name} has no {word} {name!r}; it has {', '.join(known)}")
        chosen = [
            (architecture, normalization)
            for architecture, normalization in self.networks
            if (not architectures or architecture in architectures)
            and (not normalizations or normalization in normalizations)
        ]
        if not chosen:
            listed = ", ".join(f"{architecture} with {normalization}" for architecture, normalization in self.networks)
            raise ValueError(f"{self.name} has no network of that architecture and normalization; it has {listed}")
        return chosen

    def _recipe(self, word: str, normalization: str) -> Recipe:
        recipe = self.recipes[word]
        return recipe if isinstance(recipe, Recipe) else recipe[normalization]
