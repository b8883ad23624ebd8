"""A process that runs sections: told which by lines of JSON on stdin, it tells what it finds by lines on stdout."""

import contextlib
import faulthandler
import importlib
import json
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.gpu.section import Context, Section

MARK, GIVEN_UP = "@message ", 3
"""How a message begins, and the exit status of a process whose device does not answer after an error."""


def tell(kind: str, **message: Any) -> None:
    """One message to the crew."""
    print(MARK + json.dumps({"kind": kind, **message}), flush=True)


def main(job: dict[str, Any]) -> int:
    """Runs sections until stdin ends.

    Args:
        job: "device", "quick" and "out" as `Context` has them, and "table", the module whose `SECTIONS` are meant.
    """
    # The crew asks for the stacks of a section that hangs before it ends the process.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    sections: dict[str, Section] = importlib.import_module(job["table"]).SECTIONS
    context = Context(job["device"], job["quick"], Path(job["out"]), seconds=job["seconds"], wait=_wait)
    if context.quick:
        import torch

        torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        context.rates |= order["rates"]
        if not _run(order["section"], sections[order["section"]], context):
            return GIVEN_UP
    return 0


def _wait() -> None:
    tell("wait")
    if not sys.stdin.readline():
        raise SystemExit(0)


def _run(name: str, section: Section, context: Context) -> bool:
    """Whether the device still answers afterwards."""
    context.limit_s = section.limit(context.quick)
    started = time.monotonic()
    tell("start")
    error = None
    try:
        for row in section.rows(context):
            tell("row", row=row)
    except Exception as raised:
        error = f"{type(raised).__name__}: {(str(raised).strip() or 'no message').splitlines()[0][:300]}"
        tell("failure", reason=error, details=traceback.format_exc())
    tell("end", seconds=round(time.monotonic() - started, 1), rates=context.rates)
    return error is None or _answers(context.device)


def _answers(device: str) -> bool:
    """An error of the device stays with its process, and everything after it would fail with it."""
    import torch

    if device != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        with contextlib.suppress(torch.OutOfMemoryError):
            torch.zeros(1, device="cuda").add_(1).item()
        torch.cuda.empty_cache()
    except Exception:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
