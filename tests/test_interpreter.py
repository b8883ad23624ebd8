"""Triton's interpreter is chosen when a kernel is defined: tests that need it run in one process of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def test_in_the_interpreter():
    """Runs the tests that are marked "interpreted", none of which may be skipped."""
    triton = pytest.importorskip("triton")
    try:
        int(np.zeros(1, np.int32))
    except TypeError:
        # Loop bounds are arrays of one entry, and Triton before 3.9 leaves it to NumPy to make them numbers.
        if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
            pytest.skip(f"the interpreter of Triton {triton.__version__} cannot loop with NumPy {np.__version__}")
    marked = re.compile("^@pytest.mark.interpreted$", re.MULTILINE)
    files = [str(path) for path in sorted(Path(__file__).parent.rglob("test_*.py")) if marked.search(path.read_text())]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "interpreted", *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    # A kernel that writes out of bounds may end the process, which is said on stderr.
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert run.returncode == 0, run.stdout[-6000:]
    assert "skipped" not in run.stdout
