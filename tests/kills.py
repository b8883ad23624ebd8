"""Trainings that are killed at drawn moments and in the middle of drawn file operations, continued, and compared.

`python -m tests.hunt kills --count COUNT --seed SEED` does it COUNT times.
"""

import contextlib
import hashlib
import importlib
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from gnfast.runs import checkpoint
from tests.forks import forked

STEPS = 8
SECONDS = 120
# Calls after which the disk is another one, and those in the middle of a checkpoint.
OPERATIONS = {
    *("open", "close", "write", "write_bytes", "write_text", "flush", "print", "fsync", "replace", "rename", "unlink"),
    *("remove", "mkdir", "rmdir", "truncate", "ftruncate", "flock", "posix_fallocate", "save", "write_record"),
    *("write_end_of_file",),
}


@dataclass
class Outcome:
    """A run that was killed `kills` times, continued until it ended, and compared with one that was not.

    Attributes:
        what: where it was killed, in words that repeat it.
        kills: how often.
        faults: how the two differ; empty if all is well.
    """

    what: str
    kills: int
    faults: list[str] = field(default_factory=list)


def kills(rng: random.Random, folder: Path, whole: "Runs | None" = None) -> Iterator[Outcome]:
    """Without end: a run is killed up to three times, in each stage from decoding to the report, and compared.

    Args:
        rng: draws the places.
        folder: an empty folder for data, caches and runs.
        whole: the uninterrupted run to compare with; made in `folder` if None.
    """
    whole = whole or Runs(folder)
    for number in itertools.count():
        run = folder / f"run-{number}"
        places = []
        for _ in range(rng.randint(1, 3)):
            place = whole.draw(rng)
            if whole.start(run, **place) == -signal.SIGKILL:
                places.append(", ".join(f"{name} {value}" for name, value in place.items()))
        what = f"{run.name}: killed at {'; '.join(places) or 'nothing'}"
        yield Outcome(what, len(places), whole.finish(run))


def concurrent_starts(rng: random.Random, folder: Path, whole: "Runs | None" = None) -> Iterator[Outcome]:
    """Without end: a second command on a run folder where the first is at work, at a drawn moment.

    The second must say so in one line and touch nothing; the first must end as if it had been alone.
    """
    whole = whole or Runs(folder)
    for number in itertools.count():
        run, delay = folder / f"shared-{number}", rng.uniform(0.0, whole.seconds)
        first = whole.fork(run, "first")
        time.sleep(delay)
        second = whole.start(run, name="second")
        # Whoever came first did the work; the other was refused, or came after it and found it done.
        ends = {"first": whole.wait(first), "second": second}
        refused = [name for name, status in ends.items() if status == 2]
        faults = [f"the {name} ended with {status}" for name, status in ends.items() if status not in (0, 2)]
        faults += ["both were refused"] * (len(refused) == 2)
        for name in refused:
            said = whole.output(run, name)
            if len(said) != 1 or "still at work here" not in said[0]:
                faults.append(f"the {name} said {said[-3:]}")
        yield Outcome(f"{run.name}: second start after {delay:.2f} s", 0, faults + whole.finish(run))


class Runs:
    """The command, an uninterrupted run of it, and what to compare with that.

    Args:
        folder: an empty folder.
        as_on_a_gpu: the runs are arranged as on one (`gnfast.bench.program`), with a thread for what is not a step.
    """

    def __init__(self, folder: Path, as_on_a_gpu: bool = False):
        self.folder, self.arranged = folder, as_on_a_gpu
        self.data = folder / "images"
        self.data.mkdir()
        draw = random.Random(0)
        for index in range(30):
            pixels = bytes(draw.randrange(256) for _ in range(64))
            Image.frombytes("L", (8, 8), pixels).save(self.data / f"{index:02d}.png")
        # Not in each fork again.
        program = "gnfast.bench.program", "gnfast.cli.train", "gnfast.train.loop"
        for name in (*program, "matplotlib.figure", "matplotlib.backends.backend_agg"):
            importlib.import_module(name)
        began = time.monotonic()
        whole = folder / "whole"
        self.counted = folder / "counted"
        if self.start(whole, count=0):
            raise RuntimeError("\n".join(self.output(whole, "run")))
        self.seconds = time.monotonic() - began
        self.operations = int(self.counted.read_text())
        self.wanted = _content(whole)

    def draw(self, rng: random.Random) -> dict[str, float]:
        """Where to kill: a moment of the run, or one of its file operations."""
        if rng.random() < 0.3:
            return {"second": rng.uniform(0.0, self.seconds)}
        return {"operation": rng.randint(1, self.operations)}

    def start(self, run: Path, name: str = "run", **place: float) -> int:
        """The exit status of the command, negative for the signal that ended it."""
        return self.wait(self.fork(run, name, **place), place.get("second", SECONDS))

    def finish(self, run: Path) -> list[str]:
        """Continues a run until it ends, and says how it differs from the uninterrupted one."""
        status = self.start(run)
        output = self.output(run, "run")
        if status:
            return [f"it ended with {status}: {' / '.join(output[-3:])}"]
        got = _content(run)
        faults = [f"{name} differs" for name in self.wanted if got.get(name) != self.wanted[name]]
        faults += [f"{name} is left" for name in got.keys() - self.wanted.keys()]
        if any("Traceback" in line for line in output):
            faults.append("it printed a traceback")
        return sorted(faults)

    def output(self, run: Path, name: str) -> list[str]:
        return self._output(run, name).read_text(encoding="utf-8", errors="replace").splitlines()

    def _output(self, run: Path, name: str) -> Path:
        return self.folder / f"{run.name}-{name}.txt"

    def wait(self, child: int, seconds: float = SECONDS) -> int:
        end = time.monotonic() + seconds
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                end = float("inf")
            time.sleep(0.002)

    def fork(self, run: Path, name: str, **place: float) -> int:
        """The process of `gnfast train` in `run`: a fork, which need not import PyTorch again."""
        output = self._output(run, name)
        output.unlink(missing_ok=True)
        return forked(self._train, output, run, place)

    def _train(self, run: Path, place: dict[str, float]) -> int:
        import gnfast.data.cache
        from gnfast.bench.program import as_on_a_gpu
        from gnfast.cli import main

        os.setpgid(0, 0)
        os.environ["GNFAST_CACHE"] = str(self.folder / f"cache-{run.name}")
        torch.set_num_threads(1)
        # Small images are not worth a file, but these are to have one.
        gnfast.data.cache._WORTH_SECONDS = 0.0
        words = [f"--data={self.data}", "--resolution=8", "--width=0.1", "--z-dim=5", f"--steps={STEPS}", "--batch-d=4"]
        words += ["--batch-g=6", "--n-samples=4", "--sample-every=3", "--checkpoint-every=3", "--lr-decay=linear"]
        words += ["--ema-start=5", "--log-every=2", "--probe-every=5", "--eval-every=4", "--n-fake=12"]
        words += ["--extractor=tests.kills:pixels", "--no-tensorboard", "--device=cpu", f"--run-dir={run}"]
        counter = _Operations(int(place.get("operation", 0)))
        if "operation" in place or "count" in place:
            sys.setprofile(counter)
            threading.setprofile(counter)
        try:
            with as_on_a_gpu() if self.arranged else contextlib.nullcontext():
                return main(["train", "digits", *words])
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
            if "count" in place:
                self.counted.write_text(str(counter.seen))


class _Operations:
    """A profile function that counts file operations, at their beginning and at their end, and kills at one of them."""

    def __init__(self, fatal: int):
        self.seen, self.fatal = 0, fatal

    def __call__(self, _frame: object, event: str, called: Callable) -> None:
        # Strings have a `replace`, lists a `remove`.
        counts = event in ("c_call", "c_return") and called.__name__ in OPERATIONS
        if counts and not isinstance(called.__self__, str | bytes | list | set):
            self.seen += 1
            if self.seen == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Features of the evaluation: four means of a quarter of the image each, (N, 4)."""
    return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def _content(run: Path) -> dict[str, object]:
    """What must be the same: weights and all that the next step depends on, log rows, pictures; and nothing besides."""
    content: dict[str, object] = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = path.relative_to(run).as_posix()
        if path.suffix == ".pt":
            # PyTorch's archives hold a time.
            content[name] = _digest(torch.load(path, weights_only=True))
        elif path.suffix in (".png", ".jsonl") and name != "speed.jsonl":
            content[name] = path.read_bytes()
        else:
            # Times, and names of folders.
            content[name] = None
    content["newest"] = checkpoint.load_newest(run / "checkpoints")["state"]["step"]
    content["finished"] = f"finished {STEPS} steps" in (run / "report.html").read_text(encoding="utf-8")
    return content


def _digest(value: object) -> str:
    """Of a checkpoint: kinds, shapes and bits."""
    digest = hashlib.sha256()

    def add(item: object) -> None:
        digest.update(type(item).__name__.encode())
        if isinstance(item, dict):
            for key, entry in item.items():
                add(key)
                add(entry)
        elif isinstance(item, list | tuple):
            for entry in item:
                add(entry)
        elif isinstance(item, torch.Tensor):
            digest.update(f"{item.dtype} {tuple(item.shape)}".encode())
            digest.update(item.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(item).encode())

    add(value)
    return digest.hexdigest()
