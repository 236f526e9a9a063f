"""What a person may ask of a study."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

from flows.presets import find_preset
from tasks.science.request import Request
from tasks.science.specs import DataSpec


class StudyOptions(BaseModel):
    """A study by its name, and what of it is to be other than it comes."""

    model_config = ConfigDict(extra="forbid")

    study: str = Field(description="Name of the study")
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

    def resolve(self, describe: Callable[[str], DataSpec]) -> Request:
        """The request these options make; `describe` looks a data set up by its name. ValueError for what cannot be."""
        return find_preset(self.study).request(
            describe,
            datasets=self.dataset,
            widths=self.width,
            depths=self.depth,
            n_seeds=self.seeds,
            recipe=self.recipe,
            epochs=self.epochs,
            precision=self.precision,
            alphas=self.alphas,
            architectures=self.architecture,
            normalizations=self.normalization,
            matchers=self.matcher,
            corrections=self.correction,
            statistics=self.statistics,
            evaluation=self.evaluation,
            draw=self.draw,
        )
