"""Files of data sets and caches: where they go, what identifies them, downloads with a checksum."""

import hashlib
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gnfast.data.dataset import DataError, Request
from gnfast.files import atomic_write

_CHUNK = 1 << 20


def cache_root() -> Path:
    """The folder for downloads and caches: $GNFAST_CACHE, or gnfast under $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("GNFAST_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gnfast"


def md5_of(path: Path) -> str:
    """The MD5 of a file (hex): what data sets publish; it guards against damage, not against malice."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def stat_identity(path: Path) -> dict[str, Any]:
    """What tells a file or folder from another and from itself after a change: path, size, and time of change.

    For a folder: the number and total size of its files, and a SHA-256 over the name, size and time of each.
    """
    path = path.resolve()
    if path.is_file():
        status = path.stat()
        return {"path": str(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}
    digest, count, size = hashlib.sha256(), 0, 0
    for folder, folders, names in os.walk(path, followlinks=True):
        folders.sort()
        for name in sorted(names):
            file = os.path.join(folder, name)
            try:
                status = os.stat(file)
            except OSError:  # A link to nowhere: reading it will say so.
                continue
            count, size = count + 1, size + status.st_size
            digest.update(f"{os.path.relpath(file, path)}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
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

    def locate(self, request: Request) -> Path:
        """Where the file is: `request.root` itself, or in that folder, or in the cache's; fetched if need be.

        Raises:
            DataError: it is not there and `request.download` is False, or the download failed.
        """
        path = self._path(request)
        if not path.is_file():
            if not request.download:
                raise DataError(
                    f"{self.dataset} is not at {path}; pass download=True ({self.size} from {self.url}), "
                    f"or root=… with the file's path or its folder"
                )
            download(self.url, path, self.md5, progress=request.progress)
        return path

    def identity(self, request: Request) -> dict[str, Any]:
        """The checksum, or what the file system says of a file that may differ from the published one.

        Raises:
            DataError: as `locate`, if the file may differ.
        """
        return {"md5": self.md5} if request.verify else stat_identity(self.locate(request))

    def check(self, path: Path) -> None:
        """Compare the checksum of the file at `path`.

        Raises:
            DataError: it is another one.
        """
        if (got := md5_of(path)) != self.md5:
            raise DataError(
                f"{path}: wrong checksum, expected MD5 {self.md5}, got {got}; "
                f"download it again, or pass verify=False if it is meant to differ"
            )

    def check_if_there(self, request: Request) -> list[Path]:
        """The file in a list, or an empty one where it is not there.

        Raises:
            DataError: as `check`.
        """
        path = self._path(request)
        if not path.is_file():
            return []
        self.check(path)
        return [path]

    def _path(self, request: Request) -> Path:
        root = request.root or cache_root() / "data" / self.folder
        return root if root.is_file() else root / self.name

    def checked(self, request: Request) -> Path:
        """Where the file is, after its checksum was compared, unless `request.verify` is False.

        Raises:
            DataError: as `locate` and `check`.
        """
        path = self.locate(request)
        if request.verify:
            self.check(path)
        return path


def download(url: str, path: Path, md5: str, *, progress: bool = True) -> None:
    """Fetch `url` to `path`, which appears only when complete and of the expected MD5.

    Raises:
        DataError: the server cannot be reached or breaks off, or the checksum is another one (the file is removed).
    """
    bar = tqdm(desc=f"downloading {path.name}", unit="B", unit_scale=True, disable=None if progress else True)
    with atomic_write(path) as part, bar:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer, part.open("wb") as file:
                bar.total = int(answer.headers.get("Content-Length") or 0) or None
                while block := answer.read(_CHUNK):
                    file.write(block)
                    bar.update(len(block))
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise DataError(f"could not download {url} ({error}); fetch it by hand and put it at {path}") from error
        got = md5_of(part)
        if got != md5:
            raise DataError(
                f"{url}: wrong checksum, expected MD5 {md5}, got {got}; the download was removed, "
                f"so try again or fetch it by hand and put it at {path}"
            )
