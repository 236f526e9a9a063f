"""Passes through a network that show the values at its sites to a function, which may replace them.

Where all sites are modules, forward hooks take the values from the network itself; else the traced graph is run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from tasks.science.correction.sites import Site, site_values
from tasks.science.evaluation.functional import lay_out, mode, within
from tasks.science.specs.state import State
from tasks.science.symmetry.tracing.execution import graph_for, run_graph

SeeSite = Callable[[Site, Tensor], Tensor | None]
"""A function of a site and its values; a tensor that it returns takes their place, except where a norm reads them."""


class PassEnded(Exception):  # noqa: N818 - no error
    """The signal of an observing function that ends the pass of this batch."""


def observe(
    network: nn.Module,
    state: State,
    sites: Sequence[Site],
    batches: Iterable[Tensor],
    see: SeeSite,
    *,
    writes: bool = False,
) -> None:
    """Pass `batches` through `network` with the weights `state`, in evaluation mode, and show `sites` to `see`.

    `writes` allows `see` to write into `state` for later modules to read.
    Raises TraceError where some site is not a module and the network cannot be traced at the size of a batch.
    """
    if any(site.module is None for site in sites):
        for batch in batches:
            _run(network, state, sites, batch, see)
        return

    def run(loaded: nn.Module) -> None:
        for batch in batches:
            with suppress(PassEnded):
                loaded(lay_out(loaded, batch))

    with mode(network, training=False), _hooked(network, sites, see):
        within(network, state, run, writes=writes)


def _run(network: nn.Module, state: State, sites: Sequence[Site], batch: Tensor, see: SeeSite) -> None:
    graph = graph_for(network, batch)
    of_node = site_values(graph, network, sites)

    def show(node: Node, value: Any) -> Any:
        for site in of_node.get(node, ()):
            seen = see(site, value)
            value = value if seen is None or site.kind == "norm" else seen
        return value

    with suppress(PassEnded):
        run_graph(graph, state, batch, show)


@contextmanager
def _hooked(network: nn.Module, sites: Sequence[Site], see: SeeSite) -> Generator[None]:
    def reading(site: Site) -> Callable[[nn.Module, Any], None]:
        def hook(_module: nn.Module, inputs: Any) -> None:
            see(site, inputs[0])

        return hook

    def writing(site: Site) -> Callable[[nn.Module, Any, Tensor], Any]:
        return lambda _module, _inputs, output: see(site, output)

    handles = [
        network.get_submodule(site.module or "").register_forward_pre_hook(reading(site))
        if site.kind == "norm"
        else network.get_submodule(site.module or "").register_forward_hook(writing(site))
        for site in sites
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
