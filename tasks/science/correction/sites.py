"""Sites where a network is measured and corrected, found in its traced graph.

Every linear map of the graph is a layer, whatever computes it: a module, a function, an attention projection. What
cannot be corrected is named with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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
from tasks.science.symmetry.tracing.linear_maps import (
    LinearMap,
    find_linear_maps,
    is_residual_sum,
    roots_of,
    shape_of,
)

_BATCH_NORM = "_native_batch_norm_legit_no_training"


@dataclass(frozen=True, eq=False)
class Site:
    """A place in a network where units have moments.

    `layer`: the result of a linear map; `norm`: the input of a BatchNorm that does not directly follow such a layer;
    `block`: the output of a residual block. The `n_units` units lie along dimension `dim` of that tensor.
    `module`: the torch module that has this output (for a norm, this input), None where no module has.
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
    """The epsilon that this BatchNorm adds to the variance."""
    extra: Literal["", "bias", "affine"] = ""
    """The part that the network's own class lacks to take a scale and a shift here."""

    @property
    def affine(self) -> str:
        """Path of the module that takes scale and shift where `extra` is "affine"."""
        return f"{self.name}.block_correction" if self.kind == "block" else f"{self.name}.correction"


@dataclass(frozen=True)
class LeftOut:
    """A linear map of `n_units` units that no correction reaches, with the reason."""

    name: str
    n_units: int
    reason: str


@dataclass(frozen=True)
class CorrectionSites:
    """The sites of one network, `all` of them in the order in which they run.

    `n_values`: the number of values that the layers put out per image. `dense`: whether every layer puts out one vector
    per image, so that all statistics samples fit into memory at once.
    """

    all: tuple[Site, ...]
    n_values: int
    dense: bool
    left_out: tuple[LeftOut, ...] = ()

    @property
    def layers(self) -> tuple[Site, ...]:
        return tuple(site for site in self.all if site.kind == "layer")

    @property
    def blocks(self) -> tuple[Site, ...]:
        return tuple(site for site in self.all if site.kind == "block")

    @property
    def norms(self) -> tuple[str, ...]:
        """Every BatchNorm with running statistics, first those that follow a layer."""
        followers = [site.norm for site in self.all if site.norm is not None]
        return (*followers, *(site.name for site in self.all if site.kind == "norm"))


_FOUND: WeakKeyDictionary[Graph, CorrectionSites] = WeakKeyDictionary()


@torch.no_grad()
def find_sites(network: nn.Module, state: State, images: Tensor) -> CorrectionSites:
    """Return the sites of `network` in evaluation mode, found once per graph; `network` is left alone.

    The maps that make the logits are no sites. Maps that no single rescaling can correct are left out by name: they run
    more than once, share their weight, or have parameters that cannot take a scale and a shift and no module of their
    own that could.
    Raises TraceError for a network that cannot be traced, NetworkError for one that writes into its weights.
    """
    try:
        graph = graph_for(network, images[:2])
    except TraceError:
        _check_run(network, state, images[:2])
        raise
    if graph not in _FOUND:
        _check_run(network, state, images[:2])
        _FOUND[graph] = _Finder(network, state, graph).sites()
    return _FOUND[graph]


def _check_run(network: nn.Module, state: State, images: Tensor) -> None:
    """Raise NetworkError where a forward pass writes into weights, which a trace does not always see."""
    with mode(network, training=False):
        compute(network, state, images)


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
    """The search for the sites of one network in its graph."""

    def __init__(self, network: nn.Module, state: State, graph: Graph) -> None:
        self.network, self.state, self.graph = network, state, graph
        self.inner = reached(graph, frozenset())
        self.modules = dict(network.named_modules(remove_duplicate=False))
        self.maps = find_linear_maps(graph, network)
        self.norms = _norms(graph, network)
        self.readers, self.n_places = self._readers()
        parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
        entries = {one.name: find_entries(graph, one, parameters, state) for one in self.maps if not one.fault}
        self.entries: Mapping[str, Entries] = entries

    def sites(self) -> CorrectionSites:
        found = {one: one.fault or self._layer(one) for one in self.maps}
        layers = {one: site for one, site in found.items() if isinstance(site, Site)}
        faults = {name: self._norm_fault(name) for name in self.norms}
        followers = {site.norm for site in layers.values()}
        free = [name for name, fault in faults.items() if not fault and name not in followers]
        placed = [(one.op, site) for one, site in layers.items()]
        placed += [(self.norms[name][0], self._norm(name)) for name in free]
        placed += self._blocks({one.name: site for one, site in layers.items()})
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        shapes = [shape_of(one.result) for one in layers]
        left_out = [LeftOut(one.name, one.n_units, why) for one, why in found.items() if isinstance(why, str)]
        for name, fault in faults.items():
            if fault:
                left_out.append(LeftOut(name or self.norms[name][0].name, shape_of(self.norms[name][0])[1], fault))
        return CorrectionSites(
            all=tuple(site for _, site in sorted(placed, key=lambda item: order[item[0]])),
            n_values=sum(shape[1:].numel() for shape in shapes),
            dense=all(len(shape) == 2 for shape in shapes),
            left_out=tuple(left_out),
        )

    def _layer(self, one: LinearMap) -> Site | str:
        """Return the site of a linear map, or why there is none."""
        entries = self.entries[one.name]
        if any(self.n_places[part.key] > 1 for part in entries.scaled):
            return "its weight has more than one place in the state dict"
        if any(not self._reads_alone(one, part, one.op) for part in entries.scaled):
            return "it shares its weight with another operation"
        if entries.order is None:
            return "the order of its units cannot be told from its parameters"
        reader = one.op if one.bias in one.op.all_input_nodes else one.result
        shift = entries.shift if entries.shift and self._reads_alone(one, entries.shift, reader) else None
        norm, epsilon = self._follower(one)
        module = one.module if self.graph.outputs.get(one.module or "") == [shape_of(one.result)] else None
        site = Site(
            one.name, "layer", one.dim, one.n_units, module, entries.scaled, shift, entries.order, norm, epsilon
        )
        if site.scaled and (shift or (norm and one.bias is None)):
            return site
        if norm:
            return "its parameters cannot take a scale and a shift, and the BatchNorm behind it makes up for both"
        if site.scaled and module and one.bias is None and _takes_bias(self.modules[module]):
            return replace(site, extra="bias")
        if module:
            return replace(site, extra="affine")
        lacking = "no bias of its own to take a shift" if site.scaled else "no parameter to take a scale"
        return f"it has {lacking}, and is not the output of a module"

    def _reads_alone(self, one: LinearMap, part: UnitEntries, reader: Node) -> bool:
        """Return whether no operation but `reader`, of the map `one`, reads the entries `part`."""
        readers = self.readers.get(part.key, set())
        if self.n_places[part.key] > 1:
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

    def _readers(self) -> tuple[dict[str, set[Node]], dict[str, int]]:
        """Return the operations that read each entry of the state dict, and how many entries share its memory.

        Operations on the way from the input count, in whatever form they read the entry.
        """
        tensors = self.network.state_dict(keep_vars=True)
        # Parameters may share memory without being one.
        same = {key: id(t) if t.is_meta else t.untyped_storage().data_ptr() for key, t in tensors.items()}
        uses = Counter(same.values())
        roots = roots_of(self.graph)
        readers: dict[str, set[Node]] = {}
        for node in self.inner:
            for source in node.all_input_nodes:
                for key in roots.get(source, ()):
                    readers.setdefault(key, set()).add(node)
        return readers, {key: uses[number] for key, number in same.items()}

    def _follower(self, one: LinearMap) -> tuple[str | None, float]:
        """Return the BatchNorm that alone reads a layer's result, and its epsilon."""
        if one.dim % len(shape_of(one.result)) != 1:
            return None, 0.0  # BatchNorm has its units in dimension 1.
        for name, nodes in self.norms.items():
            node = nodes[0]
            alone = len(nodes) == 1 and node.args[0] is one.result and list(one.result.users) == [node]
            if alone and isinstance(self.modules.get(name), _BatchNorm):
                epsilon: Any = node.args[6]
                return name, float(epsilon)
        return None, 0.0

    def _norm(self, name: str) -> Site:
        module = name if isinstance(self.modules.get(name), _BatchNorm) else None
        return Site(name, "norm", 1, shape_of(self.norms[name][0])[1], module)

    def _norm_fault(self, name: str) -> str:
        """Return why the statistics of a BatchNorm cannot be re-estimated, "" where they can."""
        if len(self.norms[name]) > 1:
            return "it runs more than once, so its statistics stay interpolated"
        if f"{name}.running_var" not in self.state:
            return "its statistics are no running_mean and running_var of a module, so they stay interpolated"
        return ""

    def _blocks(self, layers: Mapping[str, Site]) -> list[tuple[Node, Site]]:
        """Return the modules that add two maps of one shape and put out one tensor, with their last operations."""
        last = last_of_calls(self.graph)
        placed: list[tuple[Node, Site]] = []
        for path, one in self._layers_of_sums().items():
            shapes, layer = self.graph.outputs.get(path, []), layers.get(one.name)
            if layer is None or len(shapes) != 1 or shapes[0] is None:
                continue
            dim = _units_dim(shapes[0], shape_of(one.result), layer)
            if dim is not None:
                site = Site(path, "block", dim, layer.n_units, path, order=layer.order, extra="affine")
                placed.append((last[path, 0], site))
        return placed

    def _layers_of_sums(self) -> dict[str, LinearMap]:
        """Return, by module that adds two maps of one shape, the linear map that ran last before its last such sum."""
        of_op = {one.op: one for one in self.maps}
        ran: LinearMap | None = None
        found: dict[str, LinearMap] = {}
        for node in self.graph.nodes:
            ran = of_op.get(node, ran)
            path, _ = module_of(node)
            if not path or ran is None or not is_residual_sum(node, self.inner) or len(shape_of(node)) < 2:
                continue
            one, other = (a for a in node.args if a in self.inner)
            if isinstance(one, Node) and isinstance(other, Node) and shape_of(one) == shape_of(other):
                found[path] = ran
        return found


def _takes_bias(module: nn.Module) -> bool:
    """Return whether a module without a bias would use one that it was given."""
    own = nn.Linear.forward if isinstance(module, nn.Linear) else None
    if isinstance(module, _ConvNd):
        kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        own = next((kind.forward for kind in kinds if isinstance(module, kind)), None)
    return own is not None and type(module).forward is own and getattr(module, "bias", 0) is None


def _overlap(one: UnitEntries, other: UnitEntries) -> bool:
    return bool(((one.owner >= 0) & (other.owner >= 0)).any())


def _units_dim(shape: torch.Size, of_layer: torch.Size, layer: Site) -> int | None:
    """Return the dimension along which the units of a block's output lie; None where it has none of their size.

    It is that of its last layer where their shapes agree. Else maps carry units in front, sequences at the end.
    """
    dims = (1, -1) if len(shape) == 4 else (-1, 1)
    if len(shape) == len(of_layer):
        dims = (layer.dim, *dims)
    return next((dim for dim in dims if shape[dim] == layer.n_units), None)
