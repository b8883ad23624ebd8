"""The files of a folder, zip or tar as (name, bytes), without unpacking anything to disk."""

import bz2
import gzip
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from gnfast.data.dataset import DataError

_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
# What the readers raise on damaged input. zipfile adds RuntimeError for encryption, NotImplementedError for methods.
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError)
_DAMAGE += (RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class Entry:
    """A file inside a folder or archive: its relative name with forward slashes, and how to get its bytes."""

    name: str
    read: Callable[[], bytes]


@contextmanager
def open_entries(path: Path, wanted: Callable[[str], bool], progress: bool = True) -> Iterator[list[Entry]]:
    """The files under `path`, sorted by name; of a name that comes twice in an archive, the last.

    Folders, zips and plain tars are read when an entry is. A compressed tar has no random access: it is read once, from
    its start to its end, and the bytes of the wanted entries stay in memory until they are let go.

    Args:
        path: a folder, a zip, or a tar (plain, gz, bz2 or xz); the content decides, not the name.
        wanted: which names will be read; reading another entry of a compressed tar gives b"".
        progress: show a bar while a compressed tar is read, on a terminal.

    Raises:
        DataError: `path` is none of these, or is truncated or damaged; the latter also from `Entry.read`.
    """
    if path.is_dir():
        yield _sorted(_folder_entries(path))
        return
    with path.open("rb") as file:
        head = file.read(6)
    decompress = next((how for magic, how in _COMPRESSED.items() if head.startswith(magic)), None)
    if decompress is not None:
        yield _sorted(_stream_entries(path, decompress, wanted, progress))
    elif head.startswith(b"PK"):
        with _clear_errors(path):
            archive = zipfile.ZipFile(path)
        with archive:
            yield _sorted(_zip_entries(path, archive))
    else:
        if not tarfile.is_tarfile(path):
            raise DataError(f"{path} is not a folder, zip or tar archive")
        with tarfile.open(path, "r:") as tar:
            yield _sorted(_tar_entries(path, tar))


def first_member(path: Path) -> str:
    """The name of a tar archive's first member; "" when `path` is no tar, has none, or is damaged there."""
    try:
        with tarfile.open(path, "r:*") as tar:
            member = tar.next()
            return member.name if member else ""
    except _DAMAGE:
        return ""


def _sorted(entries: Iterator[Entry]) -> list[Entry]:
    by_name = {entry.name: entry for entry in entries}
    return [by_name[name] for name in sorted(by_name)]


def _folder_entries(root: Path) -> Iterator[Entry]:
    for folder, _, files in os.walk(root, followlinks=True):
        for name in files:
            file = Path(folder, name)
            yield Entry(file.relative_to(root).as_posix(), file.read_bytes)


def _zip_entries(path: Path, archive: zipfile.ZipFile) -> Iterator[Entry]:
    def reader(member: zipfile.ZipInfo) -> Callable[[], bytes]:
        def read() -> bytes:
            with _clear_errors(path):
                return archive.read(member)

        return read

    for member in archive.infolist():
        if not member.is_dir():
            # Some Windows tools write backslashes, against the format.
            yield Entry(member.filename.replace("\\", "/"), reader(member))


def _tar_entries(path: Path, tar: tarfile.TarFile) -> Iterator[Entry]:
    def reader(member: tarfile.TarInfo) -> Callable[[], bytes]:
        def read() -> bytes:
            with _clear_errors(path):
                return _content(tar, member)

        return read

    with _clear_errors(path):
        members = tar.getmembers()
        # tarfile takes a file that ends within a header for one that ends there.
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end-of-archive mark")
    for member in members:
        if member.isfile():
            yield Entry(member.name, reader(member))


def _stream_entries(path: Path, decompress: Callable, wanted: Callable, progress: bool) -> Iterator[Entry]:
    size = path.stat().st_size
    bar = tqdm(total=size, desc=f"reading {path.name}", unit="B", unit_scale=True, disable=None if progress else True)
    # tarfile's own decompressing streams take a truncated file for a finished one; these modules raise EOFError.
    with _clear_errors(path), bar, path.open("rb") as raw, decompress(raw) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                if member.isfile():
                    content = _content(tar, member) if wanted(member.name) else b""
                    yield Entry(member.name, lambda content=content: content)
                    bar.update(raw.tell() - bar.n)
        _drain(stream)
        bar.update(size - bar.n)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    with tar.extractfile(member) as file:
        return file.read()


def _drain(stream: IO[bytes]) -> None:
    """Read what follows the tar's end mark, where the compressed file keeps its checksum."""
    while stream.read(1 << 20):
        pass


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise DataError(f"archive {path} is truncated or damaged: {error or type(error).__name__}") from error
