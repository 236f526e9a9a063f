"""Options of `repairlab merge` and `repairlab import`, declared once as those of a study are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator

from flows.declaration import OneSentence, OptionInfo
from infra.weights import SUFFIX
from tasks.science.specs.corrections import find_correction
from tasks.science.specs.identity import safe_name
from tasks.science.specs.matchers import parse_matcher


class MergeOptions(OneSentence):
    """Two weights files, and what is made of them."""

    names_options: ClassVar[bool] = True
    model_config = ConfigDict(extra="forbid", frozen=True)

    a: Annotated[Path, OptionInfo(is_argument=True)] = Field(
        description="Weights of network A: a safetensors or torch file"
    )
    b: Annotated[Path, OptionInfo(is_argument=True)] = Field(
        description="Weights of network B, which has the same architecture"
    )
    network: str = Field(description="package.module:function that builds the network")
    data: str = Field(description="Known data set, or package.module:function that loads one")
    out: Path = Field(description="Safetensors file to write, which must not exist")
    alpha: float = Field(default=0.5, ge=0, le=1, description="Weight of B in the interpolation, from 0 (A) to 1 (B)")
    matcher: str = Field(default="activation", description="Matcher that aligns the units, with its options")
    correction: str = Field(default="repair", description="Correction of the interpolated network")
    statistics: int = Field(default=5000, ge=2, description="Number of train images that activations are measured on")
    allow_extra_layers: bool = Field(
        default=False, description="Write tensors that the network's class lacks, where needed"
    )

    @field_validator("matcher")
    @classmethod
    def _check_matcher(cls, matcher: str) -> str:
        parse_matcher(matcher)
        return matcher

    @field_validator("correction")
    @classmethod
    def _check_correction(cls, correction: str) -> str:
        find_correction(correction)
        return correction

    @field_validator("out")
    @classmethod
    def _check_out(cls, out: Path) -> Path:
        if out.suffix != SUFFIX:
            raise ValueError(f"--out must end in {SUFFIX}, the format that is written, got {out}")
        return out


def split_facts(name: str, words: list[str]) -> dict[str, str]:
    """Return `learning_rate=.1` as a field and its value."""
    facts: dict[str, str] = {}
    for text in words:
        field, equals, value = text.partition("=")
        if not (equals and value):
            raise ValueError(f"--{name} takes FIELD=VALUE, got {text}")
        facts[field] = value
    return facts


class ImportOptions(OneSentence):
    """Weights files, and what is known of them."""

    names_options: ClassVar[bool] = True
    model_config = ConfigDict(extra="forbid", frozen=True)

    files: Annotated[list[str], OptionInfo(read=lambda _name, words: words, is_argument=True)] = Field(
        description="Weights files or patterns of them: safetensors or torch files"
    )
    network: str = Field(description="Known architecture, or package.module:function that builds the network")
    data: str = Field(description="Known data set, or package.module:function that loads one")
    study: str = Field(default="imported", description="Study that the networks become the endpoints of")
    facts: Annotated[dict[str, str], OptionInfo(read=split_facts, flag="set", metavar="FIELD=VALUE")] = Field(
        default={}, description="Known field of the training recipe, or width, depth or normalization"
    )
    seed_from: Literal["order", "name"] = Field(
        default="order", description="Source of the seeds: order of the files, or the last number in each name"
    )

    @field_validator("study")
    @classmethod
    def _check_study(cls, study: str) -> str:
        return safe_name(study)
