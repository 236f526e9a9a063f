"""The runner on Dask: which worker a task lands on. GPUs are faked: a resource is only a word to Dask."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import dask
import pytest
from dask.distributed import Client, SpecCluster
from looking import Seen, look
from prefect import flow
from prefect.testing.utilities import prefect_test_harness
from prefect_dask.task_runners import DaskTaskRunner
from processes import Process, wait_until

from infra.dask import count_workers, on_gpu, start_cluster
from infra.runners import Routing, ServerError, check_runner, make_runner
from infra.settings import Settings

pytestmark = [pytest.mark.dask, pytest.mark.slow]

N_TASKS = 8
TESTS = str(Path(__file__).parent.parent)


@pytest.fixture(scope="module", autouse=True)
def _prefect() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[SpecCluster]:
    """A worker without a GPU, and two that are told they have one."""
    with start_cluster(n_workers=1, n_gpus=2) as cluster:
        yield cluster


def run_tasks(cluster: Any) -> tuple[list[Seen], list[Seen]]:
    """What tasks that ask for a GPU, and tasks that do not, saw."""

    @flow(task_runner=DaskTaskRunner(address=cluster.scheduler_address))
    def both() -> tuple[list[Seen], list[Seen]]:
        futures = []
        for place in (on_gpu, nullcontext):
            with place():
                futures.append([look.submit(number) for number in range(N_TASKS)])
        return tuple([future.result() for future in submitted] for submitted in futures)

    return both()


def most_at_once(seen: list[Seen]) -> int:
    return max(sum(begun <= other < ended for _, _, begun, ended in seen) for _, _, other, _ in seen)


def test_tasks_for_a_gpu_run_on_workers_with_one_each_seeing_its_own_and_one_at_a_time(cluster: SpecCluster):
    on_gpus, anywhere = run_tasks(cluster)
    assert {(name, device) for name, device, _, _ in on_gpus} == {("gpu-0", "0"), ("gpu-1", "1")}
    assert ("cpu-0", "") in {(name, device) for name, device, _, _ in anywhere}
    for worker in ("gpu-0", "gpu-1"):
        assert most_at_once([seen for seen in on_gpus if seen[0] == worker]) == 1
    assert len(on_gpus) == len(anywhere) == N_TASKS


def test_a_worker_that_is_long_in_coming_back_is_waited_for():
    given_up = dask.config.set({"distributed.deploy.lost-worker-timeout": "10ms"})
    with given_up, start_cluster(n_workers=1, n_gpus=0) as cluster, Client(cluster) as client:
        before = client.submit(os.getpid, pure=False).result(60)
        os.kill(before, signal.SIGKILL)
        after = client.submit(os.getpid, pure=False).result(60)
        assert after != before
        # Given up, it would be ended now.
        time.sleep(3)
        assert client.submit(os.getpid, pure=False).result(30) == after


def test_a_worker_of_many_threads_and_one_gpu_takes_one_such_task_at_a_time(tmp_path: Path):
    """As somebody may start it, against the advice: the resource counts, not the threads."""
    with start_cluster(n_workers=0, n_gpus=0) as empty:
        address = empty.scheduler_address
        words = ("dask", "worker", address, "--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
        words += ("--nthreads", "4")
        folders = [tmp_path / name for name in ("one", "two")]
        workers: list[Process] = []
        try:
            for folder in folders:
                folder.mkdir()
                words_of = (*words, "--resources", "GPU=1", "--local-directory", str(folder))
                workers.append(Process(folder / "log", *words_of, CUDA_VISIBLE_DEVICES="0", PYTHONPATH=TESTS))
            wait_until(lambda: count_workers(address) == (2, 2), 60, every=0.3)
            with Client(address, set_as_default=False) as client:
                with on_gpu():
                    asking = [client.submit(look.fn, number, pure=False) for number in range(N_TASKS)]
                others = [client.submit(look.fn, number, pure=False) for number in range(N_TASKS)]
                on_gpus, anywhere = client.gather(asking), client.gather(others)
        finally:
            for worker in workers:
                worker.kill()
    by_worker = Counter(name for name, *_ in on_gpus)
    assert len(by_worker) == 2
    for worker in by_worker:
        assert most_at_once([seen for seen in on_gpus if seen[0] == worker]) == 1
    assert most_at_once(anywhere) > 2


def test_workers_and_their_gpus_are_counted(cluster: SpecCluster):
    assert count_workers(cluster.scheduler_address) == (3, 2)


def test_training_alone_is_routed_and_only_where_there_are_gpus():
    annotations: Callable[[], Any] = dask.get_annotations
    with Routing.of(Settings(runner="dask", device="cuda")).training():
        assert annotations() == {"resources": {"GPU": 1}}
    for settings in (Settings(runner="dask"), Settings(runner="threads", device="cuda")):
        with Routing.of(settings).training():
            assert annotations() == {}
    assert Routing.of(Settings(runner="dask", device="cuda")).tags == ("gpu",)
    assert Routing.of(Settings(runner="dask")).tags == ()


def test_a_cluster_of_ones_own_has_as_many_workers_as_asked_for():
    runner = make_runner(Settings(runner="dask", workers=2))
    assert isinstance(runner, DaskTaskRunner)
    assert runner.cluster_kwargs == {"n_workers": 2, "n_gpus": 0}
    assert make_runner(Settings(runner="dask", scheduler="tcp://127.0.0.1:1")).address == "tcp://127.0.0.1:1"


def test_what_could_never_run_is_refused_in_a_sentence(cluster: SpecCluster, monkeypatch):
    address = cluster.scheduler_address
    check_runner(Settings(runner="dask", scheduler=address))
    check_runner(Settings(runner="dask", scheduler=address, device="cuda"))
    with pytest.raises(ServerError, match=r"the Dask scheduler tcp://127.0.0.1:9 does not answer \(.+\): start it"):
        check_runner(Settings(runner="dask", scheduler="tcp://127.0.0.1:9"))
    with socket.socket() as other_kind:
        other_kind.bind(("127.0.0.1", 0))
        other_kind.listen()
        monkeypatch.setattr("infra.dask._CONNECT_SECONDS", 1)
        with pytest.raises(ServerError, match="does not answer"):
            check_runner(Settings(runner="dask", scheduler=f"tcp://127.0.0.1:{other_kind.getsockname()[1]}"))
        monkeypatch.undo()
    with pytest.raises(ServerError, match=r"does not answer .*set up Dask's TLS"):
        check_runner(Settings(runner="dask", scheduler="tls://127.0.0.1:9"))
    with pytest.raises(ServerError, match="torch finds no GPU here: leave out --device cuda"):
        check_runner(Settings(runner="processes", device="cuda"))
    with start_cluster(n_workers=1, n_gpus=0) as other:
        with pytest.raises(ServerError, match=r"has no workers with a GPU: start some, dask worker tcp://.* GPU=1"):
            check_runner(Settings(runner="dask", scheduler=other.scheduler_address, device="cuda"))
        other.scale(0)
        wait_until(lambda: count_workers(other.scheduler_address) == (0, 0), 30)
        with pytest.raises(ServerError, match="has no workers: start some"):
            check_runner(Settings(runner="dask", scheduler=other.scheduler_address))
    monkeypatch.setattr("infra.dask.count_workers", lambda _address: (1, 0))
    monkeypatch.setattr(
        "infra.runners.get_current_settings", lambda: type("S", (), {"api": type("A", (), {"url": None})})
    )
    with pytest.raises(ServerError, match="cannot reach a Prefect server that lives in this process"):
        check_runner(Settings(runner="dask", scheduler="tcp://head-node:8786"))
