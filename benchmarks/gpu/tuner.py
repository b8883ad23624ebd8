"""What the tuner makes of a critic's step: how much faster, and what it has chosen."""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch

from benchmarks.gpu.section import Context, Row
from gnfast.bench.clock import interleaved_ms
from gnfast.bench.critics import shipped
from gnfast.bench.gate import relative_error
from gnfast.bench.graph import captured
from gnfast.bench.mode import tuned
from gnfast.engine.functional import normalize_gradient


def tuner(context: Context) -> Iterator[Row]:
    """The critic's step as it is and with what the tuner has chosen, compared first, and the choices."""
    device, batch = torch.device(context.device), 2 if context.quick else 128
    layout = torch.channels_last
    for name in ("CNN 32", "ResNet 32"):
        network = shipped(name, width=0.05 if context.quick else 1.0)
        net = network.critic(torch.bfloat16, layout).to(device)
        x = network.images(batch, torch.bfloat16, layout).to(device)

        def step(net=net, x=x):
            net.zero_grad(set_to_none=True)
            f_hat = normalize_gradient(net, x, strict=True)
            f_hat.float().square().sum().backward()
            return f_hat

        with tuned("bfloat16").active(device), tempfile.TemporaryDirectory() as folder:
            plain = captured(step, device)
            expected = plain().clone()
            with mock.patch.dict(os.environ, GNFAST_AUTOTUNE="1", GNFAST_CACHE=folder):
                started = time.monotonic()
                chosen = captured(step, device)
                seconds = time.monotonic() - started
            files = Path(folder).glob("*.json")
            choices = {key: value for file in files for key, value in json.loads(file.read_text()).items()}
            error = relative_error(chosen(), expected)
            times = interleaved_ms({"default": plain, "tuned": chosen}, rounds=1 if context.quick else 15)
        yield {
            "network": name,
            "batch": batch,
            "precision": "bfloat16",
            "times": times,
            "tuned_over_default": round(times["tuned"]["median_ms"] / times["default"]["median_ms"], 3),
            "differs_by": error,
            "seconds_of_tuning": round(seconds, 1),
            "choices": choices,
        }
