"""Forks of a process of the tests, which has threads, pipes and locks of its own."""

import ctypes
import os
import signal
import sys
import threading

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
