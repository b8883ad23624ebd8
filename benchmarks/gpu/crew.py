"""The processes that run sections: several at once or one after the other, and some that prepare beside them.

A section that raises is noted, and its process goes on; one that runs over its limit is asked for its stack and ended;
one that takes its process along costs itself alone, since a fresh process goes on with the next.
"""

import contextlib
import json
import math
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.gpu.record import Record
from benchmarks.gpu.section import ROOT, Section
from benchmarks.gpu.work import GIVEN_UP, MARK, end_session

# Seconds that a process may take before its first section begins: importing PyTorch, and starting CUDA.
START_LIMIT = 60.0
# Seconds beyond its limit that a section may take to notice.
GRACE = 10.0


class Worker:
    """A process, the section that it is at, if any, and until when (by `time.monotonic`) it must be further.

    Its state is "starting" until the section begins, then "running"; beside others "preparing", "waiting" for its turn,
    and "measuring".
    """

    def __init__(self, events: "queue.Queue[tuple[Worker, dict[str, Any] | None]]", job: dict[str, Any]) -> None:
        self.section: str | None = None
        self.enter("starting")
        self._events = events
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.work", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            errors="replace",
            cwd=ROOT,
            # With the processes that it starts, it can be ended as a whole.
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout:
            message = {"kind": "chatter", "line": line.rstrip()}
            if line.startswith(MARK):
                # Another process may have written into the middle of it.
                with contextlib.suppress(ValueError):
                    message = json.loads(line.removeprefix(MARK))
            if message.get("line") != "":
                self._events.put((self, message))
        self._events.put((self, None))

    def enter(self, state: str, limit_s: float = math.inf) -> None:
        """Notes a new state, which may last so long."""
        self.state, self.deadline = state, time.monotonic() + limit_s

    def start(self, section: str, rates: dict[str, Any]) -> None:
        """Gives it a section."""
        self.section = section
        self.enter("starting", START_LIMIT)
        self._order({"section": section, "rates": rates})

    def go(self, limit_s: float) -> None:
        """Lets a waiting one measure."""
        self.enter("measuring", limit_s + GRACE)
        self._order({"go": True})

    def _order(self, order: dict[str, Any]) -> None:
        # One that has ended says so by its last message.
        with contextlib.suppress(OSError):
            print(json.dumps(order), file=self._process.stdin, flush=True)

    def kill(self) -> None:
        """Ends it and what it has started, at once."""
        end_session(self._process.pid)

    def stop(self, stacks: bool = True) -> tuple[int, str]:
        """Ends it, if it has not by itself, and returns its exit status and the end of what it wrote to stderr.

        With `stacks` it first writes there where it is.
        """
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if stacks and self.section is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR1)
            time.sleep(0.5)
        try:
            status = self._process.wait(timeout=0.1 if self.section else 5)
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL
        self.kill()
        # One that the driver does not let go is left to the system.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        self._errors.seek(0)
        return status, self._errors.read()[-6000:]


class Crew:
    """Runs those of the sections that it is told to; what they find goes to the record. `work.main` takes the job."""

    def __init__(self, record: Record, job: dict[str, Any], sections: dict[str, Section]) -> None:
        self.record, self.job, self.sections = record, job, sections
        self._events: queue.Queue[tuple[Worker, dict[str, Any] | None]] = queue.Queue()
        self._workers: list[Worker] = []
        # Processes beside those, each with what is left for it.
        self._beside: dict[Worker, deque[str]] = {}

    def prepare(self, groups: Iterable[Sequence[str]]) -> None:
        """Starts a process for each group of sections, which prepares them one by one while others run.

        A section waits for its turn by `Context.wait`; `run(…, turns=True)` grants it.
        """
        for group in groups:
            self._start_beside(deque(group))

    def run(self, names: Iterable[str], end: float, *, size: int = 1, turns: bool = False, spare_s: float = 0) -> None:
        """Runs sections, the most valuable first, in `size` processes, until all or the time (`end`) have ended.

        Args:
            turns: between two sections let one that was prepared beside them measure, and when all are done the rest.
            spare_s: seconds before the end from which on no section starts, so that those have their turns.
        """
        pending, turn = deque(names), False
        # Those of an earlier stage that have nothing more to do hold memory of the device.
        self._end(self._workers[size:])
        del self._workers[size:]
        while (now := time.monotonic()) < end:
            busy = [w for w in self._workers if w.section]
            measuring = any(w.state == "measuring" for w in self._beside)
            more = bool(pending) and now < end - spare_s
            if turns and (turn or not more) and not busy and not measuring:
                waiting = next((w for w in self._beside if w.state == "waiting"), None)
                if waiting is not None:
                    waiting.go(self._limit(waiting.section))
                    measuring = True
                turn = False
            while more and pending and len(busy) < size and not (turns and measuring):
                busy.append(self._begin(pending.popleft()))
                turn = True
            if not busy and not (more and pending) and not (turns and self._beside):
                break
            self._handle(until=min([end, *(w.deadline for w in [*self._workers, *self._beside])]))
            for worker in [w for w in [*self._workers, *self._beside] if time.monotonic() >= w.deadline]:
                self._lost(worker, f"{worker.state} for longer than it may")
        for worker in [w for w in self._workers if w.section]:
            self._lost(worker, "the time of its stage was over")
        for name in pending:
            self.record.section(name, left_out="the time of its stage was over")

    def close(self) -> None:
        """Ends every process; what was under way, or prepared and had no turn, is noted."""
        for worker in [w for w in self._workers if w.section]:
            self.record.section(worker.section, left_out="the run was ended while it ran")
        for worker, names in self._beside.items():
            for name in (worker.section, *names):
                self.record.section(name, left_out="it was not prepared in time, or no turn was left")
        self._end([*self._workers, *self._beside])
        self._workers, self._beside = [], {}

    @staticmethod
    def _end(workers: Sequence[Worker]) -> None:
        # All before any is waited for: whoever ended this run may not wait long.
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.stop(stacks=False)

    def _limit(self, name: str) -> float:
        return self.sections[name].limit(self.job["quick"])

    def _begin(self, name: str) -> Worker:
        worker = next((w for w in self._workers if w.section is None), None)
        if worker is None:
            worker = Worker(self._events, self.job)
            self._workers.append(worker)
        self._start(worker, name)
        return worker

    def _start(self, worker: Worker, name: str) -> None:
        self.record.section(name)
        worker.start(name, self.record.data.get("rates", {}))

    def _start_beside(self, names: deque[str]) -> None:
        worker = Worker(self._events, self.job)
        self._beside[worker] = names
        self._start(worker, names.popleft())

    def _handle(self, until: float) -> None:
        """One message, if one comes in time."""
        try:
            worker, message = self._events.get(timeout=max(0.01, until - time.monotonic()))
        except queue.Empty:
            return
        beside, name = worker in self._beside, worker.section
        if not beside and worker not in self._workers:
            return
        if message is None:
            self._lost(worker)
            return
        kind = message["kind"]
        if kind == "start":
            # To prepare takes what it takes; the turn is limited.
            worker.enter(*(("preparing",) if beside else ("running", self._limit(name) + GRACE)))
        elif kind == "wait" and beside:
            worker.enter("waiting")
        elif kind == "wait":
            worker.go(self._limit(name))
        elif kind == "row":
            self.record.row(name, message["row"])
        elif kind == "part":
            self.record.lose(name, message["reason"], message["details"])
        elif kind == "failure":
            self.record.fail(name, message["reason"], message["details"])
        elif kind == "end":
            self.record.update("rates", message["rates"])
            self.record.section(name, seconds=message["seconds"])
            self.record.say(f"{name}: {len(self.record.data['sections'][name]['rows'])} rows, {message['seconds']} s")
            worker.section = None
            worker.enter("starting")
            if beside and self._beside[worker]:
                self._start(worker, self._beside[worker].popleft())
            elif beside:
                del self._beside[worker]
                worker.stop()
        else:
            self.record.say(f"  {name}: {message['line']}")

    def _lost(self, worker: Worker, reason: str = "") -> None:
        """Notes the section whose process has ended or must end; a fresh one goes on with what was left for it."""
        name, state, names = worker.section, worker.state, self._beside.pop(worker, None)
        status, words = worker.stop()
        if names is None:
            self._workers.remove(worker)
        if name is not None:
            self.record.fail(name, reason or f"its process ended with status {status}, {state}", words)
        elif status not in (0, GIVEN_UP):
            self.record.say(f"a process ended with status {status}")
        if names:
            self._start_beside(names)
