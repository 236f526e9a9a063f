"""ImageNet's folders: how they are found, decoded, trained on and measured."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import os
import shutil
import struct
import time
import tracemalloc
import zlib
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from image_files import PlainFiles, centre_of, crop_of, paths_of, write_folders
from interruption import dying
from torch import Tensor

from infra.storage import Store
from tasks.data import datasets, image_folder
from tasks.data.datasets import UNKNOWN_FINGERPRINT, describe_dataset, load_dataset
from tasks.data.image_folder import FolderImages
from tasks.data.published import DataError
from tasks.science.data import examples as examples_module
from tasks.science.data.augmentation import draw_views, pad, statistics_images, take
from tasks.science.data.crops import draw_crops
from tasks.science.data.examples import Dataset, Examples, FileExamples, subset
from tasks.science.evaluation.metrics import evaluate
from tasks.science.networks import build_network, initial_state
from tasks.science.paths.curves import evaluate_splits
from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.specs.identity import stream, weights_digest
from tasks.science.specs.measurement import Samples, Viewing
from tasks.science.specs.recipe import Recipe
from tasks.science.training.training import train_group
from tasks.stored.artifacts import read_endpoint
from tasks.train import train

BLACK = [-123.675 / 58.395, -116.28 / 57.12, -103.53 / 57.375]


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    datasets._read.cache_clear()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return write_folders(tmp_path)


@pytest.fixture
def dataset(place: Path) -> Dataset:
    return load_dataset("imagenet", place.parent)


@pytest.fixture
def small_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 16 pixels where ImageNet's are of 256 and 224, so that networks are quick."""
    for module in (examples_module, image_folder):
        monkeypatch.setattr(module, "EVALUATION_SIDE", 16)
    known = datasets.DATASETS["imagenet"]
    files = dataclasses.replace(known.files, shape=(3, 16, 16))
    monkeypatch.setitem(datasets.DATASETS, "imagenet", dataclasses.replace(known, files=files))


@pytest.fixture
def crops() -> Recipe:
    return Recipe("crops", batch_size=8, epochs=3, learning_rate=0.05, warmup=0.1, flip=True, resized_crop=12)


def cell_of(dataset: Dataset, recipe: Recipe) -> Cell:
    return Cell(dataset.spec, "resnet20", "batch", 1, 20, recipe)


def digests(cell: Cell, dataset: Dataset, seeds=(0, 1), **options) -> dict[int, str]:
    return {one.seed: weights_digest(one.state) for one in train_group(cell, seeds, dataset, **options)}


def test_folders_of_any_number_of_classes_are_a_data_set(place: Path, dataset: Dataset):
    spec = dataset.spec
    assert (spec.n_train, spec.n_test, spec.n_classes, spec.shape) == (24, 9, 3, (3, 224, 224))
    assert dataset.train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert dataset.test.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert dataset.black == pytest.approx(BLACK)
    assert describe_dataset("imagenet", place.parent) == spec


def test_a_plan_without_the_folders_has_what_is_published(tmp_path: Path):
    (tmp_path / "imagenet/train").mkdir(parents=True)
    spec = describe_dataset("imagenet", tmp_path)
    assert (spec.fingerprint, spec.n_train, spec.n_classes) == (UNKNOWN_FINGERPRINT, 1_281_167, 1_000)
    with pytest.raises(DataError) as caught:
        load_dataset("imagenet", tmp_path)
    text = str(caught.value)
    for way in (str(tmp_path / "imagenet"), "train/<class>/*.JPEG and val/<class>/*.JPEG", "REPAIRLAB_DATA_DIR"):
        assert way in text
    assert "\n" not in text


def test_files_that_are_no_images_and_hidden_folders_are_left_aside(place: Path, dataset: Dataset):
    (place / "train/n01/readme.txt").write_text("not an image")
    (place / "train/n01/._n01_1.JPEG").write_text("what some systems leave")
    (place / "train/.trash").mkdir()
    (place / "val/list.txt").write_text("not a class")
    datasets._read.cache_clear()
    assert load_dataset("imagenet", place.parent).spec == dataset.spec


def remove_class(place: Path) -> None:
    shutil.rmtree(place / "val/n02")


def empty_class(place: Path) -> None:
    for path in (place / "train/n03").iterdir():
        path.unlink()


def no_classes(place: Path) -> None:
    for folder in (place / "train").iterdir():
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (remove_class, r"train/n02 is a class that .*val lacks: both need the same$"),
        (empty_class, r"train/n03 is a class without images: put some there, or remove it$"),
        (no_classes, r"train holds no folders of images: put one per class there$"),
    ],
)
def test_folders_that_are_no_data_set_are_a_sentence_that_names_them(place: Path, damage, text: str):
    damage(place)
    with pytest.raises(DataError, match=text):
        load_dataset("imagenet", place.parent)


@pytest.mark.filterwarnings("ignore:This DataLoader")
@pytest.mark.parametrize(("n_workers", "contents"), [(0, b""), (0, b"<html>404</html>"), (0, None), (1, None)])
def test_a_file_that_is_no_image_is_a_sentence_that_names_it(place: Path, n_workers: int, contents: bytes | None):
    path = place / "train/n02/n02_0.JPEG"
    path.write_bytes(path.read_bytes()[:-200] if contents is None else contents)
    images = FolderImages(place / "train", ("n01/n01_0.JPEG", "n02/n02_0.JPEG"), n_workers)
    with pytest.raises(DataError, match=r"n02_0\.JPEG cannot be read as an image \(.+\): put the original") as caught:
        list(images.read(torch.arange(2), 8, 2))
    assert "\n" not in str(caught.value)


def test_other_names_or_sizes_of_files_are_other_data(place: Path, dataset: Dataset):
    path = place / "train/n01/n01_0.JPEG"

    def fingerprint() -> str:
        datasets._read.cache_clear()
        return load_dataset("imagenet", place.parent).spec.fingerprint

    assert fingerprint() == dataset.spec.fingerprint
    path.write_bytes(path.read_bytes() + b" ")
    longer = fingerprint()
    path.rename(place / "train/n01/n01_00.JPEG")
    assert len({dataset.spec.fingerprint, longer, fingerprint()}) == 3


def test_images_are_evaluated_as_torchvision_would_show_their_largest_square(place: Path, dataset: Dataset):
    for split, examples in (("train", dataset.train), ("val", dataset.test)):
        batches = list(examples.batches(5))
        assert [len(labels) for _, labels in batches] == [5] * (len(examples) // 5) + [len(examples) % 5]
        plain = torch.stack([centre_of(path, 256) for path in paths_of(place, split)])
        mean, deviation = (
            torch.tensor(of)[:, None, None] for of in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
        )
        assert torch.equal(torch.cat([images for images, _ in batches]), (plain.float() - mean) / deviation)
        assert torch.equal(examples.images, (plain.float() - mean) / deviation)


def test_crops_are_what_torchvision_makes_of_the_decoded_image(place: Path):
    paths = paths_of(place, "train")
    images = FolderImages(place / "train", tuple(str(path.relative_to(place / "train")) for path in paths), 0)
    rows, drawn = torch.tensor([3, 0, 23, 3, 11]), draw_crops(stream("test"), 5)
    seen = torch.cat(list(images.read(rows, 20, 2, drawn)))
    assert torch.equal(seen, torch.stack([crop_of(paths[row], c, 20) for row, c in zip(rows, drawn, strict=True)]))


def read_all(images: FolderImages) -> list[Tensor]:
    rows = torch.arange(len(images.paths) - 1, -1, -1)
    drawn = draw_crops(stream("test"), len(rows))
    return [*images.read(rows, 16, 5, drawn), *images.read(rows, 16, 100)]


@pytest.fixture
def images(place: Path) -> FolderImages:
    return FolderImages(
        place / "train", tuple(str(path.relative_to(place / "train")) for path in paths_of(place, "train")), 0
    )


@pytest.mark.filterwarnings("ignore:This DataLoader")
def test_the_number_of_decoding_processes_changes_no_bit_and_draws_nothing(images: FolderImages):
    before = torch.random.get_rng_state()
    alone, shared = read_all(images), read_all(dataclasses.replace(images, n_workers=2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert [len(batch) for batch in alone] == [5, 5, 5, 5, 4, 24]
    for ours, theirs in zip(alone, shared, strict=True):
        assert torch.equal(ours, theirs)
    assert multiprocessing.active_children() == []
    with pytest.raises(ValueError, match="the number of decoding processes must be at least 0, got -1"):
        dataclasses.replace(images, n_workers=-1)


@pytest.mark.filterwarnings("ignore:This DataLoader")
@pytest.mark.slow
def test_images_are_decoded_inside_a_worker_as_the_flow_has_them(images: FolderImages):
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        found = pool.submit(_digest, dataclasses.replace(images, n_workers=1)).result()
    assert found == _digest(images)


@pytest.mark.slow
def test_a_process_that_may_have_no_children_decodes_by_itself(images: FolderImages):
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # Its workers are daemons.
        assert pool.apply(_digest, (dataclasses.replace(images, n_workers=2),)) == _digest(images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_decoding_processes_end_with_the_process_that_they_decode_for_even_if_it_is_killed(images: FolderImages):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_read_and_wait, args=(dataclasses.replace(images, n_workers=1), theirs))
    process.start()
    assert ours.poll(120)
    decoders = ours.recv()
    assert len(decoders) == 1
    assert all(is_running(pid) for pid in decoders)
    process.kill()
    process.join()
    until = time.monotonic() + 30
    while any(is_running(pid) for pid in decoders) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(is_running(pid) for pid in decoders)


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def _read_and_wait(images: FolderImages, connection: Connection) -> None:
    """Takes one of many batches, and leaves the decoder with more than a pipe holds."""
    reading = images.read(torch.arange(24).repeat(200), 256, 8)
    next(reading)
    connection.send([child.pid for child in multiprocessing.active_children()])
    time.sleep(600)


def _digest(images: FolderImages) -> str:
    return weights_digest({str(position): batch for position, batch in enumerate(read_all(images))})


def test_a_reduced_data_set_is_decoded_once_and_evaluates_to_the_same_bits(dataset: Dataset, monkeypatch):
    few = dataset.reduced(5)
    assert (len(few.train), len(few.test)) == (5, 5)
    assert few.train.images.dtype == torch.uint8
    rows = subset(dataset.spec.fingerprint, "train", 24, 5)
    assert rows is not None
    streamed = dataset.train.chosen(rows)
    assert few.train.labels.tolist() == streamed.labels.tolist() == dataset.train.labels[rows].tolist()
    assert torch.equal(torch.cat([images for images, _ in few.train.batches(2)]), streamed.images)
    whole = dataset.reduced(None)
    assert not isinstance(whole.train, FileExamples)
    assert len(whole.test) == 9
    monkeypatch.setattr(examples_module, "HELD_IMAGES", 10)
    assert dataset.reduced(None).train is dataset.train
    assert not isinstance(dataset.reduced(None).test, FileExamples)
    with pytest.raises(ValueError, match="24 images lie in files, of which 10 at most are read into memory"):
        _ = dataset.train.images


@pytest.mark.usefixtures("small_views")
def test_a_split_is_evaluated_from_files_as_from_memory(dataset: Dataset, crops: Recipe):
    cell = cell_of(dataset, crops)
    network = build_network(cell)
    state = initial_state(network, stream("initialization", 0))
    plain = Examples(dataset.test.images, dataset.test.labels)
    assert evaluate(network, state, dataset.test) == evaluate(network, state, plain)
    mirrored = dataclasses.replace(dataset, test=Examples(plain.images.flip(-1), plain.labels))
    flipped = Viewing(flip_averaged=True)
    ours, theirs = (evaluate_splits(network, state, data, viewing=flipped)["test"] for data in (dataset, mirrored))
    assert ours == theirs


@pytest.mark.usefixtures("small_views")
def test_statistics_are_flipped_crops_of_the_specs_size_in_order(place: Path, dataset: Dataset, crops: Recipe):
    cropped = crops.augmentation
    seen = statistics_images(dataset, cropped, Samples(10))
    rows = subset(dataset.spec.fingerprint, "train", 24, 10)
    views = draw_views(stream("statistics", dataset.spec.fingerprint), 24, (16, 16), cropped)
    assert rows is not None
    assert views.crops is not None
    paths = paths_of(place, "train")
    assert isinstance(dataset.train, FileExamples)
    plain = dataset.train.scaling(torch.stack([crop_of(paths[row], views.crops[row], 16) for row in rows]))
    assert 0 < views.mirrored[rows].sum() < 10
    assert torch.equal(seen, torch.where(views.mirrored[rows][:, None, None, None], plain.flip(-1), plain))
    assert torch.equal(statistics_images(dataset, cropped, Samples(4)), seen[:4])
    assert torch.equal(statistics_images(dataset, cropped)[rows], seen)
    still = statistics_images(dataset, cropped, Samples(10, augmented=False))
    assert torch.equal(still, dataset.train.chosen(rows).images)
    shifted = dataclasses.replace(cropped, resized_crop=0, translate=2)
    views = draw_views(stream("statistics", dataset.spec.fingerprint), 24, (16, 16), shifted)
    moved = take(pad(still, 2, dataset.black), torch.arange(10), views[rows], 2)
    assert torch.equal(statistics_images(dataset, shifted, Samples(10)), moved)


@pytest.mark.usefixtures("small_views")
def test_training_from_files_is_training_on_what_a_plain_loop_decodes(place: Path, dataset: Dataset, crops: Recipe):
    assert isinstance(dataset.train, FileExamples)
    cell = cell_of(dataset, crops)
    files = PlainFiles(paths_of(place, "train"))
    plain = FileExamples(files, torch.arange(24), dataset.train.labels, dataset.train.scaling)
    assert digests(cell, dataset) == digests(cell, dataclasses.replace(dataset, train=plain))
    # What is not cropped may as well lie in memory.
    for changes in ({"resized_crop": 0}, {"resized_crop": 0, "flip": False}, {"resized_crop": 0, "translate": 2}):
        whole = cell_of(dataset, dataclasses.replace(crops, **changes))
        memory = Examples(dataset.train.images, dataset.train.labels)
        assert digests(whole, dataset, [1]) == digests(whole, dataclasses.replace(dataset, train=memory), [1])


@pytest.mark.usefixtures("small_views")
@pytest.mark.filterwarnings("ignore:This DataLoader")
def test_a_seed_is_the_same_to_the_bit_in_any_group_and_with_any_decoders(dataset: Dataset, crops: Recipe):
    cell = cell_of(dataset, dataclasses.replace(crops, epochs=1))
    together = digests(cell, dataset, (0, 1, 2))
    assert digests(cell, dataset, [1]) == {1: together[1]}
    assert isinstance(dataset.train, FileExamples)
    files = dataclasses.replace(dataset.train.files, n_workers=1)  # type: ignore[type-var]
    shared = FileExamples(files, dataset.train.rows, dataset.train.labels, dataset.train.scaling)
    assert digests(cell, dataclasses.replace(dataset, train=shared), [1]) == {1: together[1]}
    stacked = train_group(cell, [0, 1], dataset, dtype=torch.float64, group_size=2)
    for ours, theirs in zip(stacked, train_group(cell, [0, 1], dataset, dtype=torch.float64), strict=True):
        for name in ours.state:
            assert torch.allclose(ours.state[name], theirs.state[name], rtol=0, atol=1e-8)


@pytest.mark.usefixtures("small_views")
def test_an_endpoint_is_judged_on_some_train_images_and_the_whole_test_split(
    dataset: Dataset, crops: Recipe, monkeypatch
):
    monkeypatch.setattr("tasks.science.training.training.JUDGED_IMAGES", 6)
    cell = cell_of(dataset, dataclasses.replace(crops, epochs=1))
    (trained,) = train_group(cell, [0], dataset)
    assert (trained.train.n_examples, trained.test.n_examples) == (6, 9)
    rows = subset(dataset.spec.fingerprint, "train", 24, 6)
    assert rows is not None
    assert trained.train == evaluate(build_network(cell), trained.state, dataset.train.chosen(rows))


@pytest.mark.usefixtures("small_views")
def test_training_from_files_learns(dataset: Dataset, crops: Recipe):
    learning = dataclasses.replace(crops, epochs=15, optimizer="adam", learning_rate=0.005)
    (trained,) = train_group(cell_of(dataset, learning), [0], dataset)
    assert trained.status == "trained"
    assert trained.train.accuracy > 0.6


def test_a_network_that_reads_one_size_alone_is_refused_before_it_is_trained(dataset: Dataset, crops: Recipe):
    cell = Cell(dataset.spec, "mlp", "none", 4, 2, crops)
    with pytest.raises(ValueError, match="mlp cannot read images of 12 x 12 pixels, which recipe crops and im"):
        list(train_group(cell, [0], dataset))


@pytest.mark.usefixtures("small_views")
def test_a_killed_training_goes_on_to_the_same_bits(
    store: Store, tmp_path: Path, dataset: Dataset, crops: Recipe, monkeypatch
):
    monkeypatch.setattr("tasks.stored.trainings.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("tasks.train.load_dataset", lambda _name, _folder: dataset)
    cell, other = cell_of(dataset, crops), Store(str(tmp_path / "other"))
    train.fn(cell, [0, 1], other, Path())
    with dying(3 * 2 + 2):  # In the third epoch of three batches.
        train.fn(cell, [0, 1], store, Path())
    with dying(3):
        train.fn(cell, [0], store, Path())
        raise RuntimeError("the power is off")
    train.fn(cell, [0, 1], store, Path())
    for seed in (0, 1):
        ours, theirs = (read_endpoint(one, Endpoint(cell, seed)) for one in (store, other))
        assert ours is not None
        assert theirs is not None
        assert ours["weights_sha256"] == theirs["weights_sha256"]


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims that many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


@pytest.mark.parametrize(
    ("width", "height"), [(9_000, 9_000), (2**16, 1_100), (20_000, 20_000), (2**31 - 1, 2**31 - 1)]
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_more_pixels_than_any_photograph_is_not_decoded(tmp_path: Path, width: int, height: int):
    (tmp_path / "x.png").write_bytes(bomb(width, height))
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=r"x\.png cannot be read as an image \(.*pixels.*\): put the original there"
        ):
            image_folder.decode_image(tmp_path / "x.png", 8)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_what_is_no_file_is_no_image_and_links_that_lead_around_are_a_sentence(place: Path):
    before = load_dataset("imagenet", place.parent).spec
    name = next(path.name for path in (place / "train").iterdir())
    (place / "train" / name / "gone.jpg").symlink_to(place / "nowhere.jpg")
    os.mkfifo(place / "train" / name / "pipe.jpg")
    datasets._read.cache_clear()
    assert load_dataset("imagenet", place.parent).spec == before
    for loop in (place / "train" / "loop", place / "train" / name / "around.jpg"):
        loop.symlink_to(loop)
        datasets._read.cache_clear()
        with pytest.raises(DataError, match=r"cannot be read \(Too many levels of symbolic links\)"):
            load_dataset("imagenet", place.parent)
        loop.unlink()
