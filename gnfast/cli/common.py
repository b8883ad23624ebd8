"""What the commands share: tables, and errors that are one line."""

import re
from collections.abc import Sequence

from gnfast.errors import UnsupportedError


class UsageError(Exception):
    """The command line is not one that gnfast understands; the message is one line."""


def of_the_user(error: Exception) -> str:
    """What to say of an error that what the user gave leads to; "" for a bug, which keeps its traceback."""
    from gnfast.runs.checkpoint import RunError

    if isinstance(error, UsageError | ValueError | OSError | RunError | UnsupportedError):
        named = isinstance(error, OSError) and error.filename and error.strerror
        message = f"{error.filename}: {error.strerror}" if named else str(error)
        # A message of a library or a file name may have line breaks, and one of the library's is for Python.
        return " ".join(message.split()).replace("pass resolution=…", "pass --resolution") or type(error).__name__
    # Of the many errors of this kind those that a file or an option can cause.
    is_size = re.search("allocate memory|out of memory|overflow", str(error))
    if isinstance(error, MemoryError | OverflowError) or (isinstance(error, RuntimeError) and is_size):
        return f"not enough memory ({str(error).partition(chr(10))[0] or type(error).__name__})"
    return ""


def columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
