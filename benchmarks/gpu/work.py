"""A process that runs sections: told which by lines of JSON on stdin, it tells what it finds by lines on stdout."""

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.gpu.section import Context, Section

MARK, GIVEN_UP = "@message ", 3
"""How a message begins, and the exit status of a process whose device does not answer after an error."""


def tell(kind: str, **message: Any) -> None:
    """One message to the crew."""
    # On a line of its own, whatever a library has begun to write.
    print("\n" + MARK + json.dumps({"kind": kind, **message}, default=_plain), flush=True)


def _plain(value: Any) -> Any:
    """What JSON does not know: a scalar of PyTorch's or NumPy's as a number, all else in words."""
    try:
        return value.item()
    except (AttributeError, RuntimeError, ValueError):
        return str(value)


def main(job: dict[str, Any]) -> int:
    """Runs sections until stdin ends.

    Args:
        job: "device", "quick" and "out" as `Context` has them, and "table", the module whose `SECTIONS` are meant.
    """
    # A section stops what it has started by an interrupt, which a shell's & has made processes ignore.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The crew asks for the stacks of a section that hangs before it ends the process.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
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


def _end_with(parent: int) -> None:
    """Ends this process and those that it has started where its parent was killed and could not."""
    while os.getppid() == parent:
        time.sleep(1)
    end_session(os.getsid(0))


def end_session(session: int) -> None:
    """Ends all processes of a session, in whichever groups they are, at once; the one that calls last."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        # One may have ended meanwhile. Behind the name: state, parent, group, session.
        with contextlib.suppress(OSError):
            if int(stat.read_text(errors="replace").rpartition(")")[2].split()[3]) == session:
                found.append(int(stat.parent.name))
    for process in sorted(found, key=os.getpid().__eq__):
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)


def _wait() -> None:
    tell("wait")
    if not sys.stdin.readline():
        raise SystemExit(0)


def _run(name: str, section: Section, context: Context) -> bool:
    """Whether the device still answers afterwards."""
    context.limit_s = section.limit(context.quick)
    started = time.monotonic()
    tell("start")
    try:
        for row in section.rows(context):
            details = row.pop("traceback", None)
            tell("row", row=row)
            if details is not None:
                tell("part", reason=row["note"], details=details)
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"
        tell("failure", reason=reason, details=traceback.format_exc())
    tell("end", seconds=round(time.monotonic() - started, 1), rates=context.rates)
    return _answers()


def _answers() -> bool:
    """An error of the device stays with its process, and everything after it would fail with it.

    A section may have survived it: variants that fail are notes. Memory that others may need is given back.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        gc.collect()
        torch.cuda.synchronize()
        with contextlib.suppress(torch.OutOfMemoryError):
            torch.zeros(1, device="cuda").add_(1).item()
        torch.cuda.empty_cache()
    except Exception:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
