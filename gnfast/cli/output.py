"""What a command prints must not break it: a reader that is gone, a full disk, characters that a terminal cannot show.

Where a reader is gone, as `head` is after its lines, a command ends at its next line, like any other tool; but not one
that trains, of whose hours a pipe is the least part: a run has a log file of its own.
"""

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.EIO)


class _Lasting:
    """A text stream that may fail: from then on it leads to nowhere.

    Attributes:
        error: what made it fail, if it was anything but a reader that went away.
        ends: the first line that a pipe's reader does not get any more ends the command, as SIGPIPE would.
    """

    def __init__(self, stream: TextIO, ends: bool = False):
        self._stream = stream
        self.error: OSError | None = None
        self.ends = ends

    def write(self, text: str) -> int:
        with self._kept_up():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._kept_up():
            self._stream.flush()

    @contextlib.contextmanager
    def _kept_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _GONE:
                self.error = self.error or error
            # The descriptor itself, so that what is still buffered and what children print go there too.
            with open(os.devnull, "wb") as nowhere, contextlib.suppress(io.UnsupportedOperation):
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if self.ends and error.errno == errno.EPIPE:
                self.ends = False
                raise SystemExit(128 + signal.SIGPIPE) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting_output(ends: bool = False) -> Iterator[list[OSError]]:
    """Prints to stdout and stderr in this block do not fail, whatever happens to who reads them.

    Args:
        ends: print raises SystemExit as soon as nobody reads stdout any more.

    Yields:
        A list that has, after the block, what was lost to anything but a reader that went away; stderr was told.
    """
    lost: list[OSError] = []
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        # Python has no stream where the descriptor was closed.
        streams = [stream or stack.enter_context(open(os.devnull, "w")) for stream in before]
        for stream in streams:
            # In ASCII a name would be an error, and everywhere one that is not UTF-8.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace", line_buffering=True)
        sys.stdout, sys.stderr = out, err = _Lasting(streams[0], ends), _Lasting(streams[1])
        try:
            yield lost
        finally:
            # Here, not when Python ends: that would say that it failed. What is done by now is done.
            out.ends = False
            out.flush()
            if out.error:
                print(f"gnfast: stdout: {out.error.strerror}", file=err)
            err.flush()
            lost += [stream.error for stream in (out, err) if stream.error]
            sys.stdout, sys.stderr = before
