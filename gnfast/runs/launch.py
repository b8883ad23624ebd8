"""The runs of a sweep as processes: several at once, each in its own folder, and repeated until all have finished."""

import contextlib
import itertools
import json
import math
import re
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from gnfast.config.config import differences
from gnfast.io.files import write_text
from gnfast.io.numbers import counted, number
from gnfast.io.rows import Row
from gnfast.runs import checkpoint, forks, lock
from gnfast.runs.checkpoint import RunError
from gnfast.runs.record import DamagedFileError, best, last, main_score, read_json, read_run, read_settings, tail
from gnfast.runs.signals import STOPS, requested_stops
from gnfast.runs.sweep_file import MOST_RUNS, Case, Sweep

POLL_SECONDS = 0.05
RECORD = "sweep.json"


class State(NamedTuple):
    """How far a run of a sweep is.

    Attributes:
        status: `waiting` (never started or stopped before its first checkpoint), `stopped`, `finished`, `diverged`
            (a loss became NaN) or `failed`.
        message: what a run that failed or diverged said last.
    """

    status: str
    message: str = ""


def state_of(case: Case, record: dict[str, Row]) -> State:
    """The state of a run, by its folder and by what `read_record` says about its last end."""
    done = checkpoint.last_step(case.folder / "checkpoints")
    with contextlib.suppress(RunError):
        if done >= case.config().steps and not differences(read_settings(case.folder)[1], case.config()):
            return State("finished")
    ended = record.get(case.name, {})
    if ended.get("status") in ("diverged", "failed"):
        return State(ended["status"], str(ended.get("message", "")))
    return State("stopped" if done else "waiting")


def read_record(out: Path) -> dict[str, Row]:
    """How the runs of a sweep ended, by their names: `status`, `exit`, `message`, `seconds`.

    Raises:
        RunError: the file is not a sweep's. One that was cut short reads as empty, with a warning.
    """
    path = out / RECORD
    try:
        found = read_json(path, MOST_RUNS * 500)
    except FileNotFoundError:
        return {}
    except DamagedFileError as error:
        warnings.warn(f"{error}; runs that failed or diverged are tried again", stacklevel=2)
        return {}
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise RunError(f"{path} is not one of a sweep")
    return found


def require_own_folder(sweep: Sweep) -> None:
    """Raises RunError where the sweep's folder is that of a run, whose page the sweep's would replace."""
    if (sweep.out / "config.json").exists():
        raise RunError(f"{sweep.out} is the folder of a run; choose another for the sweep: --out, or `out` in its file")


def run_sweep(
    sweep: Sweep, *, retry: bool = False, progress: bool = True, echo: Callable[[str], None] = tqdm.write
) -> int:
    """Trains the runs of a sweep that have not finished, each in a process of its own.

    A run that fails is recorded and does not stop the others. SIGINT and SIGTERM end the sweep, and so does its time:
    runs are asked to stop, and save a checkpoint; a second signal ends them at once.

    Args:
        sweep: what to train.
        retry: train runs that diverged again, too.
        progress: show a bar over the steps of all runs on stderr.
        echo: called with each line for the user.

    Returns:
        The signal that stopped it, or 0.

    Raises:
        RunError: another sweep is at work in the same folder, or its runs still are, or it is the folder of a run.
    """
    require_own_folder(sweep)
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(lock.sole_user(sweep.out, "a sweep (or runs that it left), process"))
        record = read_record(sweep.out)
        skipped = {"finished"} if retry else {"finished", "diverged"}
        waiting = deque(case for case in sweep.cases if state_of(case, record).status not in skipped)
        kept = len(sweep.cases) - len(waiting)
        if kept:
            echo(f"{kept} of {len(sweep.cases)} runs in {sweep.out} have ended before; {len(waiting)} to do")
        free = deque(itertools.islice(itertools.cycle(sweep.devices or ("",)), sweep.processes))
        running: list[_Job] = []
        # Runs that begin at once need no other to fork from, and those after them seldom wait for it.
        server = stack.enter_context(forks.Server()) if len(waiting) > len(free) and forks.available() else None
        stack.callback(lambda: [job.kill() for job in running])
        stopped = stack.enter_context(requested_stops())
        steps = {case.name: _logged(case) for case in sweep.cases} if progress else {}
        bar = stack.enter_context(_bar(sweep, sum(steps.values()), progress))
        asked, deadline = False, math.inf
        while running or (waiting and not asked and not stopped):
            while waiting and free and not asked and not stopped:
                running.append(_Job(waiting.popleft(), sweep, free.popleft(), held, server))
            if deadline == math.inf and all(job.has_begun() for job in running):
                deadline = time.monotonic() + sweep.seconds
            if not asked and (stopped or time.monotonic() >= deadline):
                asked = True
                _ask_to_stop(running, stopped[0].name if stopped else "the time is over", echo)
            time.sleep(POLL_SECONDS)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                free.append(job.device)
                record[job.case.name] = ended = job.end()
                write_text(sweep.out / RECORD, json.dumps(record, indent=2) + "\n")
                kept += ended["status"] != "stopped"
                echo(f"[{kept}/{len(sweep.cases)}] {job.case.name}: {_told(job.case, ended, sweep.score)}")
            if progress:
                steps.update({job.case.name: _logged(job.case) for job in running})
                bar.set_postfix_str(f"{len(running)} running", refresh=False)
                bar.update(sum(steps.values()) - bar.n)
        return int(stopped[0]) if stopped else 0


class _Job:
    """A run's process, with its output in OUT/output/NAME.txt."""

    def __init__(self, case: Case, sweep: Sweep, device: str, held: int, server: forks.Server | None):
        self.case = case
        self.device = device
        self.started = time.monotonic()
        self.output = sweep.out / "output" / f"{case.name}.txt"
        self.output.parent.mkdir(exist_ok=True)
        self.sessions = case.folder / "environment.json"
        self.before = _changed(self.sessions)
        words = case.words() + ([f"--device={device}"] if device else [])
        words += [f"--threads={sweep.threads}"] if sweep.threads else []
        with self.output.open("ab") as file:
            forked = server.start(words, file, held) if server else None
            self.process = forked or subprocess.Popen(
                [sys.executable, "-m", "gnfast", *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # A terminal sends Ctrl-C to a whole session: the runs are to hear of it once, from the sweep.
                start_new_session=True,
                # The lock is theirs too, so that runs which outlive a killed sweep are not started twice.
                pass_fds=[held],
            )

    def has_begun(self) -> bool:
        """Whether it has imported and read everything, made what it trains, and has a row, or had one before."""
        rows = self.case.folder / "metrics.jsonl"
        return _changed(self.sessions) != self.before and rows.exists() and rows.stat().st_size > 0

    def end(self) -> Row:
        """How it ended: an entry of sweep.json."""
        code = self.process.returncode
        lines = tail(self.output).strip().splitlines()
        message = lines[-1] if lines else ""
        if code == 0:
            status = "finished"
        elif any(code in (-number, 128 + number) for number in STOPS):
            status = "stopped"
        else:
            # Status 1 is also that of a traceback, whose last line has no such beginning.
            status = "diverged" if code == 1 and message.startswith("gnfast: ") else "failed"
        seconds = round(time.monotonic() - self.started, 1)
        return {"status": status, "exit": code, "message": "" if code == 0 else message, "seconds": seconds}

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def _logged(case: Case) -> int:
    """The step of the last row of metrics.jsonl, 0 if there is none."""
    found = re.findall(r'"step": (\d+)', tail(case.folder / "metrics.jsonl", 4096))
    return int(found[-1]) if found else 0


def _bar(sweep: Sweep, done: int, progress: bool) -> tqdm:
    """Over the steps of all runs."""
    total = sum(case.config().steps for case in sweep.cases)
    return tqdm(total=total, initial=done, unit="step", disable=not progress, dynamic_ncols=True)


def _ask_to_stop(running: list[_Job], why: str, echo: Callable[[str], None]) -> None:
    echo(f"{why}: {counted(len(running), 'run')} {'stops' if len(running) == 1 else 'stop'} after a checkpoint")
    for job in running:
        job.process.terminate()


def _changed(path: Path) -> int:
    """When a file was last written; 0 if there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def _told(case: Case, ended: Row, score: str) -> str:
    text = f"{ended['status']} after {ended['seconds']:g} s"
    if ended["status"] in ("failed", "diverged"):
        return f"{text}: {ended['message']}"
    with contextlib.suppress(RunError):
        rows = read_run(case.folder).rows
        name = score or main_score(rows)
        top, end = best(rows, name), last(rows, name)
        if top and end:
            return f"{text}, {name} {number(end[1])}, best {number(top[1])} at step {top[0]:,}"
    return text
