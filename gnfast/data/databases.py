"""LMDBs of encoded images: LSUN's own, and those that the code of GN-GAN and of Faster GN-GAN makes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from gnfast.data import lmdb_reader
from gnfast.data.archive import ENTRY_BYTES, EntryError
from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import printable
from gnfast.data.images import decode_into, decoded_identity
from gnfast.data.lmdb_reader import ANSWER, FAILED, FOUND, MISSING, REQUEST, TOO_LARGE
from gnfast.data.source import Contents, Source

_FILE = "data.mdb"
# ImageNet's full version has 21,841.
_CLASSES = 100_000


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
    with _Database(path) as database:
        labelled = database.has("d0") and database.has("l0")
        numbers = range(database.count // 2 if labelled else database.count)
        chosen = numbers if positions is None else numbers[positions.start : positions.stop]
        if labelled or database.has("0"):
            rows = _rows(database, chosen, len(numbers), labelled)
        else:
            rows = ((key, None, read) for number, (key, read) in enumerate(database.items()) if number in chosen)
        what = "of all" if positions is None else f"for split {request.split!r}"
        kept, contents = decode_into(canvas, rows, len(chosen), request, path, what)
    if kept[0] is None:
        return contents
    labels = torch.tensor(kept, dtype=torch.int64)
    # The database has no names for its classes.
    return replace(contents, labels=labels, classes=tuple(map(str, range(int(labels.max()) + 1))))


def _rows(database: "_Database", chosen: range, count: int, labelled: bool) -> Iterator[tuple]:
    """For `decode_into`: the chosen ones of so many numbered images, with their labels where there are any."""

    def get(key: str) -> bytes:
        value = database.get(key)
        if value is None:
            raise DataError(f"{database.path}: key {key!r} is missing, although there are {count} images")
        return value

    def label_of(number: int) -> int:
        digits = get(f"l{number}")
        if not digits.isdigit() or len(digits) > 20 or int(digits) >= _CLASSES:
            raise DataError(
                f"{database.path}: key 'l{number}': got {digits[:20]!r}, wanted a class in digits, below {_CLASSES}"
            )
        return int(digits)

    for number in chosen:
        key = f"d{number}" if labelled else f"{number}"
        yield key, label_of(number) if labelled else None, partial(get, key)


class _Database:
    """An LMDB, read by another process, so that a damaged one cannot end this one.

    Args:
        path: the folder with data.mdb.

    Raises:
        DataError: the package lmdb is not there, or the database cannot be opened; from the methods, it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            import lmdb  # noqa: F401
        except ImportError as error:
            raise DataError(f"{path} is an LMDB, and the package lmdb is not installed: pip install lmdb") from error
        # -P: the modules of this package next to the script must not stand for Python's own.
        words = [sys.executable, "-P", lmdb_reader.__file__, os.fspath(path), str(ENTRY_BYTES)]
        modules = os.pathsep.join(folder for folder in sys.path if folder)
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": modules},
            # A Ctrl-C is for this process, which then ends that one.
            start_new_session=True,
        )
        try:
            self.count = int(self._answer()[1])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "_Database":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the other process."""
        self._process.kill()
        self._process.communicate()

    def has(self, key: str) -> bool:
        """Whether there is such a key."""
        self._ask(key)
        return self._answer()[0] != MISSING

    def get(self, key: str) -> bytes | None:
        """The value of a key, or None where there is none.

        Raises:
            EntryError: it is larger than any image.
        """
        self._ask(key)
        status, content = self._answer()
        return None if status == MISSING else _value(status, content)

    def items(self) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """All keys in their order, each with what gives its value or raises `EntryError`; once."""
        for number in range(self.count):
            self._ask("")
            status, key = self._answer()
            if status != FOUND:
                raise DataError(f"{self.path} is damaged: it ends after {number} of its {self.count} entries")
            value = self._answer()
            yield key.decode(errors="backslashreplace"), lambda value=value: _value(*value)

    def _ask(self, key: str) -> None:
        try:
            self._process.stdin.write(REQUEST.pack(len(key.encode())) + key.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            self._died()

    def _answer(self) -> tuple[int, bytes]:
        head = self._process.stdout.read(ANSWER.size)
        if len(head) < ANSWER.size:
            self._died()
        status, length = ANSWER.unpack(head)
        content = self._process.stdout.read(length)
        if len(content) < length:
            self._died()
        if status == FAILED:
            raise DataError(f"{self.path} cannot be read as an LMDB: {content.decode()}")
        return status, content

    def _died(self) -> None:
        status = self._process.wait()
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        raise DataError(f"{self.path} is damaged: the process that read its {_FILE} was ended {how}")


def _value(status: int, content: bytes) -> bytes:
    if status == TOO_LARGE:
        raise EntryError(f"larger than {ENTRY_BYTES >> 20} MiB")
    return content
