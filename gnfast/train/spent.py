"""Seconds by what they were spent on, counted where they are spent; `profile.py` shows them."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any


@dataclass
class Entry:
    """What one kind of work took.

    Attributes:
        times: how often it was done.
        here: seconds on the thread that made the record, on which a run trains.
        elsewhere: seconds on other threads.
    """

    times: int = 0
    here: float = 0.0
    elsewhere: float = 0.0


class Spent:
    """A record of seconds, for any thread to add to; work inside other work counts once, as what it is itself."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        # Of each thread, what the works inside the one that is being measured took, innermost last.
        self._inner = threading.local()
        self._marked = time.perf_counter()

    def add(self, name: str, seconds: float) -> None:
        """Counts one piece of work of this thread."""
        with self._lock:
            entry = self.entries.setdefault(name, Entry())
            entry.times += 1
            if threading.get_ident() == self._thread:
                entry.here += seconds
            else:
                entry.elsewhere += seconds

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Counts what the block takes, also where it fails, less what blocks inside it count."""
        inner = self._inner.__dict__.setdefault("taken", [])
        inner.append(0.0)
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self.add(name, took - inner.pop())
            if inner:
                inner[-1] += took

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with each call counted."""

        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self(name):
                return function(*args, **kwargs)

        return counted

    def mark(self, name: str) -> None:
        """Counts the time since the last mark, or since the record was made: for work that follows other work."""
        now = time.perf_counter()
        self.add(name, now - self._marked)
        self._marked = now


def since_start() -> float | None:
    """Seconds since this process began, before Python ran; None where the system does not say."""
    try:
        # The name of the program, in brackets, may have spaces. The 22nd entry, in ticks since the system's start.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
