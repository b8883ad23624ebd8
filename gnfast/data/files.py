"""Files of data sets: how they are listed, what identifies them, and those that are published with a checksum."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gnfast.data.dataset import DataError, Request
from gnfast.io.downloads import checksum, download
from gnfast.io.files import cache_root, open_regular

_ARCHIVE = re.compile(r"(\.tar)?\.(zip|tar|tgz|tbz2|txz|gz|bz2|xz|parquet)$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# More links to one folder than this were made to be followed for ever.
_WAYS = 100


def open_source(path: Path) -> BinaryIO:
    """A regular file, open for reading.

    Raises:
        DataError: it is a pipe, a device, a socket or a folder.
        OSError: it cannot be opened.
    """
    return open_regular(path, DataError)


def short_name(path: Path) -> str:
    """What the images at a path are called in logs and results: its last part, without the ending of an archive."""
    return _ARCHIVE.sub("", printable(path.name))


def printable(name: str) -> str:
    """A file's name as text to be printed and written: bytes that are not UTF-8, and control characters, are \\xHH."""
    if name.isascii() and name.isprintable():
        return name
    name = os.fsencode(name).decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", name)


def walk_files(root: Path) -> Iterator[str]:
    """The paths of all files below a folder, relative to it and in a fixed order.

    Links are followed, but not to a folder in which they lie. A folder that cannot be read stands there itself.

    Raises:
        DataError: links lead to one folder in more ways than anyone needs.
    """
    ways: Counter[tuple[int, int]] = Counter()
    folders: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while folders:
        folder, above = folders.pop()
        place = os.path.join(root, folder)
        try:
            status = os.stat(place)
            names = sorted(os.listdir(place))
        except OSError:
            yield folder or "."
            continue
        itself = (status.st_dev, status.st_ino)
        if itself in above:
            continue
        ways[itself] += 1
        if ways[itself] > _WAYS:
            raise DataError(f"{root}: links lead to the folder {os.path.realpath(place)} in more than {_WAYS} ways")
        below = []
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isdir(os.path.join(root, path)):
                below.append((path, above | {itself}))
            else:
                yield path
        folders += reversed(below)


def stat_identity(path: Path) -> dict[str, Any]:
    """What tells a file or folder from another and from itself after a change: path, size, and time of change.

    For a folder: the number and total size of its files, and a SHA-256 over the name, size and time of each.
    """
    path = path.resolve()
    if not path.is_dir():
        status = path.stat()
        return {"path": str(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}
    digest, count, size = hashlib.sha256(), 0, 0
    for file in walk_files(path):
        try:
            status = os.stat(os.path.join(path, file))
        except OSError:  # A link to nowhere: reading it will say so.
            continue
        count, size = count + 1, size + status.st_size
        digest.update(os.fsencode(file) + f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return {"path": str(path), "files": count, "bytes": size, "listing_sha256": digest.hexdigest()}


@dataclass(frozen=True)
class Official:
    """A file as the authors of a data set publish it.

    Args:
        dataset: the data set's registered name.
        name: the file's.
        url: where it is.
        md5: its checksum (hex).
        size: its size in words, for messages.
        folder: where under the cache's `data` it is kept.
    """

    dataset: str
    name: str
    url: str
    md5: str
    size: str
    folder: str = ""

    def path(self, request: Request) -> Path:
        """Where the file is or would be: `request.root` itself, or in that folder, or in the cache's."""
        root = request.root or cache_root() / "data" / self.folder
        return root if root.is_file() else root / self.name

    def locate(self, request: Request) -> Path:
        """Where the file is, fetched if need be, and its checksum compared unless `request.verify` is False.

        Raises:
            DataError: it is not there and `request.download` is False, the download failed, or as `check`.
        """
        path = self.path(request)
        if not path.is_file():
            if not request.download:
                raise DataError(
                    f"{self.dataset} is not at {path}; pass download=True ({self.size} from {self.url}), "
                    f"or root=… with the file's path or its folder"
                )
            download(self.url, path, "md5", self.md5, error=DataError, progress=request.progress)
        return self.check(path) if request.verify else path

    def check(self, path: Path) -> Path:
        """The path, after the checksum of the file there was compared.

        Raises:
            DataError: it is another one.
        """
        if (got := checksum(path, "md5")) != self.md5:
            raise DataError(
                f"{path}: wrong checksum, expected MD5 {self.md5}, got {got}; "
                f"download it again, or pass verify=False if it is meant to differ"
            )
        return path
