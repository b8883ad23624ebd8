"""The training program: one captured iteration, a short run, and a real one for a while.

What the last learns, how fast it is, and what the GPU waits for.
"""

import contextlib
import dataclasses
import math
import os
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu.section import Context, Row
from gnfast.bench.critics import shipped
from gnfast.bench.iteration import noise, settings
from gnfast.config.config import Config
from gnfast.config.presets import PRESETS
from gnfast.io.rows import read_rows
from gnfast.train.loop import train
from gnfast.train.sample import sample_run
from gnfast.train.spent import Spent
from gnfast.train.state import State

# An environment variable: images to train on, a folder or archive; handwritten digits if it is not set.
DATA = "GNFAST_TRAIN_DATA"
NAME = "gngan-cifar10-cnn"


def captured_iteration(context: Context) -> Iterator[Row]:
    """A whole captured iteration, three times as it is and twice replayed."""
    network = shipped("ResNet 32", width=0.05 if context.quick else 1.0)
    with graph_mode(context):
        state = State(settings(network, 2 if context.quick else 64), noise(network, 256), torch.device(context.device))
        for _ in range(5):
            state.update()
        losses = state.take_losses()
    graph = state.captured is not None
    yield {"graph": graph, "losses": losses}
    if not graph or not all(map(math.isfinite, losses.values())):
        raise AssertionError(f"a captured iteration: {'not captured' if not graph else losses}")


def short_training(context: Context) -> Iterator[Row]:
    """`train()` with all that it does on the way, stopped in the middle and continued."""
    last, every = (8, 4) if context.quick else (60, 10)
    often = dict.fromkeys(("log_every", "sample_every", "checkpoint_every", "probe_every"), every)
    with tempfile.TemporaryDirectory() as folder, graph_mode(context):
        config = Config(data="digits", channels=1, resolution=32, **_settings(context, folder), **often)
        for steps in (last // 2, last):
            outcome = train("smoke", dataclasses.replace(config, steps=steps), progress=False, echo=print)
        rows = read_rows(Path(folder, "metrics.jsonl"))
    yield {"steps": outcome.step, "finished": outcome.finished, "rows": len(rows), "last": rows[-1]}
    if outcome.step != last or not any("loss_generator" in row and row["step"] == last for row in rows):
        raise AssertionError(f"train() ended after step {outcome.step} of {last} with {len(rows)} rows")


def _settings(context: Context, folder: str) -> dict[str, Any]:
    small = {"width": 0.05, "batch_d": 4, "batch_g": 4} if context.quick else {}
    run = {"device": context.device, "precision": "bfloat16", "run_dir": folder, "data_root": folder}
    return run | small | {"tensorboard": False}


def training(context: Context) -> Iterator[Row]:
    """Trains `NAME` in bfloat16 for `context.seconds`; leaves its curves, samples, log and profile in the folder."""
    data = os.environ.get(DATA, "digits")
    changes = {"data": data, "channels": 1 if data == "digits" else 3, "extractor": "none"}
    often = {"checkpoint_every": 1000, "sample_every": 1000}
    with tempfile.TemporaryDirectory() as folder, graph_mode(context):
        config = dataclasses.replace(PRESETS[NAME].config, **changes, **often, **_settings(context, folder))
        # As Ctrl-C: the run saves what it has and ends.
        timer = threading.Timer(context.seconds, os.kill, (os.getpid(), signal.SIGINT))

        def echo(line: str) -> None:
            print(line, flush=True)
            if line.startswith(NAME) and not timer.ident:
                # The images are read, and training begins.
                timer.start()

        try:
            outcome = train(NAME, config, progress=False, echo=echo, profile=Spent())
        finally:
            timer.cancel()
        rows, speeds = (read_rows(Path(folder, name)) for name in ("metrics.jsonl", "speed.jsonl"))
        for name in ("metrics.jsonl", "curves.png", "profile.html"):
            # Without a row there are no curves.
            if Path(folder, name).exists():
                shutil.copyfile(Path(folder, name), context.out / name)
        # After a short run the moving average still shows much of the generator that it began with.
        sample_run(Path(folder), out=context.out / "samples.png", weights="raw", device=context.device)
    yield {
        "steps": outcome.step,
        "seconds": context.seconds,
        "steps_per_s": statistics.median(row["steps_per_second"] for row in speeds) if speeds else None,
        "data": Path(data).name,
        "last": rows[-1] if rows else None,
    }
    yield _waiting(context, dataclasses.replace(config, run_dir=""))


def _waiting(context: Context, config) -> Row:
    """Where a step's time goes: the host's, the device's, and what the device waits in between."""
    steps = 3 if context.quick else 100
    network = shipped("CNN 32")
    images = noise(dataclasses.replace(network, shape=(config.channels, 32, 32)), 1024)
    with graph_mode(context):
        state = State(config, images, torch.device(context.device))
        for _ in range(5):
            state.update()
        state.take_losses()
        started = time.perf_counter()
        for _ in range(steps):
            state.update()
        host = time.perf_counter() - started
        state.take_losses()
        wall = time.perf_counter() - started
        seconds = {"wall": wall, "host": host}
        row = {"what": "one step, ms"} | {name: round(1e3 * total / steps, 4) for name, total in seconds.items()}
        if context.device == "cuda":
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                for _ in range(10):
                    state.update()
                torch.cuda.synchronize()
            busy = sum(event.self_device_time_total for event in profile.key_averages()) / 10 / 1e3
            row |= {"device_busy": round(busy, 4), "device_waits": round(max(row["wall"] - busy, 0.0), 4)}
    return row


def graph_mode(context: Context) -> contextlib.AbstractContextManager[Any]:
    """In a dry run, whatever training does because of CUDA graphs is done on the CPU too, and the graph is not."""
    if context.device == "cuda":
        return contextlib.nullcontext()
    return mock.patch.object(State, "_can_be_captured", lambda state: state.config.cuda_graph)
