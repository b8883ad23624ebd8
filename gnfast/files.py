"""Reading files that others made, and writing files that outlive a kill or a power cut."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gnfast.errors import InputError

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """The file, open for reading in binary.

    Raises:
        InputError: it is a pipe, a device, a socket or a folder, which would never end or never answer.
        OSError: it cannot be opened.
    """
    # A pipe that nobody writes to blocks whoever opens it, unless asked not to.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind != stat.S_IFREG:
            raise InputError(f"{os.fspath(path)}: {_KINDS.get(kind, 'no regular file')}, wanted a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends, and vanishes when it raises.

    What is there afterwards is the old content or the new one, whole and on disk, whatever stops the
    process or the machine.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = empty_part(path)
    try:
        yield part
        _sync(part)
        os.replace(part, path)
        _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def empty_part(path: Path) -> Path:
    """A new empty file beside `path`, named after it, which others may read as far as the user's umask lets them."""
    # The name cannot be foreseen, and "x" follows no link that lies there.
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    part.open("xb").close()
    return part


def write_text(path: Path, text: str) -> None:
    """Replaces a file's content in one step."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
