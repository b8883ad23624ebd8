"""Runs of a sweep as forks of a server: what they leave, how they end, and what follows if it does not answer."""

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from gnfast.runs import forks, launch
from gnfast.runs.launch import read_record, run_sweep
from gnfast.runs.record import read_run
from gnfast.runs.sweep_file import load_sweep
from tests import processes
from tests.forks import forked
from tests.runs.test_sweep import TINY

pytestmark = pytest.mark.skipif(not forks.available(), reason="needs Linux")
SECONDS = 60
ENDLESS = TINY.replace("steps = 4", "steps = 1000000").replace("checkpoint_every = 2", "checkpoint_every = 1000")


def until(what):
    """Waits for what a function returns, if that is not false."""
    end = time.monotonic() + SECONDS
    while not (found := what()):
        assert time.monotonic() < end, "in vain"
        time.sleep(0.01)
    return found


def ready():
    """A server that can fork."""
    server = forks.Server()
    until(lambda: server._is_ready() or server.process.poll() is not None)
    assert server.process.poll() is None, "it ended while it was importing"
    return server


@pytest.fixture(scope="module")
def server():
    with ready() as one:
        yield one


@pytest.fixture
def sweep(tmp_path):
    def read(text, name="out"):
        path = tmp_path / "sweep.toml"
        path.write_text(text)
        return load_sweep(path, tmp_path / name)

    return read


@pytest.fixture
def start(server, tmp_path):
    """Forks a run and says where its output is; it is ended with the test."""
    with contextlib.ExitStack() as stack:
        output, held = stack.enter_context((tmp_path / "output.txt").open("ab")), stack.enter_context(open(os.devnull))

        def begin(*words, of=server):
            run = of.start(words, output, held.fileno())
            assert run is not None
            stack.callback(run.wait)
            stack.callback(run.kill)
            return run, tmp_path / "output.txt"

        yield begin


def test_a_fork_does_what_the_command_does(start, sweep, tmp_path):
    fresh, (again,) = sweep(TINY + "probe_every = 1").cases[0], sweep(TINY + "probe_every = 1", "again").cases
    assert processes.run_python("-m", "gnfast", *fresh.words()).returncode == 0
    run, output = start(*again.words())
    assert run.wait() == run.returncode == run.poll() == 0
    rows = [(case.folder / "metrics.jsonl").read_bytes() for case in (fresh, again)]
    assert rows[0] and rows[0] == rows[1]
    assert output.read_text().splitlines()[2] == f"finished 4 steps in {again.folder}"
    sessions = [read_run(case.folder).sessions[0] for case in (fresh, again)]
    assert [Path(session["command"][0]).name for session in sessions] == ["__main__.py"] * 2
    assert sessions[1]["command"][1:] == again.words()
    names = [sorted(path.name for path in case.folder.rglob("*")) for case in (fresh, again)]
    assert names[0] == names[1]


def test_ends_are_those_of_processes(start, sweep):
    run, output = start("presets", "no-such")
    assert run.wait() == 2 and output.read_text().startswith("gnfast: unknown preset or part of one 'no-such'")
    run, _ = start("train", "digits", "--help")
    assert run.wait() == 0 and "--lr-d" in output.read_text()
    (case,) = sweep(ENDLESS).cases
    rows = case.folder / "metrics.jsonl"
    run, _ = start(*case.words())
    until(lambda: rows.exists() and rows.stat().st_size)
    assert run.poll() is None and os.getsid(run.pid) == run.pid != os.getsid(0)
    run.terminate()
    assert run.wait() == 128 + signal.SIGTERM
    run, _ = start(*case.words())
    run.kill()
    assert run.wait() == -signal.SIGKILL
    # Its number may be another's now.
    run.kill()


def faulty(images):
    raise KeyError("a bug")


def test_a_bug_keeps_its_traceback_and_status(start, sweep):
    (case,) = sweep(TINY).cases
    run, output = start(*case.words(), "--extractor=tests.runs.test_forks:faulty")
    assert run.wait() == 1
    lines = output.read_text().splitlines()
    assert "Traceback (most recent call last):" in lines and lines[-1] == "KeyError: 'a bug'"


def test_a_server_that_was_stopped_is_given_up_and_its_forks_are_still_heard_of(start, sweep, monkeypatch):
    (case,) = sweep(ENDLESS).cases
    rows = case.folder / "metrics.jsonl"
    monkeypatch.setattr(forks, "SECONDS", 0.5)
    with ready() as of:
        of._socket.settimeout(SECONDS)
        run, output = start(*case.words(), of=of)
        until(lambda: rows.exists() and rows.stat().st_size)
        of._socket.settimeout(forks.SECONDS)
        os.kill(of.process.pid, signal.SIGSTOP)
        for _ in range(2):
            with output.open("ab") as file:
                assert of.start(["presets"], file, file.fileno()) is None
            # Killed, or at its end since nobody can ask it any longer.
        assert of.process.poll() is not None
        assert run.poll() is None
        run.terminate()
        assert run.wait() == 128 + signal.SIGTERM


def test_where_a_gpu_is_spoilt_nothing_is_forked(tmp_path, monkeypatch):
    """As PyTorch has it in forks of a process that has touched one."""
    code = f"""
import os, socket, sys, torch
from gnfast.runs import forks
torch.cuda._is_in_bad_fork = lambda: True
forks.IMPORTED = ()
words = forks.serve(socket.socket(fileno=int(sys.argv[1])))
open({str(tmp_path / "planted")!r}, "w")
"""
    popen = forks.Popen
    monkeypatch.setattr(forks, "Popen", lambda words, **given: popen([sys.executable, "-c", code, words[3]], **given))
    with ready() as of, (tmp_path / "output.txt").open("wb") as output:
        assert of.start(["presets"], output, output.fileno()) is None
        # Killed, or at its end since nobody can ask it any longer.
        assert of.process.poll() is not None
    assert not (tmp_path / "planted").exists()


def test_importing_all_that_a_run_needs_touches_no_gpu_and_starts_no_thread():
    code = """
import importlib, os, threading, torch
from gnfast.runs.forks import IMPORTED
started = threading.active_count()
tasks = len(os.listdir("/proc/self/task"))
torch.cuda._lazy_init = torch.cuda.init = torch.cuda.current_device = None
for name in IMPORTED:
    importlib.import_module(name)
print(torch.cuda.is_initialized(), threading.active_count() - started, len(os.listdir("/proc/self/task")) - tasks)
"""
    # NumPy's library has threads of its own, which it ends before a fork.
    done = processes.run_python("-c", code, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    assert done.stdout == "False 0 0\n", done.stderr


def forking(server, monkeypatch, after=lambda run: None):
    """Has sweeps take a server that is ready; the list of runs that it forked, of each of which `after` is told."""
    forked, start = [], server.start

    def tell(*given):
        run = start(*given)
        if run is not None:
            forked.append(run)
            after(run)
        return run

    monkeypatch.setattr(server, "start", tell)
    monkeypatch.setattr(forks, "Server", lambda: contextlib.nullcontext(server))
    return forked


def test_a_sweep_forks_its_runs(sweep, server, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a run with a Python of its own")

    monkeypatch.setattr(launch.subprocess, "Popen", refuse)
    forked = forking(server, monkeypatch)
    read = sweep(TINY + "[grid]\nseed = [0, 1, 2]\nlr_d = [1e-3, 1e-4]\n[run]\nprocesses = 2\nthreads = 1\n")
    lines = []
    assert run_sweep(read, progress=False, echo=lines.append) == 0
    assert len(forked) == len(lines) == 6
    assert {entry["exit"] for entry in read_record(read.out).values()} == {0}
    for case in read.cases:
        assert read_run(case.folder).sessions[0]["threads"] == 1
        assert f"finished 4 steps in {case.folder}" in (read.out / "output" / f"{case.name}.txt").read_text()


def test_a_fork_that_is_killed_is_recorded(sweep, server, monkeypatch):
    forked = forking(server, monkeypatch, after=lambda run: len(forked) == 1 and run.kill())
    read = sweep(TINY + "[grid]\nseed = [0, 1]\n")
    assert run_sweep(read, progress=False, echo=lambda line: None) == 0
    record = read_record(read.out)
    ends = [(record[case.name]["status"], record[case.name]["exit"]) for case in read.cases]
    assert ends == [("failed", -signal.SIGKILL), ("finished", 0)]


def test_a_sweep_whose_server_is_killed_goes_on(sweep, monkeypatch):
    """The run that it had forked ends as it would have; the others begin in Pythons of their own."""
    begun = []

    def start(words, **options):
        begun.append(words)
        return processes.Popen(words, **options)

    with ready() as of:
        forked = forking(of, monkeypatch, after=lambda run: of.process.kill())
        monkeypatch.setattr(launch.subprocess, "Popen", start)
        read = sweep(TINY + "[grid]\nseed = [0, 1, 2]\n")
        assert run_sweep(read, progress=False, echo=lambda line: None) == 0
    assert len(forked) == 1 and len(begun) == 2
    assert [read_record(read.out)[case.name]["status"] for case in read.cases] == ["finished"] * 3


def _sweep_in_a_fork(read, tmp_path, **patches):
    """A process that sweeps, with a server that is ready; the numbers of its first run and of the server."""
    numbers = tmp_path / "numbers.json"

    def work():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name, value in patches.items():
            setattr(forks.Fork, name, value)
        with pytest.MonkeyPatch.context() as patch, ready() as of:
            forking(of, patch, after=lambda run: numbers.write_text(json.dumps([run.pid, of.process.pid])))
            run_sweep(read, progress=False, echo=lambda line: print(line, flush=True))

    child = forked(work, tmp_path / "sweep.txt")
    rows = read.cases[0].folder / "metrics.jsonl"
    until(lambda: rows.exists() and rows.stat().st_size)
    return child, *json.loads(numbers.read_text())


def _is_kept(folder):
    with (folder / ".lock").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_runs_that_outlive_a_killed_sweep_keep_its_folder(sweep, tmp_path):
    read = sweep(ENDLESS + "[grid]\nseed = [0, 1]\n")
    child, run, server = _sweep_in_a_fork(read, tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    stat = Path(f"/proc/{server}/stat")
    until(lambda: not stat.exists() or stat.read_text().split()[2] == "Z")
    assert _is_kept(read.out)
    os.kill(run, signal.SIGTERM)
    until(lambda: not _is_kept(read.out))
    assert "by SIGTERM; saved" in (read.cases[0].folder / "log.txt").read_text()


def test_a_second_signal_ends_the_runs_at_once(sweep, tmp_path):
    read = sweep(ENDLESS + "[grid]\nseed = [0, 1]\n")
    # As one whose checkpoint takes longer than the test.
    child, *_ = _sweep_in_a_fork(read, tmp_path, terminate=lambda run: os.kill(run.pid, signal.SIGSTOP))
    os.kill(child, signal.SIGINT)
    until(lambda: "SIGINT: 1 run stops" in (tmp_path / "sweep.txt").read_text())
    os.kill(child, signal.SIGINT)
    os.waitpid(child, 0)
    assert "KeyboardInterrupt" in (tmp_path / "sweep.txt").read_text()
    assert not _is_kept(read.out)


def test_few_runs_need_no_server(sweep, monkeypatch):
    monkeypatch.setattr(forks, "Server", None)
    monkeypatch.setattr(launch.subprocess, "Popen", processes.Popen)
    read = sweep(TINY + "[grid]\nseed = [0, 1]\n[run]\nprocesses = 2\n")
    assert run_sweep(read, progress=False, echo=lambda line: None) == 0


def test_elsewhere_runs_are_processes_as_ever(sweep, monkeypatch):
    monkeypatch.setattr(forks.sys, "platform", "darwin")
    assert not forks.available()
    monkeypatch.undo()
    monkeypatch.setattr(forks, "available", lambda: False)
    monkeypatch.setattr(forks, "Server", None)
    monkeypatch.setattr(launch.subprocess, "Popen", processes.Popen)
    assert run_sweep(sweep(TINY + "[grid]\nseed = [0, 1]\n"), progress=False, echo=lambda line: None) == 0
