"""torchrun as its processes see it, so that none of them is left behind when it has ended."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

# Its store answers in milliseconds; one behind a network that drops packets would keep others waiting for minutes.
SECONDS = 10.0


def serves() -> bool:
    """Whether torchrun has started this process and has a store for it."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def is_gone() -> bool:
    """Whether nothing is left where its store was, which is there before the processes are.

    PyTorch's own attempts to reach it go on until their timeout, in native code that no handler of Python's interrupts.
    """
    place = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
    try:
        socket.create_connection(place, timeout=SECONDS).close()
    except OSError:
        return True
    return False


@contextlib.contextmanager
def while_parent_lives(seconds: float = 0.5) -> Iterator[None]:
    """This process gets SIGTERM when the one that has started it is gone, which nobody would tell it.

    Args:
        seconds: how often it looks.
    """
    parent, done = os.getppid(), threading.Event()

    def watch() -> None:
        while not done.wait(seconds):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, name="parent", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
