"""One process at a time in a run folder or a sweep's."""

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from gnfast.io.files import make_folder
from gnfast.runs.checkpoint import RunError

NAME = ".lock"


@contextlib.contextmanager
def sole_user(folder: Path, what: str) -> Iterator[int]:
    """Keeps a folder for this process, and makes it where it is not there; one that stays empty goes again.

    Args:
        folder: the folder; a file `.lock` in it says who has it.
        what: what others are told that this process does here.

    Yields:
        The file descriptor that holds the lock: a child that inherits it keeps the folder as well.

    Raises:
        RunError: another process has it.
        OccupiedError: there is something else than a folder.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    descriptor = _taken(folder)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{what} {os.getpid()} on {socket.gethostname()}\n".encode())
        yield descriptor
    finally:
        # Nothing is there to take back where someone deleted the folder.
        with contextlib.suppress(OSError):
            if made and os.listdir(folder) == [NAME]:
                # The file goes before it is free: who waits for it sees that it is no longer there, and makes another.
                (folder / NAME).unlink()
                for path in made:
                    path.rmdir()
        os.close(descriptor)


def _taken(folder: Path) -> int:
    path = folder / NAME
    while True:
        make_folder(folder)
        try:
            # Neither through a link nor into a pipe, which could lie there in a folder that someone else made.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RunError(f"{path}: {error.strerror}") from error
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, descriptor)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise RunError(f"{path}: not a regular file; delete it")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                who = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
                message = f"{folder}: {who} is still at work here; wait until it has ended, or stop it"
                raise RunError(message) from error
            except OSError:
                # Some network file systems have no locks.
                pass
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    stack.pop_all()
                    return descriptor
