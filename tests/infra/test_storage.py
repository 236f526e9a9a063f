from __future__ import annotations

import errno
import os
import pickle
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from botocore.exceptions import ClientError
from fsspec.implementations.memory import MemoryFileSystem
from object_storage import BUCKET, KEY, SECRET, ObjectStorage
from s3fs import S3FileSystem

from infra import files
from infra.faults import is_transient
from infra.storage import Store, StoreError, UnreachableError


def files_under(store: Store) -> list[str]:
    return [entry.key for entry in store.entries()]


@pytest.fixture(params=["folder", pytest.param("s3", marks=[pytest.mark.slow, pytest.mark.s3])])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A folder, and a bucket of a real server: what is said of one holds of the other."""
    if request.param == "folder":
        return Store(str(tmp_path / "store"))
    request.getfixturevalue("s3_credentials")
    return Store(f"s3://{BUCKET}/{tmp_path.name}")


class TestAnyStore:
    def test_what_is_written_is_read_back_whole_or_in_part(self, store: Store):
        assert store.create("a/b/c.bin", b"0123456789")
        assert store.read("a/b/c.bin") == b"0123456789"
        assert store.read("a/b/c.bin", 2, 5) == b"234"
        assert store.size_bytes("a/b/c.bin") == 10
        assert store.exists("a/b/c.bin")
        assert not store.exists("a/b/d.bin")
        with pytest.raises(FileNotFoundError):
            store.read("a/b/d.bin")
        with pytest.raises(FileNotFoundError):
            store.size_bytes("a/b/d.bin")

    def test_who_comes_second_does_not_overwrite(self, store: Store):
        assert store.create("x", b"first")
        assert not store.create("x", b"second")
        assert store.read("x") == b"first"
        store.replace("x", b"third")
        assert store.read("x") == b"third"

    def test_what_is_removed_is_gone_and_what_is_not_there_can_be_removed(self, store: Store):
        store.create("a/x", b"1")
        store.remove("a/x")
        store.remove("a/x")
        assert files_under(store) == []
        assert not store.exists("a/x")

    def test_of_many_writers_at_once_exactly_one_writes(self, store: Store):
        """All pass the check for existence before any of them has finished."""
        gate = threading.Barrier(8)
        wrote: list[int] = []

        def write(i: int) -> None:
            gate.wait()
            if store.create("x", bytes([i]) * 100_000):
                wrote.append(i)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wrote) == 1
        assert store.read("x") == bytes([wrote[0]]) * 100_000
        assert files_under(store) == ["x"]

    def test_names_are_those_of_a_folder_as_it_is_now(self, store: Store):
        assert store.names("rows") == []
        store.create("rows/b", b"1")
        store.create("rows/a", b"1")
        store.create("rows/deep/c", b"1")
        assert store.names("rows") == ["a", "b"]
        Store(store.url).create("rows/c", b"1")  # Somebody else's.
        assert store.exists("rows/c")
        assert store.names("rows") == ["a", "b", "c"]

    def test_entries_are_all_files_with_their_sizes_and_ages(self, store: Store):
        assert store.entries() == []
        store.create("rows/paths/a", b"123")
        store.create("b", b"1")
        found = store.entries()
        assert [(entry.key, entry.n_bytes) for entry in found] == [("b", 1), ("rows/paths/a", 3)]
        assert all(abs((datetime.now(UTC) - entry.modified).total_seconds()) < 60 for entry in found)

    @pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a\\..\\x", "a\0b"])
    def test_a_key_that_leaves_the_store_is_refused(self, store: Store, key: str):
        for use in (lambda: store.create(key, b""), lambda: store.read(key), lambda: store.remove(key)):
            with pytest.raises(StoreError, match="would leave the store"):
                use()

    def test_a_store_that_can_be_written_is_left_as_it_was(self, store: Store):
        store.check_writable()
        assert files_under(store) == []

    def test_a_store_survives_a_pickle_to_another_process(self, store: Store, tmp_path: Path):
        store.create("x", b"1")
        sent = pickle.loads(pickle.dumps(Store(store.url, str(tmp_path / "theirs"), 3)))  # noqa: S301
        assert sent.read("x") == b"1"
        assert sent.upstream.url == str(tmp_path / "theirs")
        assert sent.patience_seconds == sent.upstream.patience_seconds == 3

    def test_a_large_file_is_written_whole(self, store: Store):
        """Beyond 100 MiB s3fs writes in parts."""
        data = np.random.default_rng(0).bytes(101 * 2**20)
        assert store.create("large", data)
        assert not store.create("large", b"")
        assert store.read("large") == data

    def test_what_is_not_there_is_read_upstream_and_nothing_is_written_there(self, store: Store):
        theirs = Store(f"{store.url}-theirs")
        for key in ("both", "rows/theirs"):
            theirs.create(key, b"theirs")
        store.create("both", b"mine")
        store.create("rows/mine", b"mine")
        before = [(entry.key, theirs.read(entry.key)) for entry in theirs.entries()]
        mine = Store(store.url, theirs.url)
        assert mine.read("both") == b"mine"
        assert mine.read("rows/theirs") == b"theirs"
        assert mine.read("rows/theirs", 1, 3) == b"he"
        assert mine.size_bytes("rows/theirs") == 6
        assert mine.exists("rows/theirs")
        assert not mine.exists("rows/nobodys")
        assert mine.names("rows") == ["mine", "theirs"]
        assert mine.own.names("rows") == ["mine"]
        assert mine.locate("rows/theirs") == theirs.locate("rows/theirs")
        assert mine.locate("rows/mine") == store.locate("rows/mine")
        assert not mine.create("rows/theirs", b"mine")
        assert mine.create("rows/new", b"mine")
        mine.replace("rows/theirs", b"changed")
        assert mine.read("rows/theirs") == b"changed"
        mine.remove("rows/theirs")
        mine.remove("rows/theirs")
        assert [(entry.key, theirs.read(entry.key)) for entry in theirs.entries()] == before
        with pytest.raises(FileNotFoundError):
            mine.read("rows/nobodys")


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_write_that_is_interrupted_leaves_what_was_there(folder: Store, monkeypatch, overwrite: bool):
    folder.replace("x", b"old")

    def die(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        (folder.replace if overwrite else folder.create)("x" if overwrite else "y", b"new")
    assert folder.read("x") == b"old"
    assert not folder.exists("y")
    assert files_under(folder) == ["x"]


def test_a_file_left_half_written_by_a_killed_process_is_not_listed(folder: Store):
    folder.create("rows/one", b"1")
    (Path(folder.url) / "rows" / ".two.abc").write_bytes(b"ha")
    assert folder.names("rows") == ["one"]
    assert folder.names("nothing/here") == []


def test_a_store_that_cannot_be_written_says_so_and_how_to_go_on(tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match=r"cannot be written \(.+\): free or unlock it, or name another with --store"):
        Store(str(tmp_path / "file" / "store")).check_writable()


def test_a_full_disk_is_a_sentence_and_leaves_nothing(folder: Store, monkeypatch):
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder.create("a", b"1")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        folder.create("b", b"2")
    assert files_under(folder) == ["a"]


def test_an_unknown_protocol_is_a_sentence():
    with pytest.raises(StoreError, match="is no store: give a folder, or a URL such as s3://"):
        Store("nonsense://bucket/x")


def test_a_protocol_whose_package_is_not_installed_is_a_sentence():
    with pytest.raises(StoreError, match="is no store: give a folder"):
        Store("abfs://bucket/x").exists("y")


@pytest.mark.parametrize(
    "url",
    [
        *("", "  ", "/", "a::b", "s3:/bucket", "s3://", "s3://bucket//prefix", "memory://x", "http://127.0.0.1/x"),
        *("file://runs", "local://runs", "ftp://127.0.0.1/x", "github://a/b", "zip://x", "simplecache::s3://bucket/x"),
    ],
)
def test_what_looks_like_a_slip_is_no_store(url: str):
    with pytest.raises(StoreError, match="is no store"):
        Store(url)


def test_a_file_system_without_hard_links_is_written_whole_too(folder: Store, monkeypatch):
    def refuse(*_paths: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", refuse)
    assert folder.create("x", b"1")
    assert not folder.create("x", b"2")
    assert folder.read("x") == b"1"
    assert files_under(folder) == ["x"]


@pytest.mark.parametrize(
    "url",
    [
        "s3://someone:hush-hush@bucket/x",
        "s3://key:hush-hush/with/slash@bucket/x",
        "s3://hush-hush@bucket",
        "https://host/x?key=hush-hush",
        "s3://b/x#hush-hush",
    ],
)
def test_a_url_that_may_hold_a_secret_is_refused_and_not_repeated(tmp_path: Path, url: str):
    for make in (lambda: Store(url), lambda: Store(str(tmp_path), url)):
        with pytest.raises(StoreError, match="a store's URL holds no password, key or other words") as caught:
            make()
        assert "hush-hush" not in str(caught.value)


class Unconditional(MemoryFileSystem):
    """Answers a put on a condition as S3 servers do that know none."""

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if mode == "create":
            error = OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented")
            error.__cause__ = ClientError(
                {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}, "PutObject"
            )
            raise error
        super().pipe_file(path, value, mode=mode, **kwargs)


def test_a_server_that_knows_no_conditions_is_written_at_once_without_them(monkeypatch):
    store = Store("s3://bucket/unconditional")
    monkeypatch.setattr(store, "_filesystem", (Unconditional(), "/bucket/unconditional"))
    begun = time.monotonic()
    assert store.create("x", b"1")
    assert not store.create("x", b"2")
    assert store.read("x") == b"1"
    assert time.monotonic() - begun < 5, "it was asked again, as if it had not answered"


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.usefixtures("s3_credentials")
class TestS3:
    def test_secrets_are_nowhere_to_be_read(self):
        store = Store(f"s3://{BUCKET}/secrets")
        store.create("a", b"1")
        shown = [repr(store), store.url, store.locate("a"), str(pickle.dumps(store))]
        assert not any(SECRET in text or KEY in text for text in shown)

    def test_a_profile_does_as_well_as_variables(self, tmp_path: Path, monkeypatch):
        endpoint = os.environ["AWS_ENDPOINT_URL"]
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name)
        lines = ["[lab]", f"aws_access_key_id={KEY}", f"aws_secret_access_key={SECRET}"]
        (tmp_path / "credentials").write_text("\n".join(lines))
        (tmp_path / "config").write_text(f"[profile lab]\nregion=us-east-1\nendpoint_url={endpoint}\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "lab")
        S3FileSystem.clear_instance_cache()
        store = Store(f"s3://{BUCKET}/{tmp_path.name}")
        assert store.create("a", b"1")
        assert store.read("a") == b"1"

    @pytest.mark.parametrize(
        ("bucket", "secret", "reason"),
        [("lab", "wrong", "cannot be used"), ("nobody", SECRET, "(cannot be written|cannot be used)")],
    )
    def test_wrong_credentials_and_buckets_are_a_sentence(self, monkeypatch, bucket: str, secret: str, reason: str):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        S3FileSystem.clear_instance_cache()
        with pytest.raises(StoreError, match=rf"the store s3://{bucket}/x {reason} \(.+\): .*--store") as caught:
            Store(f"s3://{bucket}/x").check_writable()
        assert not is_transient(caught.value)
        assert secret not in str(caught.value)

    @pytest.mark.parametrize("patience", [60, 0])
    def test_a_server_that_dies_in_an_upload_and_comes_back_leaves_no_half_file(
        self, object_storage: ObjectStorage, patience: int, tmp_path: Path
    ):
        store = Store(f"s3://{BUCKET}/{tmp_path.name}", patience_seconds=patience)
        data = np.random.default_rng(1).bytes(150 * 2**20)
        store.check_writable()
        begun, failures = object_storage.n_bytes(), []

        def upload() -> None:
            try:
                store.create("large", data)
            except StoreError as error:
                failures.append(error)

        writing = threading.Thread(target=upload)
        writing.start()
        while object_storage.n_bytes() < begun + 20 * 2**20:
            assert writing.is_alive()
            time.sleep(0.005)
        object_storage.kill()
        assert writing.is_alive(), "the upload ended before the server did"
        if patience:
            time.sleep(3)
            object_storage.start()
        writing.join(timeout=120)
        assert not writing.is_alive()
        if not patience:
            object_storage.start()
            (failure,) = failures
            assert isinstance(failure, UnreachableError)
            assert is_transient(failure)
            assert files_under(store) == []
            assert store.create("large", data)
        assert store.read("large") == data
        assert files_under(store) == ["large"]


@pytest.mark.parametrize("endpoint", [None, "http://127.0.0.1:9"])
def test_a_bucket_that_cannot_be_reached_is_a_sentence(tmp_path: Path, monkeypatch, endpoint: str | None):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    S3FileSystem.clear_instance_cache()  # fsspec remembers the credentials of an earlier bucket.
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    with pytest.raises(StoreError, match=r"the store s3://nobucket/x (cannot be used|does not answer)") as caught:
        Store("s3://nobucket/x", patience_seconds=0).check_writable()
    assert "hush-hush" not in str(caught.value)
    assert is_transient(caught.value) == bool(endpoint)


def test_only_faults_that_pass_are_tried_again():
    assert is_transient(ConnectionResetError())
    assert is_transient(TimeoutError())
    assert is_transient(OSError(errno.EIO, "bad luck"))
    assert not is_transient(FileNotFoundError(errno.ENOENT, "gone"))
    assert not is_transient(ValueError("wrong"))
    assert not is_transient(StoreError("full"))


@pytest.mark.parametrize(("status", "passes"), [(500, True), (503, True), (429, True), (501, False), (403, False)])
def test_a_refusal_is_told_from_a_fault_by_the_servers_status(status: int, passes: bool):
    """s3fs gives every code that it does not know the error number of a broken disk."""
    error = OSError(errno.EIO, "QuotaExceeded")
    error.__cause__ = ClientError(
        {"Error": {"Code": "QuotaExceeded"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject"
    )
    assert is_transient(error) == passes
