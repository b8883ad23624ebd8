"""Arrays in .npz files, of which anybody may have made one."""

import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from gnfast.errors import InputError
from gnfast.io.files import atomic_write, open_regular

# An array may take what its whole file has, and in a compressed file this much: a covariance of 4096 features.
MOST_BYTES = 1 << 27
# NumPy writes no other, and one of them asks for as much memory as its header says.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_arrays(path: str | os.PathLike, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that the file has, in memory.

    Raises:
        InputError: not a regular file, not one of NumPy's, damaged, or with arrays of objects, or of another size than
            their headers or the file allow; the message begins with the path.
        OSError: the file cannot be opened.
    """
    with open_regular(path) as file:
        most = max(MOST_BYTES, os.fstat(file.fileno()).st_size)
        try:
            with zipfile.ZipFile(file) as archive:
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                return {name: _read(archive, members[name], most) for name in names if name in members}
        except Exception as error:  # The readers raise whatever the bytes lead them to.
            reason = str(error) or type(error).__name__
            raise InputError(f"{os.fspath(path)}: wanted an .npz file, but {reason}") from error


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Replaces a file in one step."""
    with atomic_write(Path(path)) as part, part.open("wb") as file:
        np.savez(file, **arrays)


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> np.ndarray:
    if info.compress_type not in _COMPRESSIONS:
        raise ValueError(f"{info.filename} is compressed in another way than NumPy does it")
    if info.file_size > most:
        raise ValueError(f"{info.filename} claims {info.file_size:,} bytes, wanted at most {most:,}")
    with archive.open(info) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        # The checksum is compared where the data end.
        if member.read(1):
            raise ValueError(f"{info.filename} is longer than its header says")
    return array
