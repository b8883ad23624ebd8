"""Continuing a run where it stopped: whether a run folder is this run's, and what its last checkpoint holds."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gnfast.config.config import Config, decisive, differences
from gnfast.io.numbers import counted
from gnfast.io.rows import Row, plain_entries, read_rows
from gnfast.runs import checkpoint, lock
from gnfast.runs.checkpoint import RunError
from gnfast.runs.record import DamagedFileError, read_settings
from gnfast.train.logs import METRICS
from gnfast.train.state import State


def open_run(folder: Path, preset: str, config: Config, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The checkpoint of a run folder to continue from, or None for a new run; writes nothing.

    Raises:
        RunError: the folder is not a run's, or of another preset or other settings.
    """
    checkpoints = folder / "checkpoints"
    if folder.is_dir() and os.listdir(folder) not in ([], [lock.NAME]):
        try:
            found, settings = read_settings(folder)
        except DamagedFileError as error:
            # A power cut leaves an empty file. A checkpoint knows preset and settings as well.
            if (folder / "config.json").stat().st_size and not checkpoint.paths(checkpoints):
                raise RunError(f"{error}; choose another --run-dir") from error
            warn(f"warning: {error}; it is written again")
        except RunError as error:
            raise RunError(f"{error}; choose another --run-dir") from error
        else:
            _require_same(folder, found, settings, preset, config)
    saved = checkpoint.load_newest(checkpoints, warn)
    if saved is None:
        if last := max((row["step"] for row in read_rows(folder / METRICS)), default=0):
            warn(f"warning: {folder} has rows of {counted(last, 'step')} and no checkpoint: it starts again")
    else:
        # Checkpoints of earlier versions have no settings.
        settings = saved.get("config", decisive(config))
        _require_same(folder, saved["preset"], settings if isinstance(settings, dict) else {}, preset, config)
    return saved


def require_same_images(folder: Path, saved: dict[str, Any] | None, data: str, fingerprint: str) -> None:
    """That a checkpoint is of a run on the images with this fingerprint, which `data` names, if anything does.

    Raises:
        RunError: it is of one on others.
    """
    if saved is not None and saved["data"] != fingerprint:
        held = repr(data) if data else "dataset"
        raise RunError(f"{folder} was trained on other images than {held} holds now")


def _require_same(folder: Path, found: str, settings: Row, preset: str, config: Config) -> None:
    if found != preset:
        raise RunError(f"{folder} is a run of {found[:100]}, not of {preset}; choose another --run-dir")
    changed = differences(plain_entries(settings), config)
    if changed:
        raise RunError(
            f"{folder} was started with other settings; choose another --run-dir, or repeat them: " + "; ".join(changed)
        )


def restore(state: State, saved: dict[str, Any] | None, folder: Path) -> None:
    """Takes over what `open_run` found.

    Raises:
        RunError: it does not fit the run, or has done more steps than this one wants.
    """
    if saved is None:
        return
    try:
        state.load_state_dict(saved["state"])
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"{folder / 'checkpoints'}: the newest does not fit this run: {reason}") from error
    if state.step > state.config.steps:
        raise RunError(f"--steps: got {state.config.steps}, but {folder} has done {state.step}; nothing is changed")
