"""Checkpoints that survive being killed: written beside, flushed to disk, renamed; the one before is kept.

A file is a dict of tensors and plain values, read with `torch.load(weights_only=True)`, and a zip archive whose
checksums and sizes are verified before it is believed: whatever its bytes are, it takes no more memory than its own
size.
"""

import os
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gnfast.files import atomic_write, open_regular

KEEP = 2
# A description of tensors takes a hundred bytes for each.
DESCRIPTION = 16 << 20
_NAME = re.compile(r"step-(\d{9})\.pt")


class RunError(RuntimeError):
    """A run folder that this command cannot continue or read; the message says why and what to do."""


def save(folder: Path, step: int, state: dict[str, Any], best: bool = False) -> Path:
    """Writes `state` as the checkpoint of `step` and deletes all but the newest two.

    Args:
        folder: the run's checkpoint folder; made if missing.
        step: generator updates done.
        state: tensors, numbers, strings, and lists and dicts of them: `preset`, `data` (a fingerprint) and `state`, a
            dict with `step` and the weights `generator`, `critic` and `ema`.
        best: write it as the best so far instead, beside those; the one before goes.

    Returns:
        The path of the file, which is complete on disk.
    """
    path = folder / ("best.pt" if best else f"step-{step:09d}.pt")
    # Into a file of ours: by itself torch.save does not say that the disk is full.
    with atomic_write(path) as part, part.open("wb") as file:
        torch.save(state, file)
        file.flush()
    for old in paths(folder)[KEEP:]:
        old.unlink()
    return path


def load_newest(folder: Path, warn: Any = print) -> dict[str, Any] | None:
    """The newest readable checkpoint, on the CPU, or None if there is no checkpoint at all.

    Args:
        folder: the run's checkpoint folder, which need not exist.
        warn: called with one line for each newer file that is damaged.

    Raises:
        RunError: there are checkpoints and none can be read.
    """
    found = paths(folder)
    for path in found:
        try:
            return _load(path)
        except Exception as error:  # torch.load raises whatever the damaged bytes lead it to.
            reason = _first_line(error).removeprefix(f"{path}: ")
            warn(f"warning: checkpoint {path} is damaged ({reason}); trying the one before")
    if found:
        raise RunError(f"{folder}: none of the {len(found)} checkpoints can be read; start again in another --run-dir")
    return None


def paths(folder: Path) -> list[Path]:
    """The checkpoint files in a folder, newest first."""
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted((f for f in files if _NAME.fullmatch(f.name)), reverse=True)


def _load(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        sizes = _sizes(file)
        # Without their data first: what a file says of its tensors need not be true.
        for tensor in _tensors(_read(file, "meta")):
            _require_stored(tensor, sizes)
        content = _read(file, "cpu")
    _require_run(content)
    return content


def _read(file: BinaryIO, device: str) -> Any:
    file.seek(0)
    return torch.load(file, map_location=device, weights_only=True)


def _sizes(file: BinaryIO) -> set[int]:
    """The sizes in bytes of the data in an archive that is whole."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        length = os.fstat(file.fileno()).st_size
        if any(e.compress_type for e in entries) or sum(e.file_size for e in entries) > length:
            raise ValueError("its parts are compressed or overlap")
        if any(e.file_size > DESCRIPTION for e in entries if e.filename.endswith("data.pkl")):
            raise ValueError("its description is too long")
        orders = [e for e in entries if e.filename.endswith("/byteorder")]
        if any(e.file_size > 16 or archive.read(e).decode("ascii", "replace") != sys.byteorder for e in orders):
            # Swapping the bytes of tensors without data ends the process.
            raise ValueError("its bytes are in another order than this machine's")
        # torch.load does not verify the checksums that torch.save writes.
        if damaged := archive.testzip():
            raise OSError(f"checksum of {damaged} does not match")
        return {entry.file_size for entry in entries}


def _tensors(content: Any) -> Iterator[Tensor]:
    waiting = [content]
    seen = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def _require_run(content: Any) -> None:
    """That a checkpoint has what every reader takes for granted; whether it fits a network, that network tells."""
    kinds = {"preset": str, "data": str, "state": dict}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(f"it is not one of a run: it lacks {', '.join(kinds)}")
    state = content["state"]
    if type(state.get("step")) is not int or state["step"] < 0:
        raise ValueError("it is not one of a run: it has no step")
    for name in ("generator", "critic", "ema"):
        weights = state.get(name)
        if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
            raise ValueError(f"it is not one of a run: it has no {name}")


def _require_stored(tensor: Tensor, sizes: set[int]) -> None:
    """That each element has a place of its own in the data that is there."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError(f"it has a tensor of another layout than strided ({tensor.layout})")
    held, item = tensor.untyped_storage().nbytes(), tensor.element_size()
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    end = tensor.storage_offset() + sum((size - 1) * stride for size, stride in steps) + 1
    if tensor.numel() and (held not in sizes or end * item > held or tensor.numel() * item > held):
        raise ValueError(f"it has a tensor of {tuple(tensor.shape)} with {held} bytes of data")


def _first_line(error: Exception) -> str:
    """Of torch's long messages the first sentence, which says what is wrong."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
