"""Every option of a study, declared once: type, bounds, help text, and the value of a study that does not state one.

The command line (`flows.cli.run`), a study's file (`flows.options.OwnStudy`), the form on Prefect's page
(`flows.deployed.StudyForm`) and docs/options.md are made from these classes. None stands for the study's own value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from tasks.science.specs.bounds import (
    MAX_ALPHAS,
    MAX_DEPTH,
    MAX_DRAW,
    MAX_EPOCHS,
    MAX_NUMBER,
    MAX_SEEDS,
    MAX_WIDTH,
)
from tasks.science.specs.checks import shown
from tasks.science.specs.recipe import Precision


@dataclass(frozen=True)
class OptionInfo:
    """Metadata of a field beside its type and description.

    `read` turns the words of a command line into the field's value; `default` is the value in a study that does not
    state one; `page` is what docs/options.md adds to the description; `flag` is the option's name where it is not the
    field's, and `metavar` how its value is written; `is_argument` marks a positional argument.
    """

    read: Callable[[str, list[str]], Any] | None = None
    default: Any = None
    page: str | None = None
    flag: str | None = None
    metavar: str | None = None
    is_argument: bool | None = None

    @classmethod
    def of(cls, field: FieldInfo) -> OptionInfo:
        """Return the metadata of a field: of all that it is annotated with, the last that is given."""
        parts = [part for part in field.metadata if isinstance(part, OptionInfo)]
        return cls(**{key: value for part in parts for key, value in vars(part).items() if value is not None})


def split_words(name: str, words: list[str]) -> list[str]:
    """Return the values of an option that is repeated, or given as a comma-separated list."""
    values = [value.strip() for word in words for value in word.split(",")]
    if not all(values):
        raise ValueError(f"--{name} has an empty value: {shown(','.join(words))}")
    return values


def split_numbers(name: str, words: list[str]) -> list[int]:
    """Return the whole numbers of an option that is repeated, or given as a comma-separated list."""
    values = split_words(name, words)
    try:
        return [int(value) for value in values]
    except ValueError as error:
        raise ValueError(f"--{name} takes whole numbers, got {', '.join(values)}") from error


def split_matchers(name: str, words: list[str]) -> list[str]:
    """Return matchers, whose own options are separated by commas too: `a/x=1,y=2,b` are two."""
    matchers: list[str] = []
    for word in split_words(name, words):
        if "=" in word and "/" not in word and matchers:
            matchers[-1] = f"{matchers[-1]},{word}"
        else:
            matchers.append(word)
    return matchers


def split_sweeps(name: str, words: list[str]) -> dict[str, list[Any]]:
    """Return `learning_rate=.1,.2` as a field and its values."""
    from tasks.tables.sweep import parse_value

    swept: dict[str, list[Any]] = {}
    for text in words:
        field, equals, values = text.partition("=")
        if not (equals and all(values.split(","))):
            raise ValueError(f"--{name} takes FIELD=VALUE,VALUE,..., got {text}")
        swept[field] = [parse_value(field, value.strip()) for value in values.split(",")]
    return swept


def _listed(value: Any) -> Any:
    return value if value is None or isinstance(value, list | tuple) else [value]


_NUMBERS = OptionInfo(read=split_numbers, metavar="N,M,...")
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
Depth = Annotated[int, Field(ge=1, le=MAX_DEPTH)]
Words = Annotated[list[str] | None, BeforeValidator(_listed), OptionInfo(read=split_words, metavar="A,B,...")]
Matchers = Annotated[list[str] | None, BeforeValidator(_listed), OptionInfo(read=split_matchers, metavar="A,B,...")]
Widths = Annotated[list[Width] | None, BeforeValidator(_listed), _NUMBERS]
Depths = Annotated[list[Depth] | None, BeforeValidator(_listed), _NUMBERS]
Sweeps = Annotated[dict[str, list[Any]] | None, OptionInfo(read=split_sweeps, metavar="FIELD=A,B,...")]


class Options(BaseModel):
    """A set of options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def given(self, part: type[BaseModel]) -> dict[str, Any]:
        """Return the values of the options in `part` that are given."""
        return {name: value for name in part.model_fields if (value := getattr(self, name)) is not None}


class Variant(Options):
    """One of the sizes and recipes that a study comes with."""

    size: Annotated[
        str | None,
        OptionInfo(page="`small` runs on a laptop in hours, `smoke` in minutes"),
    ] = Field(default=None, description="Size of the study: smoke, small or paper")
    recipe: Annotated[
        str | None,
        OptionInfo(
            page="Command `repairlab studies` lists the names; a user-defined network takes `family/name` of "
            "[the recipes](recipes.md)"
        ),
    ] = Field(default=None, description="Training recipe, one of the study's")


class Design(Options):
    """The factors of a study."""

    dataset: Annotated[
        Words, OptionInfo(page="Known ones, and user-defined ones as [howto/data.md](howto/data.md) says")
    ] = Field(default=None, description="Data sets")
    architecture: Annotated[Words, OptionInfo(page="In a file they define the networks")] = Field(
        default=None, description="Architectures of the networks; a run takes only these of the study's"
    )
    normalization: Annotated[
        Words, OptionInfo(page="In a file they define the networks, by default with the architecture's first one")
    ] = Field(default=None, description="Normalizations of the networks; a run takes only these of the study's")
    width: Annotated[Widths, OptionInfo(page="In a file 1 by default")] = Field(
        default=None, description="Widths of the networks"
    )
    depth: Depths = Field(default=None, description="Numbers of hidden layers, for MLPs")
    seeds: Annotated[int | None, Field(ge=2, le=MAX_SEEDS), OptionInfo(default=4)] = Field(
        default=None, description="Number of seeds that each cell is trained with; every pair of them is measured"
    )
    matcher: Annotated[
        Matchers,
        OptionInfo(
            default=["none", "activation"],
            page="Known are `activation`, `activation-published`, `weight`, `random` or `none`, with options as in "
            "`weight/restarts=5`. [Adding one](howto/matcher.md) takes two changes",
        ),
    ] = Field(
        default=None, description="Matchers that permute network B, such as activation, weight/restarts=5 or none"
    )
    correction: Annotated[
        Words,
        OptionInfo(
            default=["none", "repair"],
            page="[corrections.md](corrections.md) lists them. One that is not defined for a network is left out "
            "there, and a line says so",
        ),
    ] = Field(default=None, description="Corrections of the interpolated network, such as repair, reset or none")
    sweep: Annotated[
        Sweeps,
        OptionInfo(
            page="Fields of the recipes are the columns `recipe_*` of [the table `cells`](tables.md) without that "
            "prefix (`batch_size`, `learning_rate`, ...), fields of the measurement `alphas`, `statistics`, "
            "`evaluation`, `draw`, `augmented`, `flip_averaged` and `evaluated_in`. `epoch=0,1,5,last` takes the "
            "weights of one training after these epochs, and pairs are measured at each. The values are crossed with "
            "all others, and the field is a column of the tables"
        ),
    ] = Field(default=None, description="Fields of the recipes or measurements with several values each")


class TrainingFields(Options):
    """Fields of every recipe of a study."""

    epochs: Annotated[int | None, Field(ge=1, le=MAX_EPOCHS)] = Field(
        default=None, description="Number of training epochs, in place of the recipe's"
    )
    precision: Precision | None = Field(
        default=None,
        description="Precision of training, not the recipe's: float32, bfloat16, or float16 on a GPU",
    )


class MeasurementFields(Options):
    """Fields of every measurement of a study."""

    alphas: Annotated[int | None, Field(ge=3, le=MAX_ALPHAS), OptionInfo(page="The midpoint is then among them")] = (
        Field(default=None, description="Number of points on each path, odd")
    )
    statistics: Annotated[int | None, Field(ge=2, le=MAX_NUMBER)] = Field(
        default=None, description="Number of train images that matchers and corrections see (all by default)"
    )
    evaluation: Annotated[int | None, Field(ge=1, le=MAX_NUMBER)] = Field(
        default=None, description="Number of images of each split that curves are evaluated on (all by default)"
    )
    draw: Annotated[int | None, Field(ge=0, le=MAX_DRAW)] = Field(
        default=None, description="Index of the random choice and augmentation of the statistics images"
    )


class Extras(Options):
    """Measurements beside the paths of every pair."""

    controls: Annotated[bool | None, OptionInfo(default=True, page="Controls have a known outcome")] = Field(
        default=None,
        description="Measure one pair of each cell under a random permutation, and its first network against a "
        "permuted copy",
    )
    ensembles: Annotated[
        bool | None,
        OptionInfo(
            default=False,
            page="It takes twice one network's time and no alignment: `method` is `ensemble` in the table `paths`",
        ),
    ] = Field(default=None, description="Measure every pair with its outputs averaged as well")
    logit_shifts: Annotated[
        bool | None,
        OptionInfo(
            default=False,
            page="A constant is added to the logits of half of the classes, which corrects for the classes that an "
            "endpoint expects more often: `method` is `logit-shift` in the table `paths`, and "
            "`logit-shift/chosen=test` where the constant is chosen on the test split",
        ),
    ] = Field(default=None, description="Measure endpoints with shifted logits, where the train split is in halves")
    joint_training: Annotated[
        bool | None,
        OptionInfo(
            default=False,
            page="It is the network that a merged one is compared with: `method` is `joint` in the table `paths`",
        ),
    ] = Field(default=None, description="Train every seed on both halves as well, where the train split is in halves")


class Choices(Extras, MeasurementFields, TrainingFields, Design, Variant):
    """All values of a study that may be replaced."""


def study_default(name: str) -> Any:
    """Return the value of an option in a study that does not state one."""
    return OptionInfo.of(Choices.model_fields[name]).default


class OneSentence(BaseModel):
    """A model that is refused with a ValueError of one sentence, where pydantic writes several lines.

    The sentence names fields as options where `names_options` is set.
    """

    names_options: ClassVar[bool] = False

    def __init__(self, /, **data: Any) -> None:  # A file may have a field `self`.
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise ValueError(_explain(error, type(self))) from error


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    problem = error.errors()[0]
    context: Mapping[str, Any] = problem.get("ctx", {})
    if problem["type"] == "value_error":
        return str(context["error"])
    name, got = str(problem["loc"][0]), shown(problem["input"])
    field = f"--{name.replace('_', '-')}" if issubclass(model, OneSentence) and model.names_options else name
    match problem["type"]:
        case "extra_forbidden":
            return f"there is no field {shown(name)}; known: {', '.join(model.model_fields)}"
        case "missing":
            return f"the field {field} is missing"
        case "greater_than_equal":
            return f"{field} must be at least {context['ge']}, got {got}"
        case "less_than_equal":
            return f"{field} must be at most {context['le']}, got {got}"
        case "literal_error":
            return f"{field} must be {context['expected'].replace(chr(39), '')}, got {got}"
        case _:
            return f"{field} cannot be {got}: {model.model_fields[name].description}"


class RunOptions(OneSentence, Choices):
    """A study by its name, and what replaces its own values."""

    study: Annotated[str, OptionInfo(is_argument=True)] = Field(
        default="own",
        description="Name of the study, or a TOML file that defines one; `repairlab studies` lists the names",
    )
    network: Annotated[str | None, OptionInfo(page="See [howto/network.md](howto/network.md)")] = Field(
        default=None, description="User-defined network of the study, as package.module:function"
    )
    data: Annotated[str | None, OptionInfo(page="See [howto/data.md](howto/data.md)")] = Field(
        default=None, description="Data set of a user-defined network, or package.module:function that loads one"
    )
    trust_code: Annotated[
        bool, OptionInfo(page="Without it, such code is run only where `--network` and `--data` name it too")
    ] = Field(default=False, description="Run the code that the study's file, or what was imported, names")
