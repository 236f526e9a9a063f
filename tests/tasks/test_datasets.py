from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import datasets
from tasks.datasets import UNKNOWN_FINGERPRINT, DataError, describe_dataset, load_dataset, read_idx


@pytest.fixture(autouse=True)
def _nothing_elsewhere(monkeypatch, tmp_path):
    """No package's files, no network, and nothing remembered from another test."""
    files = datasets.DATASETS["fashion_mnist"].files
    monkeypatch.setitem(
        datasets.DATASETS,
        "fashion_mnist",
        datasets.Known(
            60_000, 10_000, 10, (1, 28, 28),
            datasets.IdxFiles(files.mean, files.deviation, files.fetcher, ("a-package", tmp_path / "package")),
        ),
    )  # fmt: skip

    def no_network(*_arguments, **_options):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nmany lines of it")

    monkeypatch.setattr(datasets.torchvision.datasets.MNIST, "download", no_network)
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
