"""The files of a folder, zip or tar as (name, bytes), not unpacked, and in little memory whatever they say."""

import bz2
import gzip
import io
import lzma
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm

from gnfast.data.dataset import DataError
from gnfast.data.files import open_source, printable, walk_files
from gnfast.errors import InputError
from gnfast.io.files import open_regular

ENTRY_BYTES = 1 << 27
"""No image file is larger."""

# Of the others zipfile decompresses 4 KiB at once, which may become gigabytes.
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
# Longer names in a tar, and larger tables of attributes, are not read: tarfile holds them in memory as a whole.
_TAR_HEADER = 1 << 20
# Encoded images hardly compress: what grows by more than this, beyond the first 256 MiB, was made to fill a disk.
_GROWTH = 200
_ALLOWED = 1 << 28
_ENTRY_MEMORY = 2048
_IN_MEMORY = 1 << 26


class EntryError(Exception):
    """One file of many cannot be read; the message is the reason."""


class Entry(NamedTuple):
    """A file inside a folder or archive.

    Attributes:
        name: relative, with forward slashes; bytes that are not text are written as \\xHH.
        read: gives its bytes, or raises `EntryError` where they are too many or not a regular file's, OSError where a
            file of a folder cannot be read, DataError where the archive is damaged.
    """

    name: str
    read: Callable[[], bytes]


@contextmanager
def open_entries(
    path: Path, wanted: Callable[[str], bool], progress: bool = True, limit: int | None = None
) -> Iterator[list[Entry]]:
    """The files under `path`, sorted by name; of a name that comes twice in an archive, the last.

    Folders, zips and plain tars are read when an entry is. A compressed tar has no random access: it is read once, from
    its start to its end, and the bytes of the wanted entries stay in memory, or from 64 MiB on in a temporary file.

    Args:
        path: a folder, a zip, or a tar (plain, gz, bz2 or xz); the content decides, not the name.
        wanted: which names will be read; reading another entry of a compressed tar gives b"".
        progress: show a bar while a compressed tar is read, on a terminal.
        limit: how many bytes a file may have; by default `ENTRY_BYTES`.

    Raises:
        DataError: `path` is none of these, or is truncated or damaged.
    """
    limit = limit or ENTRY_BYTES
    with ExitStack() as stack:
        if path.is_dir():
            entries = _in_folder(path, limit)
        else:
            file = stack.enter_context(open_source(path))
            if _decompressor(file):
                kept = stack.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY))
                entries = _in_stream(path, wanted, progress, limit, kept)
            elif file.read(2) == b"PK":
                with clear_errors(path):
                    archive = stack.enter_context(zipfile.ZipFile(file))
                entries = _in_zip(path, archive, limit)
            else:
                file.seek(0)
                try:
                    tar = stack.enter_context(tarfile.open(fileobj=file, mode="r:", tarinfo=_Member))
                except (tarfile.TarError, ValueError):
                    raise DataError(f"{path} is no folder, zip, tar, Parquet file or LMDB") from None
                entries = _in_tar(path, tar, limit)
        by_name = {entry.name: entry for entry in entries}
        yield [by_name[name] for name in sorted(by_name)]


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
            # What follows the end mark is read too: there the compressed file keeps its checksum.
            while stream.read(1 << 20):
                pass
            bar.update(size - bar.n)


def first_file(path: Path) -> str:
    """The name of the first file in a tar archive; "" when `path` is not a tar, has none, or is damaged there."""
    try:
        return next(stream_members(path, lambda _: True, progress=False), ("",))[0]
    except DataError:
        return ""


def first_files(path: Path, count: int) -> list[str]:
    """The names of the files among the first members of a tar that is not compressed; none of anything else."""
    try:
        with open_source(path) as file, tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as tar:
            return [printable(member.name) for member in islice(tar, count) if member.isfile()]
    except (OSError, ValueError, EOFError, tarfile.TarError):
        return []


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """What readers raise on damaged input as one `DataError`, for reading from what `stream_members` yields."""
    try:
        yield
    except (DataError, EntryError):
        raise
    except Exception as error:  # The readers raise nearly anything.
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


# Dictionaries of xz -9 have 64 MiB.
_new_xz = partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, memlimit=1 << 28)


class _Xz(io.RawIOBase):
    """A file compressed by xz, read in bounded memory: `lzma.open` gives it what its header asks for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = _new_xz()

    def read(self, size: int = -1) -> bytes:
        while True:
            more = b""
            if self._decoder.eof:
                more = (self._decoder.unused_data + self._file.read(1 << 16)).lstrip(b"\0")
                if not more:
                    return b""
                self._decoder = _new_xz()
            elif self._decoder.needs_input and not (more := self._file.read(1 << 16)):
                raise EOFError("it ends before its end mark")
            if data := self._decoder.decompress(more, size):
                return data


_COMPRESSED = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": _Xz,
}


def _decompressor(file: IO[bytes]) -> Callable | None:
    """What opens a compressed stream that starts at the start of `file`, or None where it is not compressed."""
    head = file.read(6)
    file.seek(0)
    return next((how for magic, how in _COMPRESSED.items() if head.startswith(magic)), None)


def require_size(size: int, limit: int) -> None:
    """Raises `EntryError` for an entry of more bytes than `limit`."""
    if size > limit:
        raise EntryError(f"larger than {limit >> 20} MiB")


def _whole(file: IO[bytes], limit: int) -> bytes:
    with file:
        content = file.read(limit + 1)
    require_size(len(content), limit)
    return content


def _in_folder(root: Path, limit: int) -> Iterator[Entry]:
    def read(path: Path) -> bytes:
        try:
            return _whole(open_regular(path), limit)
        except InputError as error:
            raise EntryError(str(error).removeprefix(f"{path}: ")) from None

    for file in walk_files(root):
        yield Entry(printable(file), partial(read, root / file))


def _in_zip(path: Path, archive: zipfile.ZipFile, limit: int) -> Iterator[Entry]:
    def read(member: zipfile.ZipInfo) -> bytes:
        require_size(member.file_size, limit)
        if member.compress_type not in _ZIP_METHODS:
            method = zipfile.compressor_names.get(member.compress_type, member.compress_type)
            raise DataError(f"{path}: {member.filename} is compressed by {method}; pack it with deflate or not at all")
        with clear_errors(path):
            return _whole(archive.open(member), limit)

    for member in archive.infolist():
        if not member.filename.endswith("/"):
            # Some Windows tools write backslashes, against the format.
            yield Entry(printable(member.filename.replace("\\", "/")), partial(read, member))


def _in_tar(path: Path, tar: tarfile.TarFile, limit: int) -> Iterator[Entry]:
    def read(member: tarfile.TarInfo) -> bytes:
        require_size(member.size, limit)
        with clear_errors(path):
            return _whole(tar.extractfile(member), limit)

    with clear_errors(path):
        members = tar.getmembers()
        # tarfile takes a file that ends within a header for one that ends there.
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end-of-archive mark")
    for member in members:
        if member.isfile():
            yield Entry(printable(member.name), partial(read, member))


def _in_stream(path: Path, wanted: Callable, progress: bool, limit: int, kept: IO[bytes]) -> Iterator[Entry]:
    """What a compressed tar holds, with the bytes of the wanted entries in the temporary file `kept`."""

    def read(at: int, size: int) -> bytes:
        require_size(size, limit)
        kept.seek(at)
        return kept.read(size)

    most, taken, at = _ALLOWED + _GROWTH * path.stat().st_size, 0, 0
    for name, file in stream_members(path, lambda _: True, progress):
        content = b""
        if wanted(name):
            with clear_errors(path):
                content = file.read(limit + 1)
        yield Entry(name, partial(read, at, len(content)))
        if len(content) <= limit:
            try:
                kept.write(content)
            except OSError as error:
                raise DataError(
                    f"{tempfile.gettempdir()} cannot hold the images in {path} ({error.strerror}): "
                    f"set TMPDIR to another folder, or unpack the archive"
                ) from error
            at += len(content)
        # An entry without content takes memory too.
        taken += len(content) + len(name) + _ENTRY_MEMORY
        if taken > most:
            raise DataError(f"{path} unpacks to more than {_GROWTH} times its size, which images do not")
