"""Stores that cannot be read, that something else answers for, or that a limit keeps small: one sentence each."""

from __future__ import annotations

import errno
import http.server
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from object_storage import BUCKET
from s3fs import S3FileSystem

from infra.s3_answers import ForeignAnswerError
from infra.storage import Store, StoreError, UnreachableError

PAGE = b"<!DOCTYPE html><html><body>Please log in<br></body></html>"
WELL_FORMED = b'<?xml version="1.0"?><html><body>Please log in</body></html>'


def file_in_its_place(path: Path) -> None:
    path.write_bytes(b"notes")


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def around(path: Path) -> None:
    path.symlink_to(path)


USES: list[Callable[[Store], object]] = [
    lambda store: store.exists("a"),
    lambda store: store.read("a"),
    lambda store: store.size_bytes("a"),
    lambda store: store.names("rows"),
    lambda store: store.folders("studies"),
    lambda store: store.create("a", b""),
    lambda store: store.locate("a"),
]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("make", [Path.absolute, file_in_its_place, dangling, around])
def test_an_upstream_that_cannot_be_read_is_not_taken_for_an_empty_one(
    store: Store, tmp_path: Path, make: Callable[[Path], object], use: Callable[[Store], object]
):
    make(tmp_path / "theirs")
    beside = Store(store.url, str(tmp_path / "theirs"))
    with pytest.raises(StoreError, match=r"(there is no folder to read at|the store) .*theirs"):
        use(beside)
    assert store.entries() == []


def test_an_upstream_without_anything_and_a_store_that_is_not_there_yet_are_fine(store: Store, tmp_path: Path):
    (tmp_path / "theirs").mkdir()
    beside = Store(store.url, str(tmp_path / "theirs"))
    assert not beside.exists("a")
    assert beside.names("rows") == []
    assert beside.create("a", b"1")
    with pytest.raises(FileNotFoundError):
        beside.read("b")


@pytest.mark.parametrize("use", USES[:5])
@pytest.mark.parametrize(
    ("fault", "way_out"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied"),
            r"cannot be used \(Permission denied\): free or unlock it",
        ),
        (OSError(errno.EMFILE, "Too many open files"), r"\(Too many open files\): raise the limit on open files"),
        (OSError(errno.ELOOP, "Too many levels"), r"cannot be used \(Too many levels\)"),
    ],
    ids=["locked", "files", "loop"],
)
def test_a_folder_that_cannot_be_read_is_a_sentence_and_not_empty(
    store: Store, monkeypatch: pytest.MonkeyPatch, fault: OSError, way_out: str, use: Callable[[Store], object]
):
    store.create("rows/a", b"1")
    store.create("a", b"1")
    filesystem, _ = store._filesystem  # pyright: ignore[reportPrivateUsage]

    def fail(*_: object, **__: object) -> None:
        raise fault

    for name in ("cat_file", "ls", "size"):
        # On the class: an instance, which fsspec keeps for all stores, would be left with methods of its own.
        monkeypatch.setattr(type(filesystem), name, fail)
    monkeypatch.setattr("pathlib.Path.stat", fail)
    with pytest.raises(StoreError, match=way_out):
        use(store)


def test_a_store_in_whose_place_a_file_lies_is_a_sentence(tmp_path: Path):
    (tmp_path / "runs").write_bytes(b"notes")
    store = Store(str(tmp_path / "runs"))
    with pytest.raises(StoreError, match=r"cannot be written \((Not a directory|File exists)\)"):
        store.create("a", b"1")
    with pytest.raises(FileNotFoundError):
        store.read("a")
    assert not store.exists("a")


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "free or unlock it"),
        (errno.EDQUOT, "free or unlock it"),
        (errno.EROFS, "free or unlock it"),
        (errno.EFBIG, r"raise the limit on the size of files \(ulimit -f\)"),
        (errno.EMFILE, r"raise the limit on open files \(ulimit -n\)"),
        (errno.ENFILE, r"raise the limit on open files \(ulimit -n\)"),
    ],
)
@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.open", "pathlib.Path.mkdir"])
def test_what_a_system_refuses_to_write_is_a_sentence_and_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int, way_out: str, call: str
):
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(call, fail)
    with pytest.raises(StoreError, match=rf"cannot be written \({os.strerror(number)}\): {way_out}, or name another"):
        store.create("rows/a", b"1" * 1000)
    monkeypatch.undo()
    assert store.entries() == []


LIMITED = """
import resource, sys
from infra.storage import Store, StoreError
store = Store(sys.argv[1])
limit, number = getattr(resource, sys.argv[2]), int(sys.argv[3])
store.create("small", b"1")
resource.setrlimit(limit, (number, resource.getrlimit(limit)[1]))
try:
    store.create("rows/large", b"1" * 1_000_000)
except StoreError as error:
    print(error)
print(store.names("rows"))
"""


@pytest.mark.parametrize(
    ("limit", "number", "sentence"),
    [
        ("RLIMIT_FSIZE", 4096, "cannot be written (File too large): raise the limit on the size of files (ulimit -f)"),
        ("RLIMIT_NOFILE", 3, "cannot be written (Too many open files): raise the limit on open files (ulimit -n)"),
    ],
)
def test_a_real_limit_of_the_system_is_a_sentence_and_leaves_nothing(
    store: Store, limit: str, number: int, sentence: str
):
    assert hasattr(resource, limit)
    called = subprocess.run(
        [sys.executable, "-c", LIMITED, store.url, limit, str(number)], capture_output=True, text=True, check=False
    )
    assert sentence in called.stdout
    assert "Traceback" not in called.stderr or limit == "RLIMIT_NOFILE"
    assert [entry.key for entry in store.entries()] == ["small"]


def test_a_folder_that_is_removed_while_it_is_written_is_a_sentence(store: Store, monkeypatch: pytest.MonkeyPatch):
    store.create("a", b"1")
    monkeypatch.setattr("os.fsync", lambda _: shutil.rmtree(store.url))
    with pytest.raises(StoreError, match=r"cannot be written \(No such file or directory\)"):
        store.create("rows/a", b"1")
    monkeypatch.undo()
    assert store.create("rows/a", b"1")


class Gateway(http.server.BaseHTTPRequestHandler):
    """Answers everything with a page, and status 200."""

    protocol_version = "HTTP/1.1"  # One that tells who writes to go on.
    page: ClassVar[bytes] = PAGE
    kind: ClassVar[str | None] = "text/html; charset=utf-8"
    n_asked: ClassVar[int] = 0

    def _answer(self) -> None:
        type(self).n_asked += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        if self.kind:
            self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(self.page)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.page)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return


@pytest.fixture(params=["html", "xhtml", "nothing"])
def gateway(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Gateway]]:
    told: dict[str, Any] = {
        "html": {"page": PAGE},
        "xhtml": {"page": WELL_FORMED, "kind": "application/xml"},
        "nothing": {"page": b"", "kind": None},
    }
    handler = type("Handler", (Gateway,), told[request.param])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    # s3fs waits between its own tries.
    monkeypatch.setattr("asyncio.sleep", _at_once)
    S3FileSystem.clear_instance_cache()
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()
    S3FileSystem.clear_instance_cache()


async def _at_once(_seconds: float, result: object = None) -> object:
    return result


@pytest.mark.parametrize(
    "use", [*USES[:6], lambda store: store.replace("a", b"1"), Store.check_writable, Store.entries]
)
def test_a_page_in_place_of_an_answer_is_neither_content_nor_a_listing_nor_a_receipt(
    gateway: type[Gateway], use: Callable[[Store], object]
):
    store = Store("s3://bucket/prefix", patience_seconds=0)
    with pytest.raises(UnreachableError, match=r"^the store s3://bucket/prefix does not answer \(.+\)$") as caught:
        use(store)
    assert "\n" not in str(caught.value)
    assert 0 < gateway.n_asked < 30


@pytest.mark.parametrize("gateway", ["xhtml", "nothing"], indirect=True)
def test_what_answers_in_place_of_a_server_is_named(gateway: type[Gateway]):
    store = Store("s3://bucket/prefix", patience_seconds=0)
    with pytest.raises(UnreachableError, match="something else than an S3 server answers PutObject, with") as caught:
        store.replace("a", b"1")
    assert isinstance(caught.value.__cause__, ForeignAnswerError)
    assert gateway.n_asked == 1


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.usefixtures("s3_credentials")
class TestObjectStorage:
    def test_an_upstream_without_anything_or_without_a_bucket_is_a_sentence(self, tmp_path: Path):
        own = f"s3://{BUCKET}/{tmp_path.name}"
        for url in (f"s3://{BUCKET}/{tmp_path.name}-nothing", "s3://nobody/x"):
            beside = Store(own, url, patience_seconds=0)
            for use in USES:
                with pytest.raises(StoreError, match=r"(there is no bucket, or nothing in it,|cannot be used)"):
                    use(beside)
        assert Store(own).entries() == []

    def test_wrong_credentials_are_not_an_empty_store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        Store(f"s3://{BUCKET}/{tmp_path.name}").create("a", b"1")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        S3FileSystem.clear_instance_cache()
        store = Store(f"s3://{BUCKET}/{tmp_path.name}", patience_seconds=0)
        for use in (*USES[:6], Store.entries):
            with pytest.raises(StoreError, match="cannot be used"):
                use(store)
