"""Ctrl-C while a command of gnfast still imports PyTorch, a second or two: one line, not where in PyTorch it was.

The first thing that `import gnfast` imports; in programs other than the command it does nothing.
"""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT


def _is_command() -> bool:
    """Whether this process runs `gnfast` or `python -m gnfast`."""
    # Importing it takes as long as all of this; its children have it.
    processes = sys.modules.get("multiprocessing.process")
    is_child = processes is not None and processes.parent_process() is not None
    if is_child or threading.current_thread() is not threading.main_thread():
        return False
    # Python finds a module that it will run before it knows its path.
    is_module = sys.argv[:1] == ["-m"] and "-m gnfast " in " ".join([*sys.orig_argv, ""])
    return is_module or os.path.basename(sys.argv[0] if sys.argv else "") == "gnfast"


def leads() -> bool:
    """Whether this is the process of torchrun that speaks for all, or one alone."""
    return os.environ.get("RANK", "0") == "0"


def _leave(_number: int, _frame: FrameType | None) -> None:
    # Nothing has been begun that would have to be undone, and PyTorch's imports may catch an exception.
    if leads():
        with contextlib.suppress(OSError):
            os.write(2, b"gnfast: interrupted\n")
    os._exit(INTERRUPTED)


def imported() -> None:
    """From here on Ctrl-C is the KeyboardInterrupt that it is elsewhere."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Where it is ignored, as in the background of a shell, it stays so.
if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
