"""What the processes of one torchrun say: the same warning or error once, not once for each of them."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from gnfast.runs import torchrun

# So long the others wait for the first process, which most often meets the same error; and those who have lost another
# process for what it says itself. Longer than that: it may wait, too.
PATIENCE, PATIENCE_OF_LEFT = 1.0, 3.0


@dataclass(frozen=True)
class Processes:
    """This process and the others that torchrun has started with it; one alone without them.

    Args:
        rank, world: its number from 0 on, and how many there are.
        store: `torch.distributed`'s, of all of them; None where there is none. Then each process says everything.
    """

    rank: int = 0
    world: int = 1
    store: Any = None

    def warn(self, line: str) -> None:
        """Says it on stderr, if no other process has."""
        if self._is_first(line):
            print(line, file=sys.stderr)

    def fail(self, line: str, was_left: bool = False) -> None:
        """Says why this process ends.

        Only one says what all have met, the first if it is among them. All others say their rank. torchrun repeats it
        at the end of what it prints itself.

        Args:
            was_left: the reason is that another process has ended. If that one says why, this one says nothing.
        """
        if self.world == 1:
            print(line, file=sys.stderr)
            return
        if threading.current_thread() is threading.main_thread():
            # torchrun asks all to end as soon as one has. That is in a moment.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if was_left and self._comes("error", PATIENCE_OF_LEFT):
            return
        # What it says of a process that was lost differs from one to the next.
        key = "left" if was_left else line
        if (self.rank and self._comes(key, PATIENCE)) or not self._is_first(key):
            return
        if self.rank:
            line = line.replace("gnfast: ", f"gnfast: rank {self.rank} of {self.world}: ", 1)
        print(line, file=sys.stderr)
        self._ask("set", "error", "")
        _tell_torchrun(line)

    def _is_first(self, key: str) -> bool:
        return self._ask("add", key, 1) in (1, None)

    def _comes(self, key: str, seconds: float) -> bool:
        """Whether another process has said it, or does so soon."""
        end = time.monotonic() + seconds
        while self.store is not None and not (said := self._ask("check", [key])) and time.monotonic() < end:
            time.sleep(0.02)
        return self.store is not None and bool(said)

    def _ask(self, method: str, *words: Any) -> Any:
        """What the store answers; None where there is none, or none any more: torchrun's ends with it."""
        with contextlib.suppress(RuntimeError):
            return None if self.store is None else getattr(self.store, method)(*words)


@cache
def here() -> Processes:
    """What torchrun's environment variables say of this process."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Processes()
    return Processes(int(os.environ.get("RANK", "0")), world, _store())


def _store() -> Any:
    """torchrun's own store, where it serves its processes as well."""
    if not torchrun.serves() or torchrun.is_gone():
        return None
    from torch import distributed

    place = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
    patience = timedelta(seconds=torchrun.SECONDS)
    try:
        store = distributed.TCPStore(*place, is_master=False, wait_for_workers=False, timeout=patience)
    except RuntimeError:
        return None
    return distributed.PrefixStore(f"gnfast said {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _tell_torchrun(line: str) -> None:
    """Leaves a message where torchrun's `record` would leave a traceback."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        message = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
        # The line is on stderr all the same.
        with contextlib.suppress(OSError), open(path, "w") as file:
            json.dump({"message": message}, file)
