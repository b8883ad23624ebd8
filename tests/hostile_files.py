"""Hostile inputs: files that are damaged, lying, too large or malicious, and what a command may do when it meets one.

`python -m tests.hostile_files [KIND …]` tries one file of each kind that is here. Other files add kinds to `HOSTILE`
when they are imported.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CANARY = "code-was-run"
"""A file of this name in the folder that `make` was given, or in the working directory, shows that code was run."""

SECONDS = 60
BYTES = 1 << 30


@dataclass(frozen=True)
class Hostile:
    """One way of being hostile.

    Args:
        kind: what is wrong with it, in a few words, without spaces: "png-truncated".
        make: (an empty folder, a generator) -> the path, inside the folder, of what was made there. What is drawn makes
            each file another one; the same generator makes the same file.
        command: that path -> the words after `gnfast` that are run on it, within the folder.
    """

    kind: str
    make: Callable[[Path, random.Random], Path]
    command: Callable[[Path], list[str]]


@dataclass
class Outcome:
    """What a command did with a hostile file.

    Args:
        kind, seed: which file it was.
        status: the exit status; negative is the signal that ended it.
        seconds, peak: time, and the most memory (bytes) that the process or one of its children had.
        output: what it printed, both streams.
        faults: what it must not have done; empty if all is well.
    """

    kind: str
    seed: int
    status: int
    seconds: float
    peak: int
    output: str
    faults: list[str] = field(default_factory=list)


HOSTILE: list[Hostile] = []


def attack(hostile: Hostile, seed: int, seconds: float = SECONDS, limit: int = BYTES) -> Outcome:
    """Make the file that `seed` gives, run the command on it in a fork of this process, and say what it did.

    This process should have imported what commands import, and started no threads.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"hostile-{hostile.kind}-")).resolve()
    try:
        inside = folder / "made"
        inside.mkdir()
        path = hostile.make(inside, random.Random(f"{hostile.kind} {seed}"))
        words = hostile.command(path)
        start = time.monotonic()
        status, peak = _forked(words, folder, seconds)
        took = time.monotonic() - start
        output = (folder / "output").read_text(encoding="utf-8", errors="replace")
        outcome = Outcome(hostile.kind, seed, status, took, peak, output)
        if status < 0:
            what = (
                f"did not end within {seconds:g} s"
                if took >= seconds
                else f"was ended by {signal.Signals(-status).name}"
            )
            outcome.faults.append(what)
        if "Traceback (most recent call last)" in output:
            outcome.faults.append("printed a traceback")
        if peak > limit:
            outcome.faults.append(f"took {peak / 2**20:.0f} MiB of memory")
        if any(folder.rglob(CANARY)):
            outcome.faults.append("ran code from the file")
        return outcome
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _forked(words: list[str], folder: Path, seconds: float) -> tuple[int, int]:
    """Exit status (negative for a signal) and peak memory of `gnfast` with `words`; its output goes to a file."""
    child = os.fork()
    if not child:
        _run(words, folder)
    end = time.monotonic() + seconds
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.005)


def _run(words: list[str], folder: Path) -> None:
    """The child's part; it does not return."""
    status = 1
    try:
        os.setsid()
        os.chdir(folder / "made")
        output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.environ |= {"HOME": str(folder / "home"), "GNFAST_CACHE": str(folder / "cache")}
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # So that a bomb that goes off does not take the machine with it.
        resource.setrlimit(resource.RLIMIT_DATA, (4 * BYTES, 4 * BYTES))
        from gnfast.cli import main

        status = main(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main(kinds: list[str]) -> int:
    """One file of each kind, or of those named; a line of JSON for each."""
    import gnfast.cli.data
    import gnfast.data
    import gnfast.train.presets  # noqa: F401

    if unknown := set(kinds) - {hostile.kind for hostile in HOSTILE}:
        raise SystemExit(f"no such kind: {', '.join(sorted(unknown))}")
    failed = 0
    for hostile in HOSTILE:
        if not kinds or hostile.kind in kinds:
            outcome = attack(hostile, 0)
            failed += bool(outcome.faults)
            print(json.dumps(vars(outcome)), flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
