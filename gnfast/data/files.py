"""Files of the data and metric caches: where they go, atomic writes, downloads with a checksum."""

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from gnfast.data.dataset import DataError

_CHUNK = 1 << 20


def cache_root() -> Path:
    """The folder for downloads and caches: $GNFAST_CACHE, or gnfast under $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("GNFAST_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gnfast"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends, and vanishes when it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def md5_of(path: Path) -> str:
    """The MD5 of a file (hex): what data sets publish; it guards against damage, not against malice."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


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
