"""Arrays in .npz files: of one that anybody may have made, the headers are checked before its data are read."""

import io
import math
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from gnfast.errors import InputError
from gnfast.io.files import atomic_write, open_regular

# An array may take what its whole file has, and in a compressed file this much: a covariance of 4096 features.
MOST_BYTES = 1 << 27
# Headers of plain arrays have some hundred bytes.
_HEADER_BYTES = 1 << 16
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# NumPy writes no other, and one of them asks for as much memory as its header says.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_arrays(path: str | os.PathLike, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that the file has: numbers, truth values or text, in memory.

    Raises:
        InputError: not a regular file, not one of NumPy's, damaged, or with arrays of objects, or of another size than
            their headers or the file allow; the message begins with the path.
        OSError: the file cannot be opened.
    """
    place = os.fspath(path)
    with open_regular(path) as file:
        most = max(MOST_BYTES, os.fstat(file.fileno()).st_size)
        try:
            with zipfile.ZipFile(file) as archive:
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                return {
                    name: _read(archive, name, members[name], most) for name in names if members.get(name) is not None
                }
        except Exception as error:  # The readers raise whatever the bytes lead them to.
            raise InputError(f"{place}: wanted an .npz file, but {error or type(error).__name__}") from error


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Replaces a file in one step."""
    with atomic_write(Path(path)) as part, part.open("wb") as file:
        np.savez(file, **arrays)


def _read(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo, most: int) -> np.ndarray:
    if info.compress_type not in _COMPRESSIONS:
        raise ValueError(f"{name} is compressed in another way than NumPy does it")
    with archive.open(info) as member:
        head = io.BytesIO(member.read(_HEADER_BYTES))
        version = np.lib.format.read_magic(head)
        if version not in _READERS:
            raise ValueError(f"{name} has version {version} of the format")
        shape, fortran, dtype = _READERS[version](head)
        size = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "biufcSU" or min(shape, default=0) < 0:
            raise ValueError(f"{name} holds {dtype} of shape {shape}, wanted numbers or text")
        if size > most:
            raise ValueError(f"{name} claims {size:,} bytes, wanted at most {most:,}")
        if info.file_size != head.tell() + size:
            raise ValueError(f"{name} has {info.file_size - head.tell():,} bytes, its header says {size:,}")
        array = np.empty(size, np.uint8)
        start = head.readinto(array)
        while start < size:
            if not (read := member.readinto(array[start:])):
                raise ValueError(f"{name} ends early")
            start += read
        # The checksum is compared where the data end.
        member.read(1)
    return array.view(dtype).reshape(shape, order="F" if fortran else "C") if size else np.empty(shape, dtype)
