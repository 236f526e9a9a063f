"""Studies defined in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.options import StudyOptions, read_study
from tasks.data.datasets import published_shape
from tasks.science.specs.recipes import RECIPES
from tasks.science.specs.request import Request

STUDY = """
name = "rates"
question = "Does the learning rate matter?"
dataset = "digits"
architecture = "mlp"
width = [32, 64]
depth = 4
seeds = 3
recipe = {base = "small/digits", epochs = 5}
correction = ["none", "repair"]
measurement = {alphas = 5}

[sweep]
learning_rate = [0.01, 0.02]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(text)
    return path


def resolve(folder: Path, text: str, **options) -> Request:
    own = read_study(write(folder, text))
    return StudyOptions(study=own.name, own=own, **options).resolve(published_shape)


def test_a_study_in_a_file_is_the_grid_that_it_writes(tmp_path: Path):
    request = resolve(tmp_path, STUDY)
    assert request.study == "rates"
    assert {(cell.width, cell.depth, cell.recipe.learning_rate, cell.recipe.epochs) for cell in request.cells} == {
        (width, 4, rate, 5) for width in (32, 64) for rate in (0.01, 0.02)
    }
    assert (request.seeds, request.swept) == ((0, 1, 2), ("learning_rate",))
    assert [measurement.alphas for measurement in request.measurements] == [5]


def test_a_file_may_ask_for_checkpoints_of_one_training(tmp_path: Path):
    over_time = STUDY.replace("learning_rate = [0.01, 0.02]", 'epoch = [0, 1, 5, "last"]')
    request = resolve(tmp_path, over_time)
    assert [cell.epoch for cell in request.cells if cell.width == 32] == [0, 1, None]
    assert request.swept == ("epoch",)
    with pytest.raises(ValueError, match="the epochs of recipe digits/epochs=5, or last, got 6"):
        resolve(tmp_path, over_time.replace('5, "last"', '6, "last"'))


def test_a_file_may_ask_for_checkpoints_and_for_children_of_a_training(tmp_path: Path):
    over_time = STUDY.split("[sweep]", maxsplit=1)[0]
    request = resolve(tmp_path, f'{over_time}checkpoints = [3, "last"]\nspawn_from = [0, 2]')
    assert [(cell.epoch, cell.spawn) for cell in request.cells if cell.width == 32] == [(3, (0, 2)), (None, (0, 2))]
    assert request.swept == ("epoch", "spawn_seed", "spawn_epoch")
    several = resolve(tmp_path, f"{over_time}spawn_from = [[0, 2], [1, 0]]")
    assert {cell.spawn for cell in several.cells} == {(0, 2), (1, 0)}
    with pytest.raises(ValueError, match="spawn_from cannot be 0: Parents"):
        resolve(tmp_path, f'{over_time}spawn_from = [0, "start"]')
    with pytest.raises(ValueError, match="must be a whole number from 0 to 4"):
        resolve(tmp_path, f"{over_time}spawn_from = [0, 5]")
    for written in ("checkpoints = [true]", "spawn_from = [true, false]"):
        with pytest.raises(ValueError, match="cannot be True"):
            resolve(tmp_path, over_time + written)


def test_options_change_a_study_in_a_file_as_any_other(tmp_path: Path):
    request = resolve(tmp_path, STUDY, width=[8], seeds=2, sweep={"optimizer": ["sgd", "adam"]})
    assert {cell.width for cell in request.cells} == {8}
    assert len(request.cells) == 4
    assert request.swept == ("learning_rate", "optimizer")


def test_a_recipe_is_one_of_those_there_are_or_all_of_its_fields(tmp_path: Path):
    named = STUDY.replace('{base = "small/digits", epochs = 5}', '"small/digits"')
    assert resolve(tmp_path, named).cells[0].recipe == RECIPES["small"]["digits"].recipe
    fields = "{batch_size = 8, epochs = 2, learning_rate = 0.01, warmup = 0.1, flip = true}"
    recipe = resolve(tmp_path, STUDY.replace('{base = "small/digits", epochs = 5}', fields)).cells[0].recipe
    assert (recipe.name, recipe.batch_size, recipe.flip) == ("rates", 8, True)


def test_a_cell_is_the_same_whichever_study_asks_for_it(tmp_path: Path):
    plain = STUDY.replace("epochs = 5", "epochs = 60").replace("[0.01, 0.02]", "[0.01]").replace("[32, 64]", "128")
    ids = {cell.id for cell in StudyOptions(study="digits-depth", depth=[4]).resolve(published_shape).cells}
    assert {cell.id for cell in resolve(tmp_path, plain).cells} == ids


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('name = "rates"', "", "own.toml: the field name is missing"),
        ('name = "rates"', 'name = "../rates"', "'../rates' is no name"),
        ('name = "rates"', 'name = "width"', "width is the name of a study that comes with repairlab: choose another"),
        ("seeds = 3", "seed = 3", "own.toml: there is no field 'seed'; known: dataset, "),
        ("seeds = 3", 'seeds = "many"', "own.toml: seeds cannot be 'many': Number of seeds"),
        ("depth = 4", "", "an mlp needs its depth, the number of hidden layers: give --depth N"),
        ('"mlp"', '"alexnet"', "there is no architecture 'alexnet'; known: mlp, "),
        ('"small/digits"', '"digits"', "there is no recipe 'digits': write family/name, with a family of small, mlp"),
        ('"small/digits"', '"small/other"', "there is no recipe 'other' of small; known: digits, "),
        ("epochs = 5", "epoch = 5", "recipe has no field 'epoch'; known: "),
        ('base = "small/digits", ', "", "the recipe of rates cannot be: missing 3 required positional arguments"),
        ("learning_rate = [", "rate = [", "there is no field 'rate' to sweep; known, of recipes: "),
        ("alphas = 5", "alphas = 4", "must be odd and at least 3"),
        ("[sweep]", "[sweep", "own.toml is not TOML: "),
    ],
)  # fmt: skip
def test_a_file_that_is_no_study_says_what_is_wrong(tmp_path: Path, old: str, new: str, sentence: str):
    assert old in STUDY
    with pytest.raises(ValueError, match=sentence):
        resolve(tmp_path, STUDY.replace(old, new))


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path):
    with pytest.raises(ValueError, match=r"none.toml cannot be read \(No such file or directory\)"):
        read_study(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary.toml is not text"):
        read_study(tmp_path / "binary.toml")
