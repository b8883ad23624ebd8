"""Checkpoints that survive being killed: written beside, flushed to disk, renamed; the one before is kept.

A file is a dict of tensors and plain values, read with `torch.load(weights_only=True)`, and a zip archive whose
checksums are verified before it is believed.
"""

import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from gnfast.files import atomic_write

KEEP = 2
_NAME = re.compile(r"step-(\d{9})\.pt")


class RunError(RuntimeError):
    """A run folder that this command cannot continue or read; the message says why and what to do."""


def save(folder: Path, step: int, state: dict[str, Any], best: bool = False) -> Path:
    """Writes `state` as the checkpoint of `step` and deletes all but the newest two.

    Args:
        folder: the run's checkpoint folder; made if missing.
        step: generator updates done.
        state: tensors, numbers, strings, and lists and dicts of them.
        best: write it as the best so far instead, beside those; the one before goes.

    Returns:
        The path of the file, which is complete on disk.
    """
    path = folder / ("best.pt" if best else f"step-{step:09d}.pt")
    # By a file of ours: torch.save does not say of its own that the disk is full.
    with atomic_write(path) as part, part.open("wb") as file:
        torch.save(state, file)
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
            warn(f"warning: checkpoint {path} is damaged ({_first_line(error)}); trying the one before")
    if found:
        raise RunError(f"{folder}: none of the {len(found)} checkpoints can be read; start again in another --run-dir")
    return None


def paths(folder: Path) -> list[Path]:
    """The checkpoint files in a folder, newest first."""
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted((f for f in files if _NAME.fullmatch(f.name)), reverse=True)


def _load(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        # torch.load does not verify the checksums that torch.save writes.
        damaged = archive.testzip()
    if damaged is not None:
        raise OSError(f"checksum of {damaged} does not match")
    return torch.load(path, map_location="cpu", weights_only=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
