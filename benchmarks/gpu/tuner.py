"""What the tuner makes of the critics' steps, and the table of its choices, as it ships."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from unittest import mock

import torch

from benchmarks.gpu.section import Context, Row
from benchmarks.gpu.sections import PRECISIONS
from gnfast.bench.case import CAPTURED, EAGER, Setup, free
from gnfast.bench.cases import critic_cases, generator_cases
from gnfast.bench.clock import interleaved_ms
from gnfast.bench.critics import shipped
from gnfast.bench.gate import Gate
from gnfast.kernels import tuning_table

SMALL, MEDIUM = ("CNN 32", "ResNet 32"), ("CNN 48", "ResNet 48")
GROUPS = ((SMALL, 128, True), (SMALL, 64, True), (MEDIUM, 128, True), (SMALL, 128, False), (SMALL, 64, False))
"""Critics; images: 64 real ones, or as many generated ones with them; and whether cuDNN searches, as the training
program lets it and PyTorch by itself does not. The most used first."""


def tuner(context: Context) -> Iterator[Row]:
    """The critic's step as it is and with what the tuner has chosen, compared first.

    The choices are a file in the folder of the results, as it ships (docs/gpu.md), which grows row by row.
    """
    device = torch.device(context.device)
    groups = GROUPS[:1] if context.quick else GROUPS
    cases = [(*case, batch, searches) for names, batch, searches in groups for case in product(names, PRECISIONS)]
    with tempfile.TemporaryDirectory() as folder:
        for name, precision, batch, searches in cases:
            setup = Setup(device, precision, 2 if context.quick else batch, graphs=True)
            yield _row(context, name, setup, searches, folder)
            for file in Path(folder).glob("tuning_*.json"):
                shutil.copy(file, context.out / tuning_table.file_name(device))
            free()


def _row(context: Context, name: str, setup: Setup, searches: bool, folder: str) -> Row:
    network = shipped(name, width=0.05 if context.quick else 1.0)
    (case,), (of_generator,) = critic_cases(network, setup), generator_cases(network, setup)
    ways = {"default": partial(_tuning, "0", folder), "tuned": partial(_tuning, "1", folder)}
    before = _choices(folder)
    with replace(setup.tuned, search=searches).active(setup.device):
        with ways["default"]():
            steps = {"default": case.variants[CAPTURED].make()}
        with ways["tuned"]():
            started = time.monotonic()
            steps["tuned"] = case.variants[CAPTURED].make()
            result = steps["tuned"]()
            of_generator.variants[EAGER].make()()
            seconds = time.monotonic() - started
        error, passes = Gate(case).check(CAPTURED, result)
        if not passes:
            raise AssertionError(f"{name}, {setup.batch} images, {setup.precision}: with the tuner's choices {error}")
        rounds = 1 if context.quick else 15
        times = interleaved_ms(steps, rounds=rounds, around=lambda way: ways[way]())
    choices = [choice for key, choice in _choices(folder).items() if key not in before]
    return {
        "network": name,
        "batch": setup.batch,
        "precision": setup.precision,
        "cudnn_searches": searches,
        "times": times,
        "tuned_over_default": round(times["tuned"]["median_ms"] / times["default"]["median_ms"], 3),
        "error_values": error.values,
        "error_gradients": error.gradients,
        "seconds_of_tuning": round(seconds, 1),
        "choices": len(choices),
        "other_than_default": sum(ratio != 1.0 for _, ratio in choices),
    }


def _tuning(value: str, folder: str) -> AbstractContextManager[object]:
    return mock.patch.dict(os.environ, GNFAST_AUTOTUNE=value, GNFAST_CACHE=folder)


def _choices(folder: str) -> dict[str, tuning_table.Choice]:
    """What is there so far."""
    tables = map(tuning_table.read, Path(folder).glob("*.json"))
    return {key: choice for table in tables for key, choice in table["choices"].items()}
