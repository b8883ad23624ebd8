"""Ctrl-C, SIGTERM and a closed terminal as a wish to stop, which the loop grants after a checkpoint."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def requested_stops() -> Iterator[list[signal.Signals]]:
    """Collects the first of `STOPS` in the list it gives; a second one acts as it would without this.

    A signal that is ignored, as SIGHUP is under nohup, stays so.
    """
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread only.
        yield received
        return

    # No output here: a handler may run in the middle of a write to the same file.
    def receive(number: int, _frame: Any) -> None:
        received.append(signal.Signals(number))
        restore()

    heard = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, receive) for number in heard}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield received
    finally:
        restore()


@contextlib.contextmanager
def fatal_stops() -> Iterator[None]:
    """`STOPS` end this process at once: for waits in native code, which never come to run a handler of Python's.

    A signal that is ignored stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in STOPS}
    # None: a handler that is not Python's, which could not be put back.
    before = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
