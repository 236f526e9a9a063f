"""A task for tests of routing, in a module that workers can import."""

from __future__ import annotations

import os
import time

from dask.distributed import get_worker
from prefect import task

Seen = tuple[str, str, float, float]
"""The worker, the devices it sees, when the task began and when it ended."""


@task
def look(_number: int) -> Seen:
    begun = time.time()
    time.sleep(0.3)
    return str(get_worker().name), os.environ["CUDA_VISIBLE_DEVICES"], begun, time.time()
