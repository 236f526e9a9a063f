"""The endpoints that a store holds as imports of a study, each named by a small file under the study's name.

That file may come from a stranger. It names user-defined code, which runs only where the user has named it as well.
"""

from __future__ import annotations

from collections.abc import Collection

from infra.paths import import_key, imports_prefix
from infra.sealing import read_document
from infra.storage import DamagedError, Store
from tasks.science.specs.bounds import BoundError
from tasks.science.specs.cell import Endpoint
from tasks.science.specs.checks import is_whole
from tasks.science.specs.request import read_cell
from tasks.stored.requests import TooMuchError

MOST = 2**31 - 1
"""The largest seed, width or depth of an imported network."""

_IMPORT_AGAIN = "import the weights again"


def read_imports(store: Store, study: str, replaced: Collection[str] = ()) -> list[Endpoint]:
    """Return the endpoints imported under the study's name, by cell and seed.

    Raises as `read_import`, except for the ids `replaced`, which are about to be imported again.
    """
    names = [name for name in store.names(imports_prefix(study)) if name.endswith(".json")]
    endpoints: list[Endpoint] = []
    for endpoint_id in (name.removesuffix(".json") for name in names):
        try:
            endpoints.append(read_import(store, study, endpoint_id))
        except DamagedError:
            if endpoint_id not in replaced:
                raise
    return sorted(endpoints, key=lambda endpoint: (endpoint.cell.id, endpoint.seed))


def read_import(store: Store, study: str, endpoint_id: str) -> Endpoint:
    """Return one imported endpoint. Raises DamagedError where the file is not one that an import writes."""
    key = import_key(study, endpoint_id)
    fields = read_document(store, key, _IMPORT_AGAIN)
    try:
        endpoint = Endpoint(read_cell(fields["cell"]), fields["seed"])
    except BoundError as error:
        raise TooMuchError(store, key, str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise store.damaged(key, f"it is no import: {error}", _IMPORT_AGAIN) from error
    cell = endpoint.cell
    is_import = cell.origin is not None and cell.origin.name == study and (cell.epoch, cell.spawn) == (None, None)
    if not is_import or not is_whole(endpoint.seed, 0, MOST) or endpoint.id != endpoint_id:
        raise store.damaged(key, f"it is of no endpoint of {study}", _IMPORT_AGAIN)
    return endpoint
