"""The files of a folder, zip or tar as (name, bytes), not unpacked, and in little memory whatever they say."""

import bz2
import errno
import gzip
import io
import lzma
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from tqdm import tqdm

from gnfast.data.dataset import DataError
from gnfast.data.files import open_source, printable, walk_files
from gnfast.errors import InputError
from gnfast.io.files import open_regular

ENTRY_BYTES = 1 << 27
"""No image file is larger."""

# What the readers raise on damaged input. zipfile adds RuntimeError for encryption, NotImplementedError for methods.
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, struct.error, EOFError, OSError)
_DAMAGE += (RuntimeError, ValueError, OverflowError, IndexError, KeyError, MemoryError)

# Of the others zipfile decompresses 4 KiB at once, which may become gigabytes.
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
# Dictionaries of xz -9 have 64 MiB.
_XZ_MEMORY = 1 << 28
# Longer names in a tar, and larger tables of attributes, are not read: tarfile holds them in memory as a whole.
_TAR_HEADER = 1 << 20
# Encoded images hardly compress: what grows by more than this, beyond the first 256 MiB, was made to fill a disk.
_GROWTH = 200
_ALLOWED = 1 << 28
_ENTRY_MEMORY = 2048
_IN_MEMORY = 1 << 26


class EntryError(Exception):
    """One file of many cannot be read; the message is the reason."""


@dataclass(frozen=True)
class Entry:
    """A file inside a folder or archive.

    Args:
        name: relative, with forward slashes; bytes that are not text are written as \\xHH.
        size: what its header says, in bytes; 0 where that is not known before it is read.
        start: its first n bytes, or all where it is shorter.
    """

    name: str
    size: int
    start: Callable[[int], bytes]

    def read(self, limit: int = ENTRY_BYTES) -> bytes:
        """All of its bytes.

        Raises:
            EntryError: they are more than `limit`, or not a regular file's.
            OSError: a file of a folder cannot be read.
            DataError: the archive is damaged.
        """
        content = b"" if self.size > limit else self.start(limit + 1)
        if max(self.size, len(content)) > limit:
            raise EntryError(f"larger than {limit >> 20} MiB")
        return content


@contextmanager
def open_entries(path: Path, wanted: Callable[[str], bool], progress: bool = True) -> Iterator[list[Entry]]:
    """The files under `path`, sorted by name; of a name that comes twice in an archive, the last.

    Folders, zips and plain tars are read when an entry is. A compressed tar has no random access: it is read once, from
    its start to its end, and the bytes of the wanted entries stay in memory, or from 64 MiB on in a temporary file.

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
    with open_source(path) as file:
        decompress = _decompressor(file)
        head = file.read(2)
    if decompress is not None:
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as kept:
            yield _sorted(_stream_entries(path, wanted, progress, kept))
    elif head == b"PK":
        with clear_errors(path):
            archive = zipfile.ZipFile(path)
        with archive:
            yield _sorted(_zip_entries(path, archive))
    else:
        with ExitStack() as stack:
            try:
                tar = stack.enter_context(tarfile.open(path, "r:", tarinfo=_Member))
            except (tarfile.TarError, ValueError):
                raise DataError(f"{path} is not a folder, zip or tar archive") from None
            yield _sorted(_tar_entries(path, tar))


def stream_members(path: Path, wanted: Callable[[str], bool], progress: bool = True) -> Iterator[tuple[str, IO[bytes]]]:
    """The wanted files of a tar (plain, gz, bz2 or xz) or folder, each opened before the next is looked for.

    For members that are too large for memory; read them within `clear_errors`. Names and `progress` are as for
    `open_entries`.

    Raises:
        DataError: the archive is truncated or damaged, or a wanted file is not a regular one.
    """
    if path.is_dir():
        for file in walk_files(path):
            name = printable(file)
            if wanted(name):
                with open_source(path / file) as content:
                    yield name, content
        return
    size = path.stat().st_size
    bar = tqdm(total=size, desc=f"reading {path.name}", unit="B", unit_scale=True, disable=None if progress else True)
    with clear_errors(path), bar, open_source(path) as raw:
        decompress = _decompressor(raw)
        # tarfile's own decompressing streams take a truncated file for a finished one; these modules raise EOFError.
        with decompress(raw) if decompress else raw as stream:
            with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tar:
                for member in tar:
                    # The list of members that have passed would grow without end.
                    tar.members = []
                    name = printable(member.name)
                    if member.isfile() and wanted(name):
                        with tar.extractfile(member) as file:
                            yield name, file
                    bar.update(raw.tell() - bar.n)
            _drain(stream)
            bar.update(size - bar.n)


def first_member(path: Path) -> str:
    """The name of a tar archive's first member; "" when `path` is not a tar, has none, or is damaged there."""
    try:
        with open_source(path) as raw:
            decompress = _decompressor(raw)
            stream = decompress(raw) if decompress else raw
            with stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tar:
                member = tar.next()
                return member.name if member else ""
    except _DAMAGE:
        return ""


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """What readers raise on damaged input as one `DataError`, for reading from what `stream_members` yields."""
    try:
        yield
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"archive {path} is truncated or damaged: {error or type(error).__name__}") from error


class _Member(tarfile.TarInfo):
    """A member of a tar whose name fits into memory."""

    _EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
    _EXTENDED += (tarfile.SOLARIS_XHDTYPE,)

    @classmethod
    def frombuf(cls, *arguments: object) -> tarfile.TarInfo:
        member = super().frombuf(*arguments)
        if member.type in cls._EXTENDED and not 0 <= member.size <= _TAR_HEADER:
            raise tarfile.ReadError(f"a name or table of attributes of {member.size} bytes")
        return member


class _Xz(io.RawIOBase):
    """A file compressed by xz, read in bounded memory: `lzma.open` gives it what its header asks for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = self._new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while True:
            more = b""
            if self._decoder.eof:
                more = (self._decoder.unused_data + self._file.read(1 << 16)).lstrip(b"\0")
                if not more:
                    return 0
                self._decoder = self._new()
            elif self._decoder.needs_input and not (more := self._file.read(1 << 16)):
                raise EOFError("it ends before its end mark")
            if data := self._decoder.decompress(more, len(buffer)):
                buffer[: len(data)] = data
                return len(data)

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


_COMPRESSED = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lambda file: io.BufferedReader(_Xz(file), 1 << 17),
}


def _decompressor(file: IO[bytes]) -> Callable | None:
    """What opens a compressed stream that starts at the start of `file`, or None where it is not compressed."""
    head = file.read(6)
    file.seek(0)
    return next((how for magic, how in _COMPRESSED.items() if head.startswith(magic)), None)


def _sorted(entries: Iterator[Entry]) -> list[Entry]:
    by_name = {entry.name: entry for entry in entries}
    return [by_name[name] for name in sorted(by_name)]


def _folder_entries(root: Path) -> Iterator[Entry]:
    for file in walk_files(root):
        yield Entry(printable(file), 0, partial(_start_of_file, root / file))


def _start_of_file(path: Path, count: int) -> bytes:
    try:
        with open_regular(path) as content:
            return content.read(count)
    except InputError as error:
        raise EntryError(str(error).removeprefix(f"{path}: ")) from None


def _zip_entries(path: Path, archive: zipfile.ZipFile) -> Iterator[Entry]:
    def start(member: zipfile.ZipInfo, count: int) -> bytes:
        if member.compress_type not in _ZIP_METHODS:
            method = zipfile.compressor_names.get(member.compress_type, member.compress_type)
            raise DataError(f"{path}: {member.filename} is compressed by {method}; pack it with deflate or not at all")
        with clear_errors(path), archive.open(member) as file:
            return file.read(count)

    for member in archive.infolist():
        if not member.filename.endswith("/"):
            # Some Windows tools write backslashes, against the format.
            yield Entry(printable(member.filename.replace("\\", "/")), member.file_size, partial(start, member))


def _tar_entries(path: Path, tar: tarfile.TarFile) -> Iterator[Entry]:
    def start(member: tarfile.TarInfo, count: int) -> bytes:
        with clear_errors(path), tar.extractfile(member) as file:
            return file.read(count)

    with clear_errors(path):
        members = tar.getmembers()
        # tarfile takes a file that ends within a header for one that ends there.
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end-of-archive mark")
    for member in members:
        if member.isfile():
            yield Entry(printable(member.name), member.size, partial(start, member))


def _stream_entries(path: Path, wanted: Callable, progress: bool, kept: IO[bytes]) -> Iterator[Entry]:
    """The entries, with the bytes of the wanted ones in the temporary file `kept`."""

    def start(at: int, size: int, count: int) -> bytes:
        kept.seek(at)
        return kept.read(min(count, size))

    most, taken, at = _ALLOWED + _GROWTH * path.stat().st_size, 0, 0
    for name, file in stream_members(path, lambda _: True, progress):
        content = b""
        if wanted(name):
            with clear_errors(path):
                content = file.read(ENTRY_BYTES + 1)
        yield Entry(name, len(content), partial(start, at, len(content)))
        if len(content) <= ENTRY_BYTES:
            _append(kept, content, path)
            at += len(content)
        # An entry without content takes memory too.
        taken += len(content) + len(name) + _ENTRY_MEMORY
        if taken > most:
            raise DataError(f"{path} unpacks to more than {_GROWTH} times its size, which images do not")


def _append(kept: IO[bytes], content: bytes, path: Path) -> None:
    try:
        kept.write(content)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        where = tempfile.gettempdir()
        raise DataError(
            f"no room in {where} for the images in {path}: set TMPDIR to another folder, or unpack the archive"
        ) from error


def _drain(stream: IO[bytes]) -> None:
    """Read what follows the tar's end mark, where the compressed file keeps its checksum."""
    while stream.read(1 << 20):
        pass
