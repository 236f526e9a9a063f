"""Studies that a user asks for: one that ships with repairlab, or one defined in a file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, StrictInt, model_validator

from flows.declaration import Design, Extras, OneSentence, RunOptions, study_default
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
"""A name of more parts than any study has. The time to read it grows with the square of their number."""


class OwnStudy(OneSentence, Extras, Design):
    """A user-defined study, with the fields of its TOML file."""

    name: str = Field(description="Name of the study, and of the folder of its tables")
    question: str = Field(default="", description="Question that the study asks, in a sentence")
    recipe: str | dict[str, Any] = Field(
        description="Training recipe as family/name, or a table of its fields, of which `base` names a recipe to start "
        "from"
    )
    measurement: dict[str, Any] = Field(
        default={}, description="Fields of the measurement that differ from the default"
    )
    checkpoints: list[StrictInt | Literal["last"]] = Field(
        default=[], description="Numbers of epochs after which weights are taken, or last"
    )
    spawn_from: list[tuple[StrictInt, StrictInt]] | tuple[StrictInt, StrictInt] | None = Field(
        default=None,
        description="Parents that every cell is spawned from: a seed and an epoch of its training, or a list",
    )

    @model_validator(mode="after")
    def _check_required(self) -> OwnStudy:
        for name in ("dataset", "architecture"):
            if getattr(self, name) is None:
                raise ValueError(f"the field {name} is missing")
        return self

    def preset(self) -> Preset:
        """Return the study. Raises ValueError for a word or number that cannot be."""
        safe_name(self.name)
        if self.name in PRESETS:
            raise ValueError(f"{self.name} is the name of a study that comes with repairlab: choose another name")
        architectures = self.architecture or []
        check_count("cells", len(architectures) * max(1, len(self.normalization or [])), MAX_CELLS)
        recipe = self._recipe()
        return Preset(
            name=self.name,
            question=self.question or f"What does {self.name} show?",
            grids=tuple(self._grid(architecture, recipe) for architecture in architectures),
            n_seeds=self.seeds or study_default("seeds"),
            matchers=tuple(study_default("matcher") if self.matcher is None else self.matcher),
            corrections=tuple(study_default("correction") if self.correction is None else self.correction),
            extras=Extras(**self.given(Extras)),
            measurement=override(DEFAULT_MEASUREMENT, **self.measurement),
            sweep={name: tuple(values) for name, values in (self.sweep or {}).items()},
            checkpoints=tuple(None if epoch == "last" else epoch for epoch in self.checkpoints),
            spawns=self._spawns(),
        )

    def _spawns(self) -> tuple[tuple[int, int], ...]:
        if isinstance(self.spawn_from, tuple):
            return (self.spawn_from,)
        return tuple(self.spawn_from or ())

    def _grid(self, architecture: str, recipe: Recipe) -> Grid:
        default = find_architecture(architecture).default_normalization
        return Grid(
            tuple(self.dataset or ()),
            tuple((architecture, word) for word in self.normalization or [default]),
            tuple(self.width or ()),
            {recipe.name: recipe},
            tuple(self.depth or ()),
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


def _separate(words: str | None) -> list[str]:
    return [] if words is None else [word.strip() for word in words.split(",")]


def read_study(path: Path) -> OwnStudy:
    """Return the study in a file. Raises ValueError, naming the line or the field, for anything else."""
    try:
        # Opening a pipe may block for ever.
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is not a file")
        with path.open("rb") as file:
            data = file.read(MAX_STUDY_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8") from error
    if len(data) > MAX_STUDY_BYTES:
        raise ValueError(f"{path} has more than {MAX_STUDY_BYTES:,} bytes, more than any study needs")
    if deep := _DEEP_NAME.search(text):
        raise ValueError(f"{path} is not a study: {shown(deep[0])} is a name of too many parts")
    try:
        fields = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # Also a number that Python does not read.
        raise ValueError(f"{path} is not TOML: {str(error) or type(error).__name__}") from error
    try:
        return OwnStudy(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class StudyOptions(RunOptions):
    """A study by its name or as its file defines it, and what replaces its own values."""

    own: OwnStudy | None = Field(default=None, description="Study that a file defines")

    def preset(self, find_imported: Callable[[str], Preset | None]) -> Preset:
        """Return the study at its size; `find_imported` returns the study of the networks imported under a name.

        Imports none of the code that it names. Raises ValueError, naming the known ones, for an unknown study or size,
        and for code that only a file or a store names.
        """
        found = self._find(find_imported)
        admit_code(found, self._named(), trusted=self.trust_code)
        return found.resized(self.size)

    def _find(self, find_imported: Callable[[str], Preset | None]) -> Preset:
        if self.own is not None:
            found = self.own.preset()
            self._check_confirms(found)
            return found
        if self.study in PRESETS and (self.network or self.data):
            raise ValueError(
                f"{self.study} comes with repairlab and has its own networks: choose another name for --network and "
                "--data"
            )
        imported = None if self.study in PRESETS else find_imported(self.study)
        return imported or self._of_own_network() or find_preset(self.study)

    def _named(self) -> set[str]:
        """Return the words of the options that may name code."""
        return {*_separate(self.network), *_separate(self.data), *(self.dataset or ()), *(self.architecture or ())}

    def _check_confirms(self, found: Preset) -> None:
        """Raise ValueError where --network or --data name something that the study's file does not.

        With a file they confirm the code that it names, and replace nothing.
        """
        networks = [architecture for grid in found.grids for architecture, _ in grid.networks]
        for option, given, known in (("--network", self.network, networks), ("--data", self.data, found.datasets)):
            for word in _separate(given):
                if word not in known:
                    raise ValueError(
                        f"{option} {word} is not in the file of {self.study}, which names "
                        f"{', '.join(dict.fromkeys(known))}"
                    )

    def _of_own_network(self) -> Preset | None:
        """Return the study that trains a user-defined network, where the options name one."""
        if self.network is None and self.data is None:
            return None
        if self.network is None or self.data is None:
            raise ValueError("--network and --data go together: give both")
        if self.recipe is None:
            raise ValueError(
                f"nothing was imported as {self.study}, and training {self.network} needs a recipe: give --recipe "
                "resnet20-batch/r20-demo, or another of docs/recipes.md as family/name"
            )
        return OwnStudy(
            name=self.study,
            dataset=[self.data],
            architecture=[self.network],
            normalization=self.normalization,
            recipe=self.recipe,
        ).preset()

    def resolve(
        self,
        describe: Callable[[str], DataSpec],
        find_imported: Callable[[str], Preset | None] = lambda _study: None,
    ) -> Request:
        """Return the request of these options; `describe` looks a data set up by name. Raises ValueError as `preset`.

        `find_imported` is as in `preset`.
        """
        preset = self.preset(find_imported)
        trains_own = self.own is None and self.network is not None and not preset.imported
        # The recipe of a user-defined network is that of its study already.
        return preset.request(describe, self.model_copy(update={"recipe": None}) if trains_own else self)
