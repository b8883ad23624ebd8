"""Both ways train for the same time, as `gnfast train` does, and what their run folders then say."""

import dataclasses
import itertools
import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gnfast.bench.paper.prepare import GNFAST, PAPERS, Training
from gnfast.bench.paper.results import Results
from gnfast.io.rows import Row
from gnfast.runs import lock
from gnfast.runs.checkpoint import RunError
from gnfast.runs.launch import read_record, run_sweep, state_of
from gnfast.runs.record import Record, points, read_run
from gnfast.runs.sweep_file import Case, Sweep

SCORE = "distance_ema"
POINTS = 12
"""Evaluations of each run in its time, about."""

Point = tuple[float, int, float]
"""Seconds of training, generator updates, Fréchet distance."""


def trained(
    training: Training, results: Results, device: torch.device, progress: bool, echo: Callable[[str], None]
) -> int:
    """Trains both for what is left of the preset's time, and gives the signal that stopped that, or 0.

    On a GPU one after the other, half of the time each; on a CPU at once, each on a core of its own.

    Raises:
        RunError: runs that a command left when it was killed still train.
    """
    folder = next(iter(training.cases.values())).folder.parent
    # Also where they have had their time: they would go on, and take theirs from what is measured next.
    with lock.sole_user(folder, "gnfast bench paper, process"):
        pass
    at_once = device.type == "cpu" and _cores() > 1
    seconds = results.seconds_to_learn(training.preset) / (1 if at_once else 2)
    cases = [_timed(case, results.steps_per_s(training.preset, way), seconds) for way, case in training.cases.items()]
    threads, devices = (1, ()) if device.type == "cpu" else (0, (str(device),))
    for group in [cases] if at_once else [[case] for case in cases]:
        left = seconds - max(map(_used, group))
        if left <= 0:
            continue
        echo(f"{training.preset}: {' and '.join(case.name for case in group)} train for {left:.0f} s")
        sweep = Sweep(folder, tuple(group), SCORE, len(group), devices, threads, left)
        if signal := run_sweep(sweep, progress=progress, echo=echo):
            return signal
    return 0


def found(training: Training) -> dict[str, dict[str, Any]]:
    """What is known of each run: `status`, `message`, `steps`, `seconds` of training, `extractor` and the `curve`."""
    known = {}
    for way, case in training.cases.items():
        state = state_of(case, read_record(case.folder.parent))
        entry: dict[str, Any] = {"status": state.status, "message": state.message, "curve": []}
        try:
            record = read_run(case.folder)
        except RunError:
            # It was stopped before it began.
            pass
        else:
            entry |= {"curve": curve(record), "steps": record.step, "seconds": seconds_at(record, record.step)}
            scored = [row for row in record.rows if SCORE in row][-1:]
            entry |= {name: row[name] for row in scored for name in ("extractor", "n_fake", "n_real")}
        known[way] = entry
    return known


def curve(record: Record) -> list[Point]:
    """The distances of a run over its training time."""
    return [(round(seconds_at(record, step), 3), step, value) for step, value in points(record.rows, SCORE)]


def seconds_at(record: Record, step: int) -> float:
    """How long a run had trained when it had done so many updates: with all that happens beside them but evaluations.

    An interval of speed.jsonl in which something was evaluated counts as long as the median of the others takes.
    """
    if not record.speed:
        return 0.0
    rates = [row["steps_per_second"] for row in record.speed]
    stretches = list(itertools.pairwise([0, *(row["step"] for row in record.speed)]))
    evaluated = [at for at, _ in points(record.rows, SCORE) if at > 0]
    # What is evaluated after an update falls into the interval that begins there.
    clean = [not any(begin <= at < end for at in evaluated) for begin, end in stretches]
    usual = statistics.median(list(itertools.compress(rates, clean)) or rates)
    total = max(0, step - stretches[-1][1]) / usual
    for (begin, end), rate, fits in zip(stretches, rates, clean, strict=True):
        total += max(0, min(end, step) - begin) / (rate if fits else usual)
    return total


def reached(line: Sequence[Point], distance: float) -> float | None:
    """From when on a curve, straight between its points, is no higher; None if it is at its end, or is empty.

    Not when it first is as low: a distance may rise at first, and is noisy.
    """
    higher = max((index for index, point in enumerate(line) if point[2] > distance), default=-1)
    if higher + 1 >= len(line):
        return None
    if higher < 0:
        return line[0][0]
    (begin, _, high), (end, _, low) = line[higher : higher + 2]
    return begin + (end - begin) * (high - distance) / (high - low)


def compared(known: dict[str, dict[str, Any]]) -> Row:
    """The distance that the papers' way ended with, and when each had that: seconds, and gnfast's over the papers'."""
    lines = [known[way]["curve"] for way in (GNFAST, PAPERS)]
    if not lines[1]:
        return {}
    distance = lines[1][-1][2]
    # A curve that is nowhere higher says nothing about time.
    ours, theirs = (reached(line, distance) or None for line in lines)
    ratio = ours / theirs if ours and theirs else None
    return {"distance": distance, "gnfast_seconds": ours, "papers_seconds": theirs, "ratio": ratio}


def _timed(case: Case, steps_per_s: float | None, seconds: float) -> Case:
    """The run with about `POINTS` evaluations in its time; as often as it says where its speed is not known."""
    if steps_per_s is None:
        return case
    config = case.config()
    every = min(config.steps, round(steps_per_s * seconds / POINTS))
    log = max(1, min(config.log_every, every // 10))
    # Distances come with a row of speed, so that their time is known.
    options = {"log_every": log, "eval_every": log * max(1, round(every / log))}
    return dataclasses.replace(case, options=case.options | options)


def _used(case: Case) -> float:
    """Seconds that a run has taken before, evaluations included."""
    try:
        return read_run(case.folder).seconds or 0.0
    except RunError:
        return 0.0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
