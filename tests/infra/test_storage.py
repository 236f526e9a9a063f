from __future__ import annotations

import errno
import pickle
import threading
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from infra import storage
from infra.faults import is_transient
from infra.storage import Store, StoreError


def files_under(store: Store) -> list[str]:
    root = Path(store.url)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_what_is_written_is_read_back_whole_or_in_part(store: Store):
    assert store.create("a/b/c.bin", b"0123456789")
    assert store.read("a/b/c.bin") == b"0123456789"
    assert store.read("a/b/c.bin", 2, 5) == b"234"
    assert store.size_bytes("a/b/c.bin") == 10
    assert store.exists("a/b/c.bin")
    assert not store.exists("a/b/d.bin")


def test_who_comes_second_does_not_overwrite(store: Store):
    assert store.create("x", b"first")
    assert not store.create("x", b"second")
    assert store.read("x") == b"first"
    store.replace("x", b"third")
    assert store.read("x") == b"third"


def test_what_is_removed_is_gone_and_what_is_not_there_can_be_removed(store: Store):
    store.create("a/x", b"1")
    store.remove("a/x")
    store.remove("a/x")
    assert files_under(store) == []


def test_of_many_writers_at_once_exactly_one_writes(store: Store):
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


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_write_that_is_interrupted_leaves_what_was_there(store: Store, monkeypatch, overwrite: bool):
    store.replace("x", b"old")

    def die(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage.os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        (store.replace if overwrite else store.create)("x" if overwrite else "y", b"new")
    assert store.read("x") == b"old"
    assert not store.exists("y")
    assert files_under(store) == ["x"]


def test_a_file_left_half_written_by_a_killed_process_is_not_listed(store: Store):
    store.create("rows/one", b"1")
    (Path(store.url) / "rows" / ".two.abc").write_bytes(b"ha")
    assert store.names("rows") == ["one"]
    assert store.names("nothing/here") == []


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd"])
def test_a_key_that_leaves_the_store_is_refused(store: Store, key: str):
    with pytest.raises(StoreError, match="would leave the store"):
        store.create(key, b"")
    with pytest.raises(StoreError, match="would leave the store"):
        store.read(key)


def test_a_store_that_cannot_be_written_says_so_and_how_to_go_on(tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match=r"cannot be written \(.+\): free or unlock it, or name another with --store"):
        Store(str(tmp_path / "file" / "store")).check_writable()


def test_a_full_disk_is_a_sentence_and_leaves_nothing(store: Store, monkeypatch):
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store.create("a", b"1")
    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        store.create("b", b"2")
    assert files_under(store) == ["a"]


def test_a_store_that_can_be_written_is_left_as_it_was(store: Store):
    store.check_writable()
    assert files_under(store) == []


def test_a_store_survives_a_pickle_to_another_process(store: Store):
    store.create("x", b"1")
    assert pickle.loads(pickle.dumps(store)).read("x") == b"1"  # noqa: S301


def test_an_unknown_protocol_is_a_sentence():
    with pytest.raises(StoreError, match="is no store: give a folder, or a URL such as s3://"):
        Store("nonsense://bucket/x").exists("y")


@pytest.mark.parametrize("url", ["", "  ", "a::b", "s3:/bucket"])
def test_what_looks_like_a_slip_is_no_store(url: str):
    with pytest.raises(StoreError, match="is no store"):
        Store(url)


def test_a_file_system_without_hard_links_is_written_whole_too(store: Store, monkeypatch):
    def refuse(*_paths: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(storage.os, "link", refuse)
    assert store.create("x", b"1")
    assert not store.create("x", b"2")
    assert store.read("x") == b"1"
    assert files_under(store) == ["x"]


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
        Store("s3://nobucket/x").check_writable()
    assert "hush-hush" not in str(caught.value)
    assert is_transient(caught.value) == bool(endpoint)


def test_only_faults_that_pass_are_tried_again():
    assert is_transient(ConnectionResetError())
    assert is_transient(TimeoutError())
    assert is_transient(OSError(errno.EIO, "bad luck"))
    assert not is_transient(FileNotFoundError(errno.ENOENT, "gone"))
    assert not is_transient(ValueError("wrong"))
    assert not is_transient(StoreError("full"))
