"""One forward pass as a list of ATen operations.

`torch.export` (non-strict) is used rather than symbolic tracing with torch.fx: it runs the user's own Python, so
functional weights, einsum, packed attention and modules called twice all become a few dozen ATen operations without
side effects; every parameter, buffer and constant enters as an input with its name; and a branch on data is an error
and not silently one side of it. A handful of composite operations (linear, matmul, attention, smooth activations) are
kept whole, because they are easier to describe whole than in parts.
"""

from __future__ import annotations

import functools
import io
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import exported_program
from torch.fx import Node
from torch.fx.experimental import proxy_tensor
from torch.nn.modules import transformer
from torch.nn.utils.rnn import PackedSequence

from tasks.science.evaluation.modes import NetworkError, check_modes, kept_attributes
from tasks.science.evaluation.outputs import logits_in
from tasks.science.evaluation.random_state import kept_random_state
from tasks.science.symmetry.tracing.module_outputs import ModuleOutputs, recorded_outputs

# Operations that are not taken apart; each has a rule of its own.
KEPT_WHOLE = frozenset(
    ["linear", "matmul", "scaled_dot_product_attention", "silu", "hardswish", "hardsigmoid", "mish", "softplus",
     "elu", "celu", "selu", "relu6", "leaky_relu", "prelu", "dropout", "feature_dropout", "alpha_dropout",
     "feature_alpha_dropout", "roll", "flip", "im2col", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
     "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
     "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d",
     "upsample_bicubic2d", "upsample_trilinear3d"]
)  # fmt: skip


TRACING = threading.RLock()
"""Held while a network is traced: torch.export changes global tables, and two threads at it break one another."""


class TraceError(ValueError):
    """Error of a network that cannot be traced; the message names the operation and its place."""


@dataclass(frozen=True, eq=False)
class Graph:
    """The operations of one forward pass, in order, and what its inputs are.

    `state`: placeholder -> key of the state dict. `constants`: placeholder -> tensor that no state dict holds.
    `mutations`: result -> key of the buffer that it overwrites. `results`, `outputs`: what it and its modules return.
    """

    nodes: tuple[Node, ...]
    state: dict[str, str]
    constants: dict[str, Tensor]
    mutations: tuple[tuple[Node, str], ...]
    results: tuple[Node, ...]
    outputs: ModuleOutputs


def trace_graph(network: nn.Module, example_inputs: tuple[Tensor, ...], training: bool) -> Graph:
    """Return the ATen graph of one forward pass in eval or training mode; the network is left as it was.

    One thread at a time traces, the others wait. Raises TraceError where the forward pass cannot be followed: a branch
    or a shape that depends on data, an operation that torch.export does not know.
    """
    name = type(network).__name__
    try:
        check_modes(network)
    except NetworkError as error:
        raise TraceError(str(error)) from error
    with (
        TRACING,
        kept_attributes(network),
        kept_random_state(),
        torch.no_grad(),
        _quiet(),
        _plain_attention(),
        _own_paths(),
        _overriding_few() as table,
        recorded_outputs(network) as outputs,
    ):
        network.train(training)
        _return_logits(network)
        try:
            exported = torch.export.export(network, example_inputs, strict=False)
            exported = exported.run_decompositions(table)  # pyright: ignore[reportUnknownMemberType]
        except Exception as error:
            raise TraceError(f"{name} cannot be traced: {_summary(error)}{_where(error)}") from error
    signature = exported.graph_signature
    nodes = tuple(exported.graph.nodes)
    for node in nodes:
        _check_node(name, node)
    _drop_unknown_frames(network, nodes)
    persistent = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    state = {k: v for k, v in persistent.items() if v not in signature.non_persistent_buffers}
    loose = {k: v for k, v in persistent.items() if k not in state} | dict(signature.inputs_to_lifted_tensor_constants)
    constants = {k: v for k, key in loose.items() if isinstance(v := exported.constants[key], Tensor)}
    by_name = {node.name: node for node in nodes}
    mutated = signature.buffers_to_mutate
    mutations = tuple((by_name[k], v) for k, v in mutated.items() if v not in signature.non_persistent_buffers)
    results = tuple(by_name[k] for k in signature.user_outputs if isinstance(k, str) and k in by_name)
    return Graph(nodes, state, constants, mutations, results, outputs)


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Return the decompositions into core ATen, without those of operations kept whole; slow to collect."""
    table = cast(dict[Any, Callable[..., Any]], torch.export.default_decompositions())
    return {op: table[op] for op in table if _name(op) not in KEPT_WHOLE}


@functools.cache
def _kept_composites() -> frozenset[Any]:
    """Return the composite operations that are not taken apart."""
    return frozenset(exported_program._collect_all_valid_cia_ops()) - _decompositions().keys()  # pyright: ignore


@functools.cache
def _plain_decompositions() -> dict[Any, Callable[..., Any]]:
    """Return the decompositions of operations that are not composite: composite ones need none."""
    composite: Any = exported_program._is_preservable_cia_op  # pyright: ignore
    return {op: how for op, how in _decompositions().items() if not composite(op)}


def _drop_unknown_frames(network: nn.Module, nodes: Sequence[Node]) -> None:
    """Take modules that `network` does not have from around the operations.

    Their results then count as computed by the module around them.
    """
    known = {name for name, _ in network.named_modules(remove_duplicate=False)}
    for node in nodes:
        stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
        if any(path not in known for path, _ in stack.values()):
            node.meta["nn_module_stack"] = {key: frame for key, frame in stack.items() if frame[0] in known}


def place_of(node: Node) -> str:
    """Return the place of an operation as in "softmax in blocks.0.attn"."""
    path, _ = module_of(node)
    return f"{operation_name(node)} in {path}" if path else f"{operation_name(node)} in forward"


def module_of(node: Node) -> tuple[str, int]:
    """Return the innermost module that runs the operation, and which of its calls this is (0 the first)."""
    return module_stack(node)[-1] if module_stack(node) else ("", 0)


def module_stack(node: Node) -> list[tuple[str, int]]:
    """Return the modules around an operation from the outside in, each with the number of the call."""
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    calls: list[tuple[str, int]] = []
    for key, (path, _) in stack.items():
        _, _, call = key.rpartition("@")
        calls.append((path, int(call) if "@" in key and call.isdigit() else 0))
    return calls


def last_of_calls(graph: Graph) -> dict[tuple[str, int], Node]:
    """Return the last operation of every call of a module, by the module's path and the number of the call."""
    last: dict[tuple[str, int], Node] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            for frame in module_stack(node):
                last[frame] = node
    return last


def operation_name(node: Node) -> str:
    """Return the short name of an operation: "add" for aten.add.Tensor."""
    return _name(node.target) if node.op == "call_function" else node.op


def reached(graph: Graph, parameters: frozenset[str]) -> set[Node]:
    """Return the results that depend on the network's inputs or on these parameters."""
    reached: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            key = graph.state.get(node.name)
            if key in parameters or (key is None and node.name not in graph.constants):
                reached.add(node)
        elif any(n in reached for n in node.all_input_nodes):
            reached.add(node)
    return reached


def _name(operation: Any) -> str:
    packet = getattr(operation, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(operation, "__name__", str(operation))


def _check_node(network: str, node: Node) -> None:
    values: Any = node.meta.get("val")
    if operation_name(node) in ("item", "_local_scalar_dense"):
        raise TraceError(
            f"{network} cannot be traced: its forward pass reads a tensor's value as a number{_line_of(node)}; let it "
            "compute with the tensor itself"
        )
    for value in cast(Sequence[Any], values if isinstance(values, tuple | list) else [values]):
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool) or (
            isinstance(value, Tensor) and any(isinstance(n, torch.SymInt) for n in value.shape)
        ):
            raise TraceError(f"{network} cannot be traced: a size depends on data ({place_of(node)})")
    if node.op == "get_attr" or isinstance(node.target, torch._ops.HigherOrderOperator):  # pyright: ignore[reportPrivateUsage]
        raise TraceError(f"{network} cannot be traced: control flow inside the graph ({place_of(node)})")


def _line_of(node: Node) -> str:
    """Return the last line of the user's own code that an operation comes from."""
    lines = re.findall(r'File "(.+)", line (\d+), in .*\n\s*(.*)', node.meta.get("stack_trace") or "")
    own = [(file, number, text) for file, number, text in lines if _is_own_code(file)]
    return f" ({Path(own[-1][0]).name}:{own[-1][1]}: {own[-1][2].strip()})" if own else f" ({place_of(node)})"


def _summary(error: Exception) -> str:
    if _meets_packed(error):
        return "its forward pass packs sequences, whose sizes depend on data, where padded ones are needed"
    if ".numpy() is not supported" in str(error):
        return "its forward pass hands a tensor to NumPy, where it must compute in torch throughout"
    if "data-dependent" in str(error) or "DataDependent" in type(error).__name__:
        return "its forward pass branches on data or reads a tensor's value"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _meets_packed(error: Exception) -> bool:
    """Return whether the error passed through something that was given packed sequences."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(isinstance(value, PackedSequence) for frame in frames for value in frame.f_locals.values())


def _is_own_code(file: str) -> bool:
    library, here, standard = (str(Path(module).parent) for module in (torch.__file__, __file__, traceback.__file__))
    return not file.startswith((library, here, "<")) and ("-packages" in file or not file.startswith(standard))


def _where(error: Exception) -> str:
    """Return the last line of the user's own code that the error passed through."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_own_code(frame.filename):
            return f" ({Path(frame.filename).name}:{frame.lineno}: {frame.line})"
    return ""


def _return_logits(network: nn.Module) -> None:
    """Let the forward pass return its logits alone: the rest of a model's output may be no tensor."""
    forward = network.forward

    @functools.wraps(forward)
    def logits_alone(*args: Any, **kwargs: Any) -> Any:
        return logits_in(forward(*args, **kwargs))

    network.forward = logits_alone


@contextmanager
def _plain_attention() -> Generator[None]:
    """Keep torch's transformers to their documented parts.

    Without gradients nn.MultiheadAttention would take one opaque operation. nn.TransformerEncoder and
    nn.TransformerDecoder would compare their mask with a causal one, a branch on data, to choose a faster way; the mask
    itself, which is applied here unless the user says that it is causal, gives the same.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    detect = transformer._detect_is_causal_mask  # pyright: ignore[reportPrivateUsage]

    def as_told(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
        return is_causal is True

    torch.backends.mha.set_fastpath_enabled(False)
    transformer._detect_is_causal_mask = as_told  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect  # pyright: ignore[reportPrivateUsage]
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _own_paths() -> Generator[None]:
    """Give every module a path that is its own.

    Of a module under two names, torch.export takes its latest name in the module that was last looked into: wrong where
    that one was looked into after the module was taken from its attribute and before it ran, as in
    `self.last(self.layers[0](x))`, where `self.last` is among `self.layers` too.
    """
    tracer: Any = getattr(proxy_tensor, "_ModuleStackTracer", None)
    proxy: Any = getattr(proxy_tensor, "_AttrProxy", None)
    if not (hasattr(tracer, "path_of_module") and isinstance(proxy, type)):
        yield  # Another version of torch: what it takes for no module's path is dropped all the same.
        return
    told = tracer.path_of_module

    def path_of_module(self: Any, mod: Any) -> str:
        path = told(self, mod)
        names: Any = getattr(self, "module_id_cache", {})
        if not (isinstance(mod, proxy) and hasattr(mod, "get_base")):
            return path
        own = [name.removeprefix("_export_root.") for name in names.get(id(mod.get_base()), ())]
        return own[0] if own and path.removeprefix("_export_root.") not in own else path

    tracer.path_of_module = path_of_module
    try:
        yield
    finally:
        tracer.path_of_module = told


@contextmanager
def _overriding_few() -> Generator[dict[Any, Callable[..., Any]]]:
    """Have torch.export override those composite operations alone that are kept whole, and give it its decompositions.

    Before every trace it would override all of some 600, most of them by what they do anyway: two thirds of the time
    that a small network takes.
    """
    collect: Any = getattr(exported_program, "_collect_all_valid_cia_ops", None)
    if collect is None or not hasattr(exported_program, "_is_preservable_cia_op"):
        yield dict(_decompositions())  # Another version of torch.
        return
    kept = set(_kept_composites())
    table = dict(_plain_decompositions())
    exported_program._collect_all_valid_cia_ops = lambda: kept  # pyright: ignore
    try:
        yield table
    finally:
        exported_program._collect_all_valid_cia_ops = collect  # pyright: ignore


@contextmanager
def _quiet() -> Generator[None]:
    """Keep torch.export from logging and printing what the exception says already.

    Nor does it advise a forward pass that stores a tensor in an attribute, as a recurrent layer does, to register a
    buffer: `kept_attributes` puts the attribute back.
    Nor is a forward pass that stores a tensor in an attribute (a recurrent layer keeps its weights in a list) advised
    to register a buffer: `kept_attributes` puts the attribute back.
    """
    names = ("torch.fx.experimental.symbolic_shapes", "torch.export", "torch._export", "torch._subclasses.fake_tensor")
    loggers = [logging.getLogger(n) for n in names]
    levels = [log.level for log in loggers]
    try:
        for log in loggers:
            log.setLevel(logging.CRITICAL)
        with redirect_stderr(io.StringIO()) as printed, warnings.catch_warnings():
            assigned = r"The tensor attributes? .* (was|were) assigned during export\."
            warnings.filterwarnings("ignore", assigned, UserWarning)
            yield
        sys.stderr.write(printed.getvalue())  # What the forward pass itself had to say.
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
