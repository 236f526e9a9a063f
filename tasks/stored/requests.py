"""The requests of a study in the store, one for every call under its name."""

from __future__ import annotations

import dataclasses

from infra.paths import request_key, requests_prefix
from infra.sealing import pack_document, read_document
from infra.storage import Store, StoreError
from tasks.science.specs.bounds import MAX_REQUEST_BYTES, BoundError
from tasks.science.specs.request import Request

_SUFFIX = ".json"


class TooMuchError(StoreError):
    """A whole file in the store that asks for more than this version of repairlab takes."""

    def __init__(self, store: Store, key: str, reason: str) -> None:
        super().__init__(
            f"{store.locate(key)} asks for more than this version of repairlab takes ({reason}): use the version that "
            "wrote it, or another --store"
        )


def save_request(store: Store, request: Request) -> None:
    """Store a request under its study's name, never in an upstream; the same one again changes nothing."""
    key = request_key(request.study, request.id)
    store.own.create(key, pack_document(key, dataclasses.asdict(request)))


def list_requests(store: Store, study: str) -> frozenset[str]:
    """Return the ids of the requests made under the study's name in this store.

    Requests in an upstream belong to its owner and are not among them.
    """
    names = store.own.names(requests_prefix(study))
    return frozenset(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def read_requests(store: Store, study: str) -> dict[str, Request]:
    """Return all requests of a study by id. Raises as `read_request`."""
    return {
        request_id: read_request(store.own, study, request_id) for request_id in sorted(list_requests(store, study))
    }


def read_request(store: Store, study: str, request_id: str) -> Request:
    """Return one request.

    Raises DamagedError where the file is damaged or has another name than its content, and TooMuchError where a number
    in it is beyond its bound.
    """
    key = request_key(study, request_id)
    if store.size_bytes(key) > MAX_REQUEST_BYTES:
        raise TooMuchError(store, key, f"it has more than {MAX_REQUEST_BYTES:,} bytes")
    fields = read_document(store, key)
    try:
        request = Request.from_fields(fields)
    except BoundError as error:
        raise TooMuchError(store, key, str(error)) from error
    except ValueError as error:
        raise store.damaged(key, str(error)) from error
    if (request.study, request.id) != (study, request_id):
        raise store.damaged(key, f"it is the request {request.id} of study {request.study}")
    return request
