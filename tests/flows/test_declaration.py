"""Every option of a study is declared once, and each place that takes options says which of them it lacks."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from flows.cli import run
from flows.declaration import (
    Choices,
    Extras,
    OptionInfo,
    RunOptions,
    split_matchers,
    split_numbers,
    split_sweeps,
    split_words,
)
from flows.deployed import StudyForm
from flows.options import OwnStudy, StudyOptions
from flows.presets.preset import Preset
from infra.settings import Settings
from tasks.science.specs.request import Request

OF_COMMANDS = {"dry_run", "yes", "quiet", "as_json"}
NAMING_CODE = {"network", "data", "trust_code"}
NOT_IN_FILES = {"study", "size", "epochs", "precision", "alphas", "statistics", "evaluation", "draw", *NAMING_CODE}
"""A file has a name, and says the rest as fields of its recipe and measurement."""


def test_the_command_line_takes_every_option_and_no_other():
    parameters = set(inspect.signature(run).parameters)
    assert parameters - OF_COMMANDS - set(Settings.model_fields) == set(RunOptions.model_fields)
    assert set(StudyOptions.model_fields) - parameters == {"own"}


def test_the_form_takes_every_option_but_those_that_name_code():
    assert set(RunOptions.model_fields) - set(StudyForm.model_fields) == NAMING_CODE
    assert set(StudyForm.model_fields) - set(RunOptions.model_fields) == {"store"}


def test_a_file_takes_every_option_of_a_study_without_one():
    assert set(RunOptions.model_fields) - set(OwnStudy.model_fields) == NOT_IN_FILES
    own = {"name", "question", "measurement", "checkpoints", "spawn_from"}
    assert set(OwnStudy.model_fields) - set(RunOptions.model_fields) == own


@pytest.mark.parametrize("model", [StudyOptions, StudyForm, OwnStudy])
def test_what_takes_an_option_takes_it_as_it_is_declared(model: type):
    for name in set(Choices.model_fields) & set(model.model_fields) - {"recipe"}:
        declared, taken = Choices.model_fields[name], model.model_fields[name]
        assert (taken.description, taken.default) == (declared.description, None), name
        if (model, name) not in [(StudyForm, each) for each in ("size", "dataset", "architecture")]:
            assert taken.annotation == declared.annotation, name


def test_every_option_says_what_it_is():
    for name, field in RunOptions.model_fields.items():
        assert field.description, name
        assert field.default is None or name in ("study", "trust_code"), name


def test_the_extras_are_switches_of_a_request_and_have_one_default():
    fields = {field.name: field.default for field in dataclasses.fields(Request)}
    assert all(fields[name] is False for name in Extras.model_fields)
    preset = Preset("s", "?", ())
    own = OwnStudy(name="s", dataset=["digits"], architecture=["mlp"], depth=[2], recipe="small/digits").preset()
    assert preset.extras.given(Extras) == own.extras.given(Extras) == {}
    assert (own.n_seeds, own.matchers, own.corrections) == (preset.n_seeds, preset.matchers, preset.corrections)
    assert OptionInfo.of(Choices.model_fields["controls"]).default is True


@pytest.mark.parametrize(
    ("read", "words", "value"),
    [
        (split_words, ["a, b", "c"], ["a", "b", "c"]),
        (split_numbers, ["1,2", "3"], [1, 2, 3]),
        (split_matchers, ["a/x=1,y=2,b", "c"], ["a/x=1,y=2", "b", "c"]),
        (split_sweeps, ["learning_rate=.1,.2", "epoch=1,last"], {"learning_rate": [0.1, 0.2], "epoch": [1, None]}),
    ],
)
def test_words_of_a_command_line_are_values(read, words: list[str], value: object):
    assert read("option", words) == value


@pytest.mark.parametrize(
    ("read", "words"), [(split_words, ["a,,b"]), (split_numbers, ["1,x"]), (split_sweeps, ["epoch"])]
)
def test_words_that_are_no_values_are_refused_with_the_option(read, words: list[str]):
    with pytest.raises(ValueError, match="--option "):
        read("option", words)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"width": [0]}, "width must be at least 1, got 0"),
        ({"seeds": 10_001}, "seeds must be at most 10000, got 10001"),
        ({"precision": "half"}, "precision must be float32, bfloat16 or float16, got 'half'"),
        ({"girth": 3}, "there is no field 'girth'; known: "),
        ({"depth": ["deep"]}, "depth cannot be 'deep': Numbers of hidden layers"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_one_sentence(fields: dict, sentence: str):
    with pytest.raises(ValueError, match=sentence) as caught:
        RunOptions(**fields)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
