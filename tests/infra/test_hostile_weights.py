"""Weights files that would take for ever, or all memory, to read: one sentence each, soon."""

from __future__ import annotations

import json
import re
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from infra.weights import WeightsError, open_weights
from infra.weights_limits import MOST_TENSORS
from tasks.science.networks.fitting import MergeError, fit_state

STATE = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(path: str) -> str:
    """The sentence that reading ends in; little memory is used on the way."""
    tracemalloc.start()
    try:
        open_weights(path)
    except WeightsError as error:
        return str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000_000
    return ""


def itself() -> dict[str, Any]:
    holder: dict[str, Any] = {"epoch": 3}
    holder["model"] = holder
    return holder


def each_other() -> dict[str, Any]:
    first: dict[str, Any] = {}
    first["model"] = {"net": {"state_dict": first, "epoch": 1}, "epoch": 2}
    return first


def nested(n: int) -> dict[str, Any]:
    content: dict[str, Any] = STATE
    for _ in range(n):
        content = {"model": content}
    return content


@pytest.mark.parametrize("make", [itself, each_other, lambda: nested(9), lambda: nested(200)])
def test_a_state_dict_that_lies_deeper_than_any_is_not_looked_for(make: Callable[[], dict[str, Any]]):
    torch.save(make(), "w.pt")
    assert re.fullmatch(
        r"w\.pt has no state dict at the end of (\w+\.){8}\w+: save network\.state_dict\(\) alone", refusal("w.pt")
    )
    torch.save(nested(8), "w.pt")
    assert open_weights("w.pt").weights.keys() == STATE.keys()


def test_containers_nested_without_end_are_one_sentence():
    # torch.save itself would run out of stack; a pickle needs none.
    depth = 30_000
    pickled = b"\x80\x02}q\x00X\x01\x00\x00\x00w" + b"]" * depth + b"a" * (depth - 1) + b"s."
    with zipfile.ZipFile("w.pt", "w") as archive:
        archive.writestr("w/data.pkl", pickled)
        archive.writestr("w/version", "3")
    assert refusal("w.pt").startswith("w.pt is no state dict: 'w' in it is no tensor")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.zeros(3, device="meta"), r"without numbers \(on the meta device\)"),
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.zeros(1).expand(10**12), "repeats its numbers, up to 4,000,000,000,000 bytes"),
        (
            lambda: torch.zeros(1).expand(10**6, 10**6, 10**5),
            "repeats its numbers, up to 400,000,000,000,000,000 bytes",
        ),
    ],
    ids=["meta", "sparse", "quantized", "expanded", "expanded-far"],
)
@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_what_is_no_dense_tensor_is_one_sentence(make: Callable[[], torch.Tensor], kind: str, is_new: bool):
    torch.save({"a\x1b[31m": make()}, "w.pt", _use_new_zipfile_serialization=is_new)
    assert re.fullmatch(
        rf"w\.pt has a tensor a\\x1b\[31m that (is )?{kind}, and is not read: save network\.state_dict\(\) alone, of "
        r"dense tensors",
        refusal("w.pt"),
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nested_tensors_are_one_sentence():
    torch.save({"w": torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)])}, "w.pt")
    assert "has a tensor w that is nested" in refusal("w.pt")


def test_what_is_unusual_and_dense_is_read():
    shared = torch.arange(6.0)
    state = {
        "none": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "views": shared[:4],
        "strided": torch.as_strided(shared, (3,), (2,)),
        "complex": torch.ones(2, dtype=torch.complex64).conj(),
        "negative": torch.ones(2, dtype=torch.complex64).conj().imag,
        "nan": torch.tensor(float("nan")),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "repeated": torch.ones(1).expand(4, 4),
    }
    torch.save(state, "w.pt")
    found = open_weights("w.pt").weights
    for name, tensor in state.items():
        assert torch.equal(found[name].nan_to_num(7), tensor.detach().nan_to_num(7)), name
    assert not found["complex"].is_conj()
    assert not found["negative"].is_neg()
    assert type(found["parameter"]) is torch.Tensor
    with pytest.raises(MergeError, match="nan of A has values that are not finite"):
        fit_state(_Holder(), {"nan": found["nan"]}, "A")
    with pytest.raises(MergeError, match="nan of A is complex64, and the network has float64, float32"):
        fit_state(_Holder(), {"nan": found["complex"][0]}, "A")


class _Holder(torch.nn.Module):
    """A network of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.nan = torch.nn.Parameter(torch.tensor(1.0))


def test_an_archive_that_inflates_is_not_inflated():
    torch.save({"w": torch.zeros(10_000_000)}, "plain.pt")
    with (
        zipfile.ZipFile("plain.pt") as plain,
        zipfile.ZipFile("w.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as deflated,
    ):
        for entry in plain.infolist():
            deflated.writestr(entry.filename, plain.read(entry))
    assert refusal("w.pt").startswith("w.pt inflates to 40,000,")


def test_more_tensors_than_any_network_has_are_not_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("infra.weights_limits.MOST_TENSORS", 500)
    monkeypatch.setattr("infra.weights_limits._BESIDE_TENSORS", 100)
    one = torch.zeros(1)
    many: dict[str, dict[str, Any]] = {
        "apart": {f"w{i}": torch.zeros(1) for i in range(700)},
        "few": {f"w{i}": torch.zeros(1) for i in range(550)},
        "views": {f"w{i}": one[:] for i in range(700)},
        "beside": {"net": STATE, "old": [one[:] for _ in range(700)]},
    }
    for name, state in many.items():
        for is_new in (True, False):
            torch.save(state, "w.pt", _use_new_zipfile_serialization=is_new)
            assert refusal("w.pt").startswith("w.pt has more than 500 tensors, and is not read"), name
    safetensors.torch.save_file(many["apart"], "w.safetensors")
    assert refusal("w.safetensors").startswith("w.safetensors has more than 500 tensors, and is not read")
    monkeypatch.setattr("infra.weights_limits.MOST_STEPS", 1000)
    torch.save({"net": STATE, "losses": [0.1] * 2000}, "w.pt")
    assert "w.pt has millions of values beside its tensors" in refusal("w.pt")
    monkeypatch.setattr("infra.weights_limits.MOST_PICKLED_BYTES", 1000)
    assert "bytes beside the numbers of its tensors" in refusal("w.pt")


def test_a_million_tensors_are_refused_by_their_number_alone():
    """The end of an archive of more than 65,534 entries, whose list begins elsewhere."""
    end = b"PK\x05\x06" + b"\0" * 4 + b"\xff\xff" * 2 + b"\xff" * 8 + b"\0\0"
    Path("w.pt").write_bytes(b"PK\x03\x04" + b"\0" * 1000 + end)
    assert refusal("w.pt").startswith(f"w.pt has more than {MOST_TENSORS:,} tensors")


def header(entries: dict[str, Any], n_bytes: int = 8) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * n_bytes


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ((2**63).to_bytes(8, "little") + b"{" + b" " * 50, "w is neither a safetensors file nor"),
        ((2**25).to_bytes(8, "little") + b"{" + b" " * 2**25, "w has 33,554,432 bytes beside the numbers of its ten"),
        (header({"a": entry(), "b": entry()}), "w is damaged or cut short ("),
        (header({"a": entry(data_offsets=[0, 2**63])}), "w is damaged or cut short ("),
        (header({"a": entry(shape=[2**40, 2**40])}), "w is damaged or cut short ("),
        (header({"a": entry(shape=[2**62, 4])}), "w is damaged or cut short ("),
        (header({"a": entry(dtype="F7_E9")}), "w is damaged or cut short ("),
        (header({"a": entry(dtype="\x1b[31m\u202e")}), "w is damaged or cut short ("),
        (header({"a": entry(), "__metadata__": {"x": 3}}), "w is damaged or cut short ("),
        (b"\x10" + b"\0" * 7 + b"{" * 16, "w is damaged or cut short ("),
    ],
    ids=range(10),
)
def test_a_safetensors_header_of_any_kind_is_one_sentence(data: bytes, sentence: str):
    Path("w").write_bytes(data)
    told = refusal("w")
    assert told.startswith(sentence)
    assert told.isprintable()


def test_safetensors_of_small_floats_and_of_nothing_are_read():
    small = torch.zeros(4).to(torch.float8_e4m3fn)
    safetensors.torch.save_file({"f8": small, "none": torch.zeros(0, 5)}, "w")
    found = open_weights("w").weights
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in found.items()} == {
        "f8": (torch.float8_e4m3fn, (4,)), "none": (torch.float32, (0, 5)),
    }  # fmt: skip


def test_names_of_a_file_are_printable_in_every_sentence_about_it():
    for name in ("a\x1b]0;title\x07", "a\x9b31m", "\u202eabc", "a\nrepairlab: done"):
        for state in ({name: 3}, {"model": {name: {}}}, {"model": STATE, name: 1}, {f"module.{name}": torch.zeros(1)}):
            torch.save(state, "w.pt")
            try:
                told = " ".join(open_weights("w.pt").notes)
            except WeightsError as error:
                told = str(error)
            assert told.isprintable()
