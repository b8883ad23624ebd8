"""What a run folder says about its run, read back: settings, sessions, rows, speed, log, pictures.

Whatever is missing or damaged reads as empty, so that a run can be looked at whatever happened to it.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gnfast.train import checkpoint
from gnfast.train.checkpoint import RunError

WEIGHTS = ("ema", "raw")
# Every other score (Fréchet and kernel distances) is better the lower it is.
HIGHER_IS_BETTER = {"is", "inception_score", "precision", "recall", "density", "coverage"}
_SCORE = re.compile(rf"(?P<measure>\w+?)_(?:{'|'.join(WEIGHTS)})")
_PICTURE = re.compile(r"(?P<weights>ema|raw)-(?P<step>\d+)\.png")
SPEED = ("step", "seconds", "steps_per_second")

Row = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """A run, as its folder tells it.

    Attributes:
        folder: the run folder.
        preset: the preset's name.
        settings: the run's `Config` as JSON values.
        sessions: the entries of environment.json, oldest first.
        rows: the rows of metrics.jsonl, oldest first.
        speed: the rows of speed.jsonl, oldest first.
        log: the lines of log.txt.
    """

    folder: Path
    preset: str
    settings: dict[str, Any]
    sessions: list[Row]
    rows: list[Row]
    speed: list[Row]
    log: list[str]

    @property
    def step(self) -> int:
        """Generator updates done, as far as rows and checkpoints show."""
        saved = checkpoint.paths(self.folder / "checkpoints")
        return max([0, *(row["step"] for row in self.rows), *(int(path.stem.removeprefix("step-")) for path in saved)])

    @property
    def status(self) -> str:
        """`finished 300 steps`, `stopped at step 5 of 300 by SIGTERM`, or `step 5 of 300` without word."""
        steps = self.settings.get("steps", math.inf)
        if self.step >= steps:
            return f"finished {steps:,} steps"
        ends = (re.search(rf"stopped after step {self.step} by (\w+)", line) for line in reversed(self.log))
        signal = next((end.group(1) for end in ends if end), "")
        place = f"step {self.step:,} of {steps:,}"
        return f"stopped at {place} by {signal}" if signal else place

    @property
    def seconds(self) -> float | None:
        """Training time over all sessions; None where it was not recorded."""
        # Each session counts from its own start.
        pairs = zip_longest(self.speed, self.speed[1:])
        ends = [row["seconds"] for row, later in pairs if later is None or later["seconds"] < row["seconds"]]
        return sum(ends) if ends else None

    def pictures(self, weights: str) -> list[tuple[int, Path]]:
        """(step, path) of the sample grids of one kind of weights, oldest first."""
        folder = self.folder / "samples"
        matches = [(_PICTURE.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ())]
        return sorted((int(m["step"]), path) for m, path in matches if m and m["weights"] == weights)


def read_run(folder: Path) -> Record:
    """Reads a run folder.

    Raises:
        RunError: it has no readable config.json, so it is not a run's.
    """
    known = _json(folder / "config.json", {})
    if not isinstance(known, dict) or not isinstance(known.get("config"), dict):
        raise RunError(f"{folder} is not a run folder (no config.json)")
    sessions = _json(folder / "environment.json", [])
    return Record(
        folder,
        str(known.get("preset", "")),
        known["config"],
        [entry for entry in sessions if isinstance(entry, dict)] if isinstance(sessions, list) else [],
        [row for row in read_rows(folder / "metrics.jsonl") if isinstance(row.get("step"), int)],
        [row for row in read_rows(folder / "speed.jsonl") if all(_finite(row.get(name)) for name in SPEED)],
        _text(folder / "log.txt").splitlines(),
    )


def read_rows(path: Path) -> list[Row]:
    """The objects in a file of JSON lines; lines that a kill cut short are left out."""
    rows = []
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def score_names(rows: Iterable[Row]) -> list[str]:
    """The scores in rows of metrics.jsonl, as `distance_ema`, in their order; spreads (`…_std_ema`) are none."""
    names = {name: None for row in rows for name in row if _SCORE.fullmatch(name)}
    return [name for name in names if not measure_of(name).endswith("_std")]


def main_score(rows: Iterable[Row]) -> str:
    """The score that stands for a run: the first of the moving average, which papers report; empty if there is none."""
    names = score_names(rows)
    return next((name for name in names if name.endswith("_ema")), next(iter(names), ""))


def measure_of(name: str) -> str:
    """`distance` of `distance_ema`."""
    match = _SCORE.fullmatch(name)
    return match["measure"] if match else name


def points(rows: Iterable[Row], name: str) -> list[tuple[int, float]]:
    """(step, value) of one key, where it is a finite number."""
    found = ((row["step"], row.get(name)) for row in rows)
    return [(step, float(value)) for step, value in found if _finite(value)]


def best(rows: Iterable[Row], name: str) -> tuple[int, float] | None:
    """(step, value) of the best value of a score, the earliest of equals; None if there is none."""
    choose = max if measure_of(name) in HIGHER_IS_BETTER else min
    return choose(points(rows, name), key=lambda point: point[1], default=None)


def last(rows: Iterable[Row], name: str) -> tuple[int, float] | None:
    """(step, value) of the last value of a key; None if there is none."""
    return next(reversed(points(rows, name)), None)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(path: Path, default: Any) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError:
        return default
