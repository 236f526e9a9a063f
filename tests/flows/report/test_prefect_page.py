"""What stands on Prefect's page, and how seldom the server is asked."""

from __future__ import annotations

import base64
import logging
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pandas as pd
import pytest
from made_tables import write_study
from prefect.artifacts import ArtifactRequest
from prefect.client.schemas.actions import ArtifactCreate

from flows.progress import show_stages
from flows.report import prefect_page
from flows.report.paper_points import tabulate_paper
from flows.report.prefect_page import (
    ProgressArtifacts,
    artifact_key,
    describe_report,
    show_report,
)
from flows.report.summary import tabulate_left_out
from flows.stages import Stages
from infra.paths import figure_key, report_key
from infra.sealing import seal_png
from infra.storage import Store
from tasks.tables import schema


class Server:
    """Takes artifacts, unless it is away."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, str, Any, str]] = []
        self.is_away = False
        self.is_closed = False
        self.now = 0.0
        self._keys: dict[Any, str] = {}

    def create_artifact(self, artifact: ArtifactCreate) -> Any:
        self._take(str(artifact.key), artifact)
        made = SimpleNamespace(id=uuid4())
        self._keys[made.id] = str(artifact.key)
        return made

    def update_artifact(self, artifact_id: Any, artifact: Any) -> None:
        self._take(self._keys[artifact_id], artifact)

    def _take(self, key: str, artifact: Any) -> None:
        if self.is_away:
            raise httpx.ConnectError("nobody listens")
        if self.is_closed:
            raise RuntimeError("Cannot send a request, as the client has been closed.")
        self.calls.append((self.now, key, artifact.data, artifact.description))


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def stages(server: Server) -> Stages:
    return Stages(lambda: server.now)


@pytest.fixture
def artifacts(server: Server) -> ProgressArtifacts:
    client: Any = server
    return ProgressArtifacts(client, "s", uuid4())


def test_progress_is_told_by_few_calls_and_the_last_of_every_stage_always(
    server: Server, stages: Stages, artifacts: ProgressArtifacts
):
    names = ("train", "align", "interpolate", "repair")
    for name in names:
        stages.expect(name, 1200)
    stages.settle()
    for _ in range(240):
        stages.show(artifacts)
        server.now += 0.5
        for name in names:
            stages.advance(name, 5)
    during = len(server.calls)
    stages.show(artifacts, last=True)
    times = [time for time, *_ in server.calls[:during]]
    assert min(later - earlier for earlier, later in pairwise(times)) >= 1
    for name in names:
        of_stage = [call for call in server.calls if call[1] == f"s-progress-{name}"]
        assert 15 <= len(of_stage) <= 22  # two minutes
        assert of_stage[0][2] <= 3
        assert [percent for _, _, percent, _ in of_stage] == sorted(percent for _, _, percent, _ in of_stage)
        assert of_stage[-1][2] == 100
    assert server.calls[-1][3] == "1200 paths in 2 min"


def test_a_stage_at_which_nothing_moves_is_not_told_again(server: Server, stages: Stages, artifacts: ProgressArtifacts):
    stages.expect("train", 2)
    stages.settle()
    for _ in range(100):
        stages.show(artifacts)
        server.now += 1
    stages.show(artifacts, last=True)
    assert [call[1:] for call in server.calls] == [("s-progress-train", 0, "0 of 2 endpoints")]


def test_a_server_that_is_away_is_told_of_once_and_is_given_the_rest_when_it_is_back(
    server: Server, stages: Stages, artifacts: ProgressArtifacts, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING, logger="repairlab")
    stages.expect("train", 2)
    stages.settle()
    server.is_away = True
    for _ in range(30):
        stages.show(artifacts)
        server.now += 1
    stages.advance("train", 1)
    assert caplog.messages == ["the Prefect server does not accept the run's progress: nobody listens"]
    server.is_away = False
    stages.show(artifacts)
    assert [call[1:3] for call in server.calls] == [("s-progress-train", 50)]
    server.is_away = True
    stages.advance("train", 1)
    stages.show(artifacts, last=True)
    assert len(caplog.messages) == 1


def test_a_study_that_ends_while_a_slow_server_is_told_of_it_ends_in_a_line_of_the_log(
    server: Server, artifacts: ProgressArtifacts, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING, logger="repairlab")
    with show_stages([artifacts], quiet=True) as stages:
        for name in ("train", "align"):
            stages.expect(name, 1)
            stages.advance(name, 1)
        server.is_closed = True  # As the end of a flow run closes it, whoever still waits for an answer.
    assert caplog.messages == [
        "the Prefect server does not accept the run's progress: Cannot send a request, as the client has been closed."
    ]


@pytest.mark.parametrize("study", ["digits-depth", "My_Rates.2", "a_b", "a.b", "A-b", "R2D2", "9_", "x--y"])
def test_prefect_takes_every_key(study: str):
    for what in ("progress-train_parent", "left-out"):
        key = artifact_key(study, what)
        assert ArtifactRequest(key=key).key == key
        assert ArtifactCreate(key=key).key == key


def test_keys_of_studies_differ_where_their_names_do():
    names = ["a-b", "a_b", "a.b", "A-b", "a--b"]
    assert len({artifact_key(name, "report") for name in names}) == len(names)
    assert artifact_key("a-b", "progress-train_parent") == "a-b-progress-train-parent"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, str]]:
    """What would be shown, by key."""
    made: dict[str, tuple[Any, str]] = {}

    def create(content: Any, key: str, description: str) -> None:
        made[key] = content, description

    monkeypatch.setattr(prefect_page, "create_table_artifact", create)
    monkeypatch.setattr(prefect_page, "create_markdown_artifact", create)
    return made


def test_a_report_is_shown_with_its_claim_its_table_and_what_was_left_out(
    store: Store, ablation: pd.DataFrame, shown: dict[str, tuple[Any, str]]
):
    write_study(store, ablation)
    picture = seal_png(b"a picture, and its last chunk", figure_key("s", "barriers"))
    store.replace(figure_key("s", "barriers"), picture)
    show_report(store, "s", store.locate(report_key("s")))
    assert set(shown) == {"s-report", "s-ablation", "s-left-out"}  # no network of the paper is in it
    text, description = shown["s-report"]
    assert base64.b64encode(picture).decode() in text
    assert description.startswith("At width 128 and 16 hidden layers on digits, alignment alone leaves")
    rows, legend = shown["s-ablation"]
    assert len(rows) == ablation["depth"].nunique() * 4
    assert rows[-1]["path"] == "aligned, REPAIR"
    assert "-" not in {value for row in rows for value in row.values()}
    assert legend.startswith(description)
    assert shown["s-left-out"][0] == [
        {"width": "128", "depth": "4", "seeds": "1, 2", "status": "diverged", "message": "too wild"}
    ]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("/srv/my runs", "repairlab report s --store '/srv/my runs' --open"),
        ("s3://bucket/prefix", "repairlab report s --store s3://bucket/prefix --open"),
    ],
)
def test_a_page_tells_the_command_that_opens_the_report_and_no_secret(
    url: str, told: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setattr(Store, "exists", lambda _store, _key: False)
    text = describe_report(Store(url), "s", f"{url}/studies/s/report.html")
    assert told in text.splitlines()
    assert f"`{url}/studies/s/report.html`" in text
    assert "secret" not in text


def test_what_was_left_out_is_a_row_for_each_network_and_reason():
    rows = [
        {"width": 16, "seed": 0, "status": "trained", "message": ""},
        {"width": 16, "seed": 2, "status": "diverged", "message": "too wild"},
        {"width": 16, "seed": 1, "status": "diverged", "message": "too wild"},
        {"width": 16, "seed": 3, "status": "failed", "message": "no luck"},
        {"width": 32, "seed": 0, "status": "diverged", "message": "too wild"},
    ]
    endpoints = pd.DataFrame(rows).reindex(columns=list(schema.ENDPOINTS.columns))
    assert tabulate_left_out(endpoints).to_numpy().tolist() == [
        ["16", "1, 2", "diverged", "too wild"],
        ["16", "3", "failed", "no luck"],
        ["32", "0", "diverged", "too wild"],
    ]
    assert tabulate_left_out(endpoints[endpoints["status"] == "trained"]).empty


def test_published_points_that_were_measured_stand_beside_ours():
    point = dict.fromkeys(schema.PAPER.columns) | {
        "dataset": "mnist", "architecture": "mlp", "normalization": "none", "width": 128, "depth": 3,
        "metric": "midpoint_accuracy", "split": "test", "published": 0.5, "n_pairs": 6, "verdict": "inside",
        "mean": 0.55, "new_pair_low": 0.4, "new_pair_high": 0.7,
    }  # fmt: skip
    methods = ({"method": "direct"}, {"method": "REPAIR"}, {"method": "aligned", "n_pairs": 0})
    paper = pd.DataFrame([point | method | {"point": method["method"]} for method in methods])
    shown = tabulate_paper(paper)
    assert shown["network"].unique() == ["mnist mlp none"]
    assert set(shown["method"]) == {"direct", "REPAIR"}
    assert shown.iloc[0][["theirs", "ours [a new pair]", "verdict"]].tolist() == ["50.0", "55.0 [40.0, 70.0]", "inside"]
    assert tabulate_paper(paper[paper["n_pairs"] == 0]).empty
    assert tabulate_paper(paper.iloc[:0]).empty
