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
        decompress = _decompressor(file)
        head = file.read(2)
    if decompress is not None:
        yield _sorted(_stream_entries(path, wanted, progress))
    elif head == b"PK":
        with clear_errors(path):
            archive = zipfile.ZipFile(path)
        with archive:
            yield _sorted(_zip_entries(path, archive))
    else:
        if not tarfile.is_tarfile(path):
            raise DataError(f"{path} is not a folder, zip or tar archive")
        with tarfile.open(path, "r:") as tar:
            yield _sorted(_tar_entries(path, tar))


def stream_members(path: Path, wanted: Callable[[str], bool], progress: bool = True) -> Iterator[tuple[str, IO[bytes]]]:
    """The wanted files of a tar (plain, gz, bz2 or xz) or folder, each opened before the next is looked for.

    For members that are too large for memory; read them within `clear_errors`. Names and `progress` are as for
    `open_entries`.

    Raises:
        DataError: the archive is truncated or damaged.
    """
    if path.is_dir():
        for entry in _sorted(_folder_entries(path)):
            if wanted(entry.name):
                with (path / entry.name).open("rb") as file:
                    yield entry.name, file
        return
    size = path.stat().st_size
    bar = tqdm(total=size, desc=f"reading {path.name}", unit="B", unit_scale=True, disable=None if progress else True)
    with clear_errors(path), bar, path.open("rb") as raw:
        decompress = _decompressor(raw)
        # tarfile's own decompressing streams take a truncated file for a finished one; these modules raise EOFError.
        with decompress(raw) if decompress else raw as stream:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    if member.isfile() and wanted(member.name):
                        with tar.extractfile(member) as file:
                            yield member.name, file
                    bar.update(raw.tell() - bar.n)
            _drain(stream)
            bar.update(size - bar.n)


def first_member(path: Path) -> str:
    """The name of a tar archive's first member; "" when `path` is no tar, has none, or is damaged there."""
    try:
        with tarfile.open(path, "r:*") as tar:
            member = tar.next()
            return member.name if member else ""
    except _DAMAGE:
        return ""


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """What readers raise on damaged input as one `DataError`, for reading from what `stream_members` yields."""
    try:
        yield
    except _DAMAGE as error:
        raise DataError(f"archive {path} is truncated or damaged: {error or type(error).__name__}") from error


def _decompressor(file: IO[bytes]) -> Callable | None:
    """What opens a compressed stream that starts at the start of `file`, or None where it is not compressed."""
    head = file.read(6)
    file.seek(0)
    return next((how for magic, how in _COMPRESSED.items() if head.startswith(magic)), None)


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
            with clear_errors(path):
                return archive.read(member)

        return read

    for member in archive.infolist():
        if not member.is_dir():
            # Some Windows tools write backslashes, against the format.
            yield Entry(member.filename.replace("\\", "/"), reader(member))


def _tar_entries(path: Path, tar: tarfile.TarFile) -> Iterator[Entry]:
    def reader(member: tarfile.TarInfo) -> Callable[[], bytes]:
        def read() -> bytes:
            with clear_errors(path):
                return _content(tar, member)

        return read

    with clear_errors(path):
        members = tar.getmembers()
        # tarfile takes a file that ends within a header for one that ends there.
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end-of-archive mark")
    for member in members:
        if member.isfile():
            yield Entry(member.name, reader(member))


def _stream_entries(path: Path, wanted: Callable, progress: bool) -> Iterator[Entry]:
    with clear_errors(path):
        for name, file in stream_members(path, lambda _: True, progress):
            content = file.read() if wanted(name) else b""
            yield Entry(name, lambda content=content: content)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    with tar.extractfile(member) as file:
        return file.read()


def _drain(stream: IO[bytes]) -> None:
    """Read what follows the tar's end mark, where the compressed file keeps its checksum."""
    while stream.read(1 << 20):
        pass
