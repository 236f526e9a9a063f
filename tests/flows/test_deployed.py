"""What a deployment runs, called as a flow under a temporary Prefect server."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.flows import load_flow_from_entrypoint
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate
from pydantic import ValidationError

from flows.deployed import ReportForm, StudyForm, report, study
from flows.options import StudyOptions
from flows.presets import PRESETS
from infra.settings import Settings
from infra.storage import Store

TINY = {"study": "digits-depth", "depth": [2], "width": [16], "seeds": 2, "epochs": 2, "alphas": 3}

DEPLOYMENTS = yaml.safe_load((Path(__file__).parent.parent.parent / "infra" / "prefect.yaml").read_text())

SCHEMA = parameter_schema(study).model_dump()
"""What a server knows of the parameters of a deployment."""


def run(form: StudyForm):
    configured = study.with_options(task_runner=ThreadPoolTaskRunner(max_workers=1))
    return configured(form, return_state=True)


def test_every_deployment_is_of_a_flow_that_takes_its_parameters():
    assert DEPLOYMENTS["pull"] == []
    found = {}
    for deployment in DEPLOYMENTS["deployments"]:
        found[deployment["name"]] = flow = load_flow_from_entrypoint(deployment["entrypoint"])
        assert flow.validate_parameters(deployment["parameters"])
        assert deployment["concurrency_limit"]["limit"] == 1
    assert found == {"study": study, "report": report}


def test_the_form_asks_only_for_what_a_study_takes_and_offers_every_study():
    assert set(StudyForm.model_fields) - {"store"} <= set(StudyOptions.model_fields)
    form = parameter_schema(study).model_dump()["definitions"]["StudyForm"]["properties"]
    assert form["study"]["enum"] == list(PRESETS)
    sizes = next(choice["enum"] for choice in form["size"]["anyOf"] if "enum" in choice)
    assert set(sizes) == {"smoke", "small", "paper"}
    seeds = next(choice for choice in form["seeds"]["anyOf"] if choice["type"] == "integer")
    assert (seeds["minimum"], seeds["maximum"]) == (2, 10_000)
    assert all(field["description"] for field in form.values())
    assert sorted(form, key=lambda name: form[name]["position"])[:2] == ["study", "size"]
    assert form["store"]["position"] == len(form) - 1


@pytest.mark.parametrize("change", [{"study": "mlp-girth"}, {"seeds": 1}, {"width": [0]}, {"size": "huge"}, {"x": 1}])
def test_a_form_takes_nothing_that_cannot_be(change: dict):
    with pytest.raises(ValidationError):
        StudyForm(**{**TINY, **change})


@pytest.mark.parametrize(
    "change",
    [{"width": [65_537]}, {"depth": [1_001]}, {"epochs": 100_001}, {"draw": 2**63}],
)
def test_a_form_asks_for_nothing_beyond_all_measure(change: dict):
    with pytest.raises(ValidationError, match=r"at most|less than or equal"):
        StudyForm(**{**TINY, **change})


@pytest.mark.parametrize("field", ["dataset", "architecture"])
def test_a_form_names_no_code(field: str):
    """Neither what carries it out nor the server takes such a word."""
    with pytest.raises(ValidationError, match="os:getcwd names code, which no form may run"):
        StudyForm(**{**TINY, field: ["digits", "os:getcwd"]})
    assert validate({"options": {**TINY, field: ["os:getcwd"]}}, SCHEMA)


@pytest.mark.parametrize(
    "url",
    [
        "http://somewhere/secret",
        "file:///tmp/secret",
        "memory://secret",
        "local://secret",
        "github://secret",
        "simplecache::s3://bucket/secret",
        "s3://user:secret@bucket/prefix",
        "s3://bucket/prefix?key=secret",
        "s3://bucket/prefix#secret",
        "/tmp/secret@here",
        "./secret",
        "secret",
    ],
)
def test_a_form_takes_no_store_that_is_another_place_or_holds_a_secret_and_does_not_repeat_it(url: str):
    for form in (StudyForm, ReportForm):
        with pytest.raises(ValidationError, match="the store must be an absolute folder, or a URL") as caught:
            form(store=url)
        assert "secret" not in str(caught.value)
    assert validate({"options": {"store": url}}, SCHEMA)


def test_a_store_in_the_home_of_nobody_is_none():
    with pytest.raises(ValidationError, match="the store must be an absolute folder"):
        StudyForm(store="~nosuch/x")
    with pytest.raises(ValueError, match="give an absolute folder or a URL"):
        StudyForm().place(Settings(store="~nosuch/x"))


@pytest.mark.parametrize("url", ["/srv/runs", "~/runs", "s3://bucket/prefix", "gs://bucket", None])
def test_a_form_takes_stores_that_all_workers_find(url: str | None):
    assert StudyForm(store=url).store == url
    assert validate({"options": {"store": url}}, SCHEMA) == []


@pytest.mark.usefixtures("prefect_server")
class TestUnderAServer:
    def test_a_study_is_one_run_and_its_report_another(self, store: Store):
        state = run(StudyForm(**TINY, store=store.url))
        assert state.is_completed()
        page = store.url + "/studies/digits-depth/report.html"
        assert state.message == f"Report: {page}"
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=["digits-depth"])))
            (own,) = [run for run in runs if (run.parameters.get("options") or {}).get("store") == store.url]
            assert own.parent_task_run_id is None
            assert {"data:digits", "network:mlp", "study:digits-depth"} <= set(own.tags)
        Path(page).unlink()
        again = report(ReportForm(study="digits-depth", store=store.url), return_state=True)
        assert again.is_completed()
        assert Path(page).is_file()

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"alphas": 4}, "the number of alphas must be odd"),
            ({"recipe": "nouvelle"}, "digits-depth has no recipe 'nouvelle'"),
            ({"size": "small"}, "digits-depth has no size 'small'"),
            ({"sweep": {"learning_rate": [[1, 2]]}}, "learning_rate must be a finite number of at least 0, got [1, 2]"),
            ({"sweep": {"learning_rate": [None]}}, "learning_rate must be a finite number of at least 0, got None"),
            ({"sweep": {"epochs": [1, 10**9]}}, "epochs must be at most 100000, got 1000000000"),
            ({"precision": "float16"}, "float16"),
        ],
    )
    def test_what_cannot_be_fails_the_run_with_one_sentence(self, store: Store, change: dict, sentence: str):
        state = run(StudyForm(**{**TINY, "store": store.url, **change}))
        assert state.is_failed()
        assert sentence in state.message
        assert "\n" not in state.message

    def test_a_report_without_tables_says_what_makes_them(self, store: Store):
        state = report(ReportForm(study="digits-depth", store=store.url), return_state=True)
        assert state.is_failed()
        assert "`repairlab run digits-depth` makes them" in state.message
