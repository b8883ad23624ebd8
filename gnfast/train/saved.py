"""What commands open: a run with its newest checkpoint, its best one, or one that is named."""

import warnings
from typing import Any

from gnfast.config.config import Config
from gnfast.runs import checkpoint
from gnfast.runs.checkpoint import BEST, Place, RunError
from gnfast.runs.record import Record, best, read_run

# What the training program chooses the best by.
SCORE = "distance_ema"


def open_saved(place: Place) -> tuple[Record, Config, dict[str, Any]]:
    """What a run folder says, its settings, and of a checkpoint `step`, `generator`, `ema` and `critic`.

    Warns if the best checkpoint is not of the step with the best distance that the run has recorded.

    Raises:
        RunError: no run folder, or no such checkpoint in it that can be read.
    """
    record, folder = read_run(place.run), place.run / "checkpoints"
    config, path = record.config, folder / f"{place.name}.pt"
    if path.name == BEST and not path.exists():
        raise RunError(f"{place.run} has no best checkpoint: {_why_none(record, config)}")
    saved = checkpoint.load(path) if place.name else checkpoint.load_newest(folder)
    if saved is None:
        raise RunError(f"{place.run} has no checkpoint yet, looked for {folder}/step-*.pt")
    top = best(record.rows, SCORE)
    if path.name == BEST and top and top[0] != saved["state"]["step"]:
        step = saved["state"]["step"]
        warnings.warn(f"{path} is of step {step}, but metrics.jsonl has the best distance at {top[0]}", stacklevel=2)
    return record, config, saved["state"]


def _why_none(record: Record, config: Config) -> str:
    if top := best(record.rows, SCORE):
        return f"{record.folder / 'checkpoints' / BEST}, of step {top[0]}, is gone"
    if config.extractor == "none":
        return "nothing was measured while it trained; leave out --best"
    return "metrics.jsonl has no distance yet"
