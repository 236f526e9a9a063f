"""`repairlab import`: networks that were trained elsewhere become the endpoints of a study."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from flows.commands.declared import ImportOptions
from flows.commands.merge import naming_notes
from flows.presets import PRESETS
from flows.terminal import tell
from infra.paths import imports_prefix, requests_prefix
from infra.storage import Store
from infra.text import one_line
from infra.weights import open_weights, read_weights
from tasks.data.datasets import load_dataset
from tasks.imports import check_import, imported_digest, save_import
from tasks.science.networks import build_network, find_architecture
from tasks.science.networks.architecture import Factors
from tasks.science.networks.fitting import fit_state, in_float32
from tasks.science.networks.output_checks import check_classes
from tasks.science.specs.cell import Cell, Endpoint, Origin
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import weights_digest
from tasks.science.specs.overrides import override
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State
from tasks.science.specs.user_code import names_code
from tasks.science.training.judging import Training
from tasks.stored.imports import MOST, read_imports
from tasks.tables.columns import RECIPE
from tasks.tables.sweep import parse_value
from tasks.user_code import count_layers, import_code

_UNKNOWN = Recipe("imported", batch_size=1, epochs=1, learning_rate=1.0, warmup=0.0)
"""Recipe of a training of which nothing is known."""

_FACTORS = ("width", "depth", "normalization")


def check_options(options: ImportOptions) -> None:
    """Raise ValueError for words that cannot be."""
    if options.study in PRESETS:
        raise ValueError(f"{options.study} is the name of a study that comes with repairlab: choose another --study")
    known = [*_FACTORS, *RECIPE]
    if lacking := [name for name in options.facts if name not in known]:
        raise ValueError(f"there is no field {lacking[0]!r} to set; known: {', '.join(known)}")
    find_architecture(options.network)
    import_code({"--network": options.network, "--data": options.data})


def find_files(options: ImportOptions) -> dict[int, Path]:
    """Return the files by their seeds. ValueError where there are none, or two have one seed."""
    paths: dict[Path, None] = {}
    for pattern in options.files:
        whole = Path(pattern)
        folder = Path(whole.anchor or ".")
        try:
            # A name with a bracket may be just that.
            found = [whole] if whole.exists() else sorted(folder.glob(str(whole.relative_to(whole.anchor))))
        except OSError as error:
            raise ValueError(f"{pattern} cannot be looked for ({error.strerror})") from error
        if not found:
            raise ValueError(f"there is no file {pattern}")
        paths |= dict.fromkeys(found)
    if options.seed_from == "order":
        return dict(enumerate(paths))
    by_seed: dict[int, Path] = {}
    for path in paths:
        numbers = re.findall(r"\d+", path.stem)
        if not numbers:
            raise ValueError(f"{path} has no number in its name: --seed-from order counts the files instead")
        seed = int(numbers[-1])
        if seed > MOST:
            raise ValueError(f"{path} has {seed} as the last number in its name, and seeds are at most {MOST}")
        if seed in by_seed:
            raise ValueError(
                f"{by_seed[seed]} and {path} both have seed {seed}, the last number in their names: --seed-from "
                "order counts the files instead"
            )
        by_seed[seed] = path
    return by_seed


def make_cell(options: ImportOptions, data: DataSpec) -> Cell:
    """Return the cell of all files. ValueError for impossible facts, and as `Architecture.describe`."""
    facts = {name: parse_value(name, value) for name, value in options.facts.items() if name not in _FACTORS}
    for name, value in facts.items():
        if isinstance(value, int) and value > MOST:
            raise ValueError(f"{name} must be at most {MOST}, got {value}")
    size = {name: _positive(name, options.facts[name]) for name in ("width", "depth") if name in options.facts}
    word = options.facts.get("normalization")
    if word == "batch-fused":
        raise ValueError("networks whose BatchNorm was folded away have none: set normalization=none")
    wanted = Factors(size.get("width"), size.get("depth"), word)
    fields = find_architecture(options.network).describe(data, wanted, count_layers)
    recipe = override(_UNKNOWN, **facts)
    return Cell(data, recipe=recipe, origin=Origin(options.study, tuple(facts)), **fields)


def _positive(name: str, word: str) -> int:
    if not (word.isascii() and word.isdigit() and 1 <= int(word) <= MOST):
        raise ValueError(f"{name} must be a positive whole number of at most {MOST}, got {word}")
    return int(word)


def import_files(
    options: ImportOptions, store: Store, data_dir: Path, tell: Callable[[str], None]
) -> dict[int, Training]:
    """Store every file as an endpoint, by seed, measured on both splits, and return the endpoints' trainings.

    `options` have passed `check_options`.

    Every file is read and fits the network before any is stored. Endpoints that the store has already stay, and are
    replaced where they are damaged. `tell` receives a sentence for parts of a file that are not used.

    Raises ValueError for words that cannot be, WeightsError for files, MergeError for weights that do not fit,
    UserCodeError and TraceError for user-defined code, StoreError where the store has other weights of a seed.
    """
    files = find_files(options)
    dataset = load_dataset(options.data, data_dir)
    cell = make_cell(options, dataset.spec)
    endpoints = {seed: Endpoint(cell, seed) for seed in files}
    known = read_imports(store, options.study, {endpoint.id for endpoint in endpoints.values()})
    _check_company(cell, store, options.study, known)
    network = build_network(cell)
    found = {other: imported_digest(store, other) for other in known if other.cell == cell}
    digests = {digest: f"seed {endpoint.seed}" for endpoint, digest in found.items() if digest is not None}
    for seed, path in files.items():
        file, endpoint = open_weights(path), endpoints[seed]
        state = in_float32(fit_state(network, file.weights, str(path)))
        for note in naming_notes(network, path, file):
            tell(note)
        check_classes(network, state, next(dataset.test.batches(16))[0], dataset.spec, str(path))
        digest = weights_digest(state)
        check_import(store, options.study, endpoint, digest)
        if found.get(endpoint) is None and digest in digests:
            raise ValueError(f"{path} holds the same weights as {digests[digest]}: a network is one endpoint")
        digests[digest] = str(path)
    return {
        seed: save_import(store, options.study, endpoints[seed], network, _read(network, path), dataset)
        for seed, path in files.items()
    }


def _check_company(cell: Cell, store: Store, study: str, known: Sequence[Endpoint]) -> None:
    """Raise ValueError where `cell` cannot be of one study with those `known` under its name.

    A command names one user-defined network and one such data set, and a network is the same throughout a study.
    """
    others = list(dict.fromkeys(endpoint.cell for endpoint in known))
    if not store.names(imports_prefix(study)) and store.names(requests_prefix(study)):
        raise ValueError(f"{study} is a study that was trained in this store: take another --study")
    for other in others:
        if any(a != b for a, b in zip(_places(cell), _places(other), strict=True) if a and b):
            raise ValueError(
                f"{study} holds what was imported with --network {other.architecture} --data {other.data.name}: take "
                "another --study"
            )
        if other.data.name == cell.data.name and other.data != cell.data:
            raise ValueError(f"{cell.data.name} holds other data than when {study} was imported: take another --study")
        if other.graph != cell.graph and replace(other.network, graph=cell.graph) == cell.network:
            raise ValueError(
                f"{cell.architecture} makes another network than when {study} was imported: take another --study"
            )


def _places(cell: Cell) -> tuple[str, str]:
    """Return the places of a user-defined network and data set; empty for one that ships."""
    return cell.architecture if cell.user_defined else "", cell.data.name if cell.data.user_defined else ""


def _read(network: nn.Module, path: Path) -> State:
    return in_float32(fit_state(network, read_weights(path), str(path)))


def print_imports(trained: Mapping[int, Training], options: ImportOptions, console: Console) -> None:
    """Print the imported endpoints in 80 columns."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("file", overflow="fold")
    for name in ("seed", "train, %", "test, %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for seed, path in find_files(options).items():
        found = trained[seed]
        problem = "" if found.status == "trained" else f"{found.status}: {found.message}"
        table.add_row(
            Text(one_line(path)),
            str(seed),
            f"{100 * found.train.accuracy:.2f}",
            f"{100 * found.test.accuracy:.2f}",
            Text(one_line(problem)),
        )
    console.print(table)
    named = f" --network {options.network} --data {options.data}"
    has_code = names_code(options.network) or names_code(options.data)
    tell(console, f"next: repairlab run {options.study}{named if has_code else ''}", soft_wrap=True)
