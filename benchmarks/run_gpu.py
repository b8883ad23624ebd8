"""Measures gnfast on the present GPU and writes one JSON file: `make gpu OUT=dir`.

    python benchmarks/run_gpu.py --out results.json [--only critic_32 iteration …]
    python benchmarks/run_gpu.py --out results.json --dry-run      the same code on the CPU, with tiny sizes

The sections (`gpu_sections.py`) run in a process of their own, the most valuable first. A row is in the file as soon as
it is measured. A section that raises is recorded with its traceback; one that runs over its limit, crashes or breaks
the device costs itself alone, because a fresh process goes on with the next. The exit status is 1 if any failed.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from gpu_sections import GIVEN_UP, MARK, SECTIONS

HERE = Path(__file__).resolve().parent
SCRIPT = HERE / "gpu_sections.py"
# Seconds that a process may take before its first message: importing PyTorch, and starting CUDA.
START_LIMIT = 60.0
# Seconds beyond its limit that a section may take to notice.
GRACE = 15.0


def write(path: Path, results: dict[str, Any]) -> None:
    """Replaces the file in one step, so that a kill leaves the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(temporary, path)


class Worker:
    """A process that runs sections and tells what it finds, one JSON object a line."""

    def __init__(self, job: dict[str, Any]) -> None:
        command = [sys.executable, str(SCRIPT), json.dumps(job)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def message(self, deadline: float) -> dict[str, Any] | None:
        """The next message; None once the process has ended.

        Raises:
            queue.Empty: nothing came before the deadline.
        """
        while True:
            line = self.lines.get(timeout=max(0.01, deadline - time.monotonic()))
            if line is None:
                return None
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
            print(line, end="", flush=True)

    def stop(self) -> int:
        """Ends the process if it has not, and returns its exit status."""
        try:
            return self.process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def supervise(job: dict[str, Any], out: Path, results: dict[str, Any], time_limit: float) -> None:
    """Runs the job's sections in as many processes as it takes, and keeps the file up to date.

    Args:
        job: what `gpu_sections.py` takes; its sections are done in order.
        out: the JSON file.
        results: what is in the file so far; filled.
        time_limit: seconds after which no further section starts.
    """
    end = time.monotonic() + time_limit
    pending = list(job["sections"])
    sections = results["sections"]
    while pending:
        if time.monotonic() >= end:
            sections.update({name: {"error": f"not started: {time_limit:.0f} s had passed"} for name in pending})
            break
        known = {"ceilings": results.get("ceilings", {})}
        worker = Worker({**job, **known, "sections": pending, "seconds_left": end - time.monotonic()})
        current, deadline, stalled = None, time.monotonic() + START_LIMIT, False
        try:
            while (message := worker.message(deadline)) is not None:
                kind = message["kind"]
                if kind == "results":
                    results.update(message["values"])
                elif kind == "start":
                    current = message["section"]
                    sections[current] = {"rows": []}
                    deadline = time.monotonic() + message["limit_s"] + GRACE
                elif kind == "row":
                    sections[current]["rows"].append(message["row"])
                else:
                    sections[current] |= message["values"]
                    print(f"{current}: {_summary(sections[current])}", flush=True)
                    pending.remove(current)
                    current, deadline = None, time.monotonic() + START_LIMIT
                write(out, results)
        except queue.Empty:
            stalled = True
            worker.process.kill()
        status = worker.stop()
        if current is not None:
            reason = "no row came within its time limit" if stalled else f"its process ended with status {status}"
            sections[current]["error"] = reason
        elif pending and status not in (0, GIVEN_UP):
            # Between sections: whatever it is, the next process may meet it too.
            current = pending[0]
            sections[current] = {"error": f"the process that was to start it {'stalled' if stalled else 'ended'}"}
        if current in pending:
            print(f"{current}: {sections[current]['error']}", flush=True)
            pending.remove(current)
        write(out, results)


def _summary(section: dict[str, Any]) -> str:
    text = f"{len(section['rows'])} rows in {section['seconds']:.1f} s"
    return text + (f", FAILED: {section['error'].strip().splitlines()[-1]}" if "error" in section else "")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections (default: all)")
    parser.add_argument("--time-limit", type=float, default=300, help="seconds after which no further section starts")
    parser.add_argument("--steps", default="", help="exit statuses of earlier steps, as 'build=0 tests=0'")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU with tiny sizes: to see that all runs")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {
        "steps": {name: int(status) for name, status in (step.split("=") for step in options.steps.split())},
        "dry_run": options.dry_run,
        "sections": {},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write(options.out, results)
    job = {"sections": options.only, "device": "cpu" if options.dry_run else "cuda", "quick": options.dry_run}
    supervise(job, options.out, results, options.time_limit)
    return int("environment" not in results or any("error" in section for section in results["sections"].values()))


if __name__ == "__main__":
    sys.exit(main())
