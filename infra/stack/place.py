"""Place of the stack on this machine: its folder, its address, and its state between commands."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import random
import socket
import uuid
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.stack.errors import StackError
from infra.stack.processes import Started

LOOPBACK = "127.0.0.1"

MAX_PATH = 90
"""Characters of the folder's path: a socket in it may have a few more than a hundred."""

PREFERRED_PORTS: Mapping[str, int | None] = {
    "prefect": 4200,
    "s3": 8333,
    "dask": 8786,
    "dask_page": 8787,
    "postgres": 5432,
    "s3_grpc": None,
    "master": None,
    "master_grpc": None,
    "volume": None,
    "volume_grpc": None,
    "filer": None,
    "filer_grpc": None,
}
"""Ports by what listens there, each the one that people know it by; None where nobody but the stack needs to."""

PUBLIC = ("prefect", "s3", "s3_grpc", "dask", "dask_page")
"""Listen on the stack's address; all others on loopback, whatever that is."""


class StackSettings(BaseSettings):
    """Settings of the stack, from `REPAIRLAB_STACK_DIR` and `REPAIRLAB_STACK_HOST`."""

    model_config = SettingsConfigDict(env_prefix="REPAIRLAB_STACK_", extra="ignore")

    dir: Path = Path(".stack")
    host: str = LOOPBACK


def load_stack_settings() -> StackSettings:
    """Return the settings. Raises StackError for an unreachable address and for an empty folder name."""
    if not os.environ.get("REPAIRLAB_STACK_DIR", ".stack").strip():
        raise StackError("REPAIRLAB_STACK_DIR is empty: give it a folder of the stack's own, or unset it")
    settings = StackSettings()
    try:
        address = ipaddress.ip_address(settings.host)
    except ValueError as error:
        raise StackError(
            f"REPAIRLAB_STACK_HOST={settings.host!r} is no IP address: give the one that other machines reach this by"
        ) from error
    if address.is_unspecified or address.version != 4:
        raise StackError(
            f"REPAIRLAB_STACK_HOST={settings.host} is no address to be reached by: give this machine's own IPv4 address"
        )
    return settings


class StackState(BaseModel):
    """Running processes and their ports. Holds no secrets.

    `mark` is in the environment of every process of the stack and of its descendants, which are recognized by it after
    their parent is gone.
    """

    host: str
    ports: dict[str, int]
    mark: str = Field(default_factory=lambda: uuid.uuid4().hex)
    processes: dict[str, Started] = {}


class Folder:
    """Folder of the stack, absolute."""

    def __init__(self, path: Path) -> None:
        try:
            self.path = path.expanduser().absolute()
        except RuntimeError as error:
            raise StackError(f"there is no home for {path}: REPAIRLAB_STACK_DIR names another folder") from error
        self.logs = self.path / "logs"
        self.secrets = self.path / "secrets.json"
        self.env = self.path / "env"
        self.s3_config = self.path / "s3.json"
        self._state = self.path / "state.json"

    def make(self) -> None:
        """Make the folder, which nobody else can list; PostgreSQL's user can pass through it."""
        if len(str(self.path)) > MAX_PATH:
            raise StackError(
                f"{self.path} is too long a name for the sockets in it: REPAIRLAB_STACK_DIR names another folder"
            )
        try:
            self.path.mkdir(mode=0o711, parents=True, exist_ok=True)
            self.check()
            self.logs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StackError(
                f"{self.path} cannot be made ({error.strerror}): REPAIRLAB_STACK_DIR names another folder"
            ) from error

    def check(self) -> None:
        """Raise StackError if the folder belongs to another user, who may have put anything into it."""
        try:
            owner = self.path.stat().st_uid
        except FileNotFoundError:
            return
        except OSError as error:
            raise StackError(
                f"{self.path} cannot be looked at ({error.strerror}): REPAIRLAB_STACK_DIR names another folder"
            ) from error
        if owner != os.geteuid():
            raise StackError(f"{self.path} is not yours: REPAIRLAB_STACK_DIR names a folder that is")

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the lock of the stack. Raises StackError if another command holds it."""
        lock = self.path / "lock"
        try:
            file = lock.open("w")
        except OSError as error:
            raise StackError(
                f"{lock} cannot be written ({error.strerror}): give it back to yourself, or let "
                "REPAIRLAB_STACK_DIR name another folder"
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StackError(
                    f"another `up` or `down` is at work in {self.path}: wait until it has ended"
                ) from error
            yield

    def read_state(self) -> StackState | None:
        """Return the state, or None if nothing was started. Raises StackError for a damaged or foreign file."""
        self.check()
        try:
            return StackState.model_validate_json(self._state.read_text())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StackError(
                f"{self._state} cannot be read ({error.strerror}): give it back to yourself, or let "
                "REPAIRLAB_STACK_DIR name another folder"
            ) from error
        except (ValidationError, UnicodeDecodeError) as error:
            raise StackError(
                f"{self._state} cannot be read: end what it started by hand, and remove the file"
            ) from error

    def write_state(self, state: StackState) -> None:
        write_private(self._state, state.model_dump_json(indent=1))

    def forget_state(self) -> None:
        self._state.unlink(missing_ok=True)
        self.env.unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def choose_ports(host: str) -> dict[str, int]:
    """Return a free port for each name, the preferred one if that is free."""
    chosen: dict[str, int] = {}
    # All stay bound until the last is chosen, so that no two are the same.
    with ExitStack() as held:
        for name, preferred in PREFERRED_PORTS.items():
            address = address_of(host, name)
            # Below the range from which the kernel gives ports to clients, which may take one before we do.
            candidates = [preferred] if preferred is not None else []
            candidates += random.sample(range(20_000, 30_000), 100)
            chosen[name] = next(port for port in candidates if _hold(held, address, port))
    return chosen


def is_free(host: str, port: int) -> bool:
    """Return whether a server could listen at this address."""
    with ExitStack() as held:
        return _hold(held, host, port)


def address_of(host: str, name: str) -> str:
    """Return the address that the port called `name` is listened on, by a stack on `host`."""
    return host if name in PUBLIC else LOOPBACK


def _hold(held: ExitStack, host: str, port: int) -> bool:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # As servers do: no waiting for old connections.
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError:
        listener.close()
        return False
    held.callback(listener.close)
    return True


def is_listening(host: str, port: int) -> bool:
    """Return whether a server takes connections at this address."""
    with suppress(OSError), socket.create_connection((host, port), timeout=2):
        return True
    return False
