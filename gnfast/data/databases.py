"""LMDBs of encoded images: LSUN's own, and those that the code of GN-GAN and of Faster GN-GAN makes."""

import sys
from contextlib import closing
from pathlib import Path

from gnfast.data import lmdb_reader
from gnfast.data.apart import content_of, said_by
from gnfast.data.archive import ENTRY_BYTES
from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import short_name
from gnfast.data.images import decode_into, decoded_identity
from gnfast.data.source import Contents, Source, labelled

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
    name = name or short_name(path.resolve())
    # Opening it in another way may touch lock.mdb.
    identity = decoded_identity(path / _FILE)
    return Source(name, request, identity, lambda canvas: _read(path, request, positions, canvas))


def _read(path: Path, request: Request, positions: range | None, canvas: Canvas) -> Contents:
    chosen = positions or range(sys.maxsize)
    words = [path, chosen.start, chosen.stop, ENTRY_BYTES]
    with closing(said_by(lmdb_reader.__file__, words, path, "an LMDB", "lmdb")) as said:
        total = next(said)
        rows = ((key, label, content_of(content)) for key, label, content in said)
        what = "of all" if positions is None else f"for split {request.split!r}"
        kept, contents = decode_into(canvas, rows, total, request, path, what)
    # The database has no names for its classes.
    return labelled(contents, kept, None, path)
