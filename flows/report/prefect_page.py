"""What a study's flow run shows on Prefect's page: tags to filter by, how far each stage is, and what was found.

Everything here is a view of what the store has: where the server does not take it, the study goes on without.
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
"""So often, at most, the server is told anything of a study's progress, and anything of one stage's. A call takes it
some ten milliseconds, as much as a task."""


def artifact_key(study: str, what: str) -> str:
    """The key of a study's artifact: Prefect takes lowercase letters, digits and dashes alone. Studies whose names
    differ have keys that differ."""
    slug = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")
    if slug != study:
        slug += f"-{hashlib.sha256(study.encode()).hexdigest()[:6]}"
    return f"{slug}-{what.replace('_', '-')}"


def tag_run(request: Request, size: str | None) -> None:
    """Tags the flow run by what one filters runs by.

    Its tasks are not: for one with tags Prefect asks the server for a free slot before it begins and gives it back at
    its end, and a limit that somebody has set on such a tag would hold studies up.
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
    """Drops, but for a line in the log, what the server does not take because it is away."""
    try:
        yield
    except (httpx.HTTPError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not lost_the_api(error):
            raise
        run_logger().warning("the Prefect server has not taken the run's %s: %s", what, error)


@contextmanager
def progress_artifacts(study: str) -> Generator[Sequence[Watcher]]:
    """What shows a study's stages on the page of the flow run. Nothing where the API is our own: it has no page, and
    each call would only cost."""
    context = FlowRunContext.get()
    watchers: list[Watcher] = []
    with ExitStack() as stack:
        if context is not None and context.flow_run is not None and is_watched():
            with _unless_away("progress"):
                client = stack.enter_context(get_client(sync_client=True))
                watchers.append(ProgressArtifacts(client, study, context.flow_run.id))
        yield watchers


class ProgressArtifacts:
    """An artifact per stage, made when it begins, and kept up to date by few calls."""

    def __init__(self, client: SyncPrefectClient, study: str, flow_run_id: UUID) -> None:
        self._client, self._study, self._flow_run_id = client, study, flow_run_id
        self._ids: dict[str, UUID] = {}
        self._shown: dict[str, Stage] = {}
        self._times: dict[str, float] = {}
        self._last_call = float("-inf")
        self._has_warned = False

    def look(self, stages: Sequence[Stage], now: float, *, last: bool) -> None:
        # The one that was not heard of for longest first.
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
        except (httpx.HTTPError, RuntimeError) as error:  # The latter where the client was closed while a call waited.
            if not self._has_warned:
                run_logger().warning("the Prefect server does not take the run's progress: %s", error)
            self._has_warned = True
        else:
            self._shown[stage.name] = stage


def show_report(store: Store, study: str, where: str) -> None:
    """What a study found, as artifacts of the task that runs: the claim with the main figure, the ablation, the
    comparison with the paper, and what was left out, where there is such."""
    ablation = read_gathered(store, study, "ablation")
    claim = as_markdown(make_claim(ablation))
    create_markdown_artifact(describe_report(store, study, where), artifact_key(study, "report"), claim)
    _show_table(summarise_ablation(ablation, brief=True), artifact_key(study, "ablation"), f"{claim}\n\n{_LEGEND}")
    paper = tabulate_paper(read_gathered(store, study, "paper"))
    _show_table(paper, artifact_key(study, "paper"), _PAPER_LEGEND)
    left_out = tabulate_left_out(read_gathered(store, study, "endpoints"))
    _show_table(left_out, artifact_key(study, "left-out"), "Endpoints that are in no pair, and why.")


_PLAIN = re.compile(r"[\w .,:;/=+()%\[\]-]*")


def as_markdown(text: str) -> str:
    """`text` as Prefect's page, which takes it for Markdown, shows it: a name of a stranger's is no link and no tag."""
    line = one_line(text)
    if _PLAIN.fullmatch(line) and "](" not in line:
        return line
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", line)


_LEGEND = (
    "Test split, means over pairs with 95 % intervals over seeds. barrier: highest rise of the error above the chord, "
    "in points of accuracy; removed: which share of it the correction takes away; loss: barrier in nats; mid, ends: "
    "accuracy at the midpoint and of the endpoints, in %."
)
_PAPER_LEGEND = (
    "Test accuracy in %. Theirs is one pair of the authors of REPAIR; ours is the mean over pairs, and in brackets "
    "where one new pair of two new seeds falls in 95 of 100 cases."
)


def _show_table(rows: pd.DataFrame, key: str, description: str) -> None:
    if len(rows):
        # Prefect's page takes a dash that stands alone for the beginning of a list.
        plain = rows.replace("-", "").map(lambda value: as_markdown(value) if isinstance(value, str) else value)
        records: list[dict[str, Any]] = plain.to_dict(orient="records")  # pyright: ignore
        create_table_artifact(records, key, description)


def describe_report(store: Store, study: str, where: str) -> str:
    """The main figure, and how the whole page is opened: no browser follows a link from Prefect's page to a file or
    into a bucket."""
    lines: list[str] = []
    if store.exists(figure_key(study, "barriers")):
        figure = base64.b64encode(read_png(store, figure_key(study, "barriers"))).decode()
        lines.append(f"![barriers](data:image/png;base64,{figure})")
    command = shlex.join(["repairlab", "report", study, "--store", store.url, "--open"])
    lines += [f"The whole report is `{where}`. Where repairlab is installed, this opens it:", f"```sh\n{command}\n```"]
    return "\n\n".join(lines)
