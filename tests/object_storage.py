"""A real S3 server, SeaweedFS, for tests: on free ports of the loopback, with its files in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from s3fs import S3FileSystem

BUCKET = "lab"
KEY, ADMIN, SECRET = "tests", "admin", "not-really-a-secret"
START_SECONDS = 60


def free_ports(n: int) -> list[int]:
    """Return ports that nobody listens on, each with one 10,000 above it that is free too, where SeaweedFS puts gRPC.

    All lie below the range from which the kernel gives ports to clients: a server that is killed finds its port again.
    """
    # A seed that a test has set would have every worker of `pytest -n` draw the same.
    candidates = iter(random.SystemRandom().sample(range(10_000, 20_000), 1_000))
    ports: list[int] = []
    with ExitStack() as held:
        while len(ports) < n:
            port = next(candidates)
            pair = [held.enter_context(socket.socket()) for _ in range(2)]
            with contextlib.suppress(OSError):
                for listener, number in zip(pair, (port, port + 10_000), strict=True):
                    listener.bind(("127.0.0.1", number))
                ports.append(port)
    return ports


def _user(name: str, actions: list[str]) -> dict[str, Any]:
    return {"name": name, "credentials": [{"accessKey": name, "secretKey": SECRET}], "actions": actions}


class ObjectStorage:
    """Can be killed and started again, on the same port with the same files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = dict(zip(("master", "volume", "filer", "s3"), free_ports(4), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def __enter__(self) -> ObjectStorage:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Returns once the bucket can be written."""
        (self._folder / "data").mkdir(parents=True, exist_ok=True)
        users = self._folder / "users.json"
        # The tests' user may do what a store needs, in one bucket, which somebody else has made.
        of_bucket = [f"{action}:{BUCKET}" for action in ("Read", "Write", "List")]
        users.write_text(json.dumps({"identities": [_user(KEY, of_bucket), _user(ADMIN, ["Admin"])]}))
        words = ["server", f"-dir={self._folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
        words += [f"-{name}.port={port}" for name, port in self._ports.items()]
        # Two more servers, on ports of their own that another S3 server here may hold.
        words += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        words += [f"-s3.config={users}", "-master.volumeSizeLimitMB=64", "-volume.max=20"]
        # Whoever's keys the server finds in its environment, the tests' own among them, may do everything.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).with_name("weed")), *words],
                env=environment, stdout=log, stderr=log, cwd=self._folder,
            )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        options = {"endpoint_url": self.endpoint, "region_name": "us-east-1"}
        while True:
            assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
            try:
                bucket = S3FileSystem(key=ADMIN, secret=SECRET, client_kwargs=options, skip_instance_cache=True)
                if not bucket.exists(BUCKET):
                    bucket.mkdir(BUCKET)
                bucket.pipe_file(f"{BUCKET}/.ready", b"")
                bucket.rm_file(f"{BUCKET}/.ready")
            except Exception:  # Whatever a server says that is not yet up.
                assert time.monotonic() < deadline, "the S3 server did not start"
                time.sleep(0.2)
            else:
                return

    def kill(self) -> None:
        """As a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def n_bytes(self) -> int:
        """What its files take."""
        total = 0
        for path in (self._folder / "data").rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
        return total
