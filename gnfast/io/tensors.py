"""Files of tensors that anybody may have made, as `torch.save` writes them, read without running what they ask for."""

import os
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gnfast.errors import InputError
from gnfast.io.files import open_regular

# A description of tensors takes a hundred bytes for each.
_DESCRIPTION = 16 << 20


class _Dtype:
    """In place of numpy's, whose state is believed by whatever reads memory with it: a name alone."""

    def __init__(self, name: str = "", *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        pass


def _number(dtype: _Dtype, content: bytes) -> float | int | None:
    """In place of numpy's scalars: a little-endian number, or None for anything else."""
    code = {"f4": "<f", "f8": "<d", "i4": "<i", "i8": "<q"}.get(dtype.name)
    return struct.unpack(code, content)[0] if code else None


# The papers' codes store their best scores as numpy's numbers, whose reconstruction has had two names.
_NUMBERS: list[tuple[Callable, str]] = [
    (_Dtype, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]


def load_tensors(path: str | os.PathLike, *, dense: bool = False) -> Any:
    """What `torch.save` wrote: tensors, plain values, numpy's numbers, and lists and dicts of them, on the CPU.

    Args:
        dense: take archives alone, and no tensors whose elements share memory: these can be larger than the file.

    Raises:
        InputError: not a regular file, damaged, of other content than that, or of tensors that are not plain ones in
            memory; the message begins with the path.
        OSError: the file cannot be opened.
    """
    with open_regular(path) as file:
        try:
            # Files of PyTorch before 1.6 are not archives.
            if dense or zipfile.is_zipfile(file):
                sizes = _sizes(file)
                # Without their data first: what a file says of its tensors need not be true.
                for tensor in _tensors(_read(file, "meta")):
                    _require_stored(tensor, sizes, dense)
            found = _read(file, "cpu")
            for tensor in _tensors(found):
                _require_plain(tensor)
                if tensor.is_meta:
                    raise ValueError("it holds a tensor without data")
        except Exception as error:  # torch.load raises whatever the bytes lead it to.
            raise InputError(
                f"{os.fspath(path)}: damaged, or not a file of tensors that can be read safely ({_reason(error)})"
            ) from error
    return found


def is_state(found: Any) -> bool:
    """Whether it is a state dict: names to tensors."""
    return isinstance(found, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())


def _read(file: BinaryIO, device: str) -> Any:
    file.seek(0)
    with torch.serialization.safe_globals(_NUMBERS):
        return torch.load(file, map_location=device, weights_only=True)


def _sizes(file: BinaryIO) -> set[int]:
    """The sizes in bytes of the data in an archive that is whole and takes no more memory than the file's size."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        total = sum(entry.file_size for entry in entries)
        # PyTorch would unpack what claims to be larger than the file, and stores nothing compressed itself.
        if any(entry.compress_type for entry in entries) or total > os.fstat(file.fileno()).st_size:
            raise ValueError(f"its parts are compressed or overlap: {total:,} bytes in all")
        if any(entry.file_size > _DESCRIPTION for entry in entries if entry.filename.endswith("data.pkl")):
            raise ValueError("its description is too long")
        orders = [entry for entry in entries if entry.filename.endswith("/byteorder")]
        if any(e.file_size > 16 or archive.read(e).decode("ascii", "replace") != sys.byteorder for e in orders):
            # Swapping the bytes of tensors without data ends the process.
            raise ValueError("its bytes are in another order than this machine's")
        # torch.load does not verify the checksums that torch.save writes.
        if damaged := archive.testzip():
            raise ValueError(f"checksum of {damaged} does not match")
        return {entry.file_size for entry in entries}


def _require_stored(tensor: Tensor, sizes: set[int], dense: bool) -> None:
    """That each element has a place in the data that is there, and one of its own if `dense`."""
    _require_plain(tensor)
    held, item = tensor.untyped_storage().nbytes(), tensor.element_size()
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    end = tensor.storage_offset() + sum((size - 1) * stride for size, stride in steps) + 1
    if tensor.numel() and (held not in sizes or max(end, dense * tensor.numel()) * item > held):
        raise ValueError(f"it holds a tensor of {tuple(tensor.shape)} with {held} bytes of data")


def _require_plain(tensor: Tensor) -> None:
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
        raise ValueError(f"it holds a {type(tensor).__name__} of layout {tensor.layout}")
    if tensor.device.type not in ("cpu", "meta") or tensor.is_quantized:
        raise ValueError(f"it holds a tensor of {tensor.dtype} on {tensor.device.type}")


def _tensors(found: Any) -> Iterator[Tensor]:
    """Each tensor in lists and dicts, once: what refers to itself ends, and what refers to the same twice is short."""
    waiting, seen = [found], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value


def _reason(error: Exception) -> str:
    """What PyTorch found, without its advice to load the file nevertheless."""
    text = str(error)
    found = re.search(
        r"(Unsupported global: .*?|Trying to load unsupported .*?) (?:was|whose)|WeightsUnpickler error: (.*)", text
    )
    said = (found[1] or found[2]) if found else text.strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
