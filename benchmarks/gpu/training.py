"""A real training run for a while: what it learns, how fast it is, and what the GPU waits for."""

import dataclasses
import os
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.section import Context, Row
from benchmarks.gpu.smoke import graph_mode

# An environment variable: images to train on, a folder or archive; handwritten digits if it is not set.
DATA = "GNFAST_TRAIN_DATA"
NAME = "gngan-cifar10-cnn"


def training(context: Context) -> Iterator[Row]:
    """Trains `NAME` in bfloat16 for `context.seconds`, and leaves its curves, samples and log in the folder."""
    from gnfast.config.presets import PRESETS
    from gnfast.io.rows import read_rows
    from gnfast.train.loop import train
    from gnfast.train.sample import sample_run

    config = PRESETS[NAME].config
    data = os.environ.get(DATA, "digits")
    changes = {"data": data, "channels": 1 if data == "digits" else 3, "precision": "bfloat16", "extractor": "none"}
    if context.quick:
        changes |= {"width": 0.05, "batch_d": 4, "batch_g": 4}
    with tempfile.TemporaryDirectory() as folder, graph_mode(context):
        own = {"device": context.device, "run_dir": folder, "data_root": folder, "tensorboard": False}
        config = dataclasses.replace(config, **changes, **own, checkpoint_every=1000, sample_every=1000)
        # As Ctrl-C: the run saves what it has and ends.
        timer = threading.Timer(context.seconds, os.kill, (os.getpid(), signal.SIGINT))

        def echo(line: str) -> None:
            print(line, flush=True)
            if line.startswith(NAME) and not timer.ident:
                # The images are read, and training begins.
                timer.start()

        try:
            outcome = train(NAME, config, progress=False, echo=echo)
        finally:
            timer.cancel()
        rows, speeds = (read_rows(Path(folder, name)) for name in ("metrics.jsonl", "speed.jsonl"))
        for name in ("metrics.jsonl", "curves.png"):
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
    """Where a step's time goes: the device's, the host's for what it draws, and what the device waits in between."""
    import torch

    from gnfast.bench.iteration import noise
    from gnfast.bench.networks import shipped
    from gnfast.train.state import State

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
        started = time.perf_counter()
        for _ in range(steps):
            list(state.draws())
        drawing = time.perf_counter() - started
        row = {"what": "one step, ms", "wall": wall, "host": host, "host_drawing": drawing}
        row = {name: value if isinstance(value, str) else round(1e3 * value / steps, 4) for name, value in row.items()}
        if context.device == "cuda":
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                for _ in range(10):
                    state.update()
                torch.cuda.synchronize()
            busy = sum(event.self_device_time_total for event in profile.key_averages()) / 10 / 1e3
            row |= {"device_busy": round(busy, 4), "device_waits": round(max(row["wall"] - busy, 0.0), 4)}
    return row
