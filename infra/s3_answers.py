"""Check that answers come from an S3 server: a proxy may answer in its place, with status 200."""

from __future__ import annotations

from typing import Any

_OF_OBJECTS = ("GetObject", "HeadObject", "PutObject", "UploadPart")
_OF_LISTS = ("ListObjectsV2", "ListObjects")
_LIST_FIELDS = ("IsTruncated", "KeyCount", "MaxKeys", "Name", "Contents", "CommonPrefixes")
_OK = 200
_FAILED = 300


class ForeignAnswerError(ConnectionError):
    """Error of an answer that no S3 server gives; its cause may be gone soon."""


def check_answers(filesystem: Any) -> None:
    """Raise ForeignAnswerError for every answer to `filesystem`, of s3fs, that is none of an S3 server.

    A page would otherwise be taken for the content of a file, for an empty listing, or for the receipt of a write.
    """
    filesystem.s3.meta.events.register("after-call.s3", _check_answer, unique_id="repairlab-answers")


def _check_answer(http_response: Any, parsed: dict[str, Any], model: Any, **_: Any) -> None:
    if not _OK <= http_response.status_code < _FAILED:
        return
    kind = str(http_response.headers.get("Content-Type", "no kind"))
    if model.name in _OF_OBJECTS:
        is_of_s3 = bool(parsed.get("ETag"))
    elif model.name in _OF_LISTS:
        is_of_s3 = any(name in parsed for name in _LIST_FIELDS)
    else:
        is_of_s3 = not kind.startswith("text/html")
    if not is_of_s3:
        raise ForeignAnswerError(
            f"something else than an S3 server answers {model.name}, with {kind.partition(';')[0]}: a proxy, or the "
            "page of a network that wants you to log in"
        )
