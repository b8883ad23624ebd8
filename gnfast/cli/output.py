"""What a command prints must not end it: a reader that is gone, a closed terminal, characters that it cannot show."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.EIO)


class _Lasting:
    """A text stream whose reader may go away: from then on it leads to nowhere."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with self._if_gone():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._if_gone():
            self._stream.flush()

    @contextlib.contextmanager
    def _if_gone(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _GONE:
                raise
            # The descriptor itself, so that what is still buffered and what children print go there too.
            with open(os.devnull, "wb") as nowhere, contextlib.suppress(io.UnsupportedOperation):
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Prints to stdout and stderr in this block do not fail, whatever happens to who reads them."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        # Python has no stream where the descriptor was closed.
        streams = [stream or stack.enter_context(open(os.devnull, "w")) for stream in before]
        for stream in streams:
            # In ASCII a name would be an error, and everywhere one that is not UTF-8.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        sys.stdout, sys.stderr = map(_Lasting, streams)
        try:
            yield
        finally:
            # Here, not when Python ends: that would say that it failed.
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before
