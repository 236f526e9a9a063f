"""Where a network can be measured and corrected, found in the graph of one forward pass.

Every linear map of the graph is a layer, whatever computes it: a module, a function, an attention projection. What
cannot be corrected is named with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from tasks.science.correction.unit_entries import Entries, UnitEntries, find_entries
from tasks.science.evaluation.functional import compute, mode
from tasks.science.specs.state import State
from tasks.science.symmetry.tracing.execution import graph_for
from tasks.science.symmetry.tracing.graph import Graph, TraceError, last_of_calls, module_of, operation_name, reached
from tasks.science.symmetry.tracing.linear_maps import LinearMap, find_linear_maps, roots_of, shape_of

_BATCH_NORM = "_native_batch_norm_legit_no_training"


@dataclass(frozen=True, eq=False)
class Site:
    """A place in a network where units have moments.

    `layer`: the result of a linear map; `norm`: the input of a BatchNorm that does not directly follow such a layer;
    `block`: the output of a residual block. The `n_units` units lie along dimension `dim` of that tensor.
    `module`: the torch module whose output (of a norm, whose input) that is, None where it is no module's.
    """

    name: str
    kind: Literal["layer", "norm", "block"]
    dim: int
    n_units: int
    module: str | None
    scaled: tuple[UnitEntries, ...] = ()
    """The entries that are multiplied to scale the units."""
    shift: UnitEntries | None = None
    """The entries that are added to the units."""
    order: UnitEntries | None = None
    """The entries that tell the order of the units; None for a norm, whose moments are not compared."""
    norm: str | None = None
    """The BatchNorm that alone reads a layer's output."""
    epsilon: float = 0.0
    """What that BatchNorm adds to the variance."""
    extra: Literal["", "bias", "affine"] = ""
    """What the network's own class lacks to take a scale and a shift here."""

    @property
    def affine(self) -> str:
        """Path of the module that takes scale and shift where `extra` is "affine"."""
        return f"{self.name}.block_correction" if self.kind == "block" else f"{self.name}.correction"


@dataclass(frozen=True)
class LeftOut:
    """A linear map of `n_units` units that no correction reaches, and why."""

    name: str
    n_units: int
    reason: str


@dataclass(frozen=True)
class Layout:
    """`sites` in the order in which they run. `n_values`: how many numbers the layers put out per image."""

    sites: tuple[Site, ...]
    n_values: int
    dense: bool
    """Whether every layer puts out one vector per image, so that all statistics samples fit into memory at once."""
    left_out: tuple[LeftOut, ...] = ()

    @property
    def layers(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.kind == "layer")

    @property
    def blocks(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.kind == "block")

    @property
    def norms(self) -> tuple[str, ...]:
        """Every BatchNorm with running statistics, whether it follows a layer or not."""
        followers = [site.norm for site in self.sites if site.norm is not None]
        return (*followers, *(site.name for site in self.sites if site.kind == "norm"))


_LAYOUTS: WeakKeyDictionary[Graph, Layout] = WeakKeyDictionary()


@torch.no_grad()
def find_layout(network: nn.Module, state: State, images: Tensor) -> Layout:
    """Return the sites of `network` in evaluation mode, found once per network; `network` is left alone.

    The maps that make the logits are no sites. Left out by name are maps that no single rescaling can correct: they run
    more than once, share their weight, or have parameters that cannot take a scale and a shift where they are not the
    output of a module either.
    Raises TraceError for a network that cannot be traced, NetworkError for one that writes into its weights.
    """
    try:
        graph = graph_for(network, images[:2])
    except TraceError:
        _module_outputs(network, state, images[:2])
        raise
    if graph not in _LAYOUTS:
        _LAYOUTS[graph] = _Finder(network, state, images[:2], graph).layout()
    return _LAYOUTS[graph]


def site_values(graph: Graph, network: nn.Module, sites: Sequence[Site]) -> dict[Node, list[Site]]:
    """Return the operations of `graph`, a graph of `network`, whose results are the values of `sites`."""
    maps = {one.name: one.result for one in find_linear_maps(graph, network)}
    last = last_of_calls(graph)
    norms = _norms(graph, network)
    found: dict[Node, list[Site]] = {}
    for site in sites:
        if site.kind == "norm":
            nodes = [node.args[0] for node in norms[site.name]]
        elif site.kind == "block":
            nodes = [last[site.name, 0]]
        else:
            nodes = [last.get((site.affine, 0), maps[site.name])]
        for node in nodes:
            assert isinstance(node, Node)
            found.setdefault(node, []).append(site)
    return found


def _norms(graph: Graph, network: nn.Module) -> dict[str, list[Node]]:
    """Every BatchNorm with running statistics, by the place of these in the state dict, with its operations."""
    tensors = network.state_dict(keep_vars=True)
    found: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if operation_name(node) == _BATCH_NORM:
            mean = node.args[3]
            key = graph.state.get(mean.name, "") if isinstance(mean, Node) else ""
            if key.endswith(".running_mean"):
                # Of several names of one BatchNorm the first is written.
                key = next(name for name, tensor in tensors.items() if tensor is tensors[key])
            found.setdefault(key.removesuffix(".running_mean"), []).append(node)
    return found


class _Finder:
    """Finds the layout of one network from its graph, and from which of its modules put out one tensor."""

    def __init__(self, network: nn.Module, state: State, images: Tensor, graph: Graph) -> None:
        self.network, self.state, self.graph = network, state, graph
        self.inner = reached(graph, frozenset())
        self.parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
        self.maps = find_linear_maps(graph, network)
        self.norms = _norms(graph, network)
        self.last = last_of_calls(graph)
        self.outputs = _module_outputs(network, state, images)
        entries = {one.name: find_entries(graph, one, self.parameters, state) for one in self.maps if not one.fault}
        self.entries: Mapping[str, Entries] = entries
        self.readers = self._readers()

    def layout(self) -> Layout:
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        layers: dict[str, Site] = {}
        left_out: list[LeftOut] = []
        for one in self.maps:
            site = one.fault or self._layer(one)
            if isinstance(site, Site):
                layers[one.name] = site
            else:
                left_out.append(LeftOut(one.name, one.n_units, site))
        placed = [(order[one.op], layers[one.name]) for one in self.maps if one.name in layers]
        followers = {site.norm for site in layers.values()}
        for name, nodes in self.norms.items():
            if fault := self._norm_fault(name):
                left_out.append(LeftOut(name or nodes[0].name, shape_of(nodes[0])[1], fault))
            elif name not in followers:
                module = name if isinstance(self._module(name), _BatchNorm) else None
                placed.append((order[nodes[0]], Site(name, "norm", 1, shape_of(nodes[0])[1], module)))
        placed += [(order[self.last[site.name, 0]], site) for site in self._blocks(layers)]
        sites = tuple(site for _, site in sorted(placed, key=lambda item: item[0]))
        shapes = [shape_of(one.result) for one in self.maps if one.name in layers]
        return Layout(
            sites,
            sum(shape[1:].numel() for shape in shapes),
            all(len(shape) == 2 for shape in shapes),
            tuple(left_out),
        )

    def _layer(self, one: LinearMap) -> Site | str:
        """The site of a linear map, or why there is none."""
        entries = self.entries[one.name]
        if any(self.names[part.key] > 1 for part in entries.scaled):
            return "its weight has more than one place in the state dict"
        if any(not self._is_own(one, part, one.op) for part in entries.scaled):
            return "it shares its weight with another operation"
        if entries.order is None:
            return "the order of its units cannot be told from its parameters"
        reader = one.op if one.bias in one.op.all_input_nodes else one.result
        shift = entries.shift if entries.shift and self._is_own(one, entries.shift, reader) else None
        norm, epsilon = self._follower(one)
        module = one.module if one.module and self.outputs.get(one.module) == [shape_of(one.result)] else None
        site = Site(
            one.name, "layer", one.dim, one.n_units, module, entries.scaled, shift, entries.order, norm, epsilon
        )
        if site.scaled and (shift or (norm and one.bias is None)):
            return site
        if norm:
            return "its parameters cannot take a scale and a shift, and the BatchNorm behind it makes up for both"
        if site.scaled and module and one.bias is None and _takes_bias(self.network.get_submodule(module)):
            return replace(site, extra="bias")
        if module:
            return replace(site, extra="affine")
        lacking = "no bias of its own to take a shift" if site.scaled else "no parameter to take a scale"
        return f"it has {lacking}, and is not the output of a module"

    def _is_own(self, one: LinearMap, part: UnitEntries, reader: Node) -> bool:
        """Whether `reader` alone reads these entries."""
        readers = self.readers.get(part.key, set())
        if self.names[part.key] > 1:
            return False
        if readers == {reader}:
            return True
        others = [
            other
            for each in self.maps
            if each is not one and (entries := self.entries.get(each.name))
            for other in (*entries.scaled, entries.shift)
            if other is not None and other.key == part.key and readers & {each.op, each.result}
        ]
        return len(others) == len(readers) - 1 and not any(_overlap(part, other) for other in others)

    def _readers(self) -> dict[str, set[Node]]:
        """By entry of the state dict, the operations on the way from the input that read it, in whatever form."""
        tensors = self.network.state_dict(keep_vars=True)
        # Parameters may share memory without being one.
        same = {key: id(t) if t.is_meta else t.untyped_storage().data_ptr() for key, t in tensors.items()}
        uses = Counter(same.values())
        self.names = {key: uses[number] for key, number in same.items()}
        roots = roots_of(self.graph)
        readers: dict[str, set[Node]] = {}
        for node in self.inner:
            for source in node.all_input_nodes:
                for key in roots.get(source, ()):
                    readers.setdefault(key, set()).add(node)
        return readers

    def _follower(self, one: LinearMap) -> tuple[str | None, float]:
        """The BatchNorm that alone reads a layer's result, and its epsilon."""
        if one.dim % len(shape_of(one.result)) != 1:
            return None, 0.0  # BatchNorm has its units in dimension 1.
        for name, nodes in self.norms.items():
            node = nodes[0]
            alone = len(nodes) == 1 and node.args[0] is one.result and list(one.result.users) == [node]
            if alone and isinstance(self._module(name), _BatchNorm):
                epsilon: Any = node.args[6]
                return name, float(epsilon)
        return None, 0.0

    def _norm_fault(self, name: str) -> str:
        """Why the statistics of a BatchNorm cannot be taken anew, "" where they can."""
        if len(self.norms[name]) > 1:
            return "it runs more than once, so its statistics stay interpolated"
        if f"{name}.running_var" not in self.state:
            return "its statistics are no running_mean and running_var of a module, so they stay interpolated"
        return ""

    def _module(self, path: str) -> nn.Module | None:
        return dict(self.network.named_modules(remove_duplicate=False)).get(path)

    def _blocks(self, layers: Mapping[str, Site]) -> list[Site]:
        """Modules that add two maps of one shape and put out one tensor."""
        ran: str | None = None
        of_op = {one.op: one.name for one in self.maps}
        of_name = {one.name: one for one in self.maps}
        last_layer: dict[str, str | None] = {}
        for node in self.graph.nodes:
            ran = of_op.get(node, ran)
            path, _ = module_of(node)
            if not path or operation_name(node) != "add" or isinstance(self._module(path), nn.RNNBase):
                continue
            added = [a for a in node.args if isinstance(a, Node) and a in self.inner]
            if len(added) == 2 and shape_of(added[0]) == shape_of(added[1]) and len(shape_of(node)) > 1:
                last_layer[path] = ran
        sites: list[Site] = []
        for path, name in last_layer.items():
            shapes, last = self.outputs.get(path, []), layers.get(name or "")
            if last is None or len(shapes) != 1 or shapes[0] is None:
                continue
            alike = len(shapes[0]) == len(shape_of(of_name[last.name].result)) and shapes[0][last.dim] == last.n_units
            dim = last.dim if alike else _units_dim(shapes[0], last.n_units)
            if dim is not None:
                sites.append(Site(path, "block", dim, last.n_units, path, order=last.order, extra="affine"))
        return sites


def _takes_bias(module: nn.Module) -> bool:
    """Whether a module without a bias would use one that it was given."""
    own = nn.Linear.forward if isinstance(module, nn.Linear) else None
    if isinstance(module, _ConvNd):
        kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        own = next((kind.forward for kind in kinds if isinstance(module, kind)), None)
    return own is not None and type(module).forward is own and getattr(module, "bias", 0) is None


def _overlap(one: UnitEntries, other: UnitEntries) -> bool:
    return bool(((one.owner >= 0) & (other.owner >= 0)).any())


def _module_outputs(network: nn.Module, state: State, images: Tensor) -> dict[str, list[torch.Size | None]]:
    """By module the shapes that its calls put out, None for what is no tensor."""
    shapes: dict[str, list[torch.Size | None]] = {}

    def observe(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            shapes.setdefault(name, []).append(output.shape if isinstance(output, Tensor) else None)

        return hook

    handles = [module.register_forward_hook(observe(name)) for name, module in network.named_modules() if name]
    try:
        with mode(network, training=False):
            compute(network, state, images)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _units_dim(shape: torch.Size, n_units: int) -> int | None:
    """Along which dimension of a block's output its units lie: maps carry them in front, sequences at the end."""
    dims = (1, -1) if len(shape) == 4 else (-1, 1)
    return next((dim for dim in dims if shape[dim] == n_units), None)
