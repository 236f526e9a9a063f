"""`repairlab merge`, as a person calls it: networks, data and files of their own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from flows.cli import main
from infra.weights import read_weights
from tasks.science.specs.identity import weights_digest

MODULE = """
import torch
from torch import nn


def build():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )


def unbiased():
    return nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 4))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.logits = nn.GRU(6, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, images):
        return self.logits(self.gru(images[:, 0])[0][:, -1])


class LowRank(nn.Linear):
    def __init__(self):
        super().__init__(36, 4)
        self.a, self.b = nn.Parameter(torch.randn(8, 36)), nn.Parameter(torch.zeros(4, 8))

    def train(self, mode=True):
        if mode != self.training:
            self.weight.data += (-1 if mode else 1) * self.b @ self.a
        return super().train(mode)


def low_rank():
    return nn.Sequential(nn.Flatten(), LowRank())


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(36, 4)

    def forward(self, images):
        logits = self.layer(images.flatten(1))
        return logits if logits.sum() > 0 else -logits


def seven():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


class Casting(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, ids):
        stream = self.embedding(ids).mean(1)
        scale = torch.rsqrt(stream.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return {"logits": self.head(torch.relu(self.hidden(stream * scale.to(stream.dtype)))), "cache": None}


def token_ids():
    (images, labels), _ = load()
    ids = (images.flatten(1)[:, :5].abs() * 3).long().clamp(max=8)
    return (ids, labels), (ids, labels)


def load():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(90, 1, 6, 6, generator=generator), torch.arange(90) % 4
    return (images[:60], labels[:60]), (images[60:], labels[60:])


def broken():
    raise RuntimeError("no such GPU\\nsecond line")


def nothing():
    return None


def asks_for_more(width):
    return None


def bytes_of():
    (images, labels), test = load()
    return (images.byte(), labels), test


def flat():
    (images, labels), test = load()
    return (images.flatten(1), labels), test


def short():
    (images, labels), test = load()
    return (images, labels[:50]), test


def soft():
    (images, labels), test = load()
    return (images, labels.float()), test


def two_sizes():
    train, (images, labels) = load()
    return train, (images[:, :, :5], labels)


def negative():
    (images, labels), test = load()
    return (images, labels - 1), test


def not_finite():
    (images, labels), test = load()
    return (images / 0, labels), test


number = 3
"""


@pytest.fixture
def own(write_module: Callable[[str], str]) -> str:
    """The name of a module in the current folder, beside weights of two of its networks, a.safetensors and b.pt."""
    name = write_module(MODULE)
    scope: dict = {}
    exec(MODULE, scope)  # noqa: S102
    for seed, function, save in ((0, "build", "a.safetensors"), (1, "build", "b.pt"), (2, "Branching", "c.pt")):
        torch.manual_seed(seed)
        state = scope[function]().state_dict()
        safetensors.torch.save_file(state, save) if save.endswith("s") else torch.save(state, save)
    return name


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    def merge(*words: str, **options: str) -> tuple[int, str, str]:
        given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        monkeypatch.setattr(sys, "argv", ["repairlab", "merge", *words, *given])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return merge


def test_two_networks_of_a_person_are_merged_in_a_process_of_its_own(own: str, tmp_path: Path):
    command = Path(sys.executable).with_name("repairlab")
    words = ["merge", "a.safetensors", "b.pt", "--network", f"{own}:build", "--data", f"{own}:load"]
    called = subprocess.run(
        [str(command), *words, "--out", "merged.safetensors"], cwd=tmp_path, capture_output=True, text=True,
        timeout=300, check=False, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    assert called.returncode == 0, called.stderr
    assert called.stderr == ""
    lines = called.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"30 test examples of {own}:load, alpha 0.5")
    names = ["A  ", "B  ", "direct", "aligned (activation)", "aligned and corrected (repair)"]
    for name, line in zip(names, lines[2:7], strict=True):
        assert line.startswith(name)
        accuracy, loss = map(float, line.split()[-2:])
        assert 0 <= accuracy <= 100
        assert loss > 0
    assert "of 14 units moved, on 2 of 2 axes; B's outputs differ by" in called.stdout.replace("\n", " ")
    assert "stay: 4 units: output" in lines
    assert "statistics: 60 of 60 train images, 2 layers corrected" in lines
    assert lines[-1] == "written: merged.safetensors, 10 tensors"

    fresh: nn.Module = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    fresh.load_state_dict(safetensors.torch.load_file(tmp_path / "merged.safetensors"), strict=True)
    with safetensors.safe_open(tmp_path / "merged.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["repairlab"])
    assert header["a_sha256"] == weights_digest(read_weights(tmp_path / "a.safetensors"))
    assert header["b_sha256"] == weights_digest(read_weights(tmp_path / "b.pt"))
    assert (header["alpha"], header["matcher"], header["correction"], header["extra"]) == (
        0.5, "activation", "repair", [],
    )  # fmt: skip
    assert header["versions"]["repairlab"]


def test_a_network_that_rewrites_its_weights_is_refused_and_nothing_is_written(
    own: str, call: Callable[..., tuple[int, str, str]]
):
    state = {"1.weight": torch.ones(4, 36), "1.bias": torch.ones(4), "1.a": torch.ones(8, 36), "1.b": torch.ones(4, 8)}
    torch.save(state, "p.pt")
    options = {"network": f"{own}:low_rank", "data": f"{own}:load", "out": "m.safetensors"}
    code, _, err = call("p.pt", "p.pt", **options)
    assert code != 0
    assert "train() and eval() of 1 (LowRank) rewrite its weights" in " ".join(err.split())
    assert not Path("m.safetensors").exists()


def test_checkpoints_of_training_scripts_are_merged_and_what_was_left_is_told(
    own: str, call: Callable[..., tuple[int, str, str]]
):
    state = read_weights("b.pt")
    ema = {key: tensor + 1 if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    arguments = argparse.Namespace(lr=0.1)
    torch.save({"state_dict": {f"model.{k}": t for k, t in state.items()}, "best": np.float64(1)}, "p.ckpt")
    torch.save({"state_dict": state, "state_dict_ema": ema, "args": arguments}, "q.pt")
    options = {"network": f"{own}:build", "data": f"{own}:load", "out": "m.safetensors"}
    code, printed, _ = call("p.ckpt", "q.pt", **options, correction="none")
    printed = " ".join(printed.split())
    assert code == 0
    assert "p.ckpt: left out beside the weights: best p.ckpt: model. is taken off the name of every tensor" in printed
    assert (
        "q.pt: the weights under state_dict are taken; to take those under state_dict_ema, save them alone" in printed
    )
    assert "q.pt: left out beside the weights: args" in printed
    assert all(torch.allclose(tensor, state[key]) for key, tensor in read_weights("m.safetensors").items())


def test_a_network_in_which_nothing_can_move_is_merged_and_told(own: str, call: Callable[..., tuple[int, str, str]]):
    for seed, path in ((0, "p.pt"), (1, "q.pt")):
        torch.manual_seed(seed)
        torch.save(nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).state_dict(), path)
    options = {"network": f"{own}:linear", "data": f"{own}:load", "out": "m.safetensors"}
    code, printed, _ = call("p.pt", "q.pt", **options, correction="none")
    assert code == 0
    assert "permutation: nothing can move in this network, so B is taken as it is" in printed
    middle = (torch.load("p.pt")["1.weight"] + torch.load("q.pt")["1.weight"]) / 2
    assert torch.allclose(read_weights("m.safetensors")["1.weight"], middle)


def test_networks_of_token_ids_are_merged_and_told_which_casts_the_proof_left_out(own: str, call):
    scope: dict = {}
    exec(MODULE, scope)  # noqa: S102
    for name in ("one.pt", "two.pt"):
        torch.save(scope["Casting"]().state_dict(), name)
    words = {"network": f"{own}:Casting", "data": f"{own}:token_ids", "out": "ids.safetensors"}
    code, out, err = call("one.pt", "two.pt", correction="none", **words)
    assert code == 0, err
    told = out.replace("\n", " ")
    assert "of 14 units moved, on 2 of 2 axes" in told
    assert "proof: in float64 throughout, without the casts to fewer digits in forward," in told


def test_merging_brings_in_no_prefect(own: str, tmp_path: Path):
    code = (
        "import sys; from flows.cli import merge; from pathlib import Path\n"
        f"words = {{'network': '{own}:build', 'data': '{own}:load', 'out': Path('out.safetensors')}}\n"
        "merge(a=Path('a.safetensors'), b=Path('b.pt'), **words)\n"
        "print('prefect' in sys.modules)"
    )
    called = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert called.stdout.splitlines()[-1] == "False", called.stderr


def test_torch_and_safetensors_files_of_the_same_weights_give_the_same_bytes(own: str, call):
    safetensors.torch.save_file(read_weights("b.pt"), "b.safetensors")
    for b, out in (("b.pt", "one.safetensors"), ("b.safetensors", "two.safetensors")):
        code, _, errors = call("a.safetensors", b, network=f"{own}:build", data=f"{own}:load", out=out)
        assert code == 0, errors
    assert Path("one.safetensors").read_bytes() == Path("two.safetensors").read_bytes()


def test_extra_layers_are_written_only_where_they_are_allowed_and_then_named(own: str, call):
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))
        torch.save(network.state_dict(), f"{seed}.pt")
    words = {"network": f"{own}:unbiased", "data": f"{own}:load", "out": "out.safetensors"}
    code, out, errors = call("0.pt", "1.pt", **words)
    assert (code, out) == (1, "")
    assert errors.startswith("repairlab: correction repair needs tensors that the network's own class lacks (0.bias)")
    assert not Path("out.safetensors").exists()
    code, out, _ = call("0.pt", "1.pt", "--allow-extra-layers", **words)
    assert code == 0
    assert out.splitlines()[-1] == "of these the network's own class lacks 1: 0.bias"
    assert set(read_weights("out.safetensors")) == {"0.weight", "0.bias", "3.weight", "3.bias"}


def test_without_a_correction_there_is_no_corrected_row(own: str, call):
    code, out, _ = call(
        "a.safetensors", "b.pt", network=f"{own}:build", data=f"{own}:load", out="out.safetensors",
        correction="none", matcher="weight", alpha="0.25", statistics="20",
    )  # fmt: skip
    assert code == 0
    assert "alpha 0.25" in out
    assert "aligned (weight)" in out
    assert "corrected" not in out
    assert "statistics: 20 of 60 train images" in out


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        ({"network": "OWN"}, 2, "--network takes package.module:function, got 'OWN'"),
        (
            {"network": "nowhere.at:all"},
            2,
            "--network nowhere.at:all: there is no module nowhere in this folder",
        ),
        (
            {"network": "tasks.mine:build"},
            2,
            "there is no module tasks.mine in this folder or among what",
        ),
        ({"network": "OWN:none"}, 2, "--network OWN:none: module OWN has no function none"),
        ({"network": "OWN:number"}, 2, "--network OWN:number: module OWN has no function number"),
        ({"network": "OWN:broken"}, 1, "OWN:broken raised RuntimeError: no such GPU\n"),
        ({"network": "OWN:nothing"}, 1, "OWN:nothing must return a torch.nn.Module, got NoneType"),
        ({"network": "OWN:asks_for_more"}, 1, "OWN:asks_for_more raised TypeError: asks_for_more() missing 1 required"),
        (
            {"network": "OWN:seven", "a": "d.pt", "b": "d.pt"},
            1,
            "the network puts out shape (16, 3) for 16 images, and ",
        ),
        (
            {"network": "OWN:Branching", "a": "c.pt", "b": "c.pt"},
            1,
            "Branching cannot be traced: its forward",
        ),
        ({"a": "no.pt"}, 1, "there is no file no.pt"),
        ({"a": "c.pt"}, 1, "A lacks 0.weight, 1.weight, 1.bias and 7 more of the network's tensors and has layer"),
        ({"b": "OWN.py"}, 1, "OWN.py is neither a safetensors file nor one that torch.save wrote"),
        ({"data": "imagenette"}, 2, "there is no data set 'imagenette'; known: digits,"),
        ({"data": "OWN:lad"}, 2, "--data OWN:lad: module OWN has no function lad"),
        (
            {"data": "OWN:nothing"},
            1,
            "OWN:nothing must return ((train images, train labels), (test images",
        ),
        ({"data": "OWN:broken"}, 1, "OWN:broken raised RuntimeError: no such GPU\n"),
        (
            {"data": "OWN:bytes_of"},
            1,
            "OWN:bytes_of: train images must be a tensor of floats, normalised, of shape",
        ),
        ({"data": "OWN:flat"}, 1, "height, width), or of token ids (n, length), got float32 of shape (60, 36)"),
        (
            {"data": "OWN:short"},
            1,
            "OWN:short: train labels must be a tensor of whole numbers of shape (60,), got",
        ),
        (
            {"data": "OWN:soft"},
            1,
            "train labels must be a tensor of whole numbers of shape (60,), got float32",
        ),
        ({"data": "OWN:two_sizes"}, 1, "train images have shape (1, 6, 6), test images (1, 5, 6)"),
        ({"data": "OWN:negative"}, 1, "OWN:negative: train labels must be counted from 0"),
        ({"data": "OWN:not_finite"}, 1, "OWN:not_finite: train images have values that are not finite"),
        (
            {"data": "digits"},
            1,
            "the network puts out shape (16, 4) for 16 images, and digits has 10 classes",
        ),
        ({"alpha": "1.5"}, 2, "--alpha must be at most 1.0, got 1.5"),
        ({"alpha": "nan"}, 2, "--alpha must be at most 1.0, got nan"),
        ({"matcher": "magic"}, 2, "there is no matcher 'magic'; known: none, activation"),
        ({"correction": "magic"}, 2, "there is no correction 'magic'; known: none, repair"),
        ({"correction": "repair-block"}, 1, "correction repair-block needs residual blocks, and this network has none"),
        ({"statistics": "1"}, 2, "--statistics must be at least 2, got 1"),
        ({"out": "out.pt"}, 2, "--out must end in .safetensors, the format that is written, got out.pt"),
        ({"out": "no/out.safetensors"}, 1, "no/out.safetensors cannot be written: there is no folder no"),
        ({"out": "a.safetensors"}, 1, "a.safetensors is there already and is not overwritten: name another file"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(
    own: str, call, change: dict[str, str], code: int, sentence: str
):
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).state_dict(), "d.pt")
    words = {"a": "a.safetensors", "b": "b.pt", "network": "OWN:build", "data": "OWN:load", "out": "out.safetensors"}
    words = {name: value.replace("OWN", own) for name, value in (words | change).items()}
    before = {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    returned, out, errors = call(words.pop("a"), words.pop("b"), **words)
    assert (returned, out) == (code, "")
    assert errors.startswith("repairlab: ")
    assert sentence.replace("OWN", own) in errors
    assert errors.count("\n") == 1
    assert {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("text", "code", "sentence"),
    [
        ("import not_installed", 1, "importing it raised ModuleNotFoundError: No module named 'not_installed'"),
        ("def build(:", 1, "importing it raised SyntaxError: "),
        ("import sys; sys.exit(3)", 1, "importing it raised SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_sentence(own: str, call, text: str, code: int, sentence: str):
    Path(f"{own}.py").write_text(text)
    returned, _, errors = call("a.safetensors", "b.pt", network=f"{own}:build", data="digits", out="out.safetensors")
    assert returned == code
    assert errors.startswith(f"repairlab: --network {own}:build: {sentence}")
    assert errors.count("\n") == 1


def test_layers_that_a_correction_does_not_reach_are_named_with_their_reason(own: str, call):
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = nn.Module()
        network.gru, network.logits = nn.GRU(6, 5, batch_first=True), nn.Linear(5, 4)
        torch.save(network.state_dict(), f"{seed}.pt")
    words = {"network": f"{own}:Recurrent", "data": f"{own}:load"}
    code, out, errors = call("0.pt", "1.pt", **words, out="out.safetensors")
    assert code == 0, errors
    assert "1 layers corrected" in out
    assert "not corrected: gru.weight_hh_l0: it runs more than once" in out
    with safetensors.safe_open("out.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["repairlab"])["left_out"] == {"gru.weight_hh_l0": "it runs more than once"}
    code, out, errors = call("0.pt", "1.pt", **words, out="none.safetensors", correction="none")
    assert code == 0, errors
    assert "not corrected" not in out
