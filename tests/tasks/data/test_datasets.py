from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import re
import struct
import tarfile
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets

from tasks.data import datasets, published
from tasks.data.datasets import UNKNOWN_FINGERPRINT, describe_dataset, load_dataset
from tasks.data.pickles import read_batch
from tasks.data.published import DataError, read_idx


@pytest.fixture(autouse=True)
def _nothing_elsewhere(monkeypatch, tmp_path):
    """No package's files, no network, and nothing remembered from another test."""
    known = datasets.DATASETS["fashion_mnist"]
    files = dataclasses.replace(known.files, package=("a-package", tmp_path / "package"))
    monkeypatch.setitem(datasets.DATASETS, "fashion_mnist", dataclasses.replace(known, files=files))

    def no_network(*_arguments, **_options):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nmany lines of it")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", no_network)
    monkeypatch.setattr(torchvision.datasets.utils, "download_url", no_network)
    datasets._read.cache_clear()


def idx(values: np.ndarray) -> bytes:
    """`values` as the published files hold them: magic number, big-endian sizes, bytes."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def write_files(folder: Path, n_train: int = 50, n_test: int = 20, compressed: bool = True) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (n_train, 28, 28)),
        "train-labels-idx1-ubyte": rng.integers(0, 10, n_train),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (n_test, 28, 28)),
        "t10k-labels-idx1-ubyte": rng.integers(0, 10, n_test),
    }
    for name, values in arrays.items():
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
        else:
            (folder / name).write_bytes(idx(values))
    return arrays


@pytest.mark.parametrize("place", ["fashion_mnist", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("compressed", [True, False])
def test_published_files_are_found_and_normalised(tmp_path: Path, place: str, compressed: bool):
    arrays = write_files(tmp_path / place, compressed=compressed)
    dataset = load_dataset("fashion_mnist", tmp_path)
    assert (dataset.spec.n_train, dataset.spec.n_test, dataset.spec.shape) == (50, 20, (1, 28, 28))
    expected = (arrays["train-images-idx3-ubyte"] - 72.9404) / 90.0212
    assert np.allclose(dataset.train.images[:, 0].numpy(), expected, atol=1e-5)
    assert dataset.test.labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    assert dataset.black == pytest.approx(-72.9404 / 90.0212)


def test_the_package_is_the_last_place_looked_at(tmp_path: Path):
    write_files(tmp_path / "package", n_train=30)
    assert load_dataset("fashion_mnist", tmp_path).spec.n_train == 30
    write_files(tmp_path / "fashion_mnist", n_train=40)
    assert load_dataset("fashion_mnist", tmp_path).spec.n_train == 40


def test_a_plan_needs_no_data_and_knows_that_it_has_none(tmp_path: Path):
    spec = describe_dataset("mnist", tmp_path)
    assert (spec.fingerprint, spec.n_train, spec.shape) == (UNKNOWN_FINGERPRINT, 60_000, (1, 28, 28))
    write_files(tmp_path / "mnist")
    assert describe_dataset("mnist", tmp_path) == load_dataset("mnist", tmp_path).spec


def test_a_missing_data_set_is_a_sentence_with_every_way_to_get_it(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        load_dataset("fashion_mnist", tmp_path)
    text = str(caught.value)
    for way in ("where there is a network", str(tmp_path / "fashion_mnist"), "a-package", "REPAIRLAB_DATA_DIR"):
        assert way in text
    assert "\n" not in text


def test_a_folder_with_some_of_the_files_is_named(tmp_path: Path):
    write_files(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"mnist holds some of its files, not all"):
        load_dataset("mnist", tmp_path)


def damage_crc(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def wrong_count(path: Path) -> None:
    path.write_bytes(gzip.compress(idx(np.zeros((49, 28, 28)))))


def wrong_shape(path: Path) -> None:
    path.write_bytes(gzip.compress(idx(np.zeros((50, 20, 28)))))


def wrong_kind(path: Path) -> None:
    path.write_bytes(gzip.compress(idx(np.zeros(50))))


def no_gzip(path: Path) -> None:
    path.write_bytes(b"<html>404</html>")


@pytest.mark.parametrize("damage", [damage_crc, cut, wrong_count, wrong_shape, wrong_kind, no_gzip])
def test_a_damaged_file_is_a_sentence_that_names_it(tmp_path: Path, damage):
    write_files(tmp_path / "mnist")
    damage(tmp_path / "mnist" / "train-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match=r"train-.*-ubyte\.gz is damaged \(.+\): delete it and fetch it again"):
        load_dataset("mnist", tmp_path)


def test_a_label_beyond_the_classes_is_damage(tmp_path: Path):
    write_files(tmp_path / "mnist")
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.full(50, 10))))
    with pytest.raises(DataError, match="a label of 10 among 10 classes"):
        load_dataset("mnist", tmp_path)


def test_a_plain_file_of_the_wrong_length_is_damage(tmp_path: Path):
    (tmp_path / "x").write_bytes(idx(np.zeros((3, 2, 2)))[:-1])
    with pytest.raises(DataError, match="11 values where its header says 12"):
        read_idx(tmp_path / "x", 3)


@pytest.mark.parametrize("name", ["x", "x.gz"])
@pytest.mark.parametrize(
    ("shape", "body", "reason"),
    [
        ((2**32 - 1, 2**32 - 1, 2**32 - 1), b"", "its header says 4294967295 x 4294967295 x 4294967295 values"),
        ((2**31, 2**31, 4), b"", "its header says 2147483648 x 2147483648 x 4 values"),
        ((0, 2, 2), b"\0" * 4, "more than 0 values where its header says 0"),
        ((1_000_000, 28, 28), b"\0" * 100, "100 values where its header says 784000000"),
        ((1_000_001, 28, 28), b"", "its header says 1000001 x 28 x 28 values"),
        ((10, 2**15, 2**15), b"", "its header says 10 x 32768 x 32768 values"),
        ((3, 2, 2), b"\0" * 50_000_000, "more than 12 values where its header says 12"),
    ],
    ids=range(7),
)
def test_no_more_is_read_than_a_header_says(
    tmp_path: Path, shape: tuple[int, ...], body: bytes, reason: str, name: str
):
    data = bytes([0, 0, 8, 3]) + struct.pack(">3I", *shape) + body
    (tmp_path / name).write_bytes(gzip.compress(data, 1) if name == "x.gz" else data)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=re.escape(reason)):
            read_idx(tmp_path / name, 3)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_file_larger_than_any_that_is_published_is_not_read(tmp_path: Path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, CIFAR["cifar10"])
    with (tmp_path / "cifar-10-batches-py" / "data_batch_1").open("r+b") as file:
        file.truncate(2**31)
    with pytest.raises(DataError, match=r"data_batch_1 is damaged \(it has more than 1,073,741,824 bytes\)"):
        load_dataset("cifar10", tmp_path)


def test_other_data_have_another_fingerprint(tmp_path: Path):
    write_files(tmp_path / "mnist")
    first = load_dataset("mnist", tmp_path).spec.fingerprint
    damaged = np.zeros(50)
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(damaged)))
    datasets._read.cache_clear()
    assert load_dataset("mnist", tmp_path).spec.fingerprint != first


def test_an_unknown_data_set_names_those_there_are(tmp_path: Path):
    with pytest.raises(
        ValueError, match="there is no data set 'imagenette'; known: digits, digits32, mnist, fashion_mnist"
    ):
        load_dataset("imagenette", tmp_path)


def test_digits_are_split_once_and_for_all_by_class(tmp_path: Path):
    digits = load_dataset("digits", tmp_path)
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    shares = torch.bincount(digits.test.labels) / torch.bincount(torch.cat([digits.train.labels, digits.test.labels]))
    assert ((shares - 0.2).abs() < 0.01).all()
    assert digits.train.images.mean().abs() < 1e-5
    assert digits.train.images.std().item() == pytest.approx(1, abs=1e-3)
    assert digits.spec.fingerprint.startswith("e95a19e2ddcb")


def test_debians_package_holds_fashion_mnist(tmp_path: Path, monkeypatch):
    """The real files: 60,000 and 10,000 images, with the mean and deviation that the recipe normalises by."""
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have Debian's package dataset-fashion-mnist installed")
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    monkeypatch.undo()
    fashion = load_dataset("fashion_mnist", tmp_path)
    assert (fashion.spec.n_train, fashion.spec.n_test) == (60_000, 10_000)
    assert torch.bincount(fashion.train.labels).tolist() == [6000] * 10
    assert fashion.train.images.mean().abs() < 1e-3
    assert fashion.train.images.std().item() == pytest.approx(1, abs=1e-3)


DIGESTS = {
    "digits": "e95a19e2ddcb329bc4e403fe979b3dafb544ec2fada91b970bb1b92a15cb1ebb",
    "digits32": "6b93ee0780637e365c3388be4430d095cb7e9b0db806f2e5fd70c085599f49b0",
}


@pytest.mark.parametrize("name", list(DIGESTS))
def test_the_fingerprint_of_a_data_set_does_not_change_from_one_release_to_the_next(tmp_path: Path, name: str):
    assert load_dataset(name, tmp_path).spec.fingerprint == DIGESTS[name]


def test_a_data_set_of_one_channel_is_fingerprinted_by_plain_numbers(tmp_path: Path):
    """The text that MNIST's fingerprints begin with is not that of a tuple."""
    write_files(tmp_path / "mnist", n_train=3, n_test=2)
    assert load_dataset("mnist", tmp_path).spec.fingerprint == (
        "a737ff7ca0461c3aafec581f6633b9199c72997b39126a6f8e1b2c778186ed33"
    )


def python2(value: Any) -> bytes:
    """`value` as Python 2's cPickle wrote it under protocol 2, without its frame: str as bytes, numpy's arrays by the
    names that numpy 1 had for their parts. What CIFAR is published as, opcode for opcode but for the memo."""
    match value:
        case str():
            data = value.encode()
            return b"U" + bytes([len(data)]) + data
        case bool():
            return b"\x88" if value else b"\x89"
        case int() if 0 <= value < 1 << 8:
            return b"K" + bytes([value])
        case int() if 0 <= value < 1 << 16:
            return b"M" + struct.pack("<H", value)
        case int():
            return b"J" + struct.pack("<i", value)
        case tuple() if len(value) <= 3:
            return b"".join(map(python2, value)) + bytes([0x84 + len(value)])
        case tuple():
            return b"(" + b"".join(map(python2, value)) + b"t"
        case list():
            return b"](" + b"".join(map(python2, value)) + b"e"
        case dict():
            return b"}(" + b"".join(python2(part) for item in value.items() for part in item) + b"u"
        case np.ndarray():
            kind = b"cnumpy\ndtype\n" + python2((value.dtype.str[1:], 0, 1)) + b"R"
            kind += b"(K\x03" + python2("|") + b"NNN" + python2(-1) + python2(-1) + b"K\x00tb"
            empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + python2((0,)) + python2("b") + b"\x87R"
            data = value.tobytes()
            state = (
                b"(K\x01" + python2(value.shape) + kind + python2(False) + b"T" + struct.pack("<i", len(data)) + data
            )
            return empty + state + b"tb"
        case _:
            raise TypeError(value)


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + python2(value) + b"."


Published = dict[str, tuple[np.ndarray, np.ndarray]]


def write_cifar(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, fetcher: type, n_each: int = 2, change: Callable | None = None
) -> Published:
    """The batches of CIFAR-10 or CIFAR-100 with `n_each` images per class and batch, and their checksums where the
    published ones stand. `change` takes a batch's bytes and gives others."""
    rng = np.random.default_rng(1)
    n_classes = 100 if fetcher is torchvision.datasets.CIFAR100 else 10
    folder = data_dir / fetcher.base_folder
    folder.mkdir(parents=True)
    arrays: Published = {}
    for kind in ("train_list", "test_list"):
        checked: list[list[str]] = []
        for name, _ in getattr(fetcher, kind):
            labels = rng.permutation(np.repeat(np.arange(n_classes), n_each))
            images = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
            batch: dict[str, Any] = {"batch_label": f"{name} of some", "data": images, "filenames": ["a.png", "b.png"]}
            if n_classes == 100:
                batch |= {"fine_labels": labels.tolist(), "coarse_labels": (labels // 5).tolist()}
            else:
                batch["labels"] = labels.tolist()
            data = pickled(batch) if change is None else change(pickled(batch))
            (folder / name).write_bytes(data)
            checked.append([name, hashlib.md5(data).hexdigest()])
            arrays[name] = (images.reshape(-1, 3, 32, 32), labels)
        monkeypatch.setattr(fetcher, kind, checked)
    return arrays


CIFAR = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}


def pack_archive(folder: Path, archive: Path) -> str:
    """Returns the md5 of what was packed."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return hashlib.md5(archive.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", list(CIFAR))
@pytest.mark.parametrize("place", ["", "{name}", "archive", "{name}/archive"])
def test_cifar_is_read_unpacked_or_as_its_archive(tmp_path: Path, monkeypatch, name: str, place: str):
    fetcher, place = CIFAR[name], place.format(name=name)
    home = tmp_path / "aside" if place.endswith("archive") else tmp_path / "data" / place
    arrays = write_cifar(home, monkeypatch, fetcher)
    if place.endswith("archive"):
        archive = tmp_path / "data" / place.removesuffix("archive") / fetcher.filename
        monkeypatch.setattr(fetcher, "tgz_md5", pack_archive(home / fetcher.base_folder, archive))
    dataset = load_dataset(name, tmp_path / "data")
    names = [batch for batch, _ in fetcher.train_list]
    images = np.concatenate([arrays[batch][0] for batch in names])
    mean, deviation = (
        np.reshape([125.307, 122.961, 113.8575], (3, 1, 1)),
        np.reshape([51.5865, 50.847, 51.255], (3, 1, 1)),
    )
    assert np.allclose(dataset.train.images.numpy(), (images - mean) / deviation, atol=1e-5)
    assert dataset.train.labels.tolist() == np.concatenate([arrays[batch][1] for batch in names]).tolist()
    assert dataset.test.labels.tolist() == arrays[fetcher.test_list[0][0]][1].tolist()
    assert dataset.spec.shape == (3, 32, 32)
    assert dataset.black == pytest.approx((-mean / deviation).ravel().tolist())
    assert describe_dataset(name, tmp_path / "data") == dataset.spec


def test_our_python_2_pickles_are_what_numpy_reads():
    """The writer of these tests, held to numpy's own reading of such files."""
    images = np.arange(6, dtype=np.uint8).reshape(2, 3)
    with warnings.catch_warnings(action="ignore"):
        found = pickle.loads(pickled({"data": images, "labels": [1, 300]}), encoding="latin1")  # noqa: S301
    assert np.array_equal(found["data"], images)
    assert found["labels"] == [1, 300]


def test_a_batch_is_not_unpickled_unless_its_checksum_matches(tmp_path: Path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, CIFAR["cifar10"])
    monkeypatch.setattr(published, "read_batch", lambda *_: pytest.fail("unpickled"))
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    batch.write_bytes(batch.read_bytes() + b" ")
    with pytest.raises(
        DataError, match=r"data_batch_1 is damaged \(its md5 is [0-9a-f]{32}, that of the published file"
    ):
        load_dataset("cifar10", tmp_path)


class Payload:
    """What would make a folder if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def global_then(name: bytes, *opcodes: bytes) -> bytes:
    return b"\x80\x02c" + name + b"\n" + b"".join(opcodes) + b"."


HOSTILE = {
    "eval, called": global_then(b"builtins\neval", python2("1"), b"\x85R"),
    "getattr, called": global_then(b"builtins\ngetattr", b"0N"),
    "an attribute of a stand-in's module": global_then(b"numpy\nload", b"0N"),
    "a stand-in's own class": global_then(b"numpy\nndarray.__init__", b"0N"),
    "an extension code": b"\x80\x02\x82\x01.",
    "a persistent id": b"\x80\x02Pname\n.",
    "a class whose state is set": global_then(b"numpy\nndarray", python2({"values": 1}), b"b"),
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_a_pickle_that_asks_for_more_than_arrays_is_refused_whatever_its_checksum(kind: str):
    with pytest.raises(ValueError, match=r"no pickle of a batch: \w+"):
        read_batch(HOSTILE[kind], "labels")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_payload_does_not_run(tmp_path: Path, protocol: int):
    data = pickle.dumps({"data": Payload(tmp_path / "made"), "labels": [1]}, protocol)
    with pytest.raises(ValueError, match=r"it asks for \w+\.mkdir, which no data set needs"):
        read_batch(data, "labels")
    assert not (tmp_path / "made").exists()


def test_the_payload_does_run_where_it_is_unpickled(tmp_path: Path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "made"), 2))  # noqa: S301
    assert (tmp_path / "made").is_dir()


IMAGE = np.zeros((1, 3072), dtype=np.uint8)


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (pickled([1]), "a pickled list, not a dict"),
        (pickled({"labels": [1]}), "lacks an array `data` or a list `labels`"),
        (pickled({"data": IMAGE, "labels": IMAGE}), "lacks an array `data` or a list `labels`"),
        (pickled({"data": IMAGE.astype(np.float64), "labels": [1]}), "not one of unsigned bytes"),
        (pickled({"data": IMAGE, "labels": ["1"]}), "a label that is no whole number from 0"),
        (pickled({"data": IMAGE, "labels": [-1]}), "a label that is no whole number from 0"),
        (pickled({"data": IMAGE, "labels": [1]})[:-40], "no pickle of a batch: "),
        (b"<html>404</html>", "no pickle of a batch: "),
        (b"", "no pickle of a batch: "),
    ],
)
def test_what_is_no_batch_of_images_is_refused_with_the_reason(batch: bytes, reason: str):
    with pytest.raises(ValueError, match=reason):
        read_batch(batch, "labels")


def test_a_batch_that_is_not_of_images_is_damage(tmp_path: Path, monkeypatch):
    write_cifar(
        tmp_path, monkeypatch, CIFAR["cifar10"], change=lambda data: data.replace(b"U\x06labels", b"U\x06lapels")
    )
    with pytest.raises(
        DataError, match=r"data_batch_1 is damaged \(it lacks an array .+\): delete it and fetch it again"
    ):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), ".+"),
        (lambda path: path.write_bytes(b"<html>404</html>"), "not a gzip file"),
        (lambda path: pack_archive(Path(__file__), path), "data_batch_1"),
        (lambda path: pack_hostile(path, tarfile.SYMTYPE), "is no file|not found"),
        (lambda path: pack_hostile(path, tarfile.LNKTYPE), "is no file|not found"),
        (lambda path: pack_hostile(path, tarfile.CHRTYPE), "is no file"),
        (lambda path: pack_hostile(path, tarfile.FIFOTYPE), "is no file"),
        (lambda path: pack_hostile(path, tarfile.REGTYPE, "../"), "not found"),
        (lambda path: pack_hostile(path, tarfile.REGTYPE, "/"), "not found"),
    ],
)
@pytest.mark.parametrize("is_published", [True, False])
def test_a_damaged_archive_is_a_sentence_that_names_it(
    tmp_path: Path, monkeypatch, damage: Callable, reason: str, is_published: bool
):
    """One whose checksum differs is not opened; of one that has it nothing but plain files is read."""
    write_cifar(tmp_path / "aside", monkeypatch, CIFAR["cifar10"])
    archive = tmp_path / "data" / "cifar-10-python.tar.gz"
    pack_archive(tmp_path / "aside" / "cifar-10-batches-py", archive)
    damage(archive)
    if is_published:
        monkeypatch.setattr(CIFAR["cifar10"], "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    else:
        monkeypatch.setattr("tarfile.open", None)
    told = f"({reason})" if is_published else "its md5 is [0-9a-f]+, that of the published file"
    with pytest.raises(DataError, match=rf"cifar-10-python\.tar\.gz is damaged \(.*{told}.*\): delete it and fetch"):
        load_dataset("cifar10", tmp_path / "data")
    assert not (tmp_path / "data_batch_1").exists()


def pack_hostile(archive: Path, kind: bytes, prefix: str = "") -> None:
    """An archive whose first batch is a link, a device or a file elsewhere."""
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo(f"{prefix}cifar-10-batches-py/data_batch_1")
        member.type, member.linkname = kind, "/etc/hostname"
        tar.addfile(member)


def write_svhn(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Published:
    """SVHN's two MATLAB files, images last and labels 1 to 10 in a column, with their checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(2)
    arrays: Published = {}
    listed: dict[str, list[str]] = {}
    for split, n_images in (("train", 30), ("test", 20)):
        images = rng.integers(0, 256, (32, 32, 3, n_images), dtype=np.uint8)
        labels = rng.permutation(np.arange(n_images) % 10 + 1).astype(np.uint8)[:, None]
        file = io.BytesIO()
        scipy.io.savemat(file, {"X": images, "y": labels} | changes, do_compression=True)
        url, name, _ = torchvision.datasets.SVHN.split_list[split]
        (folder / name).write_bytes(file.getvalue())
        listed[split] = [url, name, hashlib.md5(file.getvalue()).hexdigest()]
        arrays[split] = (images, labels)
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", listed)
    return arrays


@pytest.mark.parametrize("place", ["svhn", ""])
def test_svhn_is_read_with_images_first_and_ten_as_zero(tmp_path: Path, monkeypatch, place: str):
    arrays = write_svhn(tmp_path / place, monkeypatch)
    dataset = load_dataset("svhn", tmp_path)
    images, labels = arrays["train"]
    mean, deviation = np.array([111.6095, 113.1604, 120.5646]), np.array([50.4977, 51.2590, 50.2442])
    for index in (0, 17):
        expected = (images[:, :, :, index] - mean) / deviation
        assert np.allclose(dataset.train.images[index].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert dataset.train.labels.tolist() == (labels.ravel() % 10).tolist()
    assert (dataset.spec.n_train, dataset.spec.n_test, dataset.spec.shape) == (30, 20, (3, 32, 32))


def test_an_svhn_file_that_was_changed_or_holds_something_else_is_damage(tmp_path: Path, monkeypatch):
    write_svhn(tmp_path, monkeypatch)
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"test_32x32\.mat is damaged \(its md5 is"):
        load_dataset("svhn", tmp_path)
    write_svhn(tmp_path, monkeypatch, X=np.zeros(3))
    with pytest.raises(DataError, match=r"train_32x32\.mat is damaged \(no MATLAB file of images X and labels y"):
        load_dataset("svhn", tmp_path)
    write_svhn(tmp_path, monkeypatch, y=np.full((30, 1), 11))
    with pytest.raises(DataError, match="a label of 11 among 10 classes"):
        load_dataset("svhn", tmp_path)


WHAT = {
    "svhn": "train_32x32.mat and test_32x32.mat",
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "cifar100_split": "cifar-100-python.tar.gz",
}


@pytest.mark.parametrize("name", list(WHAT))
def test_a_missing_colour_data_set_is_a_sentence_with_every_way_to_get_it(tmp_path: Path, name: str):
    spec = describe_dataset(name, tmp_path)
    assert (spec.fingerprint, spec.shape) == (UNKNOWN_FINGERPRINT, (3, 32, 32))
    with pytest.raises(DataError) as caught:
        load_dataset(name, tmp_path)
    text = str(caught.value)
    folder = tmp_path / name.removesuffix("_split")
    for way in ("where there is a network", f"put {WHAT[name]} into {folder}", "REPAIRLAB_DATA_DIR"):
        assert way in text
    assert "\n" not in text
    assert not any(folder.iterdir())


def test_a_folder_with_some_of_the_batches_is_named(tmp_path: Path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, CIFAR["cifar10"])
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"cifar-10-batches-py holds some of its files, not all"):
        load_dataset("cifar10", tmp_path)


def test_what_is_fetched_lies_in_the_data_folder_whole_or_not_at_all(tmp_path: Path, monkeypatch):
    write_cifar(tmp_path / "aside", monkeypatch, CIFAR["cifar10"])
    archive = tmp_path / "aside" / "x.tar.gz"
    md5 = pack_archive(tmp_path / "aside" / "cifar-10-batches-py", archive)
    monkeypatch.setattr(CIFAR["cifar10"], "tgz_md5", md5)
    asked: list[tuple[str, str]] = []

    def cut_short(_url: str, root: str, filename: str, _md5: str) -> None:
        (Path(root) / filename).write_bytes(b"half of it")
        raise RuntimeError("File not found or corrupted.")

    def fetch(url: str, root: str, filename: str, md5: str) -> None:
        asked.append((url, md5))
        (Path(root) / filename).write_bytes(archive.read_bytes())

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", cut_short)
    with pytest.raises(DataError, match=r"could not be fetched \(File not found or corrupted\)"):
        load_dataset("cifar10", tmp_path / "data")
    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fetch)
    assert load_dataset("cifar10", tmp_path / "data").spec.n_train == 100
    assert asked == [(CIFAR["cifar10"].url, md5)]
    assert [path.name for path in (tmp_path / "data" / "cifar10").iterdir()] == ["cifar-10-python.tar.gz"]


def test_the_split_of_cifar_100_is_the_same_images_in_two_halves_of_opposite_classes(tmp_path: Path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, CIFAR["cifar100"], n_each=10)
    whole, split = load_dataset("cifar100", tmp_path), load_dataset("cifar100_split", tmp_path)
    assert split.spec.halves
    assert not whole.spec.halves
    assert torch.equal(split.train.images, whole.train.images)
    assert split.spec.fingerprint != whole.spec.fingerprint
    first, second = split.trained_on("first"), split.trained_on("second")
    assert torch.bincount(first.train.labels).tolist() == [8] * 50 + [2] * 50
    assert torch.bincount(second.train.labels).tolist() == [2] * 50 + [8] * 50
    assert first.test is split.test
    with pytest.raises(ValueError, match="cifar100 has no halves to train on"):
        whole.trained_on("first")
