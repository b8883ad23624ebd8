"""A GPU for one process at a time: what is timed, and the kernels that torch.compile tries beside it, take turns."""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_turn = threading.local()


@contextlib.contextmanager
def alone(folder: Path, patience_s: float = 10.0) -> Iterator[None]:
    """Waits for its turn, but no longer than that: a process that hangs in its own may not hold up the others.

    What is locked is a folder that all processes know. A thread that has its turn may enter again.
    """
    if getattr(_turn, "held", False):
        yield
        return
    handle, deadline = os.open(folder, os.O_RDONLY), time.monotonic() + patience_s
    _turn.held = True
    try:
        # Some file systems have no locks; then all is as it would be without.
        with contextlib.suppress(OSError):
            while not _locked(handle) and time.monotonic() < deadline:
                time.sleep(2e-4)
        yield
    finally:
        _turn.held = False
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def search_alone(folder: Path) -> None:
    """From now on the compiler of this process times its kernels in turns with what others time."""
    try:
        from torch._inductor.runtime.benchmarking import benchmarker
    except ImportError:
        # Another version of PyTorch times elsewhere, and what is timed beside it may be a little disturbed.
        return
    search: Callable[..., Any] = benchmarker.benchmark_gpu

    def taking_turns(*arguments: Any, **options: Any) -> Any:
        # Long enough for one that waits to see that it is free.
        time.sleep(1e-3)
        with alone(folder):
            return search(*arguments, **options)

    benchmarker.benchmark_gpu = taking_turns
