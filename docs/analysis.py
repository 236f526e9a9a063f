"""Executes docs/analysis.ipynb on the study of docs/factors.toml, and saves it with what its cells show.

    repairlab run docs/factors.toml
    python docs/analysis.py [to]

The study is sought where the notebook seeks it: in REPAIRLAB_STORE, or in `runs` beside the README.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_suffix(".ipynb")
ROOT = NOTEBOOK.parents[1]


def execute(to: Path) -> None:
    """Writes the executed notebook to `to`; raises what a cell raised."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    metadata = notebook.metadata.copy()
    with tempfile.TemporaryDirectory() as folder:
        # What Jupyter would leave in a person's home.
        homes = dict.fromkeys(("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"), folder)
        os.environ.update(homes, JUPYTER_PLATFORM_DIRS="1")
        # Of all kernels that may be installed, the Python that runs this; over sockets in that folder, no ports.
        specs = KernelSpecManager(kernel_dirs=[])
        kernel = KernelManager(kernel_name="python3", kernel_spec_manager=specs, transport="ipc")
        place = {"metadata": {"path": str(ROOT)}}
        try:
            NotebookClient(notebook, km=kernel, resources=place, timeout=120, record_timing=False).execute()
        finally:
            kernel.shutdown_kernel(now=True)
    notebook.metadata = metadata  # Without the versions of this machine.
    nbformat.write(notebook, to)


if __name__ == "__main__":
    execute(Path(sys.argv[1]) if len(sys.argv) > 1 else NOTEBOOK)
