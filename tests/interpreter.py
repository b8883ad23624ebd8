"""Triton's interpreter is chosen when a kernel is defined: tests that need it run in a process of their own."""

import os
import subprocess
import sys

import numpy as np
import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def run_interpreted(file: str) -> None:
    """Runs the tests of a file that have "interpreted" in their names, none of which may be skipped."""
    triton = pytest.importorskip("triton")
    try:
        int(np.zeros(1, np.int32))
    except TypeError:
        # Loop bounds are arrays of one entry, and Triton before 3.9 leaves it to NumPy to make them numbers.
        if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
            pytest.skip(f"the interpreter of Triton {triton.__version__} cannot loop with NumPy {np.__version__}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file, "-k", "interpreted"]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    assert "skipped" not in run.stdout
