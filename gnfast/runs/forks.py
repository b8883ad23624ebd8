"""Processes of `gnfast` that begin at once: forks of one that has imported everything and run nothing.

A Python that imports PyTorch and gnfast works for some four seconds before it does anything: longer than a tiny run of
a sweep takes. A fork of one that has done so begins after hundredths of a second. That one, the server, runs `serve`
below. It has started no threads of PyTorch's and touched no GPU, so its forks may do both. A fork is a child of the
process that asked for it, not of the server: its exit status is that of any child, and it outlives the server.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence

# By this name, so that a test which replaces `subprocess.Popen` replaces the runs and not the server.
from subprocess import DEVNULL, Popen
from typing import BinaryIO, NoReturn

# What `gnfast train` imports, most of it not before it is needed.
IMPORTED = ("gnfast.cli.train", "gnfast.public", "gnfast.train.loop", "torch._dynamo", "torch.profiler", "typeguard")
IMPORTED += ("torch.utils.tensorboard", "matplotlib.figure")
IMPORTED += ("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg")
# A fork takes hundredths of a second: who waits for one that long has met a server that was stopped.
SECONDS = 30.0
# The exit status of a process that other code has waited for.
UNKNOWN = 255
_READY = b"ready"
_MOST_BYTES = 1 << 17
_WITHOUT_DRIVER = "PYTORCH_NVML_BASED_CUDA_CHECK"
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37


class Fork:
    """A process that a server forked for this one: what `subprocess.Popen` knows of its own."""

    def __init__(self, pid: int):
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, negative for the signal that ended it; None while it runs."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int | None:
        return self._reap(0)

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        # One that has ended and was not waited for keeps its number.
        if self.poll() is None:
            os.kill(self.pid, number)

    def _reap(self, how: int) -> int | None:
        if self.returncode is None:
            try:
                done, status = os.waitpid(self.pid, how)
                self.returncode = os.waitstatus_to_exitcode(status) if done else None
            except ChildProcessError:
                # Other code here has waited for it, and knows.
                self.returncode = UNKNOWN
        return self.returncode


class Server:
    """The process that others are forked from, which this one starts, and ends with `close`.

    Until it has imported everything, and once it has ended, `start` gives None: there is always the longer way.
    """

    def __init__(self) -> None:
        self._adopted = _adopt_orphans(True)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(SECONDS)
        self._ready = False
        with theirs:
            self.process = Popen(
                [sys.executable, "-m", "gnfast.runs.forks", str(theirs.fileno()), os.environ.get(_WITHOUT_DRIVER, "")],
                # gnfast looks for a GPU when it is imported, otherwise by loading the driver, which forks cannot use;
                # where there is none, PyTorch would try all the same.
                env=os.environ | {_WITHOUT_DRIVER: "1"} | ({} if _has_driver() else {"CUDA_VISIBLE_DEVICES": ""}),
                **dict.fromkeys(("stdin", "stdout", "stderr"), DEVNULL),
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )

    def start(self, words: Sequence[str], output: BinaryIO, held: int) -> Fork | None:
        """`python -m gnfast WORDS`, in a session of its own, or None where there is no server to fork it from.

        Args:
            words: the arguments.
            output: where its stdout and stderr go.
            held: a descriptor that it keeps open.
        """
        message = json.dumps(list(words)).encode()
        if not self._is_ready() or len(message) > _MOST_BYTES:
            return None
        try:
            socket.send_fds(self._socket, [message], [output.fileno(), held])
            pid = int(self._socket.recv(_MOST_BYTES) or 0)
        except OSError:
            # It was killed, or stopped.
            pid = 0
        if not pid:
            self.close()
            return None
        return Fork(pid)

    def _is_ready(self) -> bool:
        if self.process.poll() is None and not self._ready and select.select([self._socket], [], [], 0)[0]:
            self._ready = self._socket.recv(_MOST_BYTES) == _READY
        return self.process.poll() is None and self._ready

    def close(self) -> None:
        """Ends the server; its forks go on."""
        self._socket.close()
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        _adopt_orphans(self._adopted)


def available() -> bool:
    """Whether processes can be forked like that here: on Linux, where their ends can be waited for."""
    return sys.platform == "linux" and signal.getsignal(signal.SIGCHLD) is not signal.SIG_IGN


def _has_driver() -> bool:
    """Whether there is a driver of Nvidia's to load."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _adopt_orphans(whether: bool) -> bool:
    """Has orphans among its descendants become children of this process, or not; whether they did before."""
    before, prctl = ctypes.c_int(), ctypes.CDLL(None).prctl
    prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    prctl(_PR_SET_CHILD_SUBREAPER, int(whether), 0, 0, 0)
    return bool(before.value)


def serve(requests: socket.socket) -> list[str]:
    """Imports everything and forks until nobody is left to ask; in a fork, returns the words that it was asked for."""
    for name in IMPORTED:
        # A run that needs it says that it is missing.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # What a fork does not look through, it does not copy.
    gc.collect()
    gc.freeze()
    requests.send(_READY)
    while True:
        message, descriptors, *_ = socket.recv_fds(requests, _MOST_BYTES, 2)
        if not message:
            # Whoever could ask has gone.
            os._exit(0)
        between = os.fork()
        if not between:
            between = os.getpid()
            if os.fork():
                # An orphan is the child of who asked.
                os._exit(0)
            _begin(between, requests, *descriptors)
            return json.loads(message)
        if os.waitpid(between, 0)[1]:
            requests.send(b"0")
        for descriptor in descriptors:
            os.close(descriptor)


def _begin(parent: int, requests: socket.socket, output: int, held: int) -> None:
    """Makes this fork what a new process would be, and tells its number."""
    import numpy
    import torch

    while os.getppid() == parent:
        time.sleep(0.0005)
    os.setsid()
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    os.set_inheritable(held, True)
    # Python does this for its own random numbers.
    numpy.random.seed()  # noqa: NPY002
    usable = not torch.cuda._is_in_bad_fork()
    try:
        requests.send(str(os.getpid() if usable else 0).encode())
    except OSError:
        # Nobody waits for it any longer, and another may have taken its place.
        usable = False
    requests.close()
    if not usable:
        os._exit(0)


def run(words: Sequence[str]) -> NoReturn:
    """`python -m gnfast WORDS` in this process, which ends with it.

    As Python ends, but for taking apart all that was imported: that would copy it from the server first.
    """
    sys.argv[1:] = words
    status: object = None
    try:
        runpy.run_module("gnfast", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status if isinstance(status, int) else status is not None)


if __name__ == "__main__":
    words = serve(socket.socket(fileno=int(sys.argv[1])))
    os.environ[_WITHOUT_DRIVER] = sys.argv[2]
    run(words)
