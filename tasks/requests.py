"""The requests of a study in the store: what every call under its name has asked for."""

from __future__ import annotations

import dataclasses

from infra.paths import request_key, requests_prefix
from infra.sealing import pack_document, read_document
from infra.storage import Store
from tasks.science.bounds import MAX_REQUEST_BYTES
from tasks.science.request import Request

_SUFFIX = ".json"


def save_request(store: Store, request: Request) -> None:
    """Store a request under its study's name, never in an upstream; the same one again changes nothing."""
    key = request_key(request.study, request.id)
    store.own.create(key, pack_document(key, dataclasses.asdict(request)))


def list_requests(store: Store, study: str) -> frozenset[str]:
    """Return the ids of the requests made under the study's name in this store.

    Those of an upstream are not among them: what a colleague has asked for under the same name is theirs.
    """
    names = store.own.names(requests_prefix(study))
    return frozenset(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def read_requests(store: Store, study: str) -> dict[str, Request]:
    """Return the requests of `list_requests` by id. Raises DamagedError for one that is not what was written."""
    return {
        request_id: read_request(store.own, study, request_id) for request_id in sorted(list_requests(store, study))
    }


def read_request(store: Store, study: str, request_id: str) -> Request:
    """Return one request. Raises DamagedError where the file is damaged or its name is not its content's."""
    key = request_key(study, request_id)
    if store.size_bytes(key) > MAX_REQUEST_BYTES:
        raise store.damaged(key, f"it has more than {MAX_REQUEST_BYTES:,} bytes")
    fields = read_document(store, key)
    try:
        request = Request.from_fields(fields)
    except ValueError as error:
        raise store.damaged(key, str(error)) from error
    if (request.study, request.id) != (study, request_id):
        raise store.damaged(key, f"it is the request {request.id} of study {request.study}")
    return request
