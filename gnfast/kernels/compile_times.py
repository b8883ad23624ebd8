"""How long Triton compiles: it says so itself, to one listener."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def compile_times() -> Iterator[list[float]]:
    """Yields a list that gets the seconds of each kernel which Triton compiles in the block, or reads from its cache.

    It stays empty where there is no Triton, or one that does not say.
    """
    seconds: list[float] = []
    try:
        from triton import knobs

        before = knobs.compilation.listener
    except (ImportError, AttributeError):
        yield seconds
        return

    def listen(*, times: Any, **told: Any) -> None:
        seconds.append(times.total / 1e6)
        if before is not None:
            before(times=times, **told)

    knobs.compilation.listener = listen
    try:
        yield seconds
    finally:
        knobs.compilation.listener = before
