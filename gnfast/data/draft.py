"""Files for prepared pixels while these are made: the room is reserved first, and one process does the work."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gnfast.data.dataset import DataError, ImageDataset
from gnfast.io.files import cache_root, own_part, remove_abandoned

# What running out of room looks like: a full disk, a user's quota, a limit on the size of files.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ReadyError(Exception):
    """Another process prepared the same in the meantime."""


def folder() -> Path:
    """Where prepared pixels are kept."""
    return cache_root() / "prepared"


def labels_at(nbytes: int) -> int:
    """Where the labels begin in a file, after so many bytes of pixels."""
    return -(-nbytes // 8) * 8


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Waits for other processes, such as the ranks of one run, that prepare the same.

    Without it they would all do the work and take the room, one after the other with the same result.

    Raises:
        ReadyError: one of them has done it.
    """
    lock = path.with_suffix(".lock")
    with clear_about_room(0):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    with file:
        # Some network file systems have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            if path.exists():
                raise ReadyError
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextlib.contextmanager
def new_draft(path: Path, nbytes: int) -> Iterator[np.memmap]:
    """The bytes of a file next to `path`, which is gone afterwards unless it was moved elsewhere."""
    with contextlib.ExitStack() as stack:
        with clear_about_room(nbytes):
            # Those of other data sets too: the room that they take may be what this one lacks.
            remove_abandoned(path.parent)
            part = stack.enter_context(own_part(path.with_suffix(".bin")))
            with part.open("r+b") as file:
                # All of it at once: writing through a mapping to a disk that is full would kill the process.
                _reserve(file.fileno(), nbytes)
        yield np.memmap(part, np.uint8, "r+", shape=(nbytes,))


def _reserve(descriptor: int, nbytes: int) -> None:
    # Reserving more than there is would fill the disk before it fails.
    if nbytes > shutil.disk_usage(descriptor).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, nbytes)
        return
    zeros = bytes(1 << 20)
    for start in range(0, nbytes, len(zeros)):
        os.write(descriptor, zeros[: nbytes - start])


def finish(draft: np.memmap, dataset: ImageDataset) -> None:
    """Cut a draft's file to the pixels that are in it, and append the labels."""
    draft.flush()
    nbytes = dataset.images.nbytes
    with open(draft.filename, "ab") as file, clear_about_room(nbytes):
        file.truncate(labels_at(nbytes))
        if dataset.labels is not None:
            file.write(dataset.labels.numpy().astype("<i8").tobytes())
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def clear_about_room(nbytes: int) -> Iterator[None]:
    """What the system says of a folder that cannot be written, or is too small for `nbytes`, as a DataError."""
    try:
        yield
    except OSError as error:
        advice = "set GNFAST_CACHE to a folder elsewhere, or pass cache=False to hold the images in memory"
        if error.errno not in _NO_ROOM:
            raise DataError(f"the cache folder {folder()} cannot be written ({error}); {advice}") from error
        there = next(place for place in (folder(), *folder().parents) if place.is_dir())
        free = shutil.disk_usage(there).free
        raise DataError(
            f"not enough room in {folder()}: the prepared images need {nbytes / 2**30:.2f} GiB, "
            f"{free / 2**30:.2f} GiB are free ({error.strerror}); make room (gnfast data clear), or {advice}"
        ) from error
