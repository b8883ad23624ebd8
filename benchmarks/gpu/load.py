"""The compiled libraries: taken along, or built here."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.gpu.section import ROOT, Context, Row

BUILD_LIMIT = 60


def load(context: Context) -> Iterator[Row]:
    """Loads what `make gpu-libraries` has built; only where that does not load, builds for this device.

    Raises:
        RuntimeError: they neither load nor build; PyTorch's and Triton's operations then do the work.
    """
    started = time.monotonic()
    reason = _why_not(context)
    if reason is None:
        yield {"libraries": "load as they are", "seconds": round(time.monotonic() - started, 1)}
        return
    yield {"libraries": "do not load", "why": reason}
    import torch

    architecture = ".".join(map(str, torch.cuda.get_device_capability())) if context.device == "cuda" else ""
    environment = os.environ | {"GNFAST_BUILD": "cuda" if architecture else "cpu", "TORCH_CUDA_ARCH_LIST": architecture}
    environment.setdefault("MAX_JOBS", str(os.cpu_count()))
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    try:
        built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=BUILD_LIMIT)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"building took longer than {BUILD_LIMIT} s") from None
    if built.returncode:
        print(built.stdout[-4000:], built.stderr[-4000:], file=sys.stderr, flush=True)
        raise RuntimeError(f"building ended with status {built.returncode}")
    if (reason := _why_not(context)) is not None:
        raise RuntimeError(f"what was built does not load: {reason}")
    yield {"libraries": "built here", "seconds": round(time.monotonic() - started, 1)}


def _why_not(context: Context) -> str | None:
    """In a process of its own: one that has failed to load a library would not try again."""
    if context.device != "cuda":
        return None
    command = [sys.executable, "-m", "gnfast.bench.libraries"]
    try:
        tried = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=40)
    except subprocess.TimeoutExpired:
        return "loading took longer than 40 s"
    if tried.returncode == 0:
        return None
    return next(reversed((tried.stderr + tried.stdout).strip().splitlines()), "no reason given")
