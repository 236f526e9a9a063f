"""What a benchmark ran on, so that its figures can be told from another machine's."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "lap", "lapx", "lapjv", "prefect", "pyarrow")


def describe() -> dict[str, Any]:
    """Processor, cores, memory, versions, commit, and what one thread multiplies a second."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        "sgemm_gflops": {str(size): round(sgemm_rate(size) / 1e9, 1) for size in (256, 512, 1024)},
        "load": round(os.getloadavg()[0], 2),
    }


def sgemm_rate(size: int, seconds: float = 0.3) -> float:
    """float32 operations per CPU second of square matrix products, one thread."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.matmul(a, b)  # The first product loads the library.
    n_products, begun = 0, time.process_time()
    while (elapsed := time.process_time() - begun) < seconds:
        torch.matmul(a, b)
        n_products += 1
    return n_products * 2.0 * size**3 / elapsed


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    words = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return found.stdout.strip()
