"""LMDBs of encoded images: LSUN's own, and those that the code of GN-GAN and of Faster GN-GAN makes."""

import marshal
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gnfast.data import lmdb_reader
from gnfast.data.archive import ENTRY_BYTES, EntryError
from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import printable
from gnfast.data.images import decode_into, decoded_identity
from gnfast.data.source import Contents, Source
from gnfast.errors import missing

_FILE = "data.mdb"


def is_database(path: Path) -> bool:
    """Whether `path` is the folder of an LMDB."""
    return (path / _FILE).is_file()


def open_database(path: Path, request: Request, name: str = "", positions: range | None = None) -> Source:
    """The images of an LMDB, in the order of their numbers or, where keys are not numbers, of their keys.

    Three layouts are known, and told apart by their keys: `0`, `1`, … to an image file's bytes (GN-GAN's code); `d0`,
    `d1`, … to the bytes, and `l0`, `l1`, … to the class in digits (Faster GN-GAN's); other keys to the bytes (LSUN).

    Args:
        path: the folder with data.mdb.
        request: what is asked; "train" is the only split unless `positions` says which images one is.
        name: for logs and results; by default the folder's.
        positions: the images of the split, counted from 0; None is all.

    Raises:
        DataError: another split than "train" of an unnamed one; on reading, the package lmdb is not there, the
            database is truncated or damaged, or no image is left.
    """
    if positions is None and not name and request.split != "train":
        raise DataError(f"split of {path}: got {request.split!r}, wanted 'train'")
    name = name or printable(path.resolve().name)
    # Opening it in another way may touch lock.mdb.
    identity = decoded_identity(path / _FILE)
    return Source(name, request, identity, lambda canvas: _read(path, request, positions, canvas))


def _read(path: Path, request: Request, positions: range | None, canvas: Canvas) -> Contents:
    with closing(_said(path, positions or range(sys.maxsize))) as said:
        total = next(said)
        rows = ((key, label, partial(_value, content)) for key, label, content in said)
        what = "of all" if positions is None else f"for split {request.split!r}"
        kept, contents = decode_into(canvas, rows, total, request, path, what)
    if kept[0] is None:
        return contents
    labels = torch.tensor(kept, dtype=torch.int64)
    # The database has no names for its classes.
    return replace(contents, labels=labels, classes=tuple(map(str, range(int(labels.max()) + 1))))


def _value(content: bytes | None) -> bytes:
    if content is None:
        raise EntryError(f"larger than {ENTRY_BYTES >> 20} MiB")
    return content


def _said(path: Path, positions: range) -> Iterator[Any]:
    """What `lmdb_reader` says of the images at these positions; a damaged LMDB may end it, but not this process.

    Raises:
        DataError: the package lmdb is not there, or the database is damaged or none.
    """
    try:
        import lmdb  # noqa: F401
    except ImportError as error:
        raise DataError(missing(f"{path}, an LMDB,", "lmdb")) from error
    # -P: the modules of this package next to the script must not stand for Python's own.
    words = [sys.executable, "-P", lmdb_reader.__file__, path, positions.start, positions.stop, ENTRY_BYTES]
    modules = os.pathsep.join(folder for folder in sys.path if folder)
    with subprocess.Popen(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": modules},
        # A Ctrl-C is for this process, which then ends that one.
        start_new_session=True,
    ) as reader:
        try:
            while True:
                said = marshal.load(reader.stdout)
                if isinstance(said, str):
                    raise DataError(said)
                yield said
        except EOFError as error:
            if status := reader.wait():
                how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
                raise DataError(f"{path} is damaged: the process that read its {_FILE} was ended {how}") from error
        finally:
            reader.kill()
