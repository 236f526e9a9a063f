"""Flows that a Prefect server deploys: a study and a report, which a form asks for and a worker carries out.

The worker's environment holds the settings: `REPAIRLAB_STORE`, `REPAIRLAB_RUNNER` and so on.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

import flows.report.page
from flows.declaration import Choices
from flows.options import StudyOptions
from flows.plan import refuse_training
from flows.presets import PRESETS
from flows.resolve import resolve
from flows.study import FOR_A_PERSON, carry_out
from infra.runners import check_runner, make_runner
from infra.settings import Settings, load_settings
from infra.storage import Store, StoreError
from tasks.data.datasets import describe_dataset
from tasks.science.specs.user_code import names_code

if TYPE_CHECKING:
    StudyName = str
    SizeName = str
else:
    # A form shows them as lists to choose from.
    StudyName = Literal[tuple(PRESETS)]
    SizeName = Literal[tuple(dict.fromkeys(size for preset in PRESETS.values() for size in (*preset.sizes, "paper")))]

_STORES = r"^(s3://|gs://|gcs://|abfs://|az://|[/~])[^@?#]*$"


def _check_word(word: str) -> str:
    if names_code(word):
        raise ValueError(
            f"{word} names code, which no form may run: name what comes with repairlab, or run the study by command"
        )
    return word


def _check_store(url: str) -> str:
    """Return the URL of a store. Raises ValueError, without the URL, which may hold a password, for anything else."""
    try:
        if re.fullmatch(_STORES, url) and _is_fixed(url):
            Store(url)
            return url
    except StoreError:
        pass
    raise ValueError(
        "the store must be an absolute folder, or a URL such as s3://bucket/prefix without a password or options"
    )


def _is_fixed(url: str) -> bool:
    """Return whether a URL is the same place in whichever folder the worker runs."""
    try:
        return "://" in url or Path(url).expanduser().is_absolute()
    except RuntimeError:  # There is no such user as in ~user.
        return False


# A server compares a run's parameters with the form's patterns before it takes them.
PlainWord = Annotated[str, AfterValidator(_check_word), WithJsonSchema({"type": "string", "pattern": "^[^:]*$"})]
StoreUrl = Annotated[str, AfterValidator(_check_store), WithJsonSchema({"type": "string", "pattern": _STORES})]


def _in_order(schema: dict[str, Any]) -> None:
    """Set the order of the fields, the store last, since PostgreSQL sorts them by the length of their names."""
    fields = schema["properties"]
    first = [name for name in ("study", "size") if name in fields]
    others = [name for name in fields if name not in (*first, "store")]
    for position, name in enumerate([*first, *others, "store"]):
        fields[name]["position"] = position


class Place(BaseModel):
    """The store that a worker writes to."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_in_order, hide_input_in_errors=True)

    store: StoreUrl | None = Field(
        default=None, description="Absolute folder or URL of the store (the worker's REPAIRLAB_STORE by default)"
    )

    def place(self, settings: Settings) -> Settings:
        """Return `settings` with this store. ValueError for a relative folder."""
        url = self.store or settings.store
        if not _is_fixed(url):
            raise ValueError(
                f"the store {url!r} is relative to the folder where the worker runs: give an absolute folder or a URL, "
                "here or as REPAIRLAB_STORE of the worker"
            )
        return settings.model_copy(update={"store": url})


def _told(name: str) -> Any:
    """Return the declaration of an option of which the form takes fewer values."""
    return Field(default=None, description=Choices.model_fields[name].description)


class StudyForm(Place, Choices):
    """A study, and the values that replace its own; user-defined code cannot be named here."""

    study: StudyName = Field(default="digits-depth", description="Name of the study")
    size: SizeName | None = _told("size")
    dataset: list[PlainWord] | None = _told("dataset")
    architecture: list[PlainWord] | None = _told("architecture")

    def options(self) -> StudyOptions:
        """Return the options that the form asks for."""
        return StudyOptions(**self.model_dump(exclude={"store"}))


class ReportForm(Place):
    """A study that was run on the store."""

    study: str = Field(default="digits-depth", description="Name of a study that has tables in the store")


def _check_as_deployed() -> None:
    """Raise ValueError where this run was asked for with job variables.

    The work pool gives them no effect, but the server may hold runs from before the pool was closed.
    """
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None and context.flow_run.job_variables:
        raise ValueError(
            "this run was asked for with job variables, which are not allowed and had no effect: ask for it again "
            "without them"
        )


@flow(name="study", flow_run_name="{options.study}", task_runner=make_runner(load_settings()), persist_result=False)
def study(options: StudyForm) -> State[Any]:
    """Train the missing endpoints of a study, measure every pair, and gather its tables and report."""
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
    """Draw a study's figures and report page again, from its tables alone."""
    try:
        _check_as_deployed()
        settings = options.place(load_settings())
        drawn = flows.report.page.report.with_options(task_run_name=f"report {options.study}")
        page = drawn(options.study, Store(settings.store))
    except (ValueError, *FOR_A_PERSON) as error:
        return Failed(message=str(error))
    return Completed(message=f"Report: {page}")
