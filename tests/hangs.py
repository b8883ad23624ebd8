"""Whether processes that train together always end: rounds of `tests/engine/test_ddp.py` and of a training by torchrun.

    python -m tests.hunt hangs --count ROUNDS    # beside a busy process; prints each failure and the counts

A hang at the end of a process depends on which of its threads is first, so it shows only in many rounds. Importing
PyTorch would be nine tenths of a round: two kinds are forked from a process that has imported all and run nothing, and
end as any Python process does, the interpreter taken down. Every twentieth round starts everything anew.
"""

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.util import Finalize
from pathlib import Path
from typing import NamedTuple

from tests.forks import forked

ROOT = Path(__file__).parents[1]
ANEW_EVERY = 20
TRAIN = ["train", "digits", "--steps=3", "--resolution=8", "--width=0.1", "--z-dim=5", "--batch-d=4", "--batch-g=6"]
TRAIN += ["--n-samples=4", "--extractor=none", "--device=cpu", "--no-tensorboard"]
_ASKED_TO_END: list[int] = []
"""Signals that came. Raised as an exception, one would be lost in a destructor or in a hook of a fork."""
IMPORTED = "gnfast.cli", "tests.engine.test_ddp", "torch.distributed.run", "matplotlib.figure"


class Outcome(NamedTuple):
    kind: str
    failure: str
    """Empty if the round ended as it should; else what it printed, with all threads' stacks if it hung."""


def hangs(rounds: int, limit: float = 300) -> Iterator[Outcome]:
    """Rounds of each of the two checks, as they end.

    They are forked from a process of their own, which has run nothing yet and has no other threads.

    Args:
        rounds: of each check.
        limit: seconds after which a round hangs.
    """
    command = [sys.executable, "-m", "tests.hangs", str(rounds), str(limit)]
    settings = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **settings}
    ) as process:
        try:
            for line in process.stdout:
                yield Outcome(*json.loads(line))
        finally:
            process.terminate()
            # It may be printing: the pipe is read until it has ended.
            process.communicate()
    if process.returncode not in (0, -signal.SIGTERM):
        yield Outcome("rounds", f"the process that forks them ended with status {process.returncode}")


def _rounds(count: int, limit: float) -> Iterator[Outcome]:
    for name in IMPORTED:
        importlib.import_module(name)
    faulthandler.enable()
    signal.signal(signal.SIGTERM, lambda number, _: _ASKED_TO_END.append(number))
    # What was imported is not searched for cycles at every process's end, which would be most of a round.
    gc.freeze()
    busy = forked(_be_busy, Path(os.devnull), end=_end)
    try:
        for index in range(count):
            if index % ANEW_EVERY == ANEW_EVERY - 1:
                yield _round("DDP, started anew", _pytest, limit)
                yield _round("torchrun, started anew", _torchrun, limit)
            else:
                yield _round("DDP", _two_ranks, limit)
                yield _round("torchrun", _agent, limit)
    finally:
        os.kill(busy, signal.SIGKILL)
        os.waitpid(busy, 0)


def _round(kind: str, work: Callable[[str], None], limit: float) -> Outcome:
    folder = tempfile.mkdtemp()
    log = Path(folder, "log")
    start = time.monotonic()
    process = forked(work, log, folder, end=_end)
    ended = 0, 0
    try:
        while not (ended[0] or _ASKED_TO_END) and time.monotonic() - start < limit:
            time.sleep(0.02)
            ended = os.waitpid(process, os.WNOHANG)
    finally:
        if not ended[0]:
            _end_all(process, [signal.SIGKILL] if _ASKED_TO_END else [signal.SIGABRT, signal.SIGKILL])
        printed = log.read_text(errors="replace") if log.exists() else ""
        shutil.rmtree(folder, ignore_errors=True)
    if _ASKED_TO_END:
        sys.exit(1)
    failure = f"status {ended[1]}: {printed}" if ended[0] else f"hung: {printed}"
    return Outcome(kind, failure if ended != (process, 0) else "")


def _end(status: int) -> None:
    # Takes the interpreter down, unlike os._exit, and does not unwind the caller's frames, unlike sys.exit.
    ctypes.pythonapi.Py_Exit(status)


def _end_all(process: int, signals: list[int]) -> None:
    """Ends a process and all that it started; at SIGABRT each writes the stacks of its threads (PYTHONFAULTHANDLER)."""
    family = [process]
    for member in family:
        with contextlib.suppress(OSError):
            family += map(int, Path(f"/proc/{member}/task/{member}/children").read_text().split())
    for sent in signals:
        for member in reversed(family):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, sent)
        time.sleep(1)
    os.waitpid(process, 0)


def _be_busy() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        sum(range(100_000))


def _two_ranks(folder: str) -> None:
    from tests.engine import test_ddp

    ranks = [forked(test_ddp.work, Path(folder, "log"), rank, folder, end=_end) for rank in range(2)]
    assert [os.waitpid(rank, 0)[1] for rank in ranks] == [0, 0]


def _pytest(folder: str) -> None:
    os.execv(
        sys.executable, [sys.executable, "-m", "pytest", "-q", "--basetemp", f"{folder}/x", "tests/engine/test_ddp.py"]
    )


def _agent(folder: str) -> None:
    """What torchrun does, with forked workers."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(1, 1, 2, rdzv_endpoint="localhost:0", rdzv_backend="c10d", start_method="fork")
    elastic_launch(config, _worker)(folder)
    assert "finished 3 steps" in Path(folder, "log").read_text()


def _worker(folder: str) -> None:
    from gnfast import cli

    # Processes of multiprocessing leave out the end of the interpreter.
    status = 1
    Finalize(None, lambda: _end(status), exitpriority=-100)
    status = cli.main([*TRAIN, f"--run-dir={folder}/run"])
    assert not status, status
    sys.stdout.flush()


def _torchrun(folder: str) -> None:
    words = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "gnfast", *TRAIN]
    os.execv(sys.executable, [sys.executable, "-m", *words, f"--run-dir={folder}/run"])


if __name__ == "__main__":
    for found in _rounds(int(sys.argv[1]), float(sys.argv[2])):
        print(json.dumps(found), flush=True)
