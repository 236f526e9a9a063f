"""`repairlab merge`: two user-defined networks, merged, measured on the test split, and written to a file."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from flows.commands.declared import MergeOptions
from flows.commands.merge_notes import explain, explain_correction
from flows.terminal import tell
from infra.weights import WeightsFile, check_target, open_weights, write_weights
from tasks.data.datasets import load_dataset
from tasks.science.correction.sites import LeftOut
from tasks.science.data.examples import Dataset, subset
from tasks.science.evaluation.metrics import Evaluation, evaluate
from tasks.science.merging import Merged, merge_networks
from tasks.science.networks.fitting import fit_state, in_float32, renamed
from tasks.science.networks.output_checks import check_classes
from tasks.science.networks.user_defined import call_builder
from tasks.science.specs.identity import weights_digest
from tasks.science.specs.matchers import parse_matcher
from tasks.science.specs.user_code import find_function, names_code
from tasks.user_code import import_code

MOST_REASONS = 4
"""Number of reasons for units that stay which are printed one by one."""


@dataclass(frozen=True)
class Sources:
    """Functions that build the network and load the data."""

    build: Callable[[], Any]
    load: Callable[[], Dataset]


def find_sources(options: MergeOptions, data_dir: Path) -> Sources:
    """Return the functions that the options name. ValueError where there are none."""
    import_code({"--network": options.network, "--data": options.data})
    build = find_function(options.network, "--network")
    if names_code(options.data):
        return Sources(build, lambda: load_dataset(options.data, data_dir))
    data = load_dataset(options.data, data_dir)
    return Sources(build, lambda: data)


@dataclass(frozen=True)
class MergeReport:
    """A merged network with `evaluations` on the test split, by the weights they are of, and `notes` on the files."""

    merged: Merged
    evaluations: dict[str, Evaluation]
    data: Dataset
    n_statistics: int
    notes: tuple[str, ...] = ()


def merge_files(options: MergeOptions, sources: Sources) -> MergeReport:
    """Read both networks, merge and evaluate them, and write the merged weights.

    Raises WeightsError for files, UserCodeError for the values that user-defined functions return, MergeError and
    TraceError for networks and weights that do not go together.
    """
    check_target(options.out)
    files = {path: open_weights(path) for path in (options.a, options.b)}
    read_a, read_b = files[options.a].weights, files[options.b].weights
    network = call_builder(sources.build, options.network)
    notes = [note for path, file in files.items() for note in naming_notes(network, path, file)]
    data = sources.load()
    ends = {"A": in_float32(fit_state(network, read_a, "A")), "B": in_float32(fit_state(network, read_b, "B"))}
    check_classes(network.eval(), ends["A"], data.test.images, data.spec, "A")
    chosen = subset(data.spec.fingerprint, "train", len(data.train), options.statistics)
    images = data.train.images if chosen is None else data.train.images[chosen]
    merged = merge_networks(
        network,
        read_a,
        read_b,
        images,
        alpha=options.alpha,
        matcher=options.matcher,
        correction=options.correction,
        allow_extra_layers=options.allow_extra_layers,
    )
    evaluations = {name: evaluate(network, state, data.test) for name, state in ends.items()}
    evaluations["direct"] = evaluate(network, in_float32(merged.direct), data.test)
    evaluations[f"aligned ({options.matcher})"] = evaluate(network, in_float32(merged.aligned), data.test)
    if options.correction != "none":
        evaluations[f"aligned and corrected ({options.correction})"] = evaluate(
            merged.network, in_float32(merged.corrected), data.test
        )
    header = {
        "kind": "merged",
        "a_sha256": weights_digest(read_a),
        "b_sha256": weights_digest(read_b),
        "alpha": options.alpha,
        "matcher": parse_matcher(options.matcher).text,
        "correction": options.correction,
        "extra": list(merged.extra),
        "left_out": {one.name: one.reason for one in merged.left_out},
        "function_error": merged.function_error,
        "data": {"name": data.spec.name, "fingerprint": data.spec.fingerprint, "n_statistics": len(images)},
        "versions": {"repairlab": importlib.metadata.version("repairlab"), "torch": torch.__version__},
    }
    write_weights(options.out, merged.corrected, header)
    return MergeReport(merged, evaluations, data, len(images), tuple(notes))


def naming_notes(network: nn.Module, path: Path, file: WeightsFile) -> tuple[str, ...]:
    """Return sentences about a weights file: its parts that were left out, and the change of its names."""
    _, how = renamed(network, file.weights)
    return (*file.notes, f"{path}: {how}") if how else file.notes


def print_merge(report: MergeReport, options: MergeOptions, console: Console) -> None:
    """Print the merge in 80 columns."""
    title = f"{len(report.data.test)} test examples of {report.data.spec.name}, alpha {options.alpha:g}"
    tell(console, title)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("weights", overflow="fold")
    for name in ("accuracy, %", "loss, nats"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, evaluation in report.evaluations.items():
        table.add_row(name, f"{100 * evaluation.accuracy:.2f}", f"{evaluation.loss:.4f}")
    console.print(table)
    console.print()
    for line in _sentences(report, options):
        tell(console, line)


def _sentences(report: MergeReport, options: MergeOptions) -> list[str]:
    merged, spec = report.merged, report.merged.spec
    moved = [int((vector != np.arange(len(vector))).sum()) for vector in merged.permutation.values()]
    lines = [
        "permutation: nothing can move in this network, so B is taken as it is"
        if not spec.axes
        else f"permutation: {sum(moved)} of {sum(axis.size for axis in spec.axes)} units moved, on "
        f"{sum(n > 0 for n in moved)} of {len(moved)} axes; B's outputs differ by {merged.function_error:.1e} of the "
        "largest (float64)"
    ]
    if merged.casts:
        first, *others = merged.casts
        more = f" and {len(others)} more" if others else ""
        lines.append(
            f"proof: in float64 throughout, without the casts to fewer digits in {first}{more}, whose "
            "rounding depends on the order of units"
        )
    reasons: dict[str, int] = {}
    for fixed in spec.fixed:
        reasons[fixed.reason] = reasons.get(fixed.reason, 0) + fixed.size
    told = list(reasons.items())
    lines += [f"stay: {size} units: {reason}" for reason, size in told[:MOST_REASONS]]
    if more := told[MOST_REASONS:]:
        lines.append(f"stay: {sum(size for _, size in more)} units, for {len(more)} other reasons")
    if spec.unreached:
        lines.append(f"stay: {len(spec.unreached)} tensors that no forward pass reads, {spec.unreached[0]} the first")
    if merged.averaged:
        lines.append(
            f"interpolated as weights are: {len(merged.averaged)} buffers that are none and differ, "
            f"{merged.averaged[0]} the first"
        )
    layers = f", {merged.n_layers} layers corrected" if merged.n_layers else ""
    lines.append(f"statistics: {report.n_statistics} of {len(report.data.train)} train images{layers}")
    direct, aligned, *corrected = list(report.evaluations.values())[2:]
    lines += explain(merged, [report.evaluations["A"], report.evaluations["B"]], direct, aligned)
    lines += [line for one in corrected for line in explain_correction(aligned, one)]
    lines += report.notes
    lines.append(f"written: {options.out}, {len(merged.corrected)} tensors")
    lines += [f"not corrected: {text}" for text in _by_reason(merged.left_out)]
    if merged.extra:
        lines.append(f"of these the network's own class lacks {len(merged.extra)}: {', '.join(merged.extra)}")
    return lines


def _by_reason(left_out: Sequence[LeftOut]) -> list[str]:
    """Return a sentence for every reason, with the layers that were left out for it."""
    names: dict[str, list[str]] = {}
    for one in left_out:
        names.setdefault(one.reason, []).append(one.name)
    return [f"{', '.join(each)}: {reason}" for reason, each in names.items()]
