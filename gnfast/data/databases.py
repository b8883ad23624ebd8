"""LMDBs of encoded images: LSUN's own, and those that the code of GN-GAN and of Faster GN-GAN makes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import stat_identity
from gnfast.data.images import decode_into, decoding_bar, skipped_files
from gnfast.data.source import Contents, Source

_FILE = "data.mdb"


def is_database(path: Path) -> bool:
    """Whether `path` is the folder of an LMDB."""
    return (path / _FILE).is_file()


def open_database(path: Path, request: Request, name: str = "", positions: range | None = None) -> Source:
    """The images of an LMDB, in the order of their numbers or, where keys are no numbers, of their keys.

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
        raise DataError(f"split must be 'train' for the LMDB {path}, got {request.split!r}")
    name = name or path.resolve().name
    # Opening it in another way may touch lock.mdb.
    identity = stat_identity(path / _FILE)
    return Source(name, request, identity, lambda canvas: _read(path, request, positions, canvas))


def _read(path: Path, request: Request, positions: range | None, canvas: Canvas) -> Contents:
    with _transaction(path) as transaction:
        count = transaction.stat()["entries"]
        if transaction.get(b"d0") is not None and transaction.get(b"l0") is not None:
            count //= 2
            rows = _rows(path, transaction, "d", range(count), positions, "l")
        elif transaction.get(b"0") is not None:
            rows = _rows(path, transaction, "", range(count), positions)
        else:
            rows = _in_key_order(transaction, positions)
        count = count if positions is None else len(range(count)[positions.start : positions.stop])
        canvas.expect(count)
        with decoding_bar(path, count, request) as bar:
            kept, skipped = decode_into(canvas, rows, request, bar, path)
    if not kept:
        what = f"for split {request.split!r}" if positions is not None else "in it"
        raise DataError(f"{path}: no image is left {what}" + (skipped_files(skipped) if skipped else ""))
    warning = f"{path}: {len(skipped)} of {count} images skipped{skipped_files(skipped)}" if skipped else ""
    if kept[0] is None:
        return Contents(None, (), len(skipped), warning)
    labels = torch.tensor(kept, dtype=torch.int64)
    # The database has no names for its classes.
    classes = tuple(map(str, range(int(labels.max()) + 1)))
    return Contents(labels, classes, len(skipped), warning)


def _rows(
    path: Path, transaction: Any, prefix: str, numbers: range, positions: range | None, labels: str = ""
) -> Iterator[tuple]:
    """For `decode_into`: the numbered images, with their labels where there are any."""

    def get(key: str) -> bytes:
        value = transaction.get(key.encode())
        if value is None:
            raise DataError(f"{path}: key {key!r} is missing, although there are {len(numbers)} images")
        return value

    for number in numbers if positions is None else numbers[positions.start : positions.stop]:
        label = None
        if labels:
            digits = get(f"{labels}{number}")
            if not digits.isdigit():
                raise DataError(f"{path}: key '{labels}{number}' must hold a class in digits, got {digits[:20]!r}")
            label = int(digits)
        key = f"{prefix}{number}"
        yield key, label, lambda key=key: get(key)


def _in_key_order(transaction: Any, positions: range | None) -> Iterator[tuple]:
    for position, (key, value) in enumerate(transaction.cursor()):
        if positions is None or position in positions:
            yield key.decode(errors="replace"), None, lambda value=value: value


@contextmanager
def _transaction(path: Path) -> Iterator[Any]:
    try:
        import lmdb
    except ImportError as error:
        raise DataError(f"{path} is an LMDB, and the package lmdb is not installed: pip install lmdb") from error
    try:
        with lmdb.open(
            os.fspath(path), readonly=True, lock=False, readahead=False, meminit=False, create=False
        ) as environment:
            # A file that was cut off opens like a whole one; reading behind its end would kill the process.
            needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
            size = (path / _FILE).stat().st_size
            if size < needed:
                raise DataError(f"{path} is truncated: {_FILE} has {size} bytes, and {needed} are in use")
            with environment.begin(buffers=False) as transaction:
                yield transaction
    except lmdb.Error as error:
        raise DataError(f"{path} cannot be read as an LMDB: {error}") from error
