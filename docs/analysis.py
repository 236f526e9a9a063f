"""Execute docs/analysis.ipynb on the study of docs/factors.toml, and save it with the output of its cells.

    repairlab run docs/factors.toml
    python docs/analysis.py [to]

The study is read from the same place as in the notebook: REPAIRLAB_STORE, or `runs` in the folder of the README.
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
    """Write the executed notebook to `to`, and raise the error of a cell."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    metadata = notebook.metadata.copy()
    with tempfile.TemporaryDirectory() as folder:
        # Files that Jupyter would leave in the user's home.
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
