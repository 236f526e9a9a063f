"""Weights files of anybody's: good ones are read, whatever their name; bad ones are one sentence, and never run."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from infra.weights import HARMLESS, WeightsError, check_target, open_weights, read_weights, write_weights

STATE = {name: tensor.clone() for name, tensor in nn.Linear(3, 2).state_dict().items()}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor] = STATE) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w"])
@pytest.mark.parametrize(
    "save",
    [
        lambda path: safetensors.torch.save_file(STATE, path),
        lambda path: torch.save(STATE, path),
        lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
        lambda path: torch.save(nn.Linear(3, 2).state_dict() | STATE, path),
        lambda path: torch.save({"state_dict": STATE, "epoch": 3}, path),
        lambda path: torch.save({"model": {"state_dict": STATE}, "optimizer": {"lr": 0.1}}, path),
        lambda path: torch.save({"model_state_dict": prefixed("module."), "epoch": 3}, path),
        lambda path: torch.save(prefixed("module._orig_mod."), path),
        lambda path: torch.save({"net": STATE, "args": argparse.Namespace(lr=0.1, at=Path("a"))}, path),
        lambda path: torch.save({"net": STATE, "acc": np.float64(0.9), "seen": np.arange(3)}, path),
        lambda path: torch.save({"state_dict_ema": prefixed("_orig_mod.module."), "epoch": np.int64(3)}, path),
        lambda path: torch.save({"model": {"width": 3}, "net": STATE, "done": {1, 2}, "at": range(3)}, path),
        lambda path: safetensors.torch.save_file(prefixed("module."), path),
    ],
)
def test_a_state_dict_is_read_from_any_file_whatever_its_name(save: Callable[[Path], None], name: str):
    save(Path(name))
    assert same(read_weights(name))


def test_a_prefix_stays_where_not_every_name_has_it():
    state = prefixed("module.") | {"head": torch.zeros(1)}
    torch.save(state, "w.pt")
    assert same(read_weights("w.pt"), state)


def test_what_was_taken_and_left_is_told():
    beside = {"args": argparse.Namespace(lr=0.1), "best": np.float32(1), "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save({"state_dict": prefixed("module."), "state_dict_ema": {"w": torch.zeros(1)}, **beside}, "w.pt")
    found = open_weights("w.pt")
    assert same(found.weights)
    assert found.notes == (
        "w.pt: the weights under state_dict are taken; to take those under state_dict_ema, save them alone",
        "w.pt: left out beside the weights: args, best, epoch, optimizer",
        "w.pt: module. is taken off the name of every tensor",
    )
    torch.save(STATE, "alone.pt")
    assert open_weights("alone.pt").notes == ()
    torch.save({"net": STATE, "a\x1b[31m" + "b" * 99: 1}, "odd.pt")
    assert open_weights("odd.pt").notes == ("odd.pt: left out beside the weights: a\\x1b[31m" + "b" * 31,)


def test_what_compiling_adds_is_taken_out_of_the_middle_of_names():
    torch.save({f"block._orig_mod.{name}": tensor for name, tensor in STATE.items()} | {"head": torch.zeros(1)}, "w.pt")
    expected = {f"block.{name}": tensor for name, tensor in STATE.items()} | {"head": torch.zeros(1)}
    found = open_weights("w.pt")
    assert same(found.weights, expected)
    assert found.notes == ("w.pt: _orig_mod. is taken out of the names of tensors",)


class Posing:
    """Asks for a harmless type, to which it would have code given."""

    def __reduce__(self):
        return argparse.Namespace, (), {"harm": Payload()}


def test_a_file_cannot_use_a_harmless_type_to_run_anything(monkeypatch: pytest.MonkeyPatch):
    called: list[object] = []
    monkeypatch.setattr(argparse.Namespace, "__init__", lambda *given, **_: called.append(given))
    torch.save({"net": STATE, "args": Posing()}, "w.pt")
    with pytest.raises(WeightsError, match=r"asks for posix\.mkdir to be called"):
        read_weights("w.pt")
    torch.save({"net": STATE, "args": argparse.Namespace.__new__(argparse.Namespace)}, "plain.pt")
    assert same(read_weights("plain.pt"))
    assert called == []
    assert not Path("executed").exists()
    assert not any(name.startswith(("os.", "sys.", "posix.", "builtins.eval", "builtins.exec")) for name in HARMLESS)
    # The list holds while a file of weights is read, and no longer.
    with pytest.raises(pickle.UnpicklingError):
        torch.load("plain.pt", weights_only=True)


def test_a_header_whose_length_begins_as_a_pickle_does_is_no_pickle():
    for n in range(200):
        data = safetensors.torch.save({"w": torch.zeros(1)}, metadata={"pad": "x" * n})
        if data[:2] in (b"\x80\x00", b"\x80\x01", b"\x80\x02"):
            Path("w").write_bytes(data)
            assert list(read_weights("w")) == ["w"]
            return
    raise AssertionError("no such length was tried")


class Payload:
    """What would make a folder if it were unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


class Text:
    def __reduce__(self):
        return eval, ("__import__('os').mkdir('executed')",)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(), 2))
        archive.writestr("archive/version", "3")


@pytest.mark.parametrize(
    ("save", "asked"),
    [
        (lambda path: torch.save({"w": torch.zeros(2), "x": Payload()}, path), "asks for posix.mkdir to be called"),
        (
            lambda path: torch.save({"state_dict": {"a": {"b": [Text()]}}}, path),
            "asks for eval to be called when it is",
        ),
        (
            lambda path: torch.save({"x": Payload()}, path, _use_new_zipfile_serialization=False),
            "asks for posix.mkdir to be called",
        ),
        (zipped, "asks for posix.mkdir to be called"),
        (lambda path: path.write_bytes(pickle.dumps(Payload(), 2)), "asks for posix.mkdir to be called"),
        (lambda path: path.write_bytes(pickle.dumps({"w": Text()}, 2)), "asks for eval to be called when it is read"),
        (lambda path: path.write_bytes(pickle.dumps(Payload(), 5)), "is a pickle of more than tensors"),
        (lambda path: torch.save(nn.Linear(2, 2), path), "asks for torch.nn.modules.linear.Linear to be called"),
        (
            lambda path: torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=False),
            "asks for torch.nn.modules.linear.Linear to be called",
        ),
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_what_would_have_to_run_is_refused_and_nothing_runs(
    save: Callable[[Path], None], asked: str, name: str, monkeypatch: pytest.MonkeyPatch
):
    # A person may have told torch to unpickle whatever it is given.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    save(Path(name))
    with pytest.raises(WeightsError) as refused:
        read_weights(name)
    assert re.fullmatch(
        rf"{re.escape(name)} (asks for [\w.]+ to be called when it is read|is a pickle of more than tensors), and "
        r"nothing in a file is run here: save network\.state_dict\(\) alone",
        str(refused.value),
    )
    assert asked in str(refused.value)
    assert [path.name for path in Path().iterdir()] == [name]


def test_a_payload_can_run_where_it_is_unpickled():
    """What the tests above would find."""
    pickle.loads(pickle.dumps(Payload()))  # noqa: S301
    assert Path("executed").is_dir()


@pytest.mark.parametrize(
    ("save", "sentence"),
    [
        (lambda _: None, "there is no file w"),
        (lambda path: path.mkdir(), "w is no file: give a weights file"),
        (lambda path: os.mkfifo(path), "w is no file: give a weights file"),
        (lambda path: path.write_bytes(b""), "w is empty"),
        (
            lambda path: path.write_text("epoch,loss\n1,2\n"),
            "w is neither a safetensors file nor one that torch.save wr",
        ),
        (lambda path: path.write_bytes(b"PK\x03\x04" + b"\0" * 200), "w is damaged or cut short (PytorchStreamReader"),
        (lambda path: path.write_bytes(b"\x02" + b"\0" * 7 + b"{]"), "w is damaged or cut short ("),
        (
            lambda path: torch.save([1, 2], path),
            "w holds list where a state dict is expected: save network.state_dict()",
        ),
        (lambda path: torch.save(torch.zeros(3), path), "w holds Tensor where a state dict is expected"),
        (lambda path: torch.save({}, path), "w holds nothing where a state dict is expected"),
        (
            lambda path: torch.save(STATE | {"epoch": 3}, path),
            "w is no state dict: 'epoch' in it is no tensor; save netw",
        ),
        (
            lambda path: torch.save({"nets": STATE}, path),
            "'nets' in it is no tensor; save network.state_dict() alone, or",
        ),
        (lambda path: torch.save({3: torch.zeros(1)}, path), "w is no state dict: '3' in it is no tensor"),
    ],
)
def test_a_file_that_holds_no_weights_is_one_sentence(save: Callable[[Path], None], sentence: str):
    save(Path("w"))
    with pytest.raises(WeightsError) as refused:
        read_weights("w")
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_torchscript_archive_is_told_to_be_a_program():
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "w.pt")
    with pytest.raises(WeightsError, match=r"^w\.pt is a TorchScript archive, a program: save network\.state_dict"):
        read_weights("w.pt")


@pytest.mark.parametrize(
    "save",
    [
        lambda path: safetensors.torch.save_file(STATE, path),
        lambda path: torch.save(STATE, path),
        lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
    ],
)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.9, 0.99])
def test_a_file_cut_short_anywhere_is_one_sentence(save: Callable[[Path], None], share: float):
    save(Path("w"))
    data = Path("w").read_bytes()
    Path("w").write_bytes(data[: max(1, int(len(data) * share))])
    with pytest.raises(
        WeightsError, match=r"^w is (damaged or cut short \(.*\): fetch or save it again|neither a .*)$"
    ):
        read_weights("w")


def test_weights_are_written_whole_with_how_they_were_made():
    write_weights("out.safetensors", STATE, {"alpha": 0.5})
    assert same(read_weights("out.safetensors"))
    with safetensors.safe_open("out.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["repairlab"]) == {"alpha": 0.5}
    assert [path.name for path in Path().iterdir()] == ["out.safetensors"]


def test_tensors_that_share_memory_are_written_each():
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    network[1].weight = network[0].weight
    write_weights("out.safetensors", network.state_dict())
    found = safetensors.torch.load_file("out.safetensors")
    network.load_state_dict(found, strict=True)
    assert torch.equal(found["0.weight"], found["1.weight"])
    whole = torch.arange(12.0)
    write_weights("views.safetensors", {"a": whole[:6], "b": whole[6:].view(2, 3).T})
    assert same(read_weights("views.safetensors"), {"a": whole[:6], "b": whole[6:].view(2, 3).T})


def test_a_target_is_refused_before_any_work_in_a_sentence(tmp_path: Path):
    (tmp_path / "taken.safetensors").write_bytes(b"mine")
    (tmp_path / "link.safetensors").symlink_to("nowhere")
    for name, sentence in {
        "out.pt": "out.pt does not end in .safetensors, the format that is written",
        "taken.safetensors": "taken.safetensors is there already and is not overwritten: name another file",
        "link.safetensors": "link.safetensors is there already",
        "no/out.safetensors": "no/out.safetensors cannot be written: there is no folder no",
    }.items():
        for refuse in (check_target, lambda path: write_weights(path, STATE)):
            with pytest.raises(WeightsError, match=f"^{re.escape(sentence)}"):
                refuse(name)
    assert (tmp_path / "taken.safetensors").read_bytes() == b"mine"


def test_a_file_that_comes_to_be_there_in_the_meantime_is_not_overwritten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("infra.weights.check_target", lambda path: Path(path).write_bytes(b"theirs"))
    with pytest.raises(WeightsError, match=r"^out\.safetensors has come to be there in the meantime and is not overw"):
        write_weights("out.safetensors", STATE)
    assert Path("out.safetensors").read_bytes() == b"theirs"
    assert [path.name for path in Path().iterdir()] == ["out.safetensors"]
