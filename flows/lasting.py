"""A guard that no study is reported from a store that lost some of its files while the study ran."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from types import TracebackType

from infra.paths import ENDPOINTS_FOLDER, request_key
from infra.storage import Store, StoreError, UnreachableError
from infra.text import one_line
from tasks.data.published import DataError
from tasks.science.specs.cell import Cell
from tasks.science.specs.request import Request
from tasks.stored.expansion import Expansion


class MissingFileError(DataError):
    """A file outside the store that a study needs is missing."""


class Lasting:
    """A context that raises StoreError at its end where finished parts of a study are gone from its store or upstream.

    An error of the study itself is raised as it is where nothing is gone; a file that is missing outside the store as
    MissingFileError.
    """

    def __init__(self, store: Store, request: Request) -> None:
        self.store, self.request = store, request
        upstream = store.upstream
        self._lent = set[str]()
        if upstream is not None:
            self._lent = set(upstream.names(ENDPOINTS_FOLDER)) - set(store.own.names(ENDPOINTS_FOLDER))
        self._seen: dict[Cell, Collection[str]] = {}

    def check_kept(self, cells: Iterable[Cell] = (), failures: Collection[str] = ()) -> None:
        """Raise StoreError where the request is gone, or endpoints of `cells` other than `failures` are not there."""
        if not self.store.own.exists(request_key(self.request.study, self.request.id)):
            raise self._gone(f"the store {self.store.url}")
        expansion, lost = Expansion.of(self.request, self.store), list[str]()
        for cell in cells:
            self._seen[cell] = failures
            missing = [file.endpoint.id for file in expansion.missing_endpoints(cell)]
            lost += [f"{endpoint_id}.safetensors" for endpoint_id in missing if endpoint_id not in failures]
        if lost and self.store.upstream is not None and self._lent.issuperset(lost):
            raise self._gone(f"the upstream {self.store.upstream.url}")
        if lost:
            raise self._gone(f"the store {self.store.url}")

    def _check_all(self) -> None:
        self.check_kept()
        for cell, failures in list(self._seen.items()):
            self.check_kept([cell], failures)

    def _gone(self, place: str) -> StoreError:
        return StoreError(
            f"{place} was emptied, or lost some of its files, while {self.request.study} ran, so nothing is reported: "
            "the same command makes again what is gone"
        )

    def _explain(self, error: FileNotFoundError) -> StoreError | MissingFileError:
        # A store names no file in what it raises, but has a cause.
        if error.filename is None and isinstance(error.__cause__, OSError):
            upstream = self.store.upstream
            return self._gone(
                f"the store {self.store.url}{'' if upstream is None else f', or its upstream {upstream.url},'}"
            )
        return MissingFileError(
            f"{self.request.study} stopped, for a file outside its store is missing "
            f"({one_line(error.filename or error)}): with it in its place the same command goes on from here"
        )

    def __enter__(self) -> Lasting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.check_kept()
        elif isinstance(error, Exception) and not isinstance(error, UnreachableError):
            self._check_all()
            if isinstance(error, FileNotFoundError):
                raise self._explain(error) from error
