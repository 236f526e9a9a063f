"""A study's flow run on Prefect's page: tags, the progress of each stage, and the report.

All of it shows what is in the store: if the server does not accept it, the study goes on without.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import UUID

import httpx
import pandas as pd
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext

from flows.report.claims import make_claim
from flows.report.gathered import read_gathered
from flows.report.paper_points import tabulate_paper
from flows.report.summary import summarise_ablation, tabulate_left_out
from flows.stages import Stage, Watcher
from infra.paths import figure_key
from infra.runners import is_watched, lost_the_api, run_logger
from infra.sealing import read_png
from infra.storage import Store
from infra.text import one_line
from tasks.science.specs.request import Request

_SECONDS_BETWEEN_CALLS = 1.0
_SECONDS_BETWEEN_UPDATES = 6.0
"""Shortest times between two calls to the server, and between two about the same stage. A call costs the server about
ten milliseconds, as much as a task."""


def artifact_key(study: str, what: str) -> str:
    """Return the key of a study's artifact, unique among studies.

    Prefect accepts only lowercase letters, digits and dashes.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")
    if slug != study:
        slug += f"-{hashlib.sha256(study.encode()).hexdigest()[:6]}"
    return f"{slug}-{what.replace('_', '-')}"


def tag_run(request: Request, size: str | None) -> None:
    """Tag the flow run with its study, size, data sets and networks, to filter runs by.

    Its tasks have no tags: Prefect asks the server for a slot of every tag at the start of a task, and a concurrency
    limit on such a tag would delay studies.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    tags = {f"study:{request.study}", *([f"size:{size}"] if size else [])}
    for cell in request.cells:
        tags |= {f"data:{cell.data.name}", f"network:{cell.architecture}"}
    with _unless_away("tags"), get_client(sync_client=True) as client:
        client.update_flow_run(context.flow_run.id, tags=sorted({*context.flow_run.tags, *tags}))


@contextmanager
def _unless_away(what: str) -> Generator[None]:
    """Replace the error of a server that is away by a warning in the log."""
    try:
        yield
    except (httpx.HTTPError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not lost_the_api(error):
            raise
        run_logger().warning("the Prefect server did not accept the run's %s: %s", what, error)


@contextmanager
def progress_artifacts(study: str) -> Generator[Sequence[Watcher]]:
    """Yield the watchers that show a study's stages on the page of the flow run.

    None if the API is temporary and has no page.
    """
    context = FlowRunContext.get()
    watchers: list[Watcher] = []
    with ExitStack() as stack:
        if context is not None and context.flow_run is not None and is_watched():
            with _unless_away("progress"):
                client = stack.enter_context(get_client(sync_client=True))
                watchers.append(ProgressArtifacts(client, study, context.flow_run.id))
        yield watchers


class ProgressArtifacts:
    """An artifact per stage, made when the stage begins and updated by few calls."""

    def __init__(self, client: SyncPrefectClient, study: str, flow_run_id: UUID) -> None:
        self._client, self._study, self._flow_run_id = client, study, flow_run_id
        self._ids: dict[str, UUID] = {}
        self._shown: dict[str, Stage] = {}
        self._times: dict[str, float] = {}
        self._last_call = float("-inf")
        self._has_warned = False

    def look(self, stages: Sequence[Stage], now: float, *, last: bool) -> None:
        # The stage with the oldest update comes first.
        for stage in sorted(stages, key=lambda stage: self._times.get(stage.name, 0.0)):
            if not last and now - self._last_call < _SECONDS_BETWEEN_CALLS:
                return
            if self._is_due(stage, now, last):
                self._last_call = self._times[stage.name] = now
                self._show(stage, now)

    def _is_due(self, stage: Stage, now: float, last: bool) -> bool:
        if self._shown.get(stage.name) == stage:
            return False
        waited = now - self._times.get(stage.name, float("-inf"))
        return last or waited >= (_SECONDS_BETWEEN_CALLS if stage.is_over else _SECONDS_BETWEEN_UPDATES)

    def _show(self, stage: Stage, now: float) -> None:
        told: dict[str, Any] = {"data": stage.percent, "description": stage.tell(now)}
        try:
            if stage.name in self._ids:
                self._client.update_artifact(self._ids[stage.name], ArtifactUpdate(**told))
            else:
                key = artifact_key(self._study, f"progress-{stage.name}")
                made = ArtifactCreate(key=key, type="progress", flow_run_id=self._flow_run_id, **told)
                self._ids[stage.name] = self._client.create_artifact(made).id
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError if the client was closed during the call.
            if not self._has_warned:
                run_logger().warning("the Prefect server does not accept the run's progress: %s", error)
            self._has_warned = True
        else:
            self._shown[stage.name] = stage


def show_report(store: Store, study: str, where: str) -> None:
    """Show the report as artifacts of the running task.

    These are the claim with the main figure, the ablation, and, if not empty, the comparison with the paper and the
    endpoints left out.
    """
    ablation = read_gathered(store, study, "ablation")
    claim = as_markdown(make_claim(ablation))
    create_markdown_artifact(describe_report(store, study, where), artifact_key(study, "report"), claim)
    _show_table(summarise_ablation(ablation, brief=True), artifact_key(study, "ablation"), f"{claim}\n\n{_LEGEND}")
    paper = tabulate_paper(read_gathered(store, study, "paper"))
    _show_table(paper, artifact_key(study, "paper"), _PAPER_LEGEND)
    left_out = tabulate_left_out(read_gathered(store, study, "endpoints"))
    _show_table(left_out, artifact_key(study, "left-out"), "Endpoints left out of pairs, with the reason.")


_PLAIN = re.compile(r"[\w .,:;/=+()%\[\]-]*")


def as_markdown(text: str) -> str:
    """Return `text` escaped for Prefect's page, which reads Markdown: no name in it becomes a link or a tag."""
    line = one_line(text)
    if _PLAIN.fullmatch(line) and "](" not in line:
        return line
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", line)


_LEGEND = (
    "Test split, means over pairs with 95 % intervals over seeds. barrier: highest rise of the error above the chord, "
    "in points of accuracy; removed: share of it that the correction removes; loss: barrier in nats; mid, ends: "
    "accuracy at the midpoint and of the endpoints, in %."
)
_PAPER_LEGEND = (
    "Test accuracy in %. Theirs is one pair of the authors of REPAIR; ours is the mean over pairs, with the 95 % "
    "prediction interval of one new pair of two new seeds in brackets."
)


def _show_table(rows: pd.DataFrame, key: str, description: str) -> None:
    if len(rows):
        # Prefect's page reads a single dash as a list.
        plain = rows.replace("-", "").map(lambda value: as_markdown(value) if isinstance(value, str) else value)
        records: list[dict[str, Any]] = plain.to_dict(orient="records")  # pyright: ignore
        create_table_artifact(records, key, description)


def describe_report(store: Store, study: str, where: str) -> str:
    """Return the main figure, and the command that opens the report, as Markdown.

    Browsers follow no link from Prefect's page to a file or into a bucket.
    """
    lines: list[str] = []
    if store.exists(figure_key(study, "barriers")):
        figure = base64.b64encode(read_png(store, figure_key(study, "barriers"))).decode()
        lines.append(f"![barriers](data:image/png;base64,{figure})")
    command = shlex.join(["repairlab", "report", study, "--store", store.url, "--open"])
    lines += [f"The whole report is `{where}`. If repairlab is installed, this opens it:", f"```sh\n{command}\n```"]
    return "\n\n".join(lines)
