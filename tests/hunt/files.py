"""Hostile files, all kinds in turn and each time another one of it, given to the command that would read them.

A command must end by itself, in bounded time and memory, without a traceback and without running what a file brings.
"""

import argparse
import itertools
import random
import re
import tempfile

from tests.hostile_files import Hostile, Outcome, attack, every
from tests.hunt.tally import Hunter, Tally

_LONGEST = 150
"""Characters of a message in the table."""


def _kinds(wanted: str | None) -> list[Hostile]:
    """All kinds, or those that begin with `wanted`."""
    return [hostile for hostile in every() if hostile.kind.startswith(wanted or "")]


def _message(outcome: Outcome) -> str:
    """The error or the last warning that the command printed, else its last line; folders of its own left out."""
    output = re.sub(rf"{re.escape(tempfile.gettempdir())}/hostile-[^/\s]+/(made/)?", "", outcome.output)
    lines = output.strip().splitlines() or ["(nothing)"]
    told = [line for line in lines if line.startswith(("gnfast:", "warning:"))] or lines
    return told[-1] if len(told[-1]) <= _LONGEST else f"{told[-1][:_LONGEST]}…"


def _hunt(tally: Tally, seed: int, options: argparse.Namespace) -> None:
    seen: dict[str, list[Outcome]] = {}
    kinds = _kinds(options.kind)
    # Shuffled, as most hunts end before all have had their turn.
    turns = ((n, hostile) for n in itertools.count(seed) for hostile in random.Random(n).sample(kinds, len(kinds)))
    for number, hostile in turns:
        if not tally.goes_on():
            break
        try:
            outcome = attack(hostile, number)
        except Exception as error:
            tally.fail(f"--kind {hostile.kind} --seed {number}", f"{hostile.kind} could not be made: {error!r}")
            continue
        seen.setdefault(outcome.kind, []).append(outcome)
        if outcome.faults:
            tally.fail(f"--kind {outcome.kind} --seed {number}", f"{outcome.kind} {', '.join(outcome.faults)}")
        else:
            tally.add("turned away" if outcome.status else "read")
    for kind, outcomes in sorted(seen.items()):
        peak = max(outcome.peak for outcome in outcomes) / 2**20
        print(f"{kind} ({len(outcomes)}, at most {peak:.0f} MiB): {_message(outcomes[-1])}")


def _repeat(seed: int, options: argparse.Namespace) -> bool:
    """Tries one file of a kind, or of every kind, again and prints all that the command printed."""
    failed = False
    for hostile in _kinds(options.kind):
        outcome = attack(hostile, seed)
        print(f"{outcome.kind}: status {outcome.status}, {outcome.seconds:.1f} s, {outcome.peak / 2**20:.0f} MiB")
        print(outcome.output.rstrip())
        failed |= bool(outcome.faults)
        for fault in outcome.faults:
            print(f"FAILED: {fault}")
    return failed


HUNTER = Hunter(_hunt, _repeat)
