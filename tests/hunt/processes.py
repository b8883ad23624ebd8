"""Trainings that are killed, run folders that two commands want, processes that must end.

`tests/kills.py` and `tests/hangs.py` make them.
"""

import argparse
import itertools
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests import hangs, kills
from tests.hunt.tally import Hunter, Tally

_ROUNDS = 10
"""Of each kind, to see again a hang that depends on which thread is first."""


def _of_runs(outcomes: Callable[[random.Random, Path], Iterator[kills.Outcome]]) -> Hunter:
    """A hunter of which every trial is one run, drawn by its own seed."""

    def hunt(tally: Tally, seed: int, options: argparse.Namespace) -> None:
        with tempfile.TemporaryDirectory(prefix="hunt-") as folder:
            rng = random.Random()
            drawn = outcomes(rng, Path(folder))
            for number in itertools.takewhile(lambda _: tally.goes_on(), itertools.count(seed)):
                rng.seed(number)
                outcome = next(drawn)
                tally.extra["kills"] += outcome.kills
                if outcome.faults:
                    tally.fail(f"--seed {number}", f"{outcome.what}: {'; '.join(outcome.faults)}")
                else:
                    tally.add("ended as if undisturbed")

    def repeat(seed: int, options: argparse.Namespace) -> bool:
        with tempfile.TemporaryDirectory(prefix="hunt-") as folder:
            outcome = next(outcomes(random.Random(seed), Path(folder)))
        print(f"{outcome.what}: {'; '.join(outcome.faults) or 'ended as if undisturbed'}")
        return bool(outcome.faults)

    return Hunter(hunt, repeat)


def _hunt_hangs(tally: Tally, seed: int, options: argparse.Namespace) -> None:
    for outcome in hangs.hangs(rounds=10**6):
        if outcome.failure:
            tally.fail(f"--count {2 * _ROUNDS}", f"{outcome.kind}: {outcome.failure}", outcome.kind)
        else:
            tally.add("ended", outcome.kind)
        if not tally.goes_on():
            break


def _repeat_hangs(seed: int, options: argparse.Namespace) -> bool:
    """Rounds again: nothing but chance decides which of them hangs."""
    failures = [outcome for outcome in hangs.hangs(_ROUNDS) if outcome.failure]
    for outcome in failures:
        print(f"{outcome.kind}: {outcome.failure}")
    return bool(failures)


def _kills_as_on_a_gpu(rng: random.Random, folder: Path) -> Iterator[kills.Outcome]:
    return kills.kills(rng, folder, kills.Runs(folder, as_on_a_gpu=True))


KILLS = _of_runs(kills.kills)
KILLS_AS_ON_A_GPU = _of_runs(_kills_as_on_a_gpu)
RUNS = _of_runs(kills.concurrent_starts)
HANGS = Hunter(_hunt_hangs, _repeat_hangs)
