"""What a Prefect server runs by itself: a study, or the report of one, asked for in a form and carried out by a worker.

The worker's environment says where and on what, as `REPAIRLAB_STORE`, `REPAIRLAB_RUNNER` and so on.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, field_validator

import flows.report.page
from flows.commands.imports import resolve
from flows.options import StudyOptions
from flows.plan import refuse_training
from flows.presets import PRESETS
from flows.study import FOR_A_PERSON, carry_out
from infra.runners import check_runner, make_runner
from infra.settings import Settings, load_settings
from infra.storage import Store, StoreError
from tasks.data.datasets import describe_dataset
from tasks.science.specs.bounds import MAX_ALPHAS, MAX_DEPTH, MAX_EPOCHS, MAX_NUMBER, MAX_SEEDS, MAX_WIDTH
from tasks.science.specs.checks import is_whole
from tasks.science.specs.recipe import Precision
from tasks.science.specs.user_code import names_code

if TYPE_CHECKING:
    StudyName = str
    SizeName = str
else:
    # A form shows them as lists to choose from.
    StudyName = Literal[tuple(PRESETS)]
    SizeName = Literal[tuple(dict.fromkeys(size for preset in PRESETS.values() for size in (*preset.sizes, "paper")))]

Positive = Annotated[int, Field(ge=1, le=MAX_NUMBER)]
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
Depth = Annotated[int, Field(ge=1, le=MAX_DEPTH)]
Epochs = Annotated[int, Field(ge=1, le=MAX_EPOCHS)]

_STORES = r"^(s3://|gs://|gcs://|abfs://|az://|[/~])[^@?#]*$"


def _check_word(word: str) -> str:
    if names_code(word):
        raise ValueError(
            "package.module:function is run where you name it yourself, and not from a form: name what comes with "
            "repairlab"
        )
    return word


def _check_store(url: str) -> str:
    """ValueError, which does not repeat what may hold a password, for what is no store."""
    try:
        if re.fullmatch(_STORES, url) and _is_fixed(url):
            Store(url)
            return url
    except StoreError:
        pass
    raise ValueError(
        "the store must be an absolute folder, or a URL such as s3://bucket/prefix without a password or other words"
    )


def _is_fixed(url: str) -> bool:
    """Whether it is the same place wherever the worker happens to run."""
    try:
        return "://" in url or Path(url).expanduser().is_absolute()
    except RuntimeError:  # There is no such person as in ~person.
        return False


# A server compares a run's parameters with the form's patterns before it takes them.
Word = Annotated[str, AfterValidator(_check_word), WithJsonSchema({"type": "string", "pattern": "^[^:]*$"})]
StoreUrl = Annotated[str, AfterValidator(_check_store), WithJsonSchema({"type": "string", "pattern": _STORES})]


def _in_order(schema: dict[str, Any]) -> None:
    """Numbers the fields as they stand here, for Prefect's page: PostgreSQL keeps them by the length of their names."""
    fields = schema["properties"]
    for position, name in enumerate(sorted(fields, key=lambda name: name == "store")):
        fields[name]["position"] = position


class Place(BaseModel):
    """Where the worker is to keep everything."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_in_order, hide_input_in_errors=True)

    store: StoreUrl | None = Field(
        None, description="Store as an absolute folder or s3://bucket/prefix; else the worker's REPAIRLAB_STORE"
    )

    def place(self, settings: Settings) -> Settings:
        """`settings` with this store. ValueError for a folder that would lie wherever the worker happens to run."""
        url = self.store or settings.store
        if not _is_fixed(url):
            raise ValueError(
                f"the store {url!r} would lie wherever the worker runs: give an absolute folder or a URL, here or as "
                "REPAIRLAB_STORE of the worker"
            )
        return settings.model_copy(update={"store": url})


class StudyForm(Place):
    """A study, and what of it is to be other than it comes."""

    study: StudyName = Field("digits-depth", description="Which study")
    size: SizeName | None = Field(None, description="Another of the study's sizes")
    dataset: list[Word] | None = Field(None, description="Data sets instead of the study's own")
    width: list[Width] | None = Field(None, description="Widths instead of the study's own")
    depth: list[Depth] | None = Field(None, description="Numbers of hidden layers instead of the study's own")
    seeds: Annotated[int, Field(ge=2, le=MAX_SEEDS)] | None = Field(
        None, description="How many seeds of each cell are trained; every pair of them is measured"
    )
    recipe: str | None = Field(None, description="Another of the study's training recipes")
    epochs: Epochs | None = Field(None, description="Epochs instead of the recipe's own")
    precision: Precision | None = Field(None, description="What training computes in; float16 on a GPU alone")
    alphas: Annotated[int, Field(ge=3, le=MAX_ALPHAS)] | None = Field(
        None, description="Points on each path, an odd number"
    )
    architecture: list[Word] | None = Field(None, description="Only the study's networks of these architectures")
    normalization: list[str] | None = Field(None, description="Only the study's networks normalized so")
    matcher: list[str] | None = Field(None, description="How B is permuted: activation, weight/restarts=5, none, ...")
    correction: list[str] | None = Field(None, description="What is done after interpolation: repair, reset, none, ...")
    statistics: Positive | None = Field(None, description="How many train images matchers and corrections see")
    evaluation: Positive | None = Field(None, description="How many images of each split curves are evaluated on")
    sweep: dict[str, list[Any]] | None = Field(
        None, description="Fields of recipes or measurements, each with the values it takes"
    )

    @field_validator("sweep")
    @classmethod
    def _bound_epochs(cls, sweep: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
        if any(is_whole(value, MAX_EPOCHS + 1) for value in (sweep or {}).get("epochs", [])):
            raise ValueError(f"epochs must be at most {MAX_EPOCHS}")
        return sweep

    def options(self) -> StudyOptions:
        return StudyOptions(**self.model_dump(exclude={"store"}))


class ReportForm(Place):
    """A study that was run on the store."""

    study: str = Field("digits-depth", description="Name of a study that has tables in the store")


def _check_as_deployed() -> None:
    """ValueError where this run was asked for with job variables: the work pool gives none of them any effect, but a
    server that was asked past its own check, or before the pool was closed, still has the run."""
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None and context.flow_run.job_variables:
        raise ValueError(
            "this run was asked for with job variables, which none may set here, and they had no effect: ask for it "
            "again without them"
        )


@flow(name="study", flow_run_name="{options.study}", task_runner=make_runner(load_settings()), persist_result=False)
def study(options: StudyForm) -> State[Any]:
    """Trains what a study lacks, measures every pair, and gathers its tables and report."""
    try:
        _check_as_deployed()
        settings = options.place(load_settings())
        store = Store(settings.store, settings.upstream)
        request = resolve(options.options(), store, lambda name: describe_dataset(name, settings.data_dir))
        refusal = refuse_training(store, request, settings.device)
    except (ValueError, *FOR_A_PERSON) as error:
        return Failed(message=str(error))
    if refusal is not None:
        return Failed(message=refusal)
    try:
        check_runner(settings)
        result = carry_out(options.options(), settings.anchored())
    except FOR_A_PERSON as error:
        return Failed(message=str(error))
    return Completed(message=f"Report: {result.report}")


@flow(name="report", flow_run_name="{options.study}", persist_result=False)
def report(options: ReportForm) -> State[Any]:
    """Draws a study's figures and report page again, from its tables alone."""
    try:
        _check_as_deployed()
        settings = options.place(load_settings())
        drawn = flows.report.page.report.with_options(task_run_name=f"report {options.study}")
        page = drawn(options.study, Store(settings.store))
    except (ValueError, *FOR_A_PERSON) as error:
        return Failed(message=str(error))
    return Completed(message=f"Report: {page}")
