"""What a person may ask of a study: one of those there are, or one of their own from a file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from flows.presets import PRESETS, find_preset
from flows.presets.preset import DEFAULT_MEASUREMENT, Grid, Preset
from flows.trust import admit_code
from tasks.science.networks import find_architecture
from tasks.science.specs.bounds import MAX_CELLS, MAX_STUDY_BYTES
from tasks.science.specs.checks import check_count, check_words, shown
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import safe_name
from tasks.science.specs.overrides import override
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.recipes import RECIPES
from tasks.science.specs.request import Request

STUDY_FILE = ".toml"

_DEEP_NAME = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){20}""")
"""A name of more parts than any study has. Reading it takes a time that grows with the square of their number."""

Words = str | list[str]
Numbers = int | list[int]


class OwnStudy(BaseModel):
    """A study of a person's own, as its file writes it."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="Name of the study, under which its tables lie")
    question: str = Field("", description="What it asks, in a sentence")
    dataset: Words = Field(description="Data sets, or package.module:function that loads one's own")
    architecture: Words = Field(description="Architectures, or package.module:function that makes one's own")
    normalization: Words = Field(
        [], description="Normalizations: each with every architecture; else none, or what one's own network has"
    )
    width: Numbers = Field([], description="Widths; else 1, or what one's own network has")
    depth: Numbers = Field([], description="Numbers of hidden layers, for MLPs")
    seeds: int = Field(4, description="Seeds of each cell")
    recipe: str | dict[str, Any] = Field(
        description="A recipe as family/name; or a table of its fields, `base` for a recipe that the others change"
    )
    matcher: Words = Field(["none", "activation"], description="Matchers")
    correction: Words = Field(["none", "repair"], description="Corrections")
    measurement: dict[str, Any] = Field({}, description="Fields of the measurement")
    sweep: dict[str, list[Any]] = Field({}, description="Fields of the recipe or measurement, with their values")
    checkpoints: list[StrictInt | Literal["last"]] = Field(
        [], description="After how many epochs weights are taken: numbers, or last"
    )
    spawn_from: list[tuple[StrictInt, StrictInt]] | tuple[StrictInt, StrictInt] | None = Field(
        None,
        description="Parents that every cell is spawned from: a seed and an epoch of its training, or a list of them",
    )
    controls: bool = Field(True, description="Whether one pair of every cell is measured as a control")
    ensembles: bool = Field(False, description="Whether every pair is also measured with its outputs averaged")
    logit_shifts: bool = Field(
        False, description="Whether, where data are in halves, endpoints are measured with half of their logits shifted"
    )
    joint_training: bool = Field(
        False, description="Whether, where data are in halves, every seed is trained on both halves as well"
    )

    def preset(self) -> Preset:
        """ValueError for a word or number that cannot be."""
        safe_name(self.name)
        if self.name in PRESETS:
            raise ValueError(f"{self.name} is the name of a study that comes with repairlab: choose another")
        n_networks = len(_listed(self.architecture)) * max(1, len(_listed(self.normalization)))
        check_count("cells", n_networks, MAX_CELLS)
        recipe = self._recipe()
        return Preset(
            name=self.name,
            question=self.question or f"What does {self.name} show?",
            grids=tuple(self._grid(architecture, recipe) for architecture in _listed(self.architecture)),
            n_seeds=self.seeds,
            matchers=tuple(_listed(self.matcher)),
            corrections=tuple(_listed(self.correction)),
            measurement=override(DEFAULT_MEASUREMENT, **self.measurement),
            sweep={name: tuple(values) for name, values in self.sweep.items()},
            checkpoints=tuple(None if epoch == "last" else epoch for epoch in self.checkpoints),
            spawns=self._spawns(),
            controls=self.controls,
            ensembles=self.ensembles,
            logit_shifts=self.logit_shifts,
            joint_training=self.joint_training,
        )

    def _spawns(self) -> tuple[tuple[int, int], ...]:
        if isinstance(self.spawn_from, tuple):
            return (self.spawn_from,)
        return tuple(self.spawn_from or ())

    def _grid(self, architecture: str, recipe: Recipe) -> Grid:
        default = find_architecture(architecture).default_normalization
        return Grid(
            tuple(_listed(self.dataset)),
            tuple((architecture, word) for word in _listed(self.normalization) or [default]),
            tuple(_listed(self.width)),
            {recipe.name: recipe},
            tuple(_listed(self.depth)),
        )

    def _recipe(self) -> Recipe:
        if isinstance(self.recipe, str):
            return _known_recipe(self.recipe)
        fields: dict[str, Any] = dict(self.recipe)
        if "base" in fields:
            return override(_known_recipe(fields.pop("base")), **fields)
        try:
            return Recipe(**cast("dict[str, Any]", {"name": self.name, **fields}))
        except TypeError as error:
            reason = str(error).replace("Recipe.__init__() ", "")
            raise ValueError(
                f"the recipe of {self.name} cannot be: {reason}; `base` names one to start from"
            ) from error


def _known_recipe(text: Any) -> Recipe:
    check_words("the base of a ", recipe=text)
    family, _, name = text.partition("/")
    if family not in RECIPES:
        raise ValueError(f"there is no recipe {shown(text)}: write family/name, with a family of {', '.join(RECIPES)}")
    if name not in RECIPES[family]:
        raise ValueError(f"there is no recipe {shown(name)} of {family}; known: {', '.join(RECIPES[family])}")
    return RECIPES[family][name].recipe


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list) else [values]


def _separate(words: str | None) -> list[str]:
    return [] if words is None else [word.strip() for word in words.split(",")]


def read_study(path: Path) -> OwnStudy:
    """The study in a file. ValueError, with the line or the field, where it is not one."""
    try:
        # A pipe could be waited at for ever.
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is no file")
        with path.open("rb") as file:
            data = file.read(MAX_STUDY_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8") from error
    if len(data) > MAX_STUDY_BYTES:
        raise ValueError(f"{path} has more than {MAX_STUDY_BYTES:,} bytes, which no study needs")
    if deep := _DEEP_NAME.search(text):
        raise ValueError(f"{path} is no study: {shown(deep[0])} is a name of too many parts")
    try:
        return OwnStudy(**tomllib.loads(text))
    except ValidationError as error:
        raise ValueError(f"{path}: {_first_problem(error)}") from error
    except (ValueError, RecursionError) as error:  # Also a number that Python does not read.
        raise ValueError(f"{path} is not TOML: {str(error) or type(error).__name__}") from error


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    field = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return f"there is no field {shown(field)}; known: {', '.join(OwnStudy.model_fields)}"
    if problem["type"] == "missing":
        return f"the field {field} is missing"
    return f"{field} cannot be {shown(problem['input'])}: {OwnStudy.model_fields[field].description}"


class StudyOptions(BaseModel):
    """A study by its name, and what of it is to be other than it comes."""

    model_config = ConfigDict(extra="forbid")

    study: str = Field(description="Name of the study")
    network: str | None = Field(None, description="package.module:function that makes the network, of one's own")
    data: str | None = Field(None, description="A data set, or package.module:function that loads one's own")
    own: OwnStudy | None = Field(None, description="The study itself, where it is not one that comes with repairlab")
    trust_code: bool = Field(False, description="Whether code is run that the study's file or a store alone names")
    size: str | None = Field(None, description="Another of the study's sizes: smoke, small or paper")
    dataset: list[str] | None = Field(None, description="Data sets instead of the study's own")
    width: list[int] | None = Field(None, description="Widths instead of the study's own")
    depth: list[int] | None = Field(None, description="Numbers of hidden layers instead of the study's own")
    seeds: int | None = Field(None, description="How many seeds of each cell to train")
    recipe: str | None = Field(None, description="Another of the study's recipes")
    epochs: int | None = Field(None, description="Epochs instead of the recipe's own")
    precision: str | None = Field(None, description="What training computes in, instead of the recipe's own")
    alphas: int | None = Field(None, description="Odd number of points on each path")
    architecture: list[str] | None = Field(
        None, description="Of the study's networks only those of these architectures"
    )
    normalization: list[str] | None = Field(None, description="Of the study's networks only those normalized so")
    matcher: list[str] | None = Field(None, description="Matchers instead of the study's own")
    correction: list[str] | None = Field(None, description="Corrections instead of the study's own")
    statistics: int | None = Field(None, description="How many train images matchers and corrections see; else all")
    evaluation: int | None = Field(None, description="How many images of each split curves are evaluated on; else all")
    draw: int | None = Field(None, description="Which random choice of statistics images, and how they are augmented")
    sweep: dict[str, list[Any]] | None = Field(
        None, description="Fields of recipes or measurements, each with the values it takes"
    )

    controls: bool | None = Field(
        None, description="Whether one pair of every cell is measured at random and against itself"
    )
    ensembles: bool | None = Field(None, description="Whether every pair is also measured with its outputs averaged")
    logit_shifts: bool | None = Field(
        None, description="Whether, where data are in halves, endpoints are measured with half of their logits shifted"
    )
    joint_training: bool | None = Field(
        None, description="Whether, where data are in halves, every seed is trained on both halves as well"
    )

    def preset(self, find_imported: Callable[[str], Preset | None]) -> Preset:
        """The study as it comes at its size; nothing that it names is imported. `find_imported` looks for what was
        imported under a name. ValueError, naming those there are, for an unknown study or size, and for code that only
        a file or a store names."""
        found = self._find(find_imported)
        admit_code(found, self._named(), trusted=self.trust_code)
        return found.resized(self.size)

    def _find(self, find_imported: Callable[[str], Preset | None]) -> Preset:
        if self.own is not None:
            found = self.own.preset()
            self._check_confirms(found)
            return found
        if self.study in PRESETS and (self.network or self.data):
            raise ValueError(f"--network and --data make a study of a name of its own, and {self.study} is another")
        imported = None if self.study in PRESETS else find_imported(self.study)
        return imported or self._of_own_network() or find_preset(self.study)

    def _named(self) -> set[str]:
        """Return the words that the options themselves name, places of code among them."""
        return {*_separate(self.network), *_separate(self.data), *(self.dataset or ()), *(self.architecture or ())}

    def _check_confirms(self, found: Preset) -> None:
        """ValueError where --network or --data name something that the study's file does not: there they confirm what
        it names, and replace nothing."""
        networks = [architecture for grid in found.grids for architecture, _ in grid.networks]
        for option, given, known in (("--network", self.network, networks), ("--data", self.data, found.datasets)):
            for word in _separate(given):
                if word not in known:
                    raise ValueError(
                        f"{option} {word} is not what the file of {self.study} names: {', '.join(dict.fromkeys(known))}"
                    )

    def _of_own_network(self) -> Preset | None:
        """The study that trains a person's own network, where one is named."""
        if self.network is None and self.data is None:
            return None
        if self.network is None or self.data is None:
            raise ValueError("--network and --data go together: what is trained, and what on")
        if self.recipe is None:
            raise ValueError(
                f"nothing was imported as {self.study}, and to train {self.network} a recipe is needed: --recipe "
                "resnet20-batch/r20-demo, or another of docs/recipes.md as family/name"
            )
        fields: dict[str, Any] = {
            "name": self.study,
            "dataset": self.data,
            "architecture": self.network,
            "normalization": self.normalization or [],
            "recipe": self.recipe,
        }
        return OwnStudy(**fields).preset()

    def resolve(
        self,
        describe: Callable[[str], DataSpec],
        find_imported: Callable[[str], Preset | None] = lambda _study: None,
    ) -> Request:
        """The request these options make; `describe` looks a data set up by its name, `find_imported` is as in
        `preset`. ValueError for what cannot be."""
        preset = self.preset(find_imported)
        trains_own = self.own is None and self.network is not None and not preset.imported
        return preset.request(
            describe,
            datasets=self.dataset,
            widths=self.width,
            depths=self.depth,
            n_seeds=self.seeds,
            recipe=None if trains_own else self.recipe,
            training=self._given("epochs", "precision"),
            architectures=self.architecture,
            normalizations=self.normalization,
            matchers=self.matcher,
            corrections=self.correction,
            measurement=self._given("alphas", "statistics", "evaluation", "draw"),
            sweep=self.sweep,
            controls=self.controls,
            ensembles=self.ensembles,
            logit_shifts=self.logit_shifts,
            joint_training=self.joint_training,
        )

    def _given(self, *names: str) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(self, name)) is not None}
