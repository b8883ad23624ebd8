"""Forks of a process of the tests, which has threads, pipes and locks of its own."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def fork() -> int:
    """As `os.fork`, but the child ends when its parent does, and waits for no lock of progress bars.

    A child that outlives a test's process, ended for its time limit, would keep the pipe open whose end tells pytest of
    that. tqdm's lock is one for all forks: it stays locked where one was killed that held it.
    """
    parent = os.getpid()
    child = os.fork()
    if not child:
        end_with(parent)
        if "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.set_lock(threading.RLock())
    return child


def end_with(parent: int) -> None:
    """Has this process ended when that parent of it does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def forked(
    work: Callable[..., int | None], output: Path, *arguments: object, end: Callable[[int], object] = os._exit
) -> int:
    """The id of a process that does the work, prints into a file and ends with the status that the work gives."""
    process = fork()
    if process:
        return process
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(file, stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
        status = work(*arguments) or 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        end(status)
