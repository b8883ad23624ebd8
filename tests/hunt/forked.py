"""Runs trials in a child process that may crash or hang, and says which trial it was that did."""

import faulthandler
import os
import pickle
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from tests.forks import fork


def trials(function: Callable[[Any], Any], inputs: Iterable[Any], limit: float) -> Iterator[tuple[Any, Any]]:
    """(input, function(input)) one after another; (input, Died) where the process died or took longer.

    Args:
        function: runs in a child of this process, many times in the same one.
        inputs: what to call it with; taken one at a time.
        limit: seconds for one call.
    """
    child = None
    for given in inputs:
        child = child or _Child(function)
        result = child.ask(given, limit)
        if isinstance(result, Died):
            child.end()
            child = None
        yield given, result
    if child is not None:
        child.end()


class Died:
    """What is known of a trial that did not come back."""

    def __init__(self, how: str) -> None:
        self.how = how


class _Child:
    def __init__(self, function: Callable[[Any], Any]) -> None:
        (to_read, self.to), (self.back, to_write) = os.pipe(), os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = fork()
        if self.pid == 0:
            try:
                os.close(self.to), os.close(self.back)
                faulthandler.enable()
                torch.set_num_threads(1)
                while (given := _receive(to_read, None)) is not None:
                    _send(to_write, (function(given[0]),))
            finally:
                os._exit(1)
        os.close(to_read), os.close(to_write)

    def ask(self, given: Any, limit: float) -> Any:
        try:
            _send(self.to, (given,))
            answer = _receive(self.back, limit)
        except TimeoutError:
            return Died(f"took longer than {limit:.0f} s")
        except BrokenPipeError:
            answer = None
        if answer is None:
            _, status = os.waitpid(self.pid, 0)
            self.pid = None
            by = f"signal {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "an exit"
            return Died(f"died by {by}")
        return answer[0]

    def end(self) -> None:
        os.close(self.to), os.close(self.back)
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _send(pipe: int, message: Any) -> None:
    data = pickle.dumps(message)
    data = struct.pack("q", len(data)) + data
    while data:
        data = data[os.write(pipe, data) :]


def _receive(pipe: int, limit: float | None) -> Any:
    """The next message, or None where the other side is gone."""
    until = None if limit is None else time.monotonic() + limit
    data, wanted = b"", 8
    while len(data) < wanted:
        left = None if until is None else max(0.0, until - time.monotonic())
        if not select.select([pipe], [], [], left)[0]:
            raise TimeoutError
        part = os.read(pipe, wanted - len(data))
        if not part:
            return None
        data += part
        if wanted == 8 and len(data) == 8:
            wanted += struct.unpack("q", data)[0]
    return pickle.loads(data[8:])
