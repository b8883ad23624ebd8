"""Checkpoints that survive a kill: each is written next to the others, flushed to disk and renamed, and two are kept.

A file is a dict of tensors and plain values, which `gnfast.io.tensors` reads without believing what it says of itself.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gnfast.errors import first_line
from gnfast.io.files import atomic_write
from gnfast.io.tensors import is_state, load_tensors

KEEP = 2
BEST = "best.pt"
_NAME = re.compile(r"step-(\d{9})\.pt")


class RunError(RuntimeError):
    """A run folder that this command cannot continue or read; the message says why and what to do."""


class LostError(RunError):
    """Another process of the run has ended."""


class Place(NamedTuple):
    """A checkpoint of a run.

    Attributes:
        run: the run folder.
        name: `best`, or `step-000000010`; empty for the newest that can be read.
    """

    run: Path
    name: str = ""

    def output(self, name: str) -> Path:
        """Where a command writes if nobody says: RUN/sample.png, or RUN/sample-best.png of another than the newest."""
        path = self.run / name
        return path.with_stem(f"{path.stem}-{self.name}") if self.name else path


def locate(source: Path, best: bool = False) -> Place | None:
    """The checkpoint that a command is to take; whether it can be read, `gnfast.train.saved` tells.

    Args:
        source: a run folder, or RUN/checkpoints/best.pt or step-….pt.
        best: the best by Fréchet distance of a run folder, not the newest.

    Returns:
        The place; None where `source` is no folder and no run's checkpoint.

    Raises:
        RunError: the best of something that is no run folder.
    """
    if source.is_dir():
        return Place(source, Path(BEST).stem if best else "")
    if best:
        raise RunError(f"--best: got {source}, wanted a run folder, which keeps its best checkpoint")
    folder = source.absolute().parent
    is_named = source.name == BEST or _NAME.fullmatch(source.name)
    is_kept = folder.name == "checkpoints" and (folder.parent / "config.json").exists()
    return Place(folder.parent, source.stem) if is_named and is_kept else None


def run_of(source: Path) -> Path:
    """The run folder of a run or of a checkpoint in it; `source` itself where it is neither."""
    return (locate(source) or Place(source)).run


def save(folder: Path, step: int, state: dict[str, Any], best: bool = False) -> Path:
    """Writes `state` as the checkpoint of `step` and deletes all but the newest two.

    Args:
        folder: the run's checkpoint folder; made if missing.
        step: generator updates done.
        state: tensors, numbers, strings, and lists and dicts of them: `preset`, `data` (a fingerprint) and `state`, a
            dict with `step` and the weights `generator`, `critic` and `ema`.
        best: write it as the best so far instead, next to those; the one before goes.

    Returns:
        The path of the file, which is complete on disk.
    """
    path = folder / (BEST if best else f"step-{step:09d}.pt")
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
        warn: called with one line for each newer file that is damaged, and where the best one stands in for all others.

    Raises:
        RunError: there are checkpoints and none can be read.
    """
    best = folder / BEST
    found = [*paths(folder), *([best] if best.exists() else [])]
    for path in found:
        try:
            content = _load(path)
        except Exception as error:  # torch.load raises whatever the damaged bytes lead it to.
            warn(f"warning: checkpoint {path} is damaged ({_reason(path, error)}); trying the one before")
            continue
        if path == best:
            step = content["state"]["step"]
            warn(f"warning: {folder} has no step-*.pt that can be read; taking {BEST}, of step {step}")
        return content
    if found:
        raise RunError(f"{folder}: none of the {len(found)} checkpoints can be read; start again in another --run-dir")
    return None


def load(path: Path) -> dict[str, Any]:
    """One checkpoint, on the CPU.

    Raises:
        RunError: it is not there, or it is damaged.
    """
    try:
        return _load(path)
    except FileNotFoundError as error:
        raise RunError(f"{path}: there is no such checkpoint") from error
    except Exception as error:  # As above.
        raise RunError(f"{path} is damaged ({_reason(path, error)})") from error


def paths(folder: Path) -> list[Path]:
    """The checkpoint files in a folder, newest first."""
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted((f for f in files if _NAME.fullmatch(f.name)), reverse=True)


def last_step(folder: Path) -> int:
    """The step of the newest checkpoint in a folder, damaged or not; 0 if there is none."""
    return max((int(path.stem.removeprefix("step-")) for path in paths(folder)), default=0)


def _load(path: Path) -> dict[str, Any]:
    """A checkpoint with what every reader takes for granted; whether it fits a network, that network tells."""
    content = load_tensors(path, dense=True)
    kinds = {"preset": str, "data": str, "state": dict}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(f"it is not one of a run: it lacks {', '.join(kinds)}")
    state = content["state"]
    if type(state.get("step")) is not int or state["step"] < 0:
        raise ValueError("it is not one of a run: it has no step")
    for name in ("generator", "critic", "ema"):
        if not is_state(state.get(name)):
            raise ValueError(f"it is not one of a run: it has no {name}")
    return content


def _reason(path: Path, error: Exception) -> str:
    return first_line(error.__cause__ or error).removeprefix(f"{path}: ")
