"""What a run folder says about its run, read back: settings, sessions, rows, speed, log, pictures.

Whatever is missing or damaged reads as empty, so that a run can be looked at whatever happened to it; only the settings
must be there. Values that no run writes, such as lists in lists, are not taken over: a folder may be anyone's.
"""

import json
import math
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnfast.config.config import Config, from_json
from gnfast.errors import InputError
from gnfast.io.files import open_regular
from gnfast.io.numbers import counted
from gnfast.io.rows import MOST_STEPS, Row, plain_entries, read_rows
from gnfast.runs import checkpoint
from gnfast.runs.checkpoint import RunError

WEIGHTS = ("ema", "raw")
# Every other score (Fréchet and kernel distances) is better the lower it is.
HIGHER_IS_BETTER = {"is", "inception_score", "precision", "recall", "density", "coverage"}
_SCORE = re.compile(rf"(?P<measure>\w+?)_(?:{'|'.join(WEIGHTS)})")
SPEED = ("step", "seconds", "steps_per_second")
# More bytes than any run writes: of a JSON file, of the end of a log.
JSON_BYTES, LOG_BYTES = 16 << 20, 1 << 20


class DamagedFileError(RunError):
    """A JSON file that was cut short or overwritten; the message names it."""


@dataclass(frozen=True)
class Record:
    """What a run folder says about its run.

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
        return max([checkpoint.last_step(self.folder / "checkpoints"), *(row["step"] for row in self.rows)])

    @property
    def config(self) -> Config:
        """The settings.

        Raises:
            RunError: they are not those of a run.
        """
        try:
            return from_json(self.settings)
        except ValueError as error:
            raise RunError(f"{self.folder / 'config.json'}: {error}") from error

    @property
    def steps(self) -> int | None:
        """Generator updates in the whole run; None where the settings do not say."""
        steps = self.settings.get("steps")
        return steps if type(steps) is int and 0 < steps < MOST_STEPS else None

    @property
    def status(self) -> str:
        """`finished 300 steps`, `stopped at step 5 of 300 by SIGTERM`, or `step 5 of 300` where the log is silent."""
        if self.steps is not None and self.step >= self.steps:
            return f"finished {counted(self.steps, 'step')}"
        ends = (re.search(rf"stopped after step {self.step} by (\w+)", line) for line in reversed(self.log))
        signal = next((end.group(1) for end in ends if end), "")
        place = f"step {self.step:,}" + (f" of {self.steps:,}" if self.steps else "")
        return f"stopped at {place} by {signal}" if signal else place

    @property
    def seconds(self) -> float | None:
        """Training time over all sessions; None where it was not recorded."""
        # Each session counts from its own start.
        seconds = [row["seconds"] for row in self.speed]
        ends = [now for now, later in zip(seconds, [*seconds[1:], -math.inf], strict=False) if later < now]
        return sum(ends) if ends else None

    def pictures(self, weights: str) -> list[tuple[int, Path]]:
        """(step, path) of the sample grids of one kind of weights, oldest first."""
        named = [(path.stem.removeprefix(f"{weights}-"), path) for path in self.folder.glob(f"samples/{weights}-*.png")]
        return sorted((int(step), path) for step, path in named if step.isdecimal())


def read_run(folder: Path) -> Record:
    """Reads a run folder.

    Raises:
        RunError: there is no such folder, it is not a run's, or its config.json cannot be read.
    """
    if not folder.exists():
        raise RunError(f"{folder}: no such file or folder")
    if not folder.is_dir():
        raise RunError(f"{folder}: {'a file' if folder.is_file() else 'no regular file'}, wanted a run folder")
    preset, settings = read_settings(folder)
    try:
        sessions = read_json(folder / "environment.json")
    except (RunError, FileNotFoundError):
        sessions = []
    return Record(
        folder,
        preset,
        settings,
        [plain_entries(entry) for entry in sessions if isinstance(entry, dict)] if isinstance(sessions, list) else [],
        read_rows(folder / "metrics.jsonl"),
        [row for row in read_rows(folder / "speed.jsonl") if all(finite(row.get(name)) for name in SPEED)],
        tail(folder / "log.txt").splitlines(),
    )


def read_settings(folder: Path) -> tuple[str, Row]:
    """The preset and the settings in a run folder's config.json.

    Raises:
        RunError: there is none, or it is not a run's.
        DamagedFileError: it is not JSON.
    """
    path = folder / "config.json"
    try:
        known = read_json(path)
    except FileNotFoundError as error:
        raise RunError(f"{folder} is not a run folder (no config.json)") from error
    if not isinstance(known, dict) or not isinstance(known.get("config"), dict):
        raise RunError(f"{path} is not one of a run (no settings)")
    # A setting that cannot be one is kept as what it looks like: left out, it would stand for its default.
    odd = {name: reprlib.repr(value) for name, value in known["config"].items()}
    return str(known.get("preset", ""))[:200], odd | plain_entries(known["config"])


def read_json(path: Path, most: int = JSON_BYTES) -> Any:
    """What a JSON file of at most `most` bytes holds.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is not JSON.
        RunError: it cannot be read, or is longer than any that a run writes.
    """
    try:
        with open_regular(path) as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        raise
    except InputError as error:
        raise RunError(str(error)) from error
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from error
    if len(content) > most:
        raise RunError(f"{path}: longer than {most >> 20} MiB, which no run writes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged: not JSON ({' '.join(str(error).split())[:100]})") from error


def tail(path: Path, most: int = LOG_BYTES) -> str:
    """At most so many bytes of the end of a text file; empty if it is missing or not a regular file."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, 2) - most))
            return file.read().decode("utf-8", "replace")
    except (OSError, InputError):
        return ""


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
    return [(step, float(value)) for step, value in found if finite(value)]


def best(rows: Iterable[Row], name: str) -> tuple[int, float] | None:
    """(step, value) of the best value of a score, the earliest of equals; None if there is none."""
    choose = max if measure_of(name) in HIGHER_IS_BETTER else min
    return choose(points(rows, name), key=lambda point: point[1], default=None)


def beside(rows: Sequence[Row], name: str) -> dict[str, float]:
    """The other scores of the same weights at the step of a score's best: `is_ema` beside the best `distance_ema`.

    Papers that report the checkpoint with the best FID report its Inception score with it, not the best of all.
    """
    top = best(rows, name)
    weights = name.rpartition("_")[2]
    others = [other for other in score_names(rows) if other != name and other.endswith(f"_{weights}")]
    return {other: value for other in others for step, value in points(rows, other) if top and step == top[0]}


def last(rows: Iterable[Row], name: str) -> tuple[int, float] | None:
    """(step, value) of the last value of a key; None if there is none."""
    return next(reversed(points(rows, name)), None)


def finite(value: Any) -> bool:
    """Whether it can be drawn: an axis of 1e300 has no ticks."""
    return type(value) in (int, float) and abs(value) < 1e100
