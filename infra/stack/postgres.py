"""PostgreSQL as Debian installs it: its programs, the user it runs as, and a database for the stack."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pydantic import SecretStr

from infra.stack.credentials import USER
from infra.stack.errors import StackError
from infra.stack.place import LOOPBACK

DEBIAN = Path("/usr/lib/postgresql")

DATABASE = "prefect"

_ROOTS_USER = "postgres"


def find_programs() -> Path:
    """Return the folder of PostgreSQL's programs, of the newest installed version."""
    versions = [path.parent for path in DEBIAN.glob("*/bin/initdb")]
    if versions:
        return max(versions, key=lambda path: [int(number) for number in re.findall(r"\d+", path.parent.name)])
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    raise StackError("there is no PostgreSQL here: apt-get install postgresql")


def runs_as() -> str | None:
    """Return the user that the server runs as, since it refuses root, or None for the user of this process."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(_ROOTS_USER)
    except KeyError as error:
        raise StackError(
            f"PostgreSQL does not run as root, and there is no user {_ROOTS_USER}: apt-get install postgresql"
        ) from error
    return _ROOTS_USER


def serve_command(programs: Path, data: Path, port: int) -> list[str]:
    """Return the command of a server on loopback alone, with no socket in the file system."""
    settings = {"listen_addresses": LOOPBACK, "port": str(port), "unix_socket_directories": ""}
    return [str(programs / "postgres"), "-D", str(data), *(f"--{name}={value}" for name, value in settings.items())]


def answers(programs: Path, port: int) -> bool:
    """Return whether the server takes connections."""
    ready = [str(programs / "pg_isready"), "--quiet", f"--host={LOOPBACK}", f"--port={port}"]
    return subprocess.run(ready, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


def make_database(programs: Path, data: Path, password: SecretStr, log: Path) -> None:
    """Make a database cluster in the folder `data`, unless there is one, whose user needs `password` (SCRAM)."""
    user = runs_as()
    folder = data.parent
    folder.mkdir(mode=0o700, exist_ok=True)
    if user is not None:
        shutil.chown(folder, user, user)
    extra_groups = None if user is None else []
    test = ["test", "-w", str(folder)]
    if subprocess.run(test, user=user, group=user, extra_groups=extra_groups, check=False).returncode:
        raise StackError(
            f"PostgreSQL runs as the user {user}, who cannot reach {folder}: set REPAIRLAB_STACK_DIR to a folder where "
            "everybody may pass, such as /var/tmp/repairlab"
        )
    if (data / "PG_VERSION").exists():
        return
    # What an interrupted attempt has left is worth nothing.
    making = data.with_name("making")
    shutil.rmtree(making, ignore_errors=True)
    given = folder / "password"
    try:
        given.touch(mode=0o600)
        given.write_text(password.get_secret_value())
        if user is not None:
            shutil.chown(given, user, user)
        auth = ["--auth=scram-sha-256", f"--username={USER}", f"--pwfile={given}"]
        _run([str(programs / "initdb"), "-D", str(making), "--encoding=UTF8", "--no-locale", *auth], "", user, log)
    finally:
        given.unlink(missing_ok=True)
    alone = [str(programs / "postgres"), "--single", "-D", str(making), "postgres"]
    _run(alone, f"CREATE DATABASE {DATABASE}\n", user, log)
    making.rename(data)


def _run(command: Sequence[str], typed: str, user: str | None, log: Path) -> None:
    with log.open("ab") as file:
        done = subprocess.run(
            command,
            input=typed.encode(),
            stdout=file,
            stderr=file,
            cwd="/",
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            check=False,
        )
    if done.returncode:
        raise StackError(f"PostgreSQL could not make its database (exit code {done.returncode}); its log: {log}")
