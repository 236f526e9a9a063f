"""What can be said of images and manifests without an engine to run them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

INFRA = Path(__file__).parent.parent.parent / "infra"
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((INFRA / "kubernetes" / "dask.yaml").read_text()))
DOCKERFILE = (INFRA / "Dockerfile").read_text().replace("\\\n", " ")
PAGES = [INFRA.parent / "docs" / name for name in ("scale.md", "howto/gpu.md")]

PINNED = re.compile(r"[\w./-]+:\d+\.\d+[\w.-]*")
SECRET = re.compile(r"(^|_)(PASSWORD|AUTH_STRING|SECRET_ACCESS_KEY|SECRET_KEY)$")


def test_compose_has_every_part_of_the_stack():
    assert set(SERVICES) == {"postgres", "s3", "prefect", "scheduler", "dask-worker", "worker", "setup"}
    assert set(COMPOSE["volumes"]) == {"postgres", "s3", "prefect"}
    for service in SERVICES.values():
        assert set(service.get("depends_on", [])) <= set(SERVICES)


@pytest.mark.parametrize("name", list(SERVICES))
def test_a_service_is_pinned_published_on_loopback_alone_and_holds_no_secret(name: str):
    service = SERVICES[name]
    assert PINNED.fullmatch(service["image"])
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port)
    for variable, value in service.get("environment", {}).items():
        if SECRET.search(variable):
            assert re.fullmatch(r"(repairlab:)?\$\{\w+:\?\}", value), variable
    assert "${" not in str(service.get("command", ""))  # All can read a command line.


def test_the_work_pool_is_closed_to_job_variables_before_a_worker_takes_runs():
    assert "infra.stack.register" in str(SERVICES["setup"]["command"])
    assert SERVICES["worker"]["depends_on"] == {"setup": {"condition": "service_completed_successfully"}}
    assert "worker" not in SERVICES["setup"]["depends_on"]


def test_the_example_names_every_secret_and_holds_none():
    lines = (INFRA / "compose.env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    asked = set(re.findall(r"\$\{(\w+):\?\}", (INFRA / "compose.yaml").read_text()))
    assert set(given) == asked
    assert set(given.values()) == {""}
    assert "compose.env" in (INFRA.parent / ".gitignore").read_text().splitlines()


def test_what_the_image_copies_is_there_and_it_does_not_run_as_root():
    copied = [word for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]]
    assert {"flows", "tasks", "infra"} <= set(copied)
    for path in copied:
        assert (INFRA.parent / path).exists(), path
    base, *others = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert PINNED.fullmatch(base)
    assert not others
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)[-1] == "10001"


def pods() -> dict[str, dict[str, Any]]:
    return {m["metadata"]["name"]: m["spec"]["template"]["spec"] for m in MANIFESTS if m["kind"] == "Deployment"}


def test_kubernetes_has_a_scheduler_and_workers_with_and_without_a_gpu():
    assert set(pods()) == {"dask-scheduler", "dask-cpu-worker", "dask-gpu-worker"}
    for manifest in MANIFESTS:
        if manifest["kind"] == "Deployment":
            labels = manifest["spec"]["template"]["metadata"]["labels"]
            assert manifest["spec"]["selector"]["matchLabels"] == labels
    service = next(manifest for manifest in MANIFESTS if manifest["kind"] == "Service")
    assert service["metadata"]["name"] == "dask-scheduler"
    (worker,) = pods()["dask-gpu-worker"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert worker["command"][-4:] == ["--nthreads", "1", "--resources", "GPU=1"]
    (other,) = pods()["dask-cpu-worker"]["containers"]
    assert "--resources" not in other["command"]
    assert "nvidia.com/gpu" not in other["resources"]["limits"]


def test_a_dask_worker_shows_its_pages_to_its_own_container_alone():
    commands = [list(map(str, service.get("command", []))) for service in SERVICES.values()]
    commands += [container["command"] for pod in pods().values() for container in pod["containers"]]
    workers = [command for command in commands if "distributed.cli.dask_worker" in command]
    assert len(workers) == 3
    for command in workers:
        assert command[command.index("--dashboard-address") + 1] == "127.0.0.1:0"
        assert "--no-dashboard" not in command  # It would be served to every machine all the same.


def test_every_command_for_dask_in_the_documentation_says_where_it_listens():
    shells = [shell for page in PAGES for shell in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)]
    lines = "".join(shells).replace("\\\n", " ").splitlines()
    commands = [line for line in lines if "distributed.cli.dask_" in line]
    assert len(commands) == 6
    for command in commands:
        assert re.search(r" --host \S+ ", command), command
        assert re.search(r" --dashboard-address (\S+|\$\(hostname -i\)):\d+", command)
        assert "--no-dashboard" not in command


@pytest.mark.parametrize("name", list(pods()))
def test_a_pod_is_pinned_has_no_rights_and_holds_no_secret(name: str):
    pod = pods()[name]
    assert pod["securityContext"]["runAsNonRoot"]
    for container in pod["containers"]:
        assert PINNED.fullmatch(container["image"])
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert [variable["name"] for variable in container.get("env", []) if SECRET.search(variable["name"])] == []
