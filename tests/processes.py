"""Python processes for tests, forked from one that has imported PyTorch: that alone takes three seconds in each.

The process that they are forked from has imported nothing of gnfast and run nothing: what a variable of the environment
changes in gnfast, or in PyTorch's first operation, it changes here too. Not for tests that use a GPU: importing PyTorch
may ask the driver, and then forks cannot.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import BinaryIO

from tests.forks import end_with

START = "forkserver"
_context = multiprocessing.get_context(START)
_context.set_forkserver_preload(["torch", "torch._dynamo", "torch.distributed.fsdp", "torch.testing", "numpy.testing"])


def assert_passes_on(capability: str, file: str, tests: str) -> None:
    """That the file's tests of these names, of which there are some, pass where PyTorch and gnfast see no more of the
    CPU than this capability.
    """
    words = "-m", "pytest", "-q", "-p", "no:cacheprovider", file, "-k", tests
    run = run_python(*words, ATEN_CPU_CAPABILITY=capability)
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout


def run_python(*words: str, cwd: Path | None = None, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, *words], capture_output=True, text=True)`.

    Args:
        words: "-c" and code, or "-m", a module and its arguments.
        cwd: where it runs; None: here.
        environment: what differs from this process's; None: not set.
    """
    variables = {name: value for name, value in (os.environ | environment).items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        child = _fork(words, cwd or Path.cwd(), variables, files)
        child.join()
        return subprocess.CompletedProcess(words, child.exitcode, *(file.read_text() for file in files))


class Popen:
    """What sweeps need of `subprocess.Popen`."""

    def __init__(self, words: list[str], stdout: BinaryIO, **_: object) -> None:
        self._child = _fork(tuple(words[1:]), Path.cwd(), dict(os.environ), [Path(stdout.name)] * 2)
        self.terminate, self.kill, self.wait = self._child.terminate, self._child.kill, self._child.join

    def poll(self) -> int | None:
        return self._child.exitcode

    returncode = property(poll)


def _fork(words: tuple[str, ...], cwd: Path, environment: dict[str, str], files: list[Path]) -> BaseProcess:
    child = _context.Process(target=_become, args=(words, cwd, environment, files), daemon=True)
    child.start()
    return child


def _become(words: tuple[str, ...], cwd: Path, environment: dict[str, str], files: list[Path]) -> None:
    end_with(os.getppid())
    for number, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    # Like subprocess. One of the others would keep the process alive that this was forked from, and so this one.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.stdin = os.fdopen(0, closefd=False)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    kind, *arguments = words
    if kind == "-c":
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
