"""Reading files that others made, and writing files that outlive a kill or a power cut."""

import errno
import glob
import os
import secrets
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from gnfast.errors import InputError

try:
    import fcntl
except ImportError:
    # Not a POSIX system: whoever locks fails there, and `import gnfast` does not.
    fcntl = None

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


class OccupiedError(InputError, OSError):
    """Where a file or a folder is to be written there is something else, which is not replaced."""


def cache_root() -> Path:
    """The folder for downloads and caches: $GNFAST_CACHE, or gnfast under $XDG_CACHE_HOME or ~/.cache.

    Raises:
        InputError: neither is set, and there is no home folder.
    """
    if own := os.environ.get("GNFAST_CACHE"):
        return expanded(own)
    try:
        return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "gnfast"
    except InputError:
        raise InputError("there is no home folder for the cache: set GNFAST_CACHE to a folder") from None


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with ~ and ~user replaced.

    Raises:
        InputError: nobody knows that user's home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{os.fspath(path)}: {error}") from None


def open_regular(path: str | os.PathLike[str], error: type[ValueError] = InputError) -> BinaryIO:
    """The file, open for reading in binary.

    Raises:
        error: it is a pipe, a device, a socket or a folder, which would never end or never answer.
        OSError: it cannot be opened.
    """
    _check_regular(path, os.stat(path), error)
    # It may have become another since; a pipe that nobody writes to blocks whoever opens it, unless asked not to.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _check_regular(path, os.fstat(descriptor), error)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(path: str | os.PathLike[str], status: os.stat_result, error: type[ValueError]) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise error(f"{os.fspath(path)}: {_KINDS.get(kind, 'not a regular file')}, wanted a regular file")


def output_file(name: str | os.PathLike[str]) -> Path:
    """Where to write the file that a user wants at `name`: a link there is the user's own, and is followed.

    Raises:
        OccupiedError: there is a device, a pipe, a socket or a folder.
        OSError: links in circles, or a folder that cannot be looked into.
    """
    path = expanded(name)
    with suppress(FileNotFoundError):
        # Before links are followed: where /dev/stdout leads may have a name that is not a path.
        _check_regular(path, os.stat(path), OccupiedError)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def output_folder(name: str | os.PathLike[str]) -> Path:
    """The folder that a user wants written into, which need not be there yet.

    Raises:
        OccupiedError: it, or one above it, is something else.
    """
    path = expanded(name)
    _check_folder(path)
    return path


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it, where it is not there.

    Raises:
        OccupiedError: it, or one above it, is something else.
        OSError: it cannot be made.
    """
    _check_folder(path)
    path.mkdir(parents=True, exist_ok=True)


def _check_folder(path: Path) -> None:
    there = next((place for place in (path, *path.parents) if os.path.lexists(place)), path)
    if not there.is_dir() and os.path.lexists(there):
        kind = _KINDS.get(stat.S_IFMT(there.stat().st_mode), "a file") if there.exists() else "a link to nothing"
        raise OccupiedError(f"{there}: {kind}, wanted a folder")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path next to `path` that becomes `path` when the block ends, and vanishes when it raises.

    What is there afterwards is the old content or the new one, whole and on disk, whatever stops the
    process or the machine. A link at `path` is replaced, not followed: it may have been planted there.

    Raises:
        OccupiedError: at `path` is a device, a pipe, a socket or a folder, or above it something else than a folder.
        OSError: it cannot be written.
    """
    make_folder(path.parent)
    with suppress(FileNotFoundError):
        status = os.lstat(path)
        if not stat.S_ISLNK(status.st_mode):
            _check_regular(path, status, OccupiedError)
    with own_part(path) as part:
        mode = stat.S_IMODE(part.stat().st_mode)
        yield part
        if stat.S_IMODE(part.stat().st_mode) != mode:
            # Some writers put a file of their own in its place.
            part.chmod(mode)
        _sync(part)
        os.replace(part, path)
        _sync(path.parent)


@contextmanager
def own_part(path: Path) -> Iterator[Path]:
    """A new empty file next to `path`, named after it, that is gone after the block unless it was moved elsewhere.

    Others may read it as far as the user's umask lets them. What a killed process left of the same name goes first.
    """
    remove_abandoned(path.parent, path.name)
    while True:
        # The name cannot be foreseen, and "x" follows no link that lies there.
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        file = part.open("xb")
        # The lock tells a file that is being written from one whose process was killed. Some file systems have none.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            break
        # Another process took it for abandoned before it was locked.
        file.close()
    with file:
        try:
            with unwinding():
                yield part
        finally:
            part.unlink(missing_ok=True)


def is_abandoned(part: Path) -> bool:
    """Whether no process holds the lock of `own_part` on a file; also false where that cannot be known."""
    try:
        with os.fdopen(os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK), "rb", 0) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_abandoned(folder: Path, name: str = "") -> None:
    """Delete the parts of `name`, or of any file, that processes which were killed left in `folder`."""
    for part in folder.glob(f"{glob.escape(name) or '*'}.{'[0-9a-f]' * 8}.part"):
        if is_abandoned(part):
            part.unlink(missing_ok=True)


@contextmanager
def unwinding() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the block as Ctrl-C does, unless they are handled already."""
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread only.
        yield
        return

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    fatal = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in fatal:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in fatal:
            signal.signal(number, signal.SIG_DFL)


def write_text(path: Path, text: str) -> None:
    """Replaces a file's content in one step."""
    with atomic_write(path) as part:
        # A file name that is not UTF-8 comes as characters that UTF-8 has no code for.
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def open_append(path: Path) -> TextIO:
    """A text file to add lines to, made where it is not there.

    Raises:
        InputError: it is a link, or not a regular file: what lies in a folder from elsewhere may lead anywhere.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise InputError(f"{path}: a link, a pipe or a folder, wanted a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path}: not a regular file")
    return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")


def _sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
