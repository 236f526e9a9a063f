"""The one expansion of a request against a store: the artifacts that it asks for, their files, and which are there.

It comes in stages. Endpoints are named by the request alone. Permutations and paths are named by the weights of the
endpoints that they lie between, so a cell's are known once its endpoints' headers can be read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from infra.paths import endpoint_key, moments_key, permutation_key, row_key, training_key
from infra.storage import Store
from infra.tables import N_READERS
from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.specs.pairing import Member, Pairing
from tasks.science.specs.path import Path
from tasks.science.specs.request import Request
from tasks.stored.artifacts import as_member, read_endpoint
from tasks.stored.trainings import has_arrived
from tasks.tables.schema import AXIS_ROWS, LAYER_ROWS, MERGE_ROWS, PATH_ROWS

MATCH_TABLES = (MERGE_ROWS, AXIS_ROWS)
"""The row files of a match."""

PATH_TABLES = (PATH_ROWS, LAYER_ROWS)
"""The row files of a path."""


class Artifact(ABC):
    """One thing that a request asks for, as the files that it consists of."""

    @abstractmethod
    def _name_files(self) -> tuple[str, ...]: ...

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The keys of its files. The artifact is made once all of them are there."""
        return self._name_files()

    @property
    def needs(self) -> tuple[Artifact, ...]:
        """The artifacts that it is made from and that its own name does not show to be there."""
        return ()

    def is_in(self, store: Store) -> bool:
        """Return whether `store` has all of its files."""
        return all(map(store.exists, self.keys))


@dataclass(frozen=True)
class EndpointFile(Artifact):
    """A trained or imported endpoint."""

    endpoint: Endpoint

    def _name_files(self) -> tuple[str, ...]:
        return (endpoint_key(self.endpoint.id),)

    @property
    def needs(self) -> tuple[ParentState, ...]:
        parent = self.endpoint.cell.parent
        return () if parent is None else (ParentState(parent),)

    @property
    def leftovers(self) -> tuple[str, ...]:
        # An interrupted training is named by its end.
        """The keys of training states that an interrupted training may leave, named by the endpoint or its end."""
        end = Endpoint(self.endpoint.cell.at(None), self.endpoint.seed)
        return training_key(self.endpoint.id), training_key(end.id)


@dataclass(frozen=True)
class ParentState(Artifact):
    """The state of a training at the epoch where endpoints are spawned from it."""

    endpoint: Endpoint

    def _name_files(self) -> tuple[str, ...]:
        return (training_key(self.endpoint.id),)

    def is_in(self, store: Store) -> bool:
        """Return whether `store` has the state at that epoch, not only one on the way to it."""
        return has_arrived(store, self.endpoint)


@dataclass(frozen=True)
class MatchRows(Artifact):
    """The measurements of a matcher on a pair, also of a permutation that failed its proof and is not kept."""

    pairing: Pairing

    def _name_files(self) -> tuple[str, ...]:
        if self.pairing.matcher == "none":
            return ()
        return tuple(row_key(table.name, self.pairing.id) for table in MATCH_TABLES)


@dataclass(frozen=True)
class UsableMatch(Artifact):
    """A pairing with a permutation that can be used; without a matcher it has no files and is always there."""

    pairing: Pairing

    def _name_files(self) -> tuple[str, ...]:
        rows = MatchRows(self.pairing).keys
        return (permutation_key(self.pairing.id), *rows) if rows else ()


@dataclass(frozen=True)
class MeasuredPath(Artifact):
    """The measured curve of a path."""

    path: Path

    def _name_files(self) -> tuple[str, ...]:
        path_id = self.path.id
        return tuple(row_key(table.name, path_id) for table in PATH_TABLES)

    @property
    def needs(self) -> tuple[UsableMatch]:
        return (UsableMatch(self.path.pairing),)


A = TypeVar("A", bound=Artifact)
Answer = TypeVar("Answer")


class StoreView:
    """A look at a store that remembers its answers, so that each thing is asked for once.

    A store that is not a folder is asked for several things at a time.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._has: dict[tuple[str, ...], bool] = {}
        self._records: dict[Endpoint, Mapping[str, Any] | None] = {}

    def refresh(self) -> None:
        """Forget what was missing, since tasks may have stored it in the meantime."""
        self._has = {keys: True for keys, has in self._has.items() if has}
        self._records = {endpoint: record for endpoint, record in self._records.items() if record is not None}

    def has(self, artifact: Artifact) -> bool:
        """Return whether the artifact is made."""
        return not self.missing([artifact])

    def missing(self, artifacts: Iterable[A]) -> list[A]:
        """Return the artifacts that are not made."""
        wanted = list(artifacts)
        unknown = {artifact.keys: artifact for artifact in wanted if artifact.keys not in self._has}
        self._has |= zip(unknown, self._ask(lambda artifact: artifact.is_in(self.store), unknown.values()), strict=True)
        return [artifact for artifact in wanted if not self._has[artifact.keys]]

    def due(self, artifacts: Iterable[A]) -> list[A]:
        """Return the artifacts to be made now, each once: they are missing, and all that they need is there."""
        once = {artifact.keys: artifact for artifact in artifacts}.values()
        blocked = {need.keys for need in self.missing(need for artifact in once for need in artifact.needs)}
        return self.missing(one for one in once if not any(need.keys in blocked for need in one.needs))

    def records(self, files: Iterable[EndpointFile]) -> dict[Endpoint, Mapping[str, Any] | None]:
        """Return the record of each endpoint; None where it is missing."""
        wanted = {file.endpoint: file for file in files}
        unknown = [file for endpoint, file in wanted.items() if endpoint not in self._records]
        there = [file for file in unknown if self._has.get(file.keys, True)]
        self._records |= dict.fromkeys(file.endpoint for file in unknown)
        for file, record in zip(there, self._ask(lambda f: read_endpoint(self.store, f.endpoint), there), strict=True):
            self._records[file.endpoint], self._has[file.keys] = record, record is not None
        return {endpoint: self._records[endpoint] for endpoint in wanted}

    def _ask(self, question: Callable[[A], Answer], artifacts: Collection[A]) -> list[Answer]:
        if len(artifacts) < 2 or self.store.is_local:
            return [question(artifact) for artifact in artifacts]
        with ThreadPoolExecutor(N_READERS) as readers:
            return list(readers.map(question, artifacts))


class Expansion:
    """The artifacts that a request asks for, as far as the view of the store shows their names."""

    def __init__(self, request: Request, view: StoreView) -> None:
        self.request, self.view = request, view

    @classmethod
    def of(cls, request: Request, store: Store) -> Expansion:
        """Return the expansion of `request` on a view of `store` of its own."""
        return cls(request, StoreView(store))

    def endpoints(self, cell: Cell) -> list[EndpointFile]:
        """Return the endpoints of one of the request's trained cells."""
        return [EndpointFile(endpoint) for endpoint in self.request.endpoints(cell)]

    def missing_endpoints(self, cell: Cell) -> list[EndpointFile]:
        """Return the endpoints of a cell that are still to be trained; none of an imported cell."""
        return [] if cell.origin is not None else self.view.missing(self.endpoints(cell))

    def missing_checkpoints(self, cells: Iterable[Cell]) -> dict[int, list[Endpoint]]:
        """Return, by seed, the endpoints still to be trained of cells that one training per seed passes through."""
        missing: dict[int, list[Endpoint]] = {seed: [] for seed in self.request.seeds}
        for file in (file for cell in cells for file in self.missing_endpoints(cell)):
            missing[file.endpoint.seed].append(file.endpoint)
        return {seed: endpoints for seed, endpoints in missing.items() if endpoints}

    def missing_parents(self) -> list[list[Endpoint]]:
        """Return the missing states that missing endpoints are spawned from, those of one training together."""
        spawned = [cell for cell in self.request.cells if cell.spawn is not None]
        needed = {need.keys: need for cell in spawned for file in self.missing_endpoints(cell) for need in file.needs}
        return group_parents(state.endpoint for state in self.view.missing(needed.values()))

    def records(self, cell: Cell) -> dict[Endpoint, Mapping[str, Any] | None]:
        """Return the record of each endpoint of a cell; None where it is missing."""
        return self.view.records(self.endpoints(cell))

    def members(self, cell: Cell | None) -> list[Member]:
        """Return the endpoints of a cell that may take part in pairs: those that trained to the end."""
        records = {} if cell is None else self.records(cell)
        return [
            as_member(endpoint, record)
            for endpoint, record in records.items()
            if record is not None and record["status"] == "trained"
        ]

    def matches(self, cell: Cell) -> list[UsableMatch]:
        """Return a cell's pairings, controls included, between the endpoints that are there."""
        return [UsableMatch(pairing) for pairing in self.request.pairings(cell, self.members(cell))]

    def paths(self, cell: Cell, matches: Iterable[UsableMatch]) -> list[MeasuredPath]:
        """Return the paths of a cell's matches."""
        joint = self.members(self.request.joint_cell(cell))
        return [MeasuredPath(path) for path in self.request.paths([match.pairing for match in matches], joint)]

    def all_paths(self) -> list[MeasuredPath]:
        """Return the paths of every cell between the endpoints that are there."""
        return [path for cell in self.request.cells for path in self.paths(cell, self.matches(cell))]

    def keys(self) -> Iterator[str]:
        """Yield the key of every file that making the request may write, as far as the endpoints are there."""
        for file in (file for cell in self.request.trained_cells for file in self.endpoints(cell)):
            yield from (*file.keys, *file.leftovers, *(key for need in file.needs for key in need.keys))
        for cell in self.request.cells:
            yield from self._keys_of_members(cell)
            for artifact in (*(matches := self.matches(cell)), *self.paths(cell, matches)):
                yield from artifact.keys

    def _keys_of_members(self, cell: Cell) -> Iterator[str]:
        """Yield the keys of measurements of an endpoint that all of its paths share."""
        for member in self.members(cell):
            for measurement in self.request.measurements:
                yield row_key("ends", member.evaluation_id(cell, measurement))
                for blocks in (False, True):
                    yield moments_key(member.moments_id(cell, measurement.samples, blocks=blocks))


def group_checkpoints(cells: Iterable[Cell]) -> dict[Cell, list[Cell]]:
    """Return the cells that one training per seed passes through, by the cell at its end."""
    groups: dict[Cell, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.at(None), []).append(cell)
    return groups


def group_parents(parents: Iterable[Endpoint]) -> list[list[Endpoint]]:
    """Return the different endpoints among `parents`, the checkpoints of one training together."""
    trainings: dict[Endpoint, dict[Endpoint, None]] = {}
    for parent in parents:
        trainings.setdefault(Endpoint(parent.cell.at(None), parent.seed), {})[parent] = None
    return [list(checkpoints) for checkpoints in trainings.values()]
