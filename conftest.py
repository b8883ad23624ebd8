import dataclasses
import os
import re
import signal
import sys

import pytest
import torch

from gnfast.kernels.compiled import notice

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_LONG = re.compile(
    "test_(analysis_(cli|compare|drawings)|buckets|build|conv|cuda_compile|ddp|examples|forks|frechet|gpu_run|head|"
    "hostile_files|interpreter|join|metrics_inception|metrics_scores|mlp|random_networks|report|reproduce|reuse|sign_bits|site|"
    "sweep|train_(captured|parallel))"
)
"""Files of tests that take long, or share what does. They begin first: then no process waits for one at the end, nor is
what they share made twice."""
_lost_in: str | None = None
"""The test after which the device no longer answered."""


def pytest_configure(config):
    # Hundreds of tests would skip, and the rest be green without having seen what they are about.
    if line := notice():
        raise pytest.UsageError(f"{line}; or GNFAST_BUILD=none to test plain PyTorch's operations")
    # One worker per core: more threads than that only wait for each other.
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)
    if INTERPRETED:
        from triton.runtime.interpreter import interpreter_builder as builder

        # Half of all time would go into checks for integers that overflow, which with small tensors none does.
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not _LONG.fullmatch(item.path.stem))
    missing = {}
    if not torch.cuda.is_available():
        missing["gpu"] = "needs a CUDA device: run by make gpu"
    if not INTERPRETED:
        missing["interpreted"] = "needs Triton's interpreter: run by test_interpreter.py"
    for item in items:
        for name in missing.keys() & item.keywords:
            item.add_marker(pytest.mark.skip(reason=missing[name]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.failed and torch.cuda.is_initialized():
        global _lost_in
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            _lost_in = item.nodeid
    return report


def pytest_runtest_setup(item):
    # An error of the device stays with its process, and every later test would fail with it. Another worker takes over;
    # that this test crashed is the price.
    if _lost_in is not None and hasattr(item.config, "workerinput"):
        print(f"{item.nodeid} was not run: the device was lost in {_lost_in}", file=sys.__stderr__, flush=True)
        os._exit(1)


@pytest.fixture
def heard():
    """Signals as from a terminal, here and in processes started here: under nohup or a shell's & some are ignored."""
    defaults = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, default) for number, default in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
