"""The keys of a store, which are a public contract."""

from __future__ import annotations

ENDPOINTS_FOLDER = "endpoints"
"""The folder of all endpoints."""


def endpoint_key(endpoint_id: str) -> str:
    """Return the key of an endpoint."""
    return f"{ENDPOINTS_FOLDER}/{endpoint_id}.safetensors"


def training_key(endpoint_id: str) -> str:
    """Return the key of the state of the training that leads to an endpoint."""
    return f"trainings/{endpoint_id}.safetensors"


def permutation_key(merge_id: str) -> str:
    """Return the key of a merge's permutation."""
    return f"permutations/{merge_id}.safetensors"


def moments_key(moments_id: str) -> str:
    """Return the key of an endpoint's moments."""
    return f"moments/{moments_id}.safetensors"


def row_key(table: str, row_id: str) -> str:
    """Return the key of a row file of a table."""
    return f"rows/{table}/{row_id}.parquet"


def study_prefix(study: str) -> str:
    """Return the folder of a study."""
    return f"studies/{study}"


def table_key(study: str, table: str) -> str:
    """Return the key of a study's table."""
    return f"{study_prefix(study)}/{table}.parquet"


def requests_prefix(study: str) -> str:
    """Return the folder of a study's requests."""
    return f"{study_prefix(study)}/requests"


def request_key(study: str, request_id: str) -> str:
    """Return the key of a study's request."""
    return f"{requests_prefix(study)}/{request_id}.json"


def report_key(study: str) -> str:
    """Return the key of a study's report."""
    return f"{study_prefix(study)}/report.html"


def figure_key(study: str, figure: str) -> str:
    """Return the key of a figure of a study's report."""
    return f"{study_prefix(study)}/figures/{figure}.png"


def imports_prefix(study: str) -> str:
    """Return the folder of a study's imports."""
    return f"{study_prefix(study)}/imported"


def import_key(study: str, endpoint_id: str) -> str:
    """Return the key of the file that assigns an imported endpoint to a study."""
    return f"{imports_prefix(study)}/{endpoint_id}.json"
