"""Files of tensors that anybody may have made, as `torch.save` writes them, read without running what they ask for."""

import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gnfast.errors import InputError
from gnfast.files import open_regular


class _Dtype:
    """In place of numpy's, whose state is believed by whatever reads memory with it: a name alone."""

    def __init__(self, name: str = "", *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        pass


def _number(dtype: _Dtype, content: bytes) -> float | int | None:
    """In place of numpy's scalars: a little-endian number, or None for what is none."""
    code = {"f4": "<f", "f8": "<d", "i4": "<i", "i8": "<q"}.get(dtype.name)
    return struct.unpack(code, content)[0] if code else None


# The papers' codes store their best scores as numpy's numbers, whose reconstruction has had two names.
_NUMBERS: list[tuple[Callable, str]] = [
    (_Dtype, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]


def load_tensors(path: str | os.PathLike) -> Any:
    """What `torch.save` wrote: tensors, plain values, numpy's numbers, and lists and dicts of them, on the CPU.

    Raises:
        InputError: no regular file, damaged, of other content than that, or of tensors that are not plain ones in
            memory; the message begins with the path.
        OSError: the file cannot be opened.
    """
    place = os.fspath(path)
    with open_regular(path) as file:
        try:
            if zipfile.is_zipfile(file):
                _require_stored(file)
            file.seek(0)
            with torch.serialization.safe_globals(_NUMBERS):
                found = torch.load(file, map_location="cpu", weights_only=True)
            for tensor in _tensors(found):
                if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
                    raise ValueError(f"it holds a {type(tensor).__name__} of layout {tensor.layout}")
                if tensor.device.type != "cpu" or tensor.is_quantized:
                    raise ValueError(f"it holds a tensor of {tensor.dtype} on {tensor.device.type}")
        except Exception as error:  # torch.load raises whatever the bytes lead it to.
            raise InputError(
                f"{place}: damaged, or not a file of tensors that can be read safely ({_reason(error)})"
            ) from error
    return found


def is_state(found: Any) -> bool:
    """Whether it is a state dict: names to tensors."""
    return isinstance(found, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())


def _require_stored(file: Any) -> None:
    """PyTorch would unpack what claims to be larger than the file, and stores nothing compressed itself."""
    with zipfile.ZipFile(file) as archive:
        packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
        total = sum(info.file_size for info in archive.infolist())
    if packed or total > os.fstat(file.fileno()).st_size:
        raise ValueError(f"its parts are compressed or overlap: {total:,} bytes in all")


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
