"""Write docs/networks.md: the expected and the found axes of networks of torchvision, timm and transformers.

    python docs/networks.py [--all] [--zoo] [--fresh] [name ...]

All classification networks of torchvision are known, and those of timm and transformers in zoo.py.

Each network is examined in a separate process, to free its memory, the smallest network first. Its row is written to
networks.json as soon as it is done, and a network with a row is not examined again, so an interrupted run resumes. The
page is generated from the rows. A row names the state of the tracer that made it; `--fresh` examines networks again
that another state has examined.

`expected` derives the axes that should move from each architecture's definition alone, independently of the tracer. An
axis is expected at the rows (dimension 0, unless stated) of one entry of the state dict, with its size. If an entry
holds several nested axes, one per head or group, each counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.models import (
    convnext,
    efficientnet,
    maxvit,
    mnasnet,
    mobilenetv2,
    mobilenetv3,
    regnet,
    resnet,
    swin_transformer,
    vision_transformer,
)
from torchvision.ops.misc import SqueezeExcitation

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from docs.zoo import FAMILIES, ZOO, Expected, family_of
from docs.zoo import build as build_zoo
from tasks.science.symmetry.permutation import PermutationSpec
from tasks.science.symmetry.proof import FUNCTION_TOLERANCE
from tasks.science.symmetry.tracing import FAILED_CHECK, TraceError, trace_permutation_spec
from tasks.science.symmetry.tracing.check import Check

ROWS = Path(__file__).with_name("networks.json")

REPRESENTATIVES = [
    "alexnet",
    "vgg11_bn",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "densenet121",
    "googlenet",
    "inception_v3",
    "squeezenet1_1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mnasnet0_5",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "shufflenet_v2_x0_5",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "convnext_tiny",
    "vit_b_32",
    "swin_t",
    "swin_v2_t",
    "maxvit_t",
]

RULES = {
    "AlexNet": "the output channels of every convolution and of every hidden linear layer",
    "VGG": "the output channels of every convolution and of every hidden linear layer",
    "ResNet": "each stage's stream (with identity shortcuts from the stem on, the stem belongs to stage 1); the inner "
    "channels of every block; with grouped convolutions the groups, and within each group its inputs and its outputs",
    "DenseNet": "the first convolution, both convolutions of every dense layer, every transition",
    "GoogLeNet": "the output channels of every convolution, auxiliary heads included, and the hidden layer of each",
    "Inception3": "the output channels of every convolution, auxiliary head included",
    "SqueezeNet": "the first convolution; squeeze and both expand convolutions of every fire module",
    "MobileNetV2": "stem, expanded channels of every block, streams (a new one wherever a block has no shortcut), head",
    "MobileNetV3": "as MobileNetV2; besides the squeeze channels of every squeeze-and-excitation, the classifier's "
    "hidden layer",
    "MNASNet": "as MobileNetV2",
    "EfficientNet": "as MobileNetV2; besides the squeeze channels of every squeeze-and-excitation",
    "ShuffleNetV2": "the first and last convolution, the inner channels of every branch; the units that leave a block, "
    "cut by the channel split into those that the same later block reads",
    "RegNet": "stem; every stage's stream; both inner axes of every block, grouped as in ResNeXt; squeeze channels",
    "ConvNeXt": "every stage's stream, the hidden layer of every block",
    "VisionTransformer": "the stream; per block the hidden layer, the heads, and per head the query-key and the value "
    "channels",
    "SwinTransformer": "every stage's stream; per block the hidden layer, the heads, per head the query-key and the "
    "value channels; in version 2 the hidden layer of the position bias",
    "MaxVit": "stem; every stage's stream; per convolution block its inner and its squeeze channels; per attention the "
    "heads, per head the query-key and the value channels, and the hidden layer; the classifier's hidden layer",
}


def expected(network: nn.Module) -> list[Expected]:
    """Yield the axes that should move in a network of torchvision, from the architecture alone."""
    return list(_WALKERS[type(network).__name__](network))


def rules() -> dict[str, str]:
    """Return in words what is expected of each kind of network."""
    return RULES | {name: family.rule for name, family in FAMILIES.items()}


def _rows(network: nn.Module, key: str, what: str) -> Expected:
    return Expected(what, key, network.state_dict()[key].shape[0])


def _convs_and_hidden(network: nn.Module, last: str) -> Iterator[Expected]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and name not in last.split():
            yield _rows(network, f"{name}.weight", "channels")


def _plain(network: nn.Module) -> Iterator[Expected]:
    yield from _convs_and_hidden(network, "classifier.6")


def _grouped(conv: nn.Conv2d, before: str, key: str) -> Iterator[Expected]:
    """Yield the inner axes around a grouped convolution: groups, then inputs and outputs within each group."""
    g = conv.groups
    if g > 1 and conv.in_channels > g:
        yield Expected("groups", f"{key}.weight", g)
        yield Expected("inputs of a group", f"{before}.weight", conv.in_channels // g, g)
        yield Expected("outputs of a group", f"{key}.weight", conv.out_channels // g, g)
    else:
        yield Expected("inner", f"{before}.weight", conv.in_channels)
        if g == 1:
            yield Expected("inner", f"{key}.weight", conv.out_channels)


def _resnet(network: Any) -> Iterator[Expected]:
    if network.layer1[0].downsample is not None:
        yield _rows(network, "conv1.weight", "stem")
    for stage in range(1, 5):
        for i, block in enumerate(getattr(network, f"layer{stage}")):
            name = f"layer{stage}.{i}"
            if isinstance(block, resnet.Bottleneck):
                yield from _grouped(block.conv2, f"{name}.conv1", f"{name}.conv2")
            else:
                yield _rows(network, f"{name}.conv1.weight", "inner")
        last = "conv3" if isinstance(network.layer1[0], resnet.Bottleneck) else "conv2"
        yield _rows(network, f"layer{stage}.0.{last}.weight", "stream")


def _densenet(network: nn.Module) -> Iterator[Expected]:
    yield from _convs_and_hidden(network, "classifier")


def _inception(network: nn.Module) -> Iterator[Expected]:
    yield from _convs_and_hidden(network, "fc aux1.fc2 aux2.fc2 AuxLogits.fc")


def _squeezenet(network: nn.Module) -> Iterator[Expected]:
    yield from _convs_and_hidden(network, "classifier.1")


def _conv_names(block: nn.Module, prefix: str) -> list[str]:
    return [f"{prefix}.{n}" for n, m in block.named_modules() if isinstance(m, nn.Conv2d)]


def _squeeze(network: nn.Module, block: nn.Module, prefix: str) -> Iterator[Expected]:
    for name, module in block.named_modules():
        if isinstance(module, SqueezeExcitation):
            yield _rows(network, f"{prefix}.{name}.fc1.weight", "squeeze")


def _mobile(network: nn.Module) -> Iterator[Expected]:
    """Yield the axes of inverted residual networks: blocks in order, independent of their containers."""
    blocks = (mobilenetv2.InvertedResidual, mobilenetv3.InvertedResidual, efficientnet.MBConv, efficientnet.FusedMBConv,
              mnasnet._InvertedResidual)  # fmt: skip
    inside: list[str] = []
    for name, module in network.named_modules():
        if isinstance(module, blocks):
            inside.append(name)
            gates = {n for m, s in module.named_modules() if isinstance(s, SqueezeExcitation)
                     for n in (f"{name}.{m}.fc1", f"{name}.{m}.fc2")}  # fmt: skip
            convs = [n for n in _conv_names(module, name) if n not in gates]
            shortcut = getattr(module, "use_res_connect", getattr(module, "apply_residual", False))
            first = network.get_submodule(convs[0])
            if len(convs) > 1 and isinstance(first, nn.Conv2d) and first.groups == 1:
                yield _rows(network, f"{convs[0]}.weight", "expanded")
            # Without expansion the depthwise convolution belongs to the stream before it.
            if not shortcut:
                yield _rows(network, f"{convs[-1]}.weight", "stream")
            yield from _squeeze(network, module, name)
    last = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
    for name, module in network.named_modules():
        outside = isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith(tuple(f"{b}." for b in inside))
        # MNASNet opens with convolution, depthwise convolution (of the same channels), projection.
        if outside and name != last and not (isinstance(module, nn.Conv2d) and module.groups > 1):
            yield _rows(network, f"{name}.weight", "outer")


def _shufflenet(network: Any) -> Iterator[Expected]:
    yield _rows(network, "conv1.0.weight", "stem")
    yield _rows(network, "conv5.0.weight", "head")
    for s in (2, 3, 4):
        stage = getattr(network, f"stage{s}")
        half = stage[0].branch2[0].out_channels
        yield _rows(network, f"stage{s}.0.branch2.0.weight", "inner")
        # Units as (block that makes them, entry, readers so far).
        left = [(f"stage{s}.0.branch1.2.weight", frozenset[int]()) for _ in range(half)]
        right = [(f"stage{s}.0.branch2.5.weight", frozenset[int]()) for _ in range(half)]
        for k in range(1, len(stage) + 1):
            mixed = [unit for pair in zip(left, right, strict=True) for unit in pair]
            if k == len(stage):
                for (key, _), n in Counter(mixed).items():
                    if n > 1:
                        yield Expected("leaving", key, n)
                break
            left = mixed[:half]
            yield _rows(network, f"stage{s}.{k}.branch2.0.weight", "inner")
            read = Counter(mixed[half:])
            yield from (Expected("read and gone", key, n) for (key, _), n in read.items() if n > 1)
            right = [(f"stage{s}.{k}.branch2.5.weight", frozenset[int]()) for _ in range(half)]


def _regnet(network: Any) -> Iterator[Expected]:
    yield _rows(network, "stem.0.weight", "stem")
    for name, module in network.named_modules():
        if isinstance(module, regnet.ResBottleneckBlock):
            yield from _grouped(module.f.b[0], f"{name}.f.a.0", f"{name}.f.b.0")
            yield from _squeeze(network, module, name)
            if module.proj is not None:
                yield _rows(network, f"{name}.proj.0.weight", "stream")


def _convnext(network: Any) -> Iterator[Expected]:
    for name, module in network.named_modules():
        if isinstance(module, convnext.CNBlock):
            yield _rows(network, f"{name}.block.3.weight", "hidden")
    for i in (0, 2, 4, 6):
        yield _rows(network, f"features.{i}.{0 if i == 0 else 1}.weight", "stream")


def _heads(key: str, size: int, heads: int) -> Iterator[Expected]:
    yield Expected("heads", key, heads)
    yield Expected("query-key channels", key, size // heads, heads)
    yield Expected("value channels", key, size // heads, heads)


def _vit(network: Any) -> Iterator[Expected]:
    yield _rows(network, "conv_proj.weight", "stream")
    for name, module in network.named_modules():
        if isinstance(module, vision_transformer.EncoderBlock):
            yield _rows(network, f"{name}.mlp.0.weight", "hidden")
            yield from _heads(f"{name}.self_attention.in_proj_weight", network.hidden_dim, module.num_heads)


def _swin(network: Any) -> Iterator[Expected]:
    yield _rows(network, "features.0.0.weight", "stream")
    for name, module in network.named_modules():
        if isinstance(module, swin_transformer.PatchMerging | swin_transformer.PatchMergingV2):
            yield _rows(network, f"{name}.reduction.weight", "stream")
        if isinstance(module, swin_transformer.SwinTransformerBlock):
            yield _rows(network, f"{name}.mlp.0.weight", "hidden")
            yield from _heads(f"{name}.attn.qkv.weight", module.attn.proj.in_features, module.attn.num_heads)
            if isinstance(module, swin_transformer.SwinTransformerBlockV2):
                yield _rows(network, f"{name}.attn.cpb_mlp.0.weight", "hidden of the position bias")


def _maxvit(network: Any) -> Iterator[Expected]:
    yield _rows(network, "stem.0.0.weight", "stem")
    yield _rows(network, "stem.1.0.weight", "stem")
    yield _rows(network, "classifier.3.weight", "hidden")
    for name, module in network.named_modules():
        if isinstance(module, maxvit.MBConv):
            yield _rows(network, f"{name}.layers.conv_a.0.weight", "inner")
            yield from _squeeze(network, module, name)
            if not isinstance(module.proj, nn.Identity):
                yield _rows(network, f"{name}.layers.conv_c.weight", "stream")
        if isinstance(module, maxvit.PartitionAttentionLayer):
            attention: Any = module.attn_layer[1]
            size = attention.merge.in_features
            yield from _heads(f"{name}.attn_layer.1.to_qkv.weight", size, attention.n_heads)
            yield _rows(network, f"{name}.mlp_layer.1.weight", "hidden")


_WALKERS: dict[str, Callable[[Any], Iterator[Expected]]] = {
    "AlexNet": _plain, "VGG": _plain, "ResNet": _resnet, "DenseNet": _densenet, "GoogLeNet": _inception,
    "Inception3": _inception, "SqueezeNet": _squeezenet, "MobileNetV2": _mobile, "MobileNetV3": _mobile,
    "MNASNet": _mobile, "EfficientNet": _mobile, "ShuffleNetV2": _shufflenet, "RegNet": _regnet,
    "ConvNeXt": _convnext, "VisionTransformer": _vit, "SwinTransformer": _swin, "MaxVit": _maxvit,
}  # fmt: skip


def every_network() -> list[str]:
    """Return the names of all classification networks of torchvision."""
    return list(models.list_models(module=models))


def n_parameters(name: str) -> int:
    """Return the size of a network without building it; 0 if torchvision does not state it."""
    if name in ZOO:
        return 0
    return models.get_model_weights(name)["DEFAULT"].meta.get("num_params", 0)


def missing(spec: PermutationSpec, wanted: list[Expected]) -> list[Expected]:
    """Return the expected axes that the spec lacks, each with the number of missing copies."""
    have = Counter((s.key, s.dim, a.size) for a in spec.axes for s in _distinct(a.slots))
    # Two expectations of one kind (query-key and value channels) each need axes of their own.
    out: list[Expected] = []
    for want in wanted:
        place = (want.key, want.dim, want.size)
        taken = min(have[place], want.copies)
        have[place] -= taken
        if taken < want.copies:
            out.append(Expected(want.what, want.key, want.size, want.copies - taken, want.dim))
    return out


def _distinct(slots: Any) -> list[Any]:
    return list({(s.key, s.dim): s for s in slots}.values())


def build(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Return a network at random initialisation and a batch of two examples, as small as it allows."""
    if name in ZOO:
        return build_zoo(name)
    options: dict[str, Any] = {}
    side = 64
    if name.startswith("vit"):
        side = 2 * int(name.rpartition("_")[2])
        options["image_size"] = side
    elif name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
        side = 299 if name == "inception_v3" else 64  # the auxiliary head needs it
    elif name == "maxvit_t":
        side = 224
    elif name.startswith(("vgg", "resnet", "resnext", "wide_resnet", "densenet", "regnet")):
        side = 32
    torch.manual_seed(0)
    network = models.get_model(name, weights=None, **options)
    return network, (torch.randn(2, 3, side, side),)


@dataclass(frozen=True)
class Row:
    """The axes found in one network, or the reason why it could not be examined (`failure`).

    A refusal by the tracer is a finding. `held` has the tracer's reasons for missed axes, `tracer` and `torch` the
    versions that examined the network, and `peak_gb` the peak memory of the process.
    """

    name: str
    rule: str = ""
    n_expected: int = 0
    n_found: int = 0
    n_axes: int = 0
    error: float = math.nan
    seconds: float = 0.0
    caught: int = 0
    misses: list[Expected] = dataclasses.field(default_factory=list[Expected])
    held: list[str] = dataclasses.field(default_factory=list[str])
    refusal: str = ""
    failure: str = ""
    tracer: str = ""
    torch: str = ""
    peak_gb: float = math.nan


def tracer_state() -> str:
    """Return the digest of the tracer's sources, which rows of another state may not hold for."""
    science = Path(__file__).resolve().parents[1] / "tasks" / "science"
    sources = [
        science / f"{name}.py"
        for name in ("symmetry/permutation", "symmetry/proof", "evaluation/precision", "evaluation/outputs")
    ]
    sources += sorted((science / "symmetry/tracing").glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:7]


def read_rows(path: Path) -> dict[str, Row]:
    """Return the rows of a file that `write_rows` wrote, by network; none if there is no file."""
    if not path.exists():
        return {}
    rows: dict[str, Row] = {}
    for name, values in json.loads(path.read_text()).items():
        for key in ("error", "peak_gb"):
            values[key] = math.nan if values[key] is None else values[key]
        rows[name] = Row(**{**values, "misses": [Expected(**miss) for miss in values["misses"]]})
    return rows


def write_rows(path: Path, rows: Mapping[str, Row]) -> None:
    """Write the file whole or not at all, with a network per line, in the order of their names."""
    lines: list[str] = []
    for name in sorted(rows):
        values = dataclasses.asdict(rows[name])
        for key in ("error", "peak_gb"):
            values[key] = None if math.isnan(values[key]) else values[key]
        if not values["held"]:
            del values["held"]
        lines.append(f"{json.dumps(name)}: {json.dumps(values)}")
    beside = path.with_suffix(".new")
    beside.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    beside.replace(path)


def examine(name: str) -> Row:
    """Trace one network, compare with what is expected, and measure the exactness of a random permutation.

    Raises RuntimeError where the outputs cannot be compared in float64.
    """
    network, inputs = build(name)
    in_zoo = name in ZOO
    wanted = list(FAMILIES[family_of(name)].walk(network)) if in_zoo else expected(network)
    total = sum(w.copies for w in wanted)
    kind = family_of(name) if in_zoo else type(network).__name__
    start = time.perf_counter()
    try:
        spec = trace_permutation_spec(network, inputs)
    except TraceError as error:
        seconds = time.perf_counter() - start
        return Row(name, kind, total, seconds=seconds, misses=wanted, refusal=str(error))
    seconds = time.perf_counter() - start
    misses = missing(spec, wanted)
    check = Check(network, inputs, ())
    if check.proof.tolerance > FUNCTION_TOLERANCE:
        # The network insists on float32, and the page speaks of float64.
        raise RuntimeError("could not be compared in float64")
    error = check.proof.error(spec, spec.random(torch.Generator().manual_seed(1)))
    caught = sum(f.reason == FAILED_CHECK for f in spec.fixed)
    found = total - sum(m.copies for m in misses)
    keys = {miss.key for miss in misses}
    held = sorted({f.reason for f in spec.fixed if keys.intersection(key for key, _ in f.slots)})
    return Row(name, kind, total, found, len(spec.axes), error, seconds, caught, misses, held)


def examine_apart(name: str, memory_gb: float | None = None) -> Row:
    """Return the row of `examine` in a separate process of limited memory; a failure is a row too, with its cost."""
    start = time.perf_counter()
    limit = [] if memory_gb is None else ["--memory", str(memory_gb)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, __file__, "--row", name, *limit]
        child = subprocess.Popen(command, stdout=out, stderr=said)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        said.seek(0)
        found, last = out.read(), (said.read().strip().splitlines() or ["it said nothing"])[-1]
    peak_gb = round(usage.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20), 1)
    seconds = time.perf_counter() - start
    origin = Row(name, seconds=seconds, tracer=tracer_state(), torch=torch.__version__, peak_gb=peak_gb)
    if child.returncode:
        why = f"stopped by signal {-child.returncode}" if child.returncode < 0 else last
        return dataclasses.replace(origin, failure=f"{why}, after {seconds:.0f} s at {peak_gb:g} GB")
    values = json.loads(found)
    values["misses"] = [Expected(**miss) for miss in values["misses"]]
    return dataclasses.replace(Row(**values), tracer=origin.tracer, torch=origin.torch, peak_gb=peak_gb)


def page(rows: Mapping[str, Row]) -> str:
    """Return the text of docs/networks.md."""
    done = [rows[name] for name in sorted(rows) if not rows[name].failure]
    known = [*every_network(), *ZOO]
    left = [name for name in known if name not in rows or rows[name].failure]
    states = Counter(r.tracer or "not recorded" for r in done)
    versions = sorted({r.torch.partition("+")[0] for r in done if r.torch})
    zoo = [r for r in done if r.name in ZOO]
    others = [r for r in done if r.name not in ZOO]
    lines = [
        "# Permutations found in published networks",
        "",
        "Generated by `docs/networks.py`. Each network is built at random initialisation and traced. Its parameters",
        "and float buffers are then all drawn at random, a random permutation of all axes is applied, and the outputs",
        "are compared in float64, without the casts that some networks make to float32. *Error* is the largest",
        "difference divided by the largest output. *Caught* counts axes that the numerical check at the end of tracing",
        "rejected. *Seconds*: one CPU thread, from network to checked spec, on two cores shared with other work (a",
        "third to a tenth of it on an idle machine). *GB*: the peak memory of the process, if it was measured.",
        "",
        f"PyTorch {', '.join(versions) or 'unknown'}. Digest of the tracer's sources when a network was examined: "
        f"{', '.join(f'{state} ({n})' for state, n in states.most_common())}.",
        "",
        "## Expected axes",
        "",
        *(f"- **{k}**: {rule}." for k, rule in rules().items() if any(r.rule == k for r in done)),
        "",
        "An axis counts once per head or group that it is nested in. Inputs, logits and kernel positions never move.",
        "",
        "## Axes found in torchvision",
        "",
        *_found(others, len(every_network())),
        "",
        "## Axes found in timm and transformers",
        "",
        "Networks of timm are unchanged, or have fewer blocks; those of transformers have two blocks of 32 channels,",
        "the causal ones with their cache, on token ids. `pip install 'repairlab[zoo]'` installs both packages.",
        "",
        *_found(zoo, len(ZOO)),
        "",
        "## Misses",
        "",
    ]
    misses = [
        f"- {r.name}: {r.refusal or ', '.join(f'{m.what} {m.key} ({m.copies} x {m.size})' for m in r.misses)}"
        + (f"; held: {'; '.join(r.held)}" if r.held else "")
        for r in done
        if r.misses or r.refusal
    ]
    lines += [*(misses or ["None."]), "", "## Not examined", ""]
    lines += [f"- {name}: {rows[name].failure if name in rows else 'not yet'}" for name in left] or ["None."]
    return "\n".join([*lines, ""])


def _found(done: list[Row], n_known: int) -> list[str]:
    """Return a count of the axes that are found, and a table with a line for each network."""
    total, found = sum(r.n_expected for r in done), sum(r.n_found for r in done)
    errors = [r.error for r in done if not math.isnan(r.error)]
    return [
        f"{len(done)} of {n_known} networks are examined; {found} of {total} expected axes move; largest error "
        f"{max(errors, default=0):.1e}; caught {sum(r.caught for r in done)}.",
        "",
        "| network | kind | expected | of these found | axes in all | error | caught | seconds | GB |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {r.name} | {r.rule} | {r.n_expected} | {r.n_found} | {r.n_axes} | {r.error:.1e} | {r.caught} | "
            f"{r.seconds:.1f} | {'' if math.isnan(r.peak_gb) else f'{r.peak_gb:g}'} |"
            for r in done
        ),
    ]


def main() -> None:
    """Examine the named networks, or those of one per family, or of all, that have no row yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="examined whether they have a row or not")
    parser.add_argument("--all", action="store_true", help="every classification network of torchvision")
    parser.add_argument("--zoo", action="store_true", help="every network of docs/zoo.py: timm and transformers")
    parser.add_argument("--fresh", action="store_true", help="also what another state of the tracer has examined")
    parser.add_argument("--memory", type=float, help="GB that one network may take before it is given up")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("networks.md"))
    parser.add_argument("--row", help=argparse.SUPPRESS)  # what the process of one network is asked
    options = parser.parse_args()
    if options.row:
        torch.set_num_threads(1)
        if options.memory is not None:
            n_bytes = int(options.memory * 2**30)
            resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, n_bytes))
        print(json.dumps(dataclasses.asdict(examine(options.row))))
        return
    rows, state = read_rows(options.rows), tracer_state()
    names = options.names or [
        name
        for name in (ZOO if options.zoo else every_network() if options.all else REPRESENTATIVES)
        if name not in rows or rows[name].failure or (options.fresh and rows[name].tracer != state)
    ]
    for name in sorted(names, key=n_parameters):
        row = examine_apart(name, options.memory)
        print(row, flush=True)
        # Read again: another run may have added to them.
        rows = {**read_rows(options.rows), name: row}
        write_rows(options.rows, rows)
        options.out.write_text(page(rows))
    options.out.write_text(page(rows))


if __name__ == "__main__":
    main()
