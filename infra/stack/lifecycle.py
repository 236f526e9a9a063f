"""Bring the stack up, report its state, and take it down: exactly what was started, and nothing else."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from infra.stack.credentials import Credentials, load_credentials
from infra.stack.errors import StackError
from infra.stack.parts import Part, make_parts, secret_environment
from infra.stack.place import (
    LOOPBACK,
    Folder,
    StackSettings,
    StackState,
    address_of,
    choose_ports,
    is_free,
    write_private,
)
from infra.stack.processes import end, family, identify, marked, start_detached

_POLL_SECONDS = 0.2

_FREEING_SECONDS = 5.0
"""For how long what a part that was killed had started may still hold its ports."""

_RECOVERY_SECONDS = 60.0
"""For how long what runs may take to answer again, once what it needs was started again."""


@dataclass(frozen=True)
class Report:
    """State of a part: `running`, `ended` if it was started and has died, or `down`."""

    name: str
    title: str
    condition: str
    where: str


def up(settings: StackSettings) -> list[str]:
    """Start the parts that do not run, stage by stage, and return their titles.

    Raises StackError if a part does not start, after the parts that this call started are ended again. Deployments and
    the file of exports are made in any case: an earlier call may have been killed before it came to them.
    """
    folder = Folder(settings.dir)
    folder.make()
    with folder.locked():
        state = folder.read_state()
        if state is not None and state.host != settings.host and _any_runs(state):
            raise StackError(f"the stack is up on {state.host}: take it down before it goes to {settings.host}")
        if state is None or not _any_runs(state):
            fresh = StackState(host=settings.host, ports=choose_ports(settings.host))
            # What outlived its part still bears the old mark.
            state = fresh if state is None else fresh.model_copy(update={"mark": state.mark})
        credentials = load_credentials(folder.secrets, folder.path / "postgres" / "data")
        parts = make_parts(folder, state, credentials)
        begun: list[Part] = []
        try:
            for takes_runs in (False, True):
                if takes_runs:
                    # Its pool is closed to job variables before a worker takes the first run.
                    _register(folder, state, credentials)
                wanted = [part for part in parts if part.takes_runs == takes_runs]
                for _, members in groupby(wanted, key=lambda part: part.stage):
                    stage = list(members)
                    running = [part for part in stage if _runs(state, part)]
                    _start_stage([part for part in stage if part not in running], begun, folder, state)
                    # It may have waited for what was missing.
                    for part in running:
                        _check_answers(part, folder.log(part.name), _RECOVERY_SECONDS if begun else 0)
            write_private(folder.env, _exports(state, credentials))
        except BaseException:
            # Ctrl-C too: what is half up is of no use.
            for part in reversed(begun):
                _end_part(state, part.name, part)
            folder.write_state(state)
            raise
        return [part.title for part in parts if part in begun]


def _any_runs(state: StackState) -> bool:
    return any(started.is_running for started in state.processes.values())


def _runs(state: StackState, part: Part) -> bool:
    return part.name in state.processes and state.processes[part.name].is_running


def _start_stage(stage: Sequence[Part], begun: list[Part], folder: Folder, state: StackState) -> None:
    """Start the parts of one stage together, and wait until each answers."""
    waiting: list[tuple[Part, subprocess.Popen[bytes]]] = []
    for part in stage:
        _check_ports(part, state)
        if part.prepare is not None:
            part.prepare()
        process = start_detached(part.command, part.environment, folder.log(part.name), part.folder, part.user)
        waiting.append((part, process))
        if started := identify(process):
            begun.append(part)
            state.processes[part.name] = started
            folder.write_state(state)
    for part, process in waiting:
        _wait_for(part, process, folder.log(part.name))


def _check_answers(part: Part, log: Path, patience_seconds: float) -> None:
    """Raise StackError if a running part does not answer within `patience_seconds`."""
    deadline = time.monotonic() + patience_seconds
    while not part.answers():
        if time.monotonic() > deadline:
            raise StackError(
                f"{part.title} runs but does not answer (its log: {log}): take the stack down, and bring it up again"
            )
        time.sleep(_POLL_SECONDS)


def _check_ports(part: Part, state: StackState) -> None:
    """Raise StackError if another process listens on a port of a part that is to start.

    The parts that already run know it by that port, so it cannot take another.
    """
    deadline = time.monotonic() + _FREEING_SECONDS
    for name in part.ports:
        host, port = address_of(state.host, name), state.ports[name]
        while not is_free(host, port):
            if time.monotonic() > deadline:
                raise StackError(
                    f"port {port} of {host}, which {part.title} is to listen on, is taken by another process: end "
                    "that, or take the stack down and bring it up again, on another port"
                )
            time.sleep(_POLL_SECONDS)


def _wait_for(part: Part, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the part answers. After the part has exited, another process may be listening on its port."""
    deadline = time.monotonic() + part.startup_seconds
    while True:
        answered = process.poll() is None and part.answers()
        if (code := process.poll()) is not None:
            raise StackError(f"{part.title} ended as it started (exit code {code}); its log: {log}")
        if answered:
            return
        if time.monotonic() > deadline:
            raise StackError(f"{part.title} did not answer within {part.startup_seconds:g} s; its log: {log}")
        time.sleep(_POLL_SECONDS)


def _register(folder: Folder, state: StackState, credentials: Credentials) -> None:
    """Register work pool, automation and deployments with the Prefect server, in a process of its own.

    Prefect reads where its server is when it is imported.
    """
    log = folder.log("deployments")
    worker = next(part for part in make_parts(folder, state, credentials) if part.name == "prefect-worker")
    with log.open("ab") as file:
        command = [sys.executable, "-m", "infra.stack.register"]
        code = subprocess.run(
            command, env=worker.environment, cwd=folder.path, stdout=file, stderr=file, check=False
        ).returncode
    if code:
        raise StackError(f"the deployments could not be made (exit code {code}); their log: {log}")


def _exports(state: StackState, credentials: Credentials) -> str:
    """Return a shell file that makes a terminal a client of the stack."""
    variables = secret_environment(state, credentials)
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


def down(settings: StackSettings) -> list[str]:
    """End what `up` has started, with its descendants, and return the names of these parts."""
    folder = Folder(settings.dir)
    folder.check()
    if not folder.path.is_dir():
        return []
    with folder.locked():
        state = folder.read_state()
        if state is None:
            return []
        known: dict[str, Part] = {}
        # Whatever is missing by now, what runs is to end: then without the manners of its part.
        try:
            credentials = load_credentials(folder.secrets, folder.path / "postgres" / "data")
            known = {part.name: part for part in make_parts(folder, state, credentials)}
        except StackError:
            pass
        ended = [name for name in list(reversed(state.processes)) if _end_part(state, name, known.get(name))]
        # Runs whose worker was killed have lost their parent, and bear the mark.
        end(marked(state.mark), signal.SIGTERM, patience_seconds=5)
        folder.forget_state()
        return [known[name].title if name in known else name for name in ended]


def _end_part(state: StackState, name: str, part: Part | None) -> bool:
    """End a part with its descendants, and return whether it ran."""
    started = state.processes.pop(name)
    members = family(started)
    if not members:
        return False
    ending = part.ending if part is not None else signal.SIGTERM
    patience = part.patience_seconds if part is not None else 15
    if part is not None and part.children_first:
        end(members[1:], signal.SIGTERM, patience)
    # Children of a server that ends in order end with it, and are killed only where they do not.
    end([started], ending, patience)
    end(members[1:], signal.SIGTERM, patience_seconds=5)
    for path in part.litter if part is not None else ():
        path.unlink(missing_ok=True)
    return True


def status(settings: StackSettings) -> list[Report]:
    """Return the state of every part, in the order in which they start, or an empty list if there is no stack."""
    folder = Folder(settings.dir)
    state = folder.read_state()
    if state is None:
        return []
    credentials = load_credentials(folder.secrets, folder.path / "postgres" / "data")
    reports: list[Report] = []
    for part in make_parts(folder, state, credentials):
        condition = "running" if _runs(state, part) else "ended" if part.name in state.processes else "down"
        reports.append(Report(part.name, part.title, condition, part.where))
    return reports


def warnings(settings: StackSettings) -> list[str]:
    """Return warnings about the address that the user chose."""
    if settings.host == LOOPBACK or settings.host.startswith("127."):
        return []
    return [
        f"Whoever reaches {settings.host} can run code on the Dask workers, which ask for no password, as SeaweedFS's "
        "inner port does not, and can read what is sent to the others: let a firewall admit your machines alone."
    ]
